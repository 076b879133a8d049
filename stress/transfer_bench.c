/* transfer_bench.c - transfers alone, without Python: one process fetches from another over loopback.
 *
 *     transfer_bench [BYTES [ITERATIONS [STREAMS [TRANSPORT]]]]      256 MiB, 10, 1, tcp
 * The same bytes as one run, as runs of 64 KiB and of 16 KiB (4096 to a fetch at most), as separate fetches of 64 KiB, and with digests of
 * parts of 4 MiB and of 64 KiB in place of checksums, 4 MiB to a fetch. Prints the median and the best rate of each, checksums included, and
 * the processor time of both processes per byte, which a busy machine changes less. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "bench_events.h"

enum { RUNS_MAX = 4096, ITERATIONS_MAX = 100 };

struct options {
    uint64_t bytes;
    uint32_t iterations, streams;
    const char *transport;
    clockid_t own_clock, server_clock;   /* processor time */
};

static void die(const char *what)
{
    die_of("transfer_bench", what);
}

static pccl_peer_id id_of(int rank)
{
    pccl_peer_id id;
    memset(id.bytes, rank + 1, sizeof id.bytes);
    return id;
}

static pccl_engine *open_engine(const struct options *o, int rank)
{
    pccl_engine *engine;
    pccl_config config = {.size = sizeof config, .self = id_of(rank), .listen = "127.0.0.1:0"};
    snprintf(config.transport, sizeof config.transport, "%s", o->transport);
    if (pccl_engine_new(&config, &engine) != PCCL_OK || pccl_engine_start(engine) != PCCL_OK)
        die("engine");
    return engine;
}

static void acquaint(const struct options *o, pccl_engine *engine, int with, int port)
{
    pccl_member m = {.id = id_of(with), .dial = with == 1};
    snprintf(m.address, sizeof m.address, "127.0.0.1:%d", port);
    if (pccl_engine_acquaint(engine, &m, o->streams) != PCCL_OK)
        die("acquaint");
}

/* How the bytes are asked for: so many runs of `piece` bytes to a fetch, each with a digest or not. */
struct shape {
    const char *name;
    uint64_t piece;
    uint32_t runs_per_fetch;
    int digests;
};

/* Everything. */
static void fetch(const struct options *o, pccl_engine *engine, uint8_t *target, const struct shape *shape)
{
    static pccl_fetch_run runs[RUNS_MAX];
    static uint64_t seeds[RUNS_MAX], digests[RUNS_MAX];
    pccl_fetch_request r = {.size = sizeof r, .peer = id_of(0), .runs = runs, .seeds = seeds, .digests = digests};
    uint64_t piece = shape->piece;
    uint32_t fetches = 0;
    for (uint64_t at = 0; at < o->bytes; fetches++) {
        for (r.run_count = 0; r.run_count < shape->runs_per_fetch && at < o->bytes; at += piece)
            runs[r.run_count++] = (pccl_fetch_run){at, o->bytes - at < piece ? o->bytes - at : piece, target + at};
        r.token = fetches;
        if (shape->digests) {
            r.part_count = r.run_count;
            r.part_bytes = runs[0].bytes;
            r.bare = 1;
        }
        if (pccl_engine_fetch(engine, &r) != PCCL_OK)
            die("fetch");
    }
    while (fetches)
        fetches -= take_ended("transfer_bench", engine, PCCL_EVENT_FETCH);
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static double seconds_of(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void measure(const struct options *o, pccl_engine *engine, uint8_t *target, const struct shape *shape)
{
    uint64_t times[ITERATIONS_MAX];
    double own_s = seconds_of(o->own_clock), server_s = seconds_of(o->server_clock), bytes = (double)o->bytes * o->iterations;
    for (uint32_t i = 0; i < o->iterations; i++) {
        uint64_t begin = pccl_now_ns();
        fetch(o, engine, target, shape);
        times[i] = pccl_now_ns() - begin;
    }
    qsort(times, o->iterations, sizeof *times, by_value);
    own_s = seconds_of(o->own_clock) - own_s;
    server_s = seconds_of(o->server_clock) - server_s;
    printf("%s: median %.1f Gbit/s, best %.1f Gbit/s; processor time %.2f + %.2f ns per byte\n", shape->name,
           8.0 * (double)o->bytes / (double)times[o->iterations / 2], 8.0 * (double)o->bytes / (double)times[0], own_s / bytes * 1e9,
           server_s / bytes * 1e9);
    fflush(stdout);
}

/* Offers until the other end of the pipe is closed. */
static _Noreturn void serve(const struct options *o, int port_in, int port_out)
{
    pccl_engine *engine = open_engine(o, 0);
    int port = pccl_engine_port(engine), other;
    uint8_t *data = malloc(o->bytes);
    for (uint64_t i = 0; i < o->bytes; i++)
        data[i] = (uint8_t)(i * 2654435761u >> 16);
    pccl_region region = {.size = sizeof region, .data = data, .bytes = o->bytes};
    if (write(port_out, &port, sizeof port) != sizeof port || read(port_in, &other, sizeof other) != sizeof other)
        die("ports");
    if (pccl_engine_offer(engine, &region, 1) != PCCL_OK)
        die("offer");
    acquaint(o, engine, 1, other);
    while (read(port_in, &other, sizeof other) > 0)
        ;
    _exit(0);
}

static void run(const struct options *o, int port_in, int port_out)
{
    pccl_engine *engine = open_engine(o, 1);
    int port = pccl_engine_port(engine), other;
    uint8_t *target = calloc(1, o->bytes);
    if (read(port_in, &other, sizeof other) != sizeof other || write(port_out, &port, sizeof port) != sizeof port)
        die("ports");
    acquaint(o, engine, 0, other);
    const struct shape shapes[] = {
        {"one run", o->bytes, 1, 0},
        {"runs of 64 KiB", 64 << 10, RUNS_MAX, 0},
        {"runs of 16 KiB", 16 << 10, RUNS_MAX, 0},
        {"fetches of 64 KiB", 64 << 10, 1, 0},
        {"parts of 4 MiB, digests", 4 << 20, 1, 1},
        {"parts of 64 KiB, digests", 64 << 10, 64, 1},
    };
    fetch(o, engine, target, &shapes[0]);
    for (uint64_t i = 0; i < o->bytes; i++)
        if (target[i] != (uint8_t)(i * 2654435761u >> 16))
            die("wrong bytes");
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        measure(o, engine, target, &shapes[i]);
}

int main(int argc, char **argv)
{
    struct options o = {.bytes = argc > 1 ? strtoull(argv[1], NULL, 0) : 256 << 20, .iterations = argc > 2 ? (uint32_t)atoi(argv[2]) : 10,
                        .streams = argc > 3 ? (uint32_t)atoi(argv[3]) : 1, .transport = argc > 4 ? argv[4] : "tcp"};
    int up[2], down[2], status;
    if (!o.bytes || o.bytes % 8 || !o.iterations || o.iterations > ITERATIONS_MAX || pipe(up) || pipe(down))
        die("usage: transfer_bench [BYTES [ITERATIONS up to 100 [STREAMS [TRANSPORT]]]]");
    pid_t server = fork();
    if (server == 0) {
        close(down[1]);
        serve(&o, down[0], up[1]);
    }
    if (clock_getcpuclockid(0, &o.own_clock) || clock_getcpuclockid(server, &o.server_clock))
        die("clocks");
    run(&o, up[0], down[1]);
    close(down[1]);
    wait(&status);
    return status != 0;
}
