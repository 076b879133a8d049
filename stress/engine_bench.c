/* engine_bench.c - the engine alone, without Python: all-reduces between processes on loopback.
 *
 *     engine_bench PEERS BYTES ITERATIONS [--in-place] [--ring|--mesh|--one-round] [--streams N] [--congestion cubic] [--in-flight K]
 *         [--transport auto] [--codec N] [--segment BYTES] [--every MS] [--verbose]
 * Every process is one peer; rank 0 prints the median and the best time of an op. With --every all begin each op
 * together, at a multiple of so many milliseconds: links rest in between. Tells where the time of `pccl bench` goes.
 * At the sites of an emulated network (python -m stress.wan run TOPOLOGY -- engine_bench wan BYTES ITERATIONS ...) every site runs one
 * such process, which finds the others by the environment that the emulator sets. */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench_events.h"

enum { PEERS_MAX = 16 };

struct options {
    uint32_t peers, iterations, streams, in_flight;
    uint64_t bytes;
    uint32_t segment_bytes, every_ms;
    int in_place, algorithm, codec, verbose;
    const char *congestion, *transport;
};

static pccl_peer_id id_of(uint32_t rank)
{
    pccl_peer_id id;
    memset(id.bytes, (int)rank + 1, sizeof id.bytes);
    return id;
}

static void die(const char *what)
{
    die_of("engine_bench", what);
}

static pccl_engine *open_engine(const struct options *o, uint32_t rank, const char *listen)
{
    pccl_engine *engine;
    pccl_config config = {.size = sizeof config, .self = id_of(rank), .eager_bytes = 4 << 20};
    snprintf(config.listen, sizeof config.listen, "%s", listen);
    snprintf(config.transport, sizeof config.transport, "%s", o->transport);
    config.has_psk = 1; /* only "tls" asks for it */
    snprintf(config.congestion, sizeof config.congestion, "%s", o->congestion);
    if (pccl_engine_new(&config, &engine) != PCCL_OK || pccl_engine_start(engine) != PCCL_OK)
        die("engine");
    return engine;
}

static void configure(const struct options *o, pccl_engine *engine, uint32_t rank, char addresses[][80])
{
    pccl_member members[PEERS_MAX];
    for (uint32_t i = 0; i < o->peers; i++) {
        members[i] = (pccl_member){.id = id_of(i), .dial = rank < i};
        memcpy(members[i].address, addresses[i], sizeof members[i].address);
    }
    pccl_epoch epoch = {
        .size = sizeof epoch, .epoch = 1, .member_count = o->peers, .members = members, .streams = o->streams,
        .segment_bytes = o->segment_bytes, .mesh_bytes_max = 1 << 20,
    };
    if (pccl_engine_configure(engine, &epoch) != PCCL_OK)
        die("configure");
}

