/* The limit: what a target in C costs that does nothing but what cannot be left out.  It answers every login alike, and
 * then each READ with prepared headers after a pread, each WRITE after a pwrite, into one file, by one loop in one thread;
 * what arrived together is answered together.  No checks, no checksums, no map of blocks, no digests: a target that has
 * those can only come near.
 *
 *     bare_target PORT FILE
 */
#include "wire.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

enum { RECEIVE = 2 << 20, OUTPUT = 4 << 20, CONNECTIONS = 256, TASKS = 1024, WINDOW = 128, SECTOR = 512 };

struct gathering {             /* a WRITE whose data has not all come */
    uint32_t itt, left;
    uint64_t offset;
};

struct connection {
    int fd;
    int full_feature;
    uint32_t stat_sn, exp_cmd_sn;
    uint8_t *in, *out;
    size_t start, end, used, sent;
    struct gathering tasks[TASKS];
    unsigned gathering;
};

static int file;
static struct connection connections[CONNECTIONS];
static unsigned connected;

static _Noreturn void fail(const char *what)
{
    perror(what);
    exit(1);
}

/* The answer's header is at out + used; StatSN, ExpCmdSN, MaxCmdSN as they are now. */
static uint8_t *answer(struct connection *c, unsigned opcode, unsigned flags, const uint8_t *command, uint32_t length)
{
    uint8_t *header = c->out + c->used;
    memset(header, 0, BHS);
    header[0] = (uint8_t)opcode;
    header[1] = (uint8_t)flags;
    put24(header + 5, length);
    memcpy(header + 16, command + 16, 4);
    put32(header + 24, c->stat_sn);
    put32(header + 28, c->exp_cmd_sn);
    put32(header + 32, c->exp_cmd_sn + WINDOW - 1 - c->gathering);
    c->used += BHS + padded(length);
    return header;
}

static void good(struct connection *c, const uint8_t *command)
{
    answer(c, RESPONSE, FINAL, command, 0);
    c->stat_sn++;
}

static void login(struct connection *c, const uint8_t *pdu)
{
    static const char keys[] = "TargetPortalGroupTag=1\0HeaderDigest=None\0DataDigest=None\0InitialR2T=No\0"
        "ImmediateData=Yes\0MaxRecvDataSegmentLength=262144\0MaxBurstLength=1048576\0FirstBurstLength=262144\0"
        "MaxOutstandingR2T=1\0MaxConnections=1\0ErrorRecoveryLevel=0\0DefaultTime2Wait=2\0DefaultTime2Retain=0\0"
        "DataPDUInOrder=Yes\0DataSequenceInOrder=Yes";
    static const char no_login[] = "AuthMethod=None";
    int operational = (pdu[1] >> 2 & 3) == 1;
    c->exp_cmd_sn = get32(pdu + 24);
    uint32_t length = operational ? sizeof keys : sizeof no_login;
    uint8_t *header = answer(c, LOGIN_RESPONSE, pdu[1], pdu, length);
    memcpy(header + 8, pdu + 8, 6);
    header[15] = 1;
    memcpy(header + BHS, operational ? keys : no_login, length);
    memset(header + BHS + length, 0, padded(length) - length);
    c->stat_sn++;
    c->full_feature = (pdu[1] & 0x83) == 0x83;
}

static void read_command(struct connection *c, const uint8_t *pdu, uint64_t offset, uint32_t length)
{
    uint32_t done = 0, data_sn = 0;
    while (done < length) {
        uint32_t part = length - done < SEGMENT ? length - done : SEGMENT;
        int last = done + part == length;
        uint8_t *header = answer(c, DATA_IN, last ? FINAL | WITH_STATUS : 0, pdu, part);
        put32(header + 20, NO_TAG);
        put32(header + 36, data_sn++);
        put32(header + 40, done);
        if (pread(file, header + BHS, part, (off_t)(offset + done)) != (ssize_t)part)
            fail("pread");
        done += part;
    }
    c->stat_sn++;
}

static void store(const uint8_t *data, uint32_t length, uint64_t offset)
{
    if (length && pwrite(file, data, length, (off_t)offset) != (ssize_t)length)
        fail("pwrite");
}

static void write_command(struct connection *c, const uint8_t *pdu, uint64_t offset, uint32_t length)
{
    uint32_t given = get24(pdu + 5), itt = get32(pdu + 16);
    store(pdu + BHS, given, offset);
    if (given == length) {
        good(c, pdu);
        return;
    }
    c->gathering++;
    c->tasks[itt % TASKS] = (struct gathering){itt, length - given, offset};
    uint8_t *header = answer(c, R2T, FINAL, pdu, 0);
    put32(header + 20, itt + 1);
    put32(header + 40, given);
    put32(header + 44, length - given);
}

static void data_out(struct connection *c, const uint8_t *pdu)
{
    struct gathering *task = c->tasks + get32(pdu + 16) % TASKS;
    uint32_t length = get24(pdu + 5);
    store(pdu + BHS, length, task->offset + get32(pdu + 40));
    task->left -= length;
    if (!task->left) {
        c->gathering--;
        good(c, pdu);
    }
}

