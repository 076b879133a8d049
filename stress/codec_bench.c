/* codec_bench.c - how fast the codecs are on this machine: GB/s per codec, way and instruction set.
 *
 *     codec_bench [--json]
 *
 * Counted are the plain bytes, on whichever side they are: 256 KiB, which with what they are encoded to are hot in
 * the L2 cache; float32, but for "exponents" (csrc/exponents.h), which takes bf16. The values are normally distributed.
 * Decoding includes the validation. Each figure is the best of several rounds, since the machine may have other things
 * to do. */
#include "codec.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "exponents_isa.h"

enum { VALUE_BYTES = 256 << 10, COUNT = VALUE_BYTES / 4, BF16_COUNT = VALUE_BYTES / 2, CALLS = 200, ROUNDS = 15 };

static const char *const isas[] = {"scalar", "avx2", "avx512", "neon"};
static float values[COUNT], decoded[COUNT];
static uint16_t bf16_values[BF16_COUNT], bf16_decoded[BF16_COUNT];
static uint8_t encoded[VALUE_BYTES + VALUE_BYTES / 64];
static uint64_t exponents_bytes;

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* One codec, one way. `bytes`: that it takes. */
struct kernel {
    const char *name, *way;
    pccl_codec codec;
    pccl_err (*run)(const char *isa, pccl_codec codec);
    size_t bytes;
};

static pccl_err encode(const char *isa, pccl_codec codec)
{
    return codec_encode_isa(isa, codec, values, COUNT, encoded);
}

static pccl_err decode(const char *isa, pccl_codec codec)
{
    return codec_decode_isa(isa, codec, encoded, codec_bytes(codec, COUNT), decoded, COUNT);
}

static pccl_err encode_exponents(const char *isa, pccl_codec codec)
{
    (void)codec;
    return exponents_encode_isa(isa, bf16_values, BF16_COUNT, encoded, &exponents_bytes);
}

static pccl_err decode_exponents(const char *isa, pccl_codec codec)
{
    (void)codec;
    return exponents_decode_isa(isa, encoded, exponents_bytes, bf16_decoded, BF16_COUNT);
}

/* Plain bytes per nanosecond; 0 if this machine lacks the instruction set. */
static double measure_gb_s(const struct kernel *kernel, const char *isa)
{
    double best_s = 1e9;
    if (kernel->run(isa, kernel->codec) != PCCL_OK)
        return 0;
    for (int round = 0; round < ROUNDS; round++) {
        double start_s = now_s();
        for (int call = 0; call < CALLS; call++)
            if (kernel->run(isa, kernel->codec) != PCCL_OK)
                abort();
        double took_s = (now_s() - start_s) / (double)CALLS;
        best_s = took_s < best_s ? took_s : best_s;
    }
    return (double)VALUE_BYTES / best_s * 1e-9;
}

static void report(int as_json, const struct kernel *kernel, const char *isa)
{
    double gb_s = measure_gb_s(kernel, isa);
    if (gb_s == 0)
        return;
    if (as_json)
        printf("{\"kernel\": \"%s %s\", \"isa\": \"%s\", \"bytes\": %d, \"encoded_bytes\": %zu, \"gb_per_s\": %.2f}\n",
               kernel->name, kernel->way, isa, VALUE_BYTES, kernel->bytes, gb_s);
    else
        printf("%-9s %-7s %-8s %9d bytes as %6zu %8.2f GB/s\n", kernel->name, kernel->way, isa, VALUE_BYTES, kernel->bytes, gb_s);
    fflush(stdout);
}

/* All ways of one codec: what is decoded has been encoded just before. */
static void report_all(int as_json, struct kernel encoder, struct kernel decoder)
{
    for (size_t i = 0; i < sizeof isas / sizeof isas[0]; i++) {
        report(as_json, &encoder, isas[i]);
        report(as_json, &decoder, isas[i]);
    }
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

static void cut_values(void)
{
    for (size_t i = 0; i < BF16_COUNT; i++) {
        uint32_t bits;
        memcpy(&bits, &values[i % COUNT], sizeof bits);
        bf16_values[i] = (uint16_t)(bits >> 16);
    }
}

int main(int argc, char **argv)
{
    int as_json = argc > 1 && strcmp(argv[1], "--json") == 0;
    fill_values();
    cut_values();
    for (int codec = 0; codec < PCCL_CODEC_COUNT; codec++) {
        const char *name = codec_name((pccl_codec)codec);
        size_t bytes = codec_bytes((pccl_codec)codec, COUNT);
        report_all(as_json, (struct kernel){name, "encode", (pccl_codec)codec, encode, bytes},
                   (struct kernel){name, "decode", (pccl_codec)codec, decode, bytes});
    }
    if (encode_exponents(NULL, PCCL_CODEC_NONE) != PCCL_OK)
        return 1;
    report_all(as_json, (struct kernel){"exponents", "encode", PCCL_CODEC_NONE, encode_exponents, exponents_bytes},
               (struct kernel){"exponents", "decode", PCCL_CODEC_NONE, decode_exponents, exponents_bytes});
    return 0;
}
