/* A raw-socket initiator that costs as little as can be, so that it does not hide what the target costs: it logs in,
 * then sends commands that were prepared beforehand; what it reads is counted and thrown away (with digests: checked
 * first).  Each session is one connection; each of its `depth` lanes has one command under way.  Error level 0: any
 * surprise ends the run. */
#include "common.h"
#include "wire.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum { RECEIVE = 1 << 20, VECTORS = 1 << 13, PACE_MS = 5 };

struct segment {               /* one Data-Out, header ready */
    uint8_t header[BHS + DIGEST];
    uint8_t digest[DIGEST];
};

struct lane {
    uint8_t header[BHS + DIGEST];
    uint8_t digest[DIGEST];    /* of the immediate data */
    struct segment *segments;  /* of the data that R2Ts ask for */
    unsigned segments_used;
    uint64_t begun;
    size_t got;                /* bytes of Data-In */
    bool reading, flushing;
};

struct session {
    int fd;
    unsigned number;
    uint32_t cmd_sn, max_cmd_sn, exp_stat_sn;
    struct lane *lanes;
    unsigned *ready;           /* lanes that have nothing under way */
    unsigned ready_count, under_way;
    struct iovec *vectors;     /* to be sent: from `first` to `last` */
    size_t first, last;
    /* the PDU that is arriving */
    uint8_t header[BHS + DIGEST];
    size_t have, body, data_left;
    uint32_t crc;
    uint8_t trailer[DIGEST];
    size_t trailer_have;
    uint8_t nop[BHS + DIGEST];
};

static struct options options;
static struct work work;
static struct meter meter;
static bool going = true;
static uint8_t *noise;         /* what is written */
static uint8_t *received;
static size_t immediate_bytes; /* data that goes with the command */
static size_t segment_bytes;   /* of one Data-Out */
static size_t burst_bytes;     /* of what one R2T asks for */
static size_t bhs = BHS;

/* --- login */

static void send_all(int fd, const void *data, size_t length)
{
    for (const uint8_t *at = data; length;) {
        ssize_t sent = send(fd, at, length, MSG_NOSIGNAL);
        if (sent <= 0)
            fail("send: %s", strerror(errno));
        at += sent;
        length -= (size_t)sent;
    }
}

static void receive_all(int fd, void *data, size_t length)
{
    for (uint8_t *at = data; length;) {
        ssize_t got = recv(fd, at, length, 0);
        if (got <= 0)
            fail("the target closed the connection during login");
        at += got;
        length -= (size_t)got;
    }
}

static size_t value_of(const char *text, size_t length, const char *key, size_t otherwise)
{
    size_t key_length = strlen(key);
    for (const char *at = text; at < text + length; at += strlen(at) + 1)
        if (!strncmp(at, key, key_length) && at[key_length] == '=') {
            const char *value = at + key_length + 1;
            if (!strcmp(value, "Yes") || !strcmp(value, "No"))
                return *value == 'Y';
            return strtoul(value, NULL, 10);
        }
    return otherwise;
}

static bool agreed(const char *text, size_t length, const char *line)
{
    for (const char *at = text; at < text + length; at += strlen(at) + 1)
        if (!strcmp(at, line))
            return true;
    return false;
}

static int connect_to(void)
{
    char port[8];
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    snprintf(port, sizeof port, "%d", options.port);
    if (getaddrinfo(options.address, port, &hints, &found))
        fail("no such address: %s", options.address);
    int fd = socket(found->ai_family, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, found->ai_addr, found->ai_addrlen))
        fail("%s port %s: %s", options.address, port, strerror(errno));
    freeaddrinfo(found);
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

static size_t login_keys(char *text, size_t room, unsigned number)
{
    const char *digest = options.digests ? "CRC32C" : "None";
    char line[4][300];
    snprintf(line[0], sizeof line[0], "InitiatorName=%s%u", options.initiator, number);
    snprintf(line[1], sizeof line[1], "TargetName=%s", options.target);
    snprintf(line[2], sizeof line[2], "HeaderDigest=%s", digest);
    snprintf(line[3], sizeof line[3], "DataDigest=%s", digest);
    const char *lines[] = {line[0], line[1], line[2], line[3], "SessionType=Normal", "InitialR2T=No",
                           "ImmediateData=Yes", "MaxRecvDataSegmentLength=262144", "MaxBurstLength=1048576",
                           "FirstBurstLength=262144", "MaxOutstandingR2T=1", "MaxConnections=1",
                           "ErrorRecoveryLevel=0"};
    size_t used = 0;
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        size_t length = strlen(lines[i]) + 1;
        if (used + length > room)
            fail("the target's name is too long");
        memcpy(text + used, lines[i], length);
        used += length;
    }
    return used;
}

