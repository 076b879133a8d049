/* codec_bench.c - how fast the codecs are on this machine: GB/s per codec, way and instruction set.
 *
 *     codec_bench [--json]
 *
 * Counted are the float32 bytes, on whichever side they are: 256 KiB, which with what they are encoded to are hot in
 * the L2 cache. The values are normally distributed. Decoding includes the validation. Each figure is the best of
 * several rounds, since the machine may have other things to do. */
#include "codec.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { VALUE_BYTES = 256 << 10, COUNT = VALUE_BYTES / 4, CALLS = 200, ROUNDS = 15 };

static const char *const isas[] = {"scalar", "avx2", "avx512", "neon"};
static float values[COUNT], decoded[COUNT];
static uint8_t encoded[VALUE_BYTES];

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static pccl_err encode(const char *isa, pccl_codec codec)
{
    return codec_encode_isa(isa, codec, values, COUNT, encoded);
}

static pccl_err decode(const char *isa, pccl_codec codec)
{
    return codec_decode_isa(isa, codec, encoded, codec_bytes(codec, COUNT), decoded, COUNT);
}

/* Float32 bytes per nanosecond; 0 if this machine lacks the instruction set. */
static double measure_gb_s(pccl_err (*way)(const char *, pccl_codec), const char *isa, pccl_codec codec)
{
    double best_s = 1e9;
    if (way(isa, codec) != PCCL_OK)
        return 0;
    for (int round = 0; round < ROUNDS; round++) {
        double start_s = now_s();
        for (int call = 0; call < CALLS; call++)
            if (way(isa, codec) != PCCL_OK)
                abort();
        double took_s = (now_s() - start_s) / (double)CALLS;
        best_s = took_s < best_s ? took_s : best_s;
    }
    return (double)VALUE_BYTES / best_s * 1e-9;
}

static void report(int as_json, pccl_codec codec, const char *way, const char *isa, double gb_s)
{
    if (gb_s == 0)
        return;
    if (as_json)
        printf("{\"kernel\": \"%s %s\", \"isa\": \"%s\", \"bytes\": %d, \"encoded_bytes\": %zu, \"gb_per_s\": %.2f}\n",
               codec_name(codec), way, isa, VALUE_BYTES, codec_bytes(codec, COUNT), gb_s);
    else
        printf("%-4s %-7s %-8s %9d bytes as %6zu %8.2f GB/s\n", codec_name(codec), way, isa, VALUE_BYTES,
               codec_bytes(codec, COUNT), gb_s);
    fflush(stdout);
}

/* Box and Muller, from a linear congruential generator. */
static void fill_values(void)
{
    uint64_t state = 1;
    double uniform[2];
    for (size_t i = 0; i < COUNT; i++) {
        for (size_t k = 0; k < 2; k++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            uniform[k] = ((double)(state >> 11) + 0.5) * 0x1p-53;
        }
        values[i] = (float)(sqrt(-2 * log(uniform[0])) * cos(6.283185307179586 * uniform[1]));
    }
}

int main(int argc, char **argv)
{
    int as_json = argc > 1 && strcmp(argv[1], "--json") == 0;
    fill_values();
    for (int codec = 0; codec < PCCL_CODEC_COUNT; codec++)
        for (size_t i = 0; i < sizeof isas / sizeof isas[0]; i++) {
            report(as_json, (pccl_codec)codec, "encode", isas[i], measure_gb_s(encode, isas[i], (pccl_codec)codec));
            report(as_json, (pccl_codec)codec, "decode", isas[i], measure_gb_s(decode, isas[i], (pccl_codec)codec));
        }
    return 0;
}