static void command(struct connection *c, const uint8_t *pdu)
{
    const uint8_t *cdb = pdu + 32;
    uint32_t length = get32(pdu + 20);
    uint64_t lba = cdb[0] & 0x80 ? (uint64_t)get32(cdb + 2) << 32 | get32(cdb + 6) : get32(cdb + 2);
    if (!(pdu[0] & IMMEDIATE))
        c->exp_cmd_sn++;
    switch (cdb[0]) {
    case READ_10: case READ_16: read_command(c, pdu, lba * SECTOR, length); break;
    case WRITE_10: case WRITE_16: write_command(c, pdu, lba * SECTOR, length); break;
    case SYNCHRONIZE_CACHE_10:
        if (fdatasync(file))
            fail("fdatasync");
        good(c, pdu);
        break;
    default: good(c, pdu);
    }
}

static void take(struct connection *c, const uint8_t *pdu)
{
    switch (pdu[0] & 0x3F) {
    case LOGIN: login(c, pdu); break;
    case COMMAND: command(c, pdu); break;
    case DATA_OUT: data_out(c, pdu); break;
    case LOGOUT: answer(c, LOGOUT_RESPONSE, FINAL, pdu, 0); c->stat_sn++; break;
    case NOP_OUT:
        if (get32(pdu + 16) != NO_TAG) {
            uint8_t *header = answer(c, NOP_IN, FINAL, pdu, 0);
            put32(header + 20, NO_TAG);
            c->stat_sn++;
        }
        break;
    default: errno = EPROTO; fail("an unexpected PDU");
    }
}

/* Everything whole that has come, as far as the longest answer has room. */
static void process(struct connection *c)
{
    while (c->end - c->start >= BHS && OUTPUT - c->used > (1 << 20) + 8 * BHS) {
        const uint8_t *pdu = c->in + c->start;
        size_t size = BHS + 4u * pdu[4] + padded(get24(pdu + 5));
        if (c->end - c->start < size)
            break;
        take(c, pdu);
        c->start += size;
    }
    if (c->start == c->end)
        c->start = c->end = 0;
    else if (c->end == RECEIVE || c->start > RECEIVE / 2) {
        memmove(c->in, c->in + c->start, c->end - c->start);
        c->end -= c->start;
        c->start = 0;
    }
}

static void push(struct connection *c)
{
    while (c->sent < c->used) {
        ssize_t sent = send(c->fd, c->out + c->sent, c->used - c->sent, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0)
            return; /* full, or gone: the next recv says so */
        c->sent += (size_t)sent;
    }
    c->sent = c->used = 0;
}

/* False when the connection is over. */
static int serve(struct connection *c, short events)
{
    if (events & POLLOUT)
        push(c);
    if (events & ~POLLOUT) {
        ssize_t got = recv(c->fd, c->in + c->end, RECEIVE - c->end, MSG_DONTWAIT);
        if (got == 0 || (got < 0 && errno != EAGAIN))
            return 0;
        if (got > 0)
            c->end += (size_t)got;
    }
    size_t before;
    do {
        before = c->end - c->start;
        process(c);
        push(c);
    } while (!c->used && c->end - c->start != before);
    return 1;
}

static void welcome(int listener)
{
    int on = 1, fd = accept(listener, NULL, NULL);
    if (fd < 0 || connected == CONNECTIONS)
        fail("accept");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct connection *c = connections + connected++;
    uint8_t *in = c->in ? c->in : malloc(RECEIVE), *out = c->out ? c->out : malloc(OUTPUT);
    if (!in || !out)
        fail("malloc");
    *c = (struct connection){.fd = fd, .stat_sn = 1, .in = in, .out = out};
}

static void bid_farewell(unsigned number)
{
    struct connection left = connections[number];
    close(left.fd);
    connections[number] = connections[--connected];
    connections[connected] = left;
}

int main(int argc, char **argv)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct pollfd polled[CONNECTIONS + 1];
    int on = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    if (argc != 3)
        return 2;
    address.sin_port = htons((uint16_t)atoi(argv[1]));
    file = open(argv[2], O_RDWR);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (file < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 64))
        fail(argv[2]);
    for (;;) {
        polled[0] = (struct pollfd){listener, connected < CONNECTIONS ? POLLIN : 0, 0};
        unsigned count = connected;
        for (unsigned i = 0; i < count; i++) {
            struct connection *c = connections + i;
            short wanted = (short)(c->used ? POLLOUT : POLLIN);
            polled[i + 1] = (struct pollfd){c->fd, wanted, 0};
        }
        if (poll(polled, count + 1, -1) < 0 && errno != EINTR)
            fail("poll");
        for (unsigned i = count; i-- > 0;) /* the last first: one that ends changes places with it */
            if (polled[i + 1].revents && !serve(connections + i, polled[i + 1].revents))
                bid_farewell(i);
        if (polled[0].revents)
            welcome(listener);
    }
}