/* The negotiated limits on what is sent. */
static void take_keys(const char *text, size_t length)
{
    size_t theirs = value_of(text, length, "MaxRecvDataSegmentLength", 8192);
    size_t first_burst = value_of(text, length, "FirstBurstLength", 65536);
    size_t segment = theirs < SEGMENT ? theirs : SEGMENT;
    if (options.digests && (!agreed(text, length, "HeaderDigest=CRC32C") || !agreed(text, length, "DataDigest=CRC32C")))
        fail("the target takes no digests");
    size_t immediate = first_burst < segment ? first_burst : segment;
    if (!value_of(text, length, "ImmediateData", 1))
        immediate = 0;
    immediate_bytes = immediate < options.bytes ? immediate : options.bytes;
    segment_bytes = segment;
    burst_bytes = value_of(text, length, "MaxBurstLength", 262144);
}

static void log_in(struct session *s)
{
    uint8_t header[BHS] = {LOGIN | IMMEDIATE, 0x87};  /* operational stage, on to the full feature phase */
    char text[16384] = {0};
    size_t length = login_keys(text, 2048, s->number);
    s->cmd_sn = 1;
    header[8] = 0x80;
    put32(header + 9, s->number + 1);                 /* ISID: random format */
    put32(header + 24, s->cmd_sn);
    char told[16384];
    size_t told_length = 0;
    for (int turn = 0; turn < 8; turn++) {
        put24(header + 5, (uint32_t)length);
        send_all(s->fd, header, BHS);
        send_all(s->fd, text, padded(length));
        receive_all(s->fd, s->header, BHS);
        size_t more = get24(s->header + 5);
        if (told_length + padded(more) > sizeof told)
            fail("the target says too much at login");
        receive_all(s->fd, told + told_length, padded(more));
        if (s->header[0] != LOGIN_RESPONSE || s->header[36])
            fail("login refused: status %02x%02x", s->header[36], s->header[37]);
        told_length += more;
        s->exp_stat_sn = get32(s->header + 24) + 1;
        s->max_cmd_sn = get32(s->header + 32);
        put32(header + 28, s->exp_stat_sn);
        if ((s->header[1] & 0x83) == 0x83) {
            take_keys(told, told_length);
            return;
        }
        length = 0;
    }
    fail("login does not come to an end");
}

/* --- sending */

static void queue(struct session *s, void *data, size_t length)
{
    if (s->last == VECTORS) {
        memmove(s->vectors, s->vectors + s->first, (s->last - s->first) * sizeof *s->vectors);
        s->last -= s->first;
        s->first = 0;
        if (s->last == VECTORS)
            fail("too much is waiting to be sent");
    }
    s->vectors[s->last++] = (struct iovec){data, length};
}

/* As much as goes without waiting. */
static void push(struct session *s)
{
    while (s->first < s->last) {
        size_t count = s->last - s->first;
        struct msghdr message = {.msg_iov = s->vectors + s->first, .msg_iovlen = count < 1024 ? count : 1024};
        ssize_t sent = sendmsg(s->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EAGAIN || errno == EINTR)
                return;
            fail("send: %s", strerror(errno));
        }
        while (sent) {
            struct iovec *at = s->vectors + s->first;
            size_t part = (size_t)sent < at->iov_len ? (size_t)sent : at->iov_len;
            at->iov_base = (uint8_t *)at->iov_base + part;
            at->iov_len -= part;
            sent -= (ssize_t)part;
            s->first += !at->iov_len;
        }
    }
    s->first = s->last = 0;
}

static void seal_header(uint8_t *header)
{
    if (options.digests) {
        uint32_t digest = crc32c(0, header, BHS);
        memcpy(header + BHS, &digest, DIGEST);
    }
}

