/* The same work by libiscsi, as QEMU uses it: its own buffers for what is read, one context for each session.
 * Header digests only: the library knows no data digests. */
#include "common.h"

#include <iscsi/iscsi.h>
#include <iscsi/scsi-lowlevel.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct lane {
    struct session *session;
    unsigned char *buffer;
    uint64_t begun;
    bool reading, flushing;
};

struct session {
    struct iscsi_context *iscsi;
    unsigned number;
    struct lane *lanes;
};

static struct options options;
static struct work work;
static struct meter meter;
static bool going = true;
static unsigned under_way;

static void begin(struct lane *lane, bool flush);

static void ended(struct iscsi_context *iscsi, int status, void *command_data, void *private_data)
{
    struct lane *lane = private_data;
    struct scsi_task *task = command_data;
    if (status != SCSI_STATUS_GOOD)
        fail("a command ended with status %02xh: %s", (unsigned)status, iscsi_get_error(iscsi));
    if (task->residual_status != SCSI_RESIDUAL_NO_RESIDUAL)
        fail("a command left a residual");
    scsi_free_scsi_task(task);
    under_way--;
    if (options.flush && !lane->reading && !lane->flushing) {
        begin(lane, true);
        return;
    }
    if (going && !meter_took(&meter, lane->begun, now_ns(), lane->reading))
        going = false;
    if (going) {
        lane->begun = now_ns();
        begin(lane, false);
    }
}

static void begin(struct lane *lane, bool flush)
{
    struct session *s = lane->session;
    struct scsi_task *task;
    lane->flushing = flush;
    if (flush) {
        lane->reading = false;
        task = iscsi_synchronizecache10_task(s->iscsi, options.lun, 0, 0, 0, 0, ended, lane);
    } else {
        uint64_t lba = work_place(&work, s->number) * (options.bytes / SECTOR);
        lane->reading = work_reads(&work);
        if (lane->reading) {
            task = iscsi_read16_task(s->iscsi, options.lun, lba, options.bytes, SECTOR, 0, 0, 0, 0, 0, ended, lane);
            if (task && scsi_task_add_data_in_buffer(task, (int)options.bytes, lane->buffer))
                fail("no memory");
        } else {
            task = iscsi_write16_task(s->iscsi, options.lun, lba, lane->buffer, options.bytes, SECTOR, 0, 0, 0, 0, 0,
                                      ended, lane);
        }
    }
    if (!task)
        fail("%s", iscsi_get_error(s->iscsi));
    under_way++;
}

static void open_session(struct session *s, unsigned number)
{
    char name[256], portal[300];
    snprintf(name, sizeof name, "%s%u", options.initiator, number);
    snprintf(portal, sizeof portal, "%s:%d", options.address, options.port);
    s->number = number;
    s->iscsi = iscsi_create_context(name);
    if (!s->iscsi)
        fail("no memory");
    iscsi_set_targetname(s->iscsi, options.target);
    iscsi_set_session_type(s->iscsi, ISCSI_SESSION_NORMAL);
    iscsi_set_header_digest(s->iscsi, options.digests ? ISCSI_HEADER_DIGEST_CRC32C : ISCSI_HEADER_DIGEST_NONE);
    if (iscsi_full_connect_sync(s->iscsi, portal, options.lun))
        fail("login: %s", iscsi_get_error(s->iscsi));
    s->lanes = calloc(options.depth, sizeof *s->lanes);
    if (!s->lanes)
        fail("no memory");
    for (unsigned i = 0; i < options.depth; i++) {
        struct lane *lane = s->lanes + i;
        lane->session = s;
        lane->buffer = malloc(options.bytes);
        if (!lane->buffer)
            fail("no memory");
        for (unsigned at = 0; at < options.bytes; at++)
            lane->buffer[at] = (unsigned char)((at + i) * 2654435761u >> 11);
    }
}

static void run(struct session *sessions)
{
    struct pollfd polled[256];
    bool reported = false;
    for (unsigned i = 0; i < options.sessions; i++)
        for (unsigned lane = 0; lane < options.depth; lane++) {
            sessions[i].lanes[lane].begun = now_ns();
            begin(sessions[i].lanes + lane, false);
        }
    while (under_way) {
        for (unsigned i = 0; i < options.sessions; i++)
            polled[i] = (struct pollfd){iscsi_get_fd(sessions[i].iscsi),
                                        (short)iscsi_which_events(sessions[i].iscsi), 0};
        if (poll(polled, options.sessions, 1000) < 0)
            fail("poll");
        for (unsigned i = 0; i < options.sessions; i++)
            if (iscsi_service(sessions[i].iscsi, polled[i].revents))
                fail("the connection is lost: %s", iscsi_get_error(sessions[i].iscsi));
        if (!going && !reported) {
            reported = true;
            meter_report(&meter);
        }
    }
}

int main(int argc, char **argv)
{
    parse(argc, argv, &options);
    if (options.limit || options.luns > 1)
        fail("--limit and --luns are the lean client's");
    struct session *sessions = calloc(options.sessions, sizeof *sessions);
    if (!sessions)
        fail("no memory");
    work_begin(&work, &options);
    for (unsigned i = 0; i < options.sessions; i++)
        open_session(sessions + i, i);
    meter_begin(&meter, &options);
    run(sessions);
    for (unsigned i = 0; i < options.sessions; i++)
        iscsi_logout_sync(sessions[i].iscsi);
    return 0;
}
