#include "common.h"

#include <dirent.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

_Noreturn void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* --- options */

static const struct option LONG[] = {
    {"address", required_argument, 0, 'a'},  {"port", required_argument, 0, 'p'},
    {"target", required_argument, 0, 't'},   {"lun", required_argument, 0, 'l'},
    {"read-percent", required_argument, 0, 'r'}, {"sequential", no_argument, 0, 'q'},
    {"flush", no_argument, 0, 'f'},          {"digests", no_argument, 0, 'g'},
    {"bytes", required_argument, 0, 'b'},    {"depth", required_argument, 0, 'd'},
    {"sessions", required_argument, 0, 'n'}, {"stride", required_argument, 0, 'k'},
    {"commands", required_argument, 0, 'c'}, {"seconds", required_argument, 0, 's'},
    {"warmup", required_argument, 0, 'w'},   {"size", required_argument, 0, 'z'},
    {"seed", required_argument, 0, 'x'},     {"pid", required_argument, 0, 'P'},
    {"limit", required_argument, 0, 'm'},    {"initiator", required_argument, 0, 'i'},
    {"luns", required_argument, 0, 'L'},
    {0, 0, 0, 0},
};

static uint64_t number(const char *text, uint64_t least, uint64_t most)
{
    char *end;
    unsigned long long value = strtoull(text, &end, 10);
    if (*end || end == text || value < least || value > most)
        fail("%s is not a number from %llu to %llu", text, (unsigned long long)least, (unsigned long long)most);
    return value;
}

static double duration(const char *text)
{
    char *end;
    double value = strtod(text, &end);
    if (*end || end == text || !(value >= 0 && value <= 1e6))
        fail("%s is not a number of seconds", text);
    return value;
}

void parse(int argc, char **argv, struct options *o)
{
    int key;
    *o = (struct options){.address = "127.0.0.1", .initiator = "iqn.2026-01.test.host:bench", .port = 3260, .read_percent = 100, .bytes = 4096, .depth = 1, .luns = 1,
                          .sessions = 1, .stride = 1, .seconds = 3, .size = 64u << 20, .seed = 1};
    while ((key = getopt_long(argc, argv, "", LONG, NULL)) != -1) {
        switch (key) {
        case 'a': o->address = optarg; break;
        case 'p': o->port = (int)number(optarg, 1, 65535); break;
        case 't': o->target = optarg; break;
        case 'l': o->lun = (int)number(optarg, 0, MOST_LUNS - 1); break;
        case 'L': o->luns = (unsigned)number(optarg, 1, MOST_LUNS); break;
        case 'r': o->read_percent = (unsigned)number(optarg, 0, 100); break;
        case 'q': o->sequential = true; break;
        case 'f': o->flush = true; break;
        case 'g': o->digests = true; break;
        case 'b': o->bytes = (unsigned)number(optarg, SECTOR, 16u << 20); break;
        case 'd': o->depth = (unsigned)number(optarg, 1, 1024); break;
        case 'n': o->sessions = (unsigned)number(optarg, 1, 256); break;
        case 'k': o->stride = (unsigned)number(optarg, 1, 1u << 20); break;
        case 'c': o->commands = number(optarg, 1, UINT64_MAX); break;
        case 's': o->seconds = duration(optarg); break;
        case 'w': o->warmup = duration(optarg); break;
        case 'z': o->size = number(optarg, SECTOR, UINT64_MAX); break;
        case 'x': o->seed = number(optarg, 1, UINT64_MAX); break;
        case 'i': o->initiator = optarg; break;
        case 'm': o->limit = number(optarg, 1, 1000000); break;
        case 'P': o->pid = (int)number(optarg, 1, 1 << 30); break;
        default: exit(2);
        }
    }
    if (strlen(o->initiator) > 200)
        fail("the initiator's name is too long");
    if (optind != argc || !o->target || o->bytes % SECTOR || o->size < o->bytes)
        fail("--target is needed, whole sectors, and a size of one command at least");
    if ((unsigned)o->lun + o->luns > MOST_LUNS)
        fail("there are %d LUNs at most", MOST_LUNS);
    if (o->size / o->bytes > (1u << 26) / o->luns || o->sessions > o->size / o->bytes)
        fail("the size does not suit the length of the commands");
}

/* --- which command comes next */

static uint64_t next_random(uint64_t *state)
{
    /* xorshift64* (Marsaglia, Vigna) */
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 2685821657736338717u;
}

void work_begin(struct work *work, const struct options *options)
{
    *work = (struct work){.options = options, .places = options->size / options->bytes * options->luns};
    work->random = options->seed * 0x9E3779B97F4A7C15u | 1;
    work->next = calloc(options->sessions, sizeof *work->next);
    work->order = malloc(work->places * sizeof *work->order);
    if (!work->next || !work->order)
        fail("no memory");
    for (unsigned i = 0; i < options->sessions; i++)
        work->next[i] = work->places / options->sessions * i;
    for (uint64_t i = 0; i < work->places; i++) {
        uint64_t other = next_random(&work->random) % (i + 1);
        work->order[i] = work->order[other];
        work->order[other] = (uint32_t)i;
    }
}