static void prepare_lane(struct lane *lane, unsigned number, uint8_t *data)
{
    put_lun(lane->header, (unsigned)options.lun);
    put32(lane->header + 16, number);
    uint32_t digest = crc32c(0, data, immediate_bytes);
    memcpy(lane->digest, &digest, DIGEST);
    size_t count = (options.bytes - immediate_bytes + segment_bytes - 1) / segment_bytes + 2;
    lane->segments = calloc(count, sizeof *lane->segments);
    if (!lane->segments)
        fail("no memory");
}

/* Each lane writes other bytes than its neighbours. */
static uint8_t *data_of(unsigned lane)
{
    return noise + lane % 64 * 64;
}

static void begin(struct session *s, unsigned number, bool flush)
{
    struct lane *lane = s->lanes + number;
    uint8_t *header = lane->header, *cdb = header + 32;
    lane->flushing = flush;
    lane->got = 0;
    lane->segments_used = 0;
    header[0] = COMMAND;
    put32(header + 24, s->cmd_sn++);
    put32(header + 28, s->exp_stat_sn);
    memset(cdb, 0, 16);
    put24(header + 5, 0);
    if (flush) {
        lane->reading = false;
        header[1] = PLAIN_FLAGS;
        put32(header + 20, 0);
        cdb[0] = SYNCHRONIZE_CACHE_10;
    } else {
        uint64_t place = work_place(&work, s->number), places = options.size / options.bytes;
        uint64_t lba = place % places * (options.bytes / SECTOR);
        if (options.luns > 1)
            put_lun(header, (unsigned)options.lun + (unsigned)(place / places));
        lane->reading = work_reads(&work);
        header[1] = lane->reading ? READ_FLAGS : WRITE_FLAGS;
        put32(header + 20, options.bytes);
        cdb[0] = lane->reading ? READ_10 : WRITE_10;
        put32(cdb + 2, (uint32_t)lba);
        cdb[7] = (uint8_t)(options.bytes / SECTOR >> 8);
        cdb[8] = (uint8_t)(options.bytes / SECTOR);
        if (!lane->reading)
            put24(header + 5, (uint32_t)immediate_bytes);
    }
    seal_header(header);
    s->under_way++;
    queue(s, header, bhs);
    if (!flush && !lane->reading && immediate_bytes) {
        queue(s, data_of(number), immediate_bytes);
        if (options.digests)
            queue(s, lane->digest, DIGEST);
    }
}

/* With a limit, whether the next command's time has come. */
static bool due(void)
{
    return !options.limit || work.begun * 1000000000u <= (now_ns() - meter.started) * options.limit;
}

static void fill_window(struct session *s)
{
    if (!going)
        return;
    uint64_t begun = s->ready_count ? now_ns() : 0;
    while (s->ready_count && (int32_t)(s->max_cmd_sn - s->cmd_sn) >= 0 && due()) {
        unsigned number = s->ready[--s->ready_count];
        s->lanes[number].begun = begun;
        begin(s, number, false);
    }
}

/* RFC 7143 11.8 */
static void answer_r2t(struct session *s)
{
    const uint8_t *header = s->header;
    unsigned number = get32(header + 16);
    uint32_t offset = get32(header + 40), length = get32(header + 44), data_sn = 0;
    if (number >= options.depth || (uint64_t)offset + length > options.bytes)
        fail("an R2T for what was not offered");
    struct lane *lane = s->lanes + number;
    while (length) {
        uint32_t part = length < segment_bytes ? length : (uint32_t)segment_bytes;
        struct segment *segment = lane->segments + lane->segments_used++;
        uint8_t *out = segment->header, *data = data_of(number) + offset;
        memset(out, 0, BHS);
        out[0] = DATA_OUT;
        out[1] = part == length ? FINAL : 0;
        put24(out + 5, part);
        memcpy(out + 8, lane->header + 8, 2);         /* the LUN */
        memcpy(out + 16, header + 16, 8);             /* both tags */
        put32(out + 28, s->exp_stat_sn);
        put32(out + 36, data_sn++);
        put32(out + 40, offset);
        seal_header(out);
        queue(s, out, bhs);
        queue(s, data, part);
        if (options.digests) {
            uint32_t digest = crc32c(0, data, part);
            memcpy(segment->digest, &digest, DIGEST);
            queue(s, segment->digest, DIGEST);
        }
        offset += part;
        length -= part;
    }
}

