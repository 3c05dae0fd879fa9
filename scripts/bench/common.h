/* What both clients share: the options, the order of places, latencies, CPU time, and the report. */
#ifndef COMMON_H
#define COMMON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { SECTOR = 512, MOST_LUNS = 1 << 14 };

struct options {
    const char *address;
    const char *target;
    const char *initiator; /* each session appends its number */
    int port;
    int lun;
    unsigned luns;         /* so many from `lun` on, each of `size` bytes: commands go to all (the lean client only) */
    unsigned read_percent; /* 100 reads, 0 writes, between: a mix */
    bool sequential;
    bool flush;            /* SYNCHRONIZE CACHE after each write */
    bool digests;
    unsigned bytes;        /* of one command */
    unsigned depth;        /* commands under way in each session */
    unsigned sessions;
    unsigned stride;       /* sequential: so many places on each time */
    uint64_t commands;     /* end after so many; 0: by the clock */
    uint64_t limit;        /* commands begun in a second; 0: as many as go (the lean client only) */
    double seconds;
    double warmup;         /* not counted */
    uint64_t size;         /* bytes of the LUN that are used */
    uint64_t seed;
    int pid;               /* of the target: its CPU time is reported */
};

void parse(int argc, char **argv, struct options *options);

_Noreturn void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

uint64_t now_ns(void);

/* --- which command comes next */

struct work {
    const struct options *options;
    uint32_t *order;       /* random: every place once a turn, so that a cold run meets no block twice */
    uint64_t places;
    uint64_t at;
    uint64_t *next;        /* sequential: one stream for each session */
    uint64_t random;
    uint64_t begun;        /* commands */
};

void work_begin(struct work *work, const struct options *options);
uint64_t work_place(struct work *work, unsigned session); /* in units of options.bytes, over all LUNs */
bool work_reads(struct work *work);

/* --- what is measured */

enum { SUB_BITS = 6, BUCKETS = 64 << SUB_BITS };

struct meter {
    const struct options *options;
    uint64_t started, from, until; /* ns; counted is what ends between `from` and `until` */
    uint64_t count, reads, max_ns, sum_ns;
    uint64_t histogram[BUCKETS];   /* 64 buckets for each power of two: within 1.6 % */
    double target_cpu, own_cpu;    /* seconds at `from` */
    size_t immediate, segment, burst; /* bytes, as negotiated; reported if they are known */
    bool counting;
};

void meter_begin(struct meter *meter, const struct options *options);
/* A command has ended; false when the time (or the number of commands) is up. */
bool meter_took(struct meter *meter, uint64_t begun_ns, uint64_t ended_ns, bool read);
void meter_report(struct meter *meter);

#endif