uint64_t work_place(struct work *work, unsigned session)
{
    work->begun++;
    if (work->options->sequential) {
        uint64_t place = work->next[session] % work->places;
        work->next[session] = place + work->options->stride;
        return place;
    }
    if (work->at == work->places)
        work->at = 0;
    return work->order[work->at++];
}

bool work_reads(struct work *work)
{
    unsigned percent = work->options->read_percent;
    if (percent == 0 || percent == 100)
        return percent == 100;
    return next_random(&work->random) % 100 < percent;
}

/* --- CPU time */

/* All threads of a process, in seconds: /proc/PID/stat counts in hundredths, schedstat in nanoseconds. */
static double cpu_of(int pid)
{
    char path[300];
    double sum = 0;
    if (!pid)
        return 0;
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *tasks = opendir(path);
    if (!tasks)
        fail("no process %d", pid);
    for (struct dirent *task; (task = readdir(tasks));) {
        unsigned long long on_cpu;
        if (task->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "/proc/%d/task/%s/schedstat", pid, task->d_name);
        FILE *file = fopen(path, "r");
        if (!file)
            continue;
        if (fscanf(file, "%llu", &on_cpu) == 1)
            sum += (double)on_cpu * 1e-9;
        fclose(file);
    }
    closedir(tasks);
    return sum;
}

static double own_cpu(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

/* --- latencies */

static unsigned bucket_of(uint64_t ns)
{
    if (ns < 1u << SUB_BITS)
        return (unsigned)ns;
    unsigned shift = 63u - (unsigned)__builtin_clzll(ns) - SUB_BITS;
    return ((shift + 1) << SUB_BITS) + (unsigned)(ns >> shift) - (1u << SUB_BITS);
}

static double middle_of(unsigned bucket)
{
    if (bucket < 1u << SUB_BITS)
        return bucket;
    unsigned shift = (bucket >> SUB_BITS) - 1;
    uint64_t low = (uint64_t)((bucket & ((1u << SUB_BITS) - 1)) + (1u << SUB_BITS)) << shift;
    return (double)low + (double)(1ull << shift) / 2;
}

static double percentile_us(const struct meter *meter, double share)
{
    uint64_t seen = 0, wanted = (uint64_t)(share * (double)meter->count);
    for (unsigned i = 0; i < BUCKETS; i++) {
        seen += meter->histogram[i];
        if (seen > wanted) {
            double middle = middle_of(i);
            return (middle < (double)meter->max_ns ? middle : (double)meter->max_ns) / 1e3;
        }
    }
    return (double)meter->max_ns / 1e3;
}

void meter_begin(struct meter *meter, const struct options *options)
{
    memset(meter, 0, sizeof *meter);
    meter->options = options;
    meter->started = now_ns();
    meter->from = meter->started + (uint64_t)(options->warmup * 1e9);
    meter->until = options->commands ? UINT64_MAX : meter->from + (uint64_t)(options->seconds * 1e9);
}

bool meter_took(struct meter *meter, uint64_t begun_ns, uint64_t ended_ns, bool read)
{
    if (ended_ns < meter->from)
        return true;
    if (!meter->counting) {
        meter->counting = true;
        meter->from = ended_ns;
        meter->target_cpu = cpu_of(meter->options->pid);
        meter->own_cpu = own_cpu();
    }
    if (ended_ns >= meter->until)
        return false;
    uint64_t took = ended_ns - begun_ns;
    meter->count++;
    meter->reads += read;
    meter->sum_ns += took;
    meter->histogram[bucket_of(took)]++;
    if (took > meter->max_ns)
        meter->max_ns = took;
    return !meter->options->commands || meter->count < meter->options->commands;
}

void meter_report(struct meter *meter)
{
    double seconds = (double)(now_ns() - meter->from) * 1e-9;
    if (!meter->counting || !meter->count)
        fail("not one command has ended in time");
    double count = (double)meter->count;
    printf("{\"count\": %llu, \"reads\": %llu, \"seconds\": %.6f, \"rate\": %.2f, \"mib_s\": %.3f, ",
           (unsigned long long)meter->count, (unsigned long long)meter->reads, seconds, count / seconds,
           count * meter->options->bytes / seconds / 1048576);
    printf("\"mean_us\": %.2f, \"p50_us\": %.2f, \"p90_us\": %.2f, \"p99_us\": %.2f, \"p999_us\": %.2f, "
           "\"max_us\": %.2f, ",
           (double)meter->sum_ns / count / 1e3, percentile_us(meter, 0.5), percentile_us(meter, 0.9),
           percentile_us(meter, 0.99), percentile_us(meter, 0.999), (double)meter->max_ns / 1e3);
    if (meter->segment)
        printf("\"immediate_bytes\": %zu, \"segment_bytes\": %zu, \"burst_bytes\": %zu, ", meter->immediate,
               meter->segment, meter->burst);
    if (meter->options->pid)
        printf("\"target_cpu_us\": %.3f, ", (cpu_of(meter->options->pid) - meter->target_cpu) * 1e6 / count);
    printf("\"client_cpu_us\": %.3f}\n", (own_cpu() - meter->own_cpu) * 1e6 / count);
}