/* --- receiving */

static void ended(struct session *s, unsigned number, unsigned status)
{
    struct lane *lane = s->lanes + number;
    if (status)
        fail("a command ended with status %02xh", status);
    if (lane->reading && lane->got != options.bytes)
        fail("a read of %u bytes gave %zu", options.bytes, lane->got);
    s->under_way--;
    if (options.flush && !lane->reading && !lane->flushing) {
        begin(s, number, true);
        return;
    }
    s->ready[s->ready_count++] = number;
    if (going && !meter_took(&meter, lane->begun, now_ns(), lane->reading))
        going = false;
}

static void answer_nop(struct session *s)
{
    if (get32(s->header + 20) == NO_TAG)
        return;
    memset(s->nop, 0, BHS);
    s->nop[0] = NOP_OUT | IMMEDIATE;
    s->nop[1] = FINAL;
    memcpy(s->nop + 8, s->header + 8, 8);
    put32(s->nop + 16, NO_TAG);
    memcpy(s->nop + 20, s->header + 20, 4);
    put32(s->nop + 24, s->cmd_sn);
    put32(s->nop + 28, s->exp_stat_sn);
    seal_header(s->nop);
    queue(s, s->nop, bhs);
}

static void take_pdu(struct session *s)
{
    const uint8_t *header = s->header;
    unsigned opcode = header[0] & 0x3F, number = get32(header + 16);
    bool status = opcode == RESPONSE || (opcode == DATA_IN && header[1] & WITH_STATUS);
    if (status || opcode == NOP_IN || opcode == ASYNC)
        s->exp_stat_sn = get32(header + 24) + (status || get32(header + 16) != NO_TAG);
    s->max_cmd_sn = get32(header + 32);
    if ((opcode == DATA_IN || opcode == RESPONSE) && number >= options.depth)
        fail("an answer to nothing");
    if (opcode == DATA_IN)
        s->lanes[number].got += get24(header + 5);
    if (status)
        ended(s, number, header[3]);
    else if (opcode == R2T)
        answer_r2t(s);
    else if (opcode == NOP_IN)
        answer_nop(s);
    else if (opcode != DATA_IN && opcode != ASYNC)
        fail("an unexpected PDU: opcode %02xh", opcode);
}

static void header_is_here(struct session *s)
{
    uint32_t found;
    memcpy(&found, s->header + BHS, DIGEST);
    if (options.digests && crc32c(0, s->header, BHS) != found)
        fail("a header digest is wrong");
    s->data_left = padded(get24(s->header + 5)) + 4u * s->header[4];
    s->body = s->data_left + (options.digests && get24(s->header + 5) ? DIGEST : 0);
    s->crc = 0;
    s->trailer_have = 0;
    s->have = 0;
}

static size_t take_body(struct session *s, const uint8_t *at, size_t length)
{
    size_t part;
    if (s->data_left) {
        part = length < s->data_left ? length : s->data_left;
        if (options.digests)
            s->crc = crc32c(s->crc, at, part);
        s->data_left -= part;
    } else {
        part = length < DIGEST - s->trailer_have ? length : DIGEST - s->trailer_have;
        memcpy(s->trailer + s->trailer_have, at, part);
        s->trailer_have += part;
        if (s->trailer_have == DIGEST && memcmp(s->trailer, &s->crc, DIGEST))
            fail("a data digest is wrong");
    }
    s->body -= part;
    return part;
}

static void take_bytes(struct session *s, const uint8_t *at, size_t length)
{
    while (length) {
        size_t part;
        if (s->body) {
            part = take_body(s, at, length);
        } else {
            part = length < bhs - s->have ? length : bhs - s->have;
            memcpy(s->header + s->have, at, part);
            s->have += part;
            if (s->have < bhs)
                return;
            header_is_here(s);
        }
        at += part;
        length -= part;
        if (!s->body)
            take_pdu(s);
    }
}

static void receive(struct session *s, int flags)
{
    ssize_t got = recv(s->fd, received, RECEIVE, flags);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got <= 0)
        fail("the target closed the connection");
    take_bytes(s, received, (size_t)got);
    fill_window(s);
    push(s);
}

