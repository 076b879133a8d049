/* kernel_bench.c - how fast the kernels are on this machine: GB/s per kernel, instruction set and size.
 *
 *     kernel_bench [--json]
 *
 * Payload is counted once: a sum of two sources of 256 KiB into a third counts 256 KiB. The sizes are a segment that is
 * hot in the L2 cache and a buffer that is in no cache. Each figure is the best of several rounds, since the machine
 * may have other things to do. */
#include "crc32c.h"
#include "reduce.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SEGMENT_BYTES = 256 << 10, LARGE_BYTES = 64 << 20, SOURCES = 3, ROUNDS = 7 };

static const size_t sizes[] = {SEGMENT_BYTES, LARGE_BYTES};

/* One call that is measured. */
struct work {
    reduce_fn *kernel; /* NULL: a crc */
    const char *way;
    void *dst;
    const void *srcs[SOURCES];
    uint32_t src_count;
    size_t count, bytes;
};

static volatile uint32_t sink;
static int as_json;

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void do_work(const struct work *w)
{
    int ok;
    if (w->kernel != NULL)
        w->kernel(w->dst, w->srcs, w->src_count, w->count, w->src_count);
    else
        sink = crc32c_by(w->way, 0, w->srcs[0], w->bytes, &ok);
}

/* Bytes of payload per nanosecond. */
static double measure_gb_s(const struct work *w)
{
    size_t calls = 1 + (LARGE_BYTES / 2) / w->bytes;
    double best_s = 1e9;
    do_work(w);
    for (int round = 0; round < ROUNDS; round++) {
        double start_s = now_s();
        for (size_t i = 0; i < calls; i++)
            do_work(w);
        double took_s = (now_s() - start_s) / (double)calls;
        best_s = took_s < best_s ? took_s : best_s;
    }
    return (double)w->bytes / best_s * 1e-9;
}

static void report(const char *kernel, const char *isa, const struct work *w)
{
    double gb_s = measure_gb_s(w);
    if (as_json)
        printf("{\"kernel\": \"%s\", \"isa\": \"%s\", \"sources\": %u, \"bytes\": %zu, \"gb_per_s\": %.2f}\n", kernel,
               isa, w->src_count, w->bytes, gb_s);
    else
        printf("%-12s %-8s %u sources %9zu bytes %8.2f GB/s\n", kernel, isa, w->src_count, w->bytes, gb_s);
    fflush(stdout);
}

static void bench_sums(uint8_t *const buffers[SOURCES + 1])
{
    static const char *const isas[] = {"scalar", "avx2", "avx512", "neon"};
    static const pccl_dtype dtypes[] = {PCCL_FLOAT32, PCCL_BFLOAT16, PCCL_FLOAT16};
    for (size_t d = 0; d < sizeof dtypes / sizeof dtypes[0]; d++)
        for (size_t i = 0; i < sizeof isas / sizeof isas[0]; i++)
            for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++)
                for (uint32_t n = 2; n <= SOURCES; n++) {
                    struct work w = {.kernel = reduce_kernel_isa(isas[i], dtypes[d], PCCL_SUM),
                                     .dst = buffers[SOURCES],
                                     .srcs = {buffers[0], buffers[1], buffers[2]},
                                     .src_count = n,
                                     .count = sizes[s] / dtype_bytes(dtypes[d]),
                                     .bytes = sizes[s]};
                    char name[32];
                    snprintf(name, sizeof name, "%s sum", dtype_name(dtypes[d]));
                    if (w.kernel != NULL)
                        report(name, isas[i], &w);
                }
}

static void bench_crcs(const uint8_t *data)
{
    static const char *const ways[] = {"table", "sse42", "vpclmul", "arm"};
    for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++)
        for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
            struct work w = {.way = ways[i], .srcs = {data}, .src_count = 1, .bytes = sizes[s]};
            int ok;
            crc32c_by(ways[i], 0, data, 0, &ok);
            if (ok)
                report("crc32c", ways[i], &w);
        }
}

int main(int argc, char **argv)
{
    uint8_t *buffers[SOURCES + 1];
    as_json = argc > 1 && strcmp(argv[1], "--json") == 0;
    for (size_t i = 0; i <= SOURCES; i++) {
        buffers[i] = aligned_alloc(4096, LARGE_BYTES);
        if (buffers[i] == NULL)
            abort();
        memset(buffers[i], (int)(0x11 * i), LARGE_BYTES);
    }
    bench_sums(buffers);
    bench_crcs(buffers[0]);
    for (size_t i = 0; i <= SOURCES; i++)
        free(buffers[i]);
    return 0;
}