static void wait_for_turn(uint32_t every_ms)
{
    if (every_ms)
        poll(NULL, 0, (int)(every_ms - pccl_now_ns() / 1000000 % every_ms));
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static _Noreturn void run_ops(const struct options *o, uint32_t rank, pccl_engine *engine)
{
    char **in = calloc(o->in_flight, sizeof *in), **out = calloc(o->in_flight, sizeof *out);
    for (uint32_t k = 0; k < o->in_flight; k++) {
        in[k] = malloc(o->bytes + 1);
        out[k] = o->in_place ? in[k] : malloc(o->bytes + 1);
        memset(in[k], 0, o->bytes);
        memset(out[k], 0, o->bytes);
    }
    uint64_t *times = calloc(o->iterations, sizeof *times);
    uint32_t seq = 0;
    for (uint32_t i = 0; i < o->iterations; i++) {
        wait_for_turn(o->every_ms);
        uint64_t begin = pccl_now_ns();
        for (uint32_t k = 0; k < o->in_flight; k++) {
            pccl_op_request r = {
                .size = sizeof r, .kind = PCCL_ALL_REDUCE, .dtype = PCCL_FLOAT32, .algorithm = (uint8_t)o->algorithm,
                .codec = (uint8_t)o->codec,
                .name = {.seq = seq++}, .count = o->bytes / 4, .in = in[k], .out = out[k], .token = seq,
            };
            if (pccl_engine_submit(engine, &r) != PCCL_OK)
                die("submit");
        }
        for (uint32_t ended = 0; ended < o->in_flight;)
            ended += take_ended("engine_bench", engine, PCCL_EVENT_OP);
        times[i] = pccl_now_ns() - begin;
        if (o->verbose && rank == 0)
            printf("%u: %.1f ms\n", i, (double)times[i] / 1e6);
    }
    qsort(times, o->iterations, sizeof *times, by_value);
    if (rank == 0) {
        double median = (double)times[o->iterations / 2] / 1e6;
        printf("peers %u bytes %llu in_flight %u: median %.3f ms, best %.3f ms, %.0f ops/s\n", o->peers,
               (unsigned long long)o->bytes, o->in_flight, median, (double)times[0] / 1e6, o->in_flight / median * 1e3);
        struct rusage used;
        getrusage(RUSAGE_SELF, &used);
        printf("CPU per op: user %.3f ms, system %.3f ms\n",
               ((double)used.ru_utime.tv_sec * 1e3 + (double)used.ru_utime.tv_usec / 1e3) / seq,
               ((double)used.ru_stime.tv_sec * 1e3 + (double)used.ru_stime.tv_usec / 1e3) / seq);
        pccl_stats stats;
        pccl_engine_stats(engine, &stats);
        printf("streams %u resent %llu stale %llu pool %llu\n", stats.streams, (unsigned long long)stats.frames_resent,
               (unsigned long long)stats.frames_stale, (unsigned long long)stats.pool_bytes);
    }
    fflush(stdout);
    pccl_engine_close(engine);
    while (!pccl_engine_closed(engine))
        poll(NULL, 0, 1);
    _exit(0);
}

/* One of several processes on this machine: ports are exchanged through pipes. */
static _Noreturn void run_local(const struct options *o, uint32_t rank, int port_in, int port_out)
{
    int ports[PEERS_MAX];
    char addresses[PEERS_MAX][80];
    pccl_engine *engine = open_engine(o, rank, "127.0.0.1:0");
    int port = pccl_engine_port(engine);
    if (write(port_out, &port, sizeof port) != sizeof port || read(port_in, ports, sizeof ports) != sizeof ports)
        die("ports");
    for (uint32_t i = 0; i < o->peers; i++)
        snprintf(addresses[i], sizeof addresses[i], "127.0.0.1:%d", ports[i]);
    configure(o, engine, rank, addresses);
    run_ops(o, rank, engine);
}

/* The process of one site of an emulated network. */
static _Noreturn void run_site(struct options *o)
{
    static char sites[4096];
    char addresses[PEERS_MAX][80], listen[64];
    const char *rank_text = getenv("WAN_RANK"), *address = getenv("WAN_ADDRESS"), *list = getenv("WAN_SITES");
    if (!rank_text || !address || !list)
        die("WAN_RANK, WAN_ADDRESS or WAN_SITES is missing");
    snprintf(sites, sizeof sites, "%s", list);
    for (char *site = strtok(sites, " "); site && o->peers < PEERS_MAX; site = strtok(NULL, " "))
        snprintf(addresses[o->peers++], sizeof addresses[0], "%s:29500", strchr(site, '=') + 1);
    snprintf(listen, sizeof listen, "%s:29500", address);
    pccl_engine *engine = open_engine(o, (uint32_t)atoi(rank_text), listen);
    configure(o, engine, (uint32_t)atoi(rank_text), addresses);
    run_ops(o, (uint32_t)atoi(rank_text), engine);
}

static struct options parse(int argc, char **argv)
{
    if (argc < 4) {
        fprintf(stderr, "usage: engine_bench PEERS BYTES ITERATIONS [options]\n");
        exit(2);
    }
    struct options o = {.peers = (uint32_t)atoi(argv[1]), .bytes = strtoull(argv[2], NULL, 0),
                        .iterations = (uint32_t)atoi(argv[3]), .streams = 1, .in_flight = 1, .congestion = "",
                        .segment_bytes = 256 << 10, .transport = "tcp"};
    for (int i = 4; i < argc; i++) {
        const char *next = i + 1 < argc ? argv[i + 1] : "";
        if (strcmp(argv[i], "--in-place") == 0)
            o.in_place = 1;
        else if (strcmp(argv[i], "--ring") == 0)
            o.algorithm = PCCL_ALGORITHM_RING;
        else if (strcmp(argv[i], "--mesh") == 0)
            o.algorithm = PCCL_ALGORITHM_MESH;
        else if (strcmp(argv[i], "--one-round") == 0)
            o.algorithm = PCCL_ALGORITHM_ONE_ROUND;
        else if (strcmp(argv[i], "--verbose") == 0)
            o.verbose = 1;
        else if (strcmp(argv[i], "--segment") == 0)
            o.segment_bytes = (uint32_t)atoi(next);
        else if (strcmp(argv[i], "--every") == 0)
            o.every_ms = (uint32_t)atoi(next);
        else if (strcmp(argv[i], "--codec") == 0)
            o.codec = atoi(next);
        else if (strcmp(argv[i], "--streams") == 0)
            o.streams = (uint32_t)atoi(next);
        else if (strcmp(argv[i], "--in-flight") == 0)
            o.in_flight = (uint32_t)atoi(next);
        else if (strcmp(argv[i], "--congestion") == 0)
            o.congestion = next;
        else if (strcmp(argv[i], "--transport") == 0)
            o.transport = next;
    }
    return o;
}

int main(int argc, char **argv)
{
    struct options o = parse(argc, argv);
    if (strcmp(argv[1], "wan") == 0)
        run_site(&o);
    int up[PEERS_MAX][2], down[PEERS_MAX][2], ports[PEERS_MAX] = {0}, status, failed = 0;
    for (uint32_t i = 0; i < o.peers; i++) {
        if (pipe(up[i]) || pipe(down[i]))
            die("pipe");
        if (fork() == 0)
            run_local(&o, i, down[i][0], up[i][1]);
    }
    for (uint32_t i = 0; i < o.peers; i++)
        if (read(up[i][0], &ports[i], sizeof ports[i]) != sizeof ports[i])
            die("a peer died");
    for (uint32_t i = 0; i < o.peers; i++)
        if (write(down[i][1], ports, sizeof ports) != sizeof ports)
            die("pipe");
    while (wait(&status) > 0)
        failed |= status != 0;
    return failed;
}