/* --- life */

/* Unit attentions are reported once each. */
static void get_ready(struct session *s, unsigned lun)
{
    uint8_t header[BHS + DIGEST], body[4096 + 8];
    for (int turn = 0; turn < 10; turn++) {
        memset(header, 0, BHS);
        header[0] = COMMAND;
        header[1] = PLAIN_FLAGS;
        put_lun(header, lun);
        put32(header + 24, s->cmd_sn++);
        put32(header + 28, s->exp_stat_sn);
        seal_header(header);
        send_all(s->fd, header, bhs);
        receive_all(s->fd, header, bhs);
        size_t length = get24(header + 5);
        if (length > 4096)
            fail("too much sense data");
        receive_all(s->fd, body, padded(length) + (length && options.digests ? DIGEST : 0));
        s->exp_stat_sn = get32(header + 24) + 1;
        s->max_cmd_sn = get32(header + 32);
        if (!header[3])
            return;
    }
    fail("LUN %u is not ready", lun);
}

static void open_session(struct session *s, unsigned number)
{
    s->number = number;
    s->fd = connect_to();
    log_in(s);
    bhs = BHS + (options.digests ? DIGEST : 0);
    for (unsigned i = 0; i < options.luns; i++)
        get_ready(s, (unsigned)options.lun + i);
    s->lanes = calloc(options.depth, sizeof *s->lanes);
    s->ready = calloc(options.depth, sizeof *s->ready);
    s->vectors = calloc(VECTORS, sizeof *s->vectors);
    if (!s->lanes || !s->ready || !s->vectors)
        fail("no memory");
    for (unsigned i = 0; i < options.depth; i++) {
        prepare_lane(s->lanes + i, i, data_of(i));
        s->ready[s->ready_count++] = i;
    }
}

static unsigned under_way(const struct session *sessions)
{
    unsigned sum = 0;
    for (unsigned i = 0; i < options.sessions; i++)
        sum += sessions[i].under_way;
    return sum;
}

static void run(struct session *sessions)
{
    struct pollfd polled[256];
    bool reported = false;
    for (unsigned i = 0; i < options.sessions; i++) {
        fill_window(sessions + i);
        push(sessions + i);
    }
    while (under_way(sessions) || (going && options.limit)) {
        if (options.sessions == 1 && !options.limit && sessions->first == sessions->last) {
            receive(sessions, 0);
        } else {
            for (unsigned i = 0; i < options.sessions; i++) {
                bool pending = sessions[i].first < sessions[i].last;
                polled[i] = (struct pollfd){sessions[i].fd, (short)(POLLIN | (pending ? POLLOUT : 0)), 0};
            }
            if (poll(polled, options.sessions, options.limit ? PACE_MS : -1) < 0 && errno != EINTR)
                fail("poll: %s", strerror(errno));
            for (unsigned i = 0; i < options.sessions; i++) {
                if (polled[i].revents & POLLOUT)
                    push(sessions + i);
                if (polled[i].revents & ~POLLOUT)
                    receive(sessions + i, MSG_DONTWAIT);
                if (options.limit) {
                    fill_window(sessions + i);
                    push(sessions + i);
                }
            }
        }
        if (!going && !reported) {
            reported = true;
            meter_report(&meter);
        }
    }
}

int main(int argc, char **argv)
{
    parse(argc, argv, &options);
    size_t noise_bytes = options.bytes + 64 * 64;
    struct session *sessions = calloc(options.sessions, sizeof *sessions);
    noise = malloc(noise_bytes);
    received = malloc(RECEIVE);
    if (!sessions || !noise || !received)
        fail("no memory");
    work_begin(&work, &options);
    for (size_t i = 0; i < noise_bytes; i++)
        noise[i] = (uint8_t)(crc32c((uint32_t)options.seed, &i, sizeof i) >> 7);
    for (unsigned i = 0; i < options.sessions; i++)
        open_session(sessions + i, i);
    meter_begin(&meter, &options);
    meter.immediate = immediate_bytes;
    meter.segment = segment_bytes;
    meter.burst = burst_bytes;
    run(sessions);
    for (unsigned i = 0; i < options.sessions; i++)
        close(sessions[i].fd);
    return 0;
}
