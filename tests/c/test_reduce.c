/* test_reduce.c - every kernel of every instruction set against arithmetic done one element at a time.
 *
 * The reference here shares nothing with the kernels: 16-bit floats are read and rounded through double with frexp
 * and ldexp, integers are folded in 64 bits and cut. Answers must agree in every bit. */
#include "reduce.h"

#include <math.h>

#include "test.h"

enum { SOURCES_MAX = 5, COUNT_MAX = 4099, BUFFER_BYTES = COUNT_MAX * 8 + 256, GUARD = 0xa5 };

static const char *const isas[] = {"scalar", "avx2", "avx512", "neon"};
enum { ISA_COUNT = sizeof isas / sizeof isas[0] };

/* -- the reference --------------------------------------------------------------------------------------------- */

/* A binary floating format of at most 64 bits. */
struct format {
    int exponent_bits, mantissa_bits;
};

static struct format format_of(pccl_dtype dtype)
{
    static const struct format formats[] = {
        [PCCL_FLOAT64] = {11, 52}, [PCCL_FLOAT32] = {8, 23}, [PCCL_FLOAT16] = {5, 10}, [PCCL_BFLOAT16] = {8, 7}};
    return formats[dtype];
}

static int is_float(pccl_dtype dtype)
{
    return dtype <= PCCL_BFLOAT16;
}

static int is_signed(pccl_dtype dtype)
{
    return dtype >= PCCL_INT8 && dtype <= PCCL_INT64;
}

static double decode(struct format f, uint64_t bits)
{
    int bias = (1 << (f.exponent_bits - 1)) - 1;
    uint64_t mantissa = bits & ((UINT64_C(1) << f.mantissa_bits) - 1);
    int exponent = (int)(bits >> f.mantissa_bits) & ((1 << f.exponent_bits) - 1);
    double sign = (bits >> (f.exponent_bits + f.mantissa_bits)) & 1 ? -1.0 : 1.0;
    if (exponent == (1 << f.exponent_bits) - 1)
        return mantissa ? (double)NAN : sign * (double)INFINITY;
    if (exponent == 0)
        return sign * ldexp((double)mantissa, 1 - bias - f.mantissa_bits);
    return sign * ldexp((double)(mantissa | UINT64_C(1) << f.mantissa_bits), exponent - bias - f.mantissa_bits);
}

static uint64_t encode(struct format f, double x)
{
    int bias = (1 << (f.exponent_bits - 1)) - 1;
    uint64_t infinite = ((UINT64_C(1) << f.exponent_bits) - 1) << f.mantissa_bits;
    if (isnan(x))
        return infinite | UINT64_C(1) << (f.mantissa_bits - 1);
    uint64_t sign = signbit(x) ? UINT64_C(1) << (f.exponent_bits + f.mantissa_bits) : 0;
    if (isinf(x) || x == 0)
        return sign | (x == 0 ? 0 : infinite);
    int exponent;
    frexp(x, &exponent); /* |x| = 0.5..1 * 2^exponent */
    int unit = exponent - 1 - f.mantissa_bits;
    if (unit < 1 - bias - f.mantissa_bits)
        unit = 1 - bias - f.mantissa_bits;
    uint64_t units = (uint64_t)nearbyint(ldexp(fabs(x), -unit)); /* to nearest, ties to even */
    /* A subnormal has exponent field 0 and unit of field 1; a carry out of the mantissa lands where it should. */
    uint64_t bits = units + ((uint64_t)(unit + bias + f.mantissa_bits - 1) << f.mantissa_bits);
    return sign | (bits > infinite ? infinite : bits);
}

static double fold_float(pccl_redop op, int in_double, double a, double b)
{
    switch (op) {
    case PCCL_PROD:
        return in_double ? a * b : (double)((float)a * (float)b);
    case PCCL_MIN:
        if (isnan(a) || isnan(b))
            return (double)NAN;
        return a < b || (a == b && signbit(a)) ? a : b;
    case PCCL_MAX:
        if (isnan(a) || isnan(b))
            return (double)NAN;
        return a > b || (a == b && !signbit(a)) ? a : b;
    default:
        return in_double ? a + b : (double)((float)a + (float)b);
    }
}

static uint64_t fold_integer(pccl_redop op, int with_sign, uint64_t a, uint64_t b)
{
    int below = with_sign ? (int64_t)a < (int64_t)b : a < b;
    switch (op) {
    case PCCL_PROD:
        return a * b;
    case PCCL_MIN:
        return below ? a : b;
    case PCCL_MAX:
        return below ? b : a;
    default:
        return a + b;
    }
}

static uint64_t read_element(pccl_dtype dtype, const uint8_t *base, size_t index)
{
    size_t bytes = dtype_bytes(dtype);
    uint64_t bits = 0;
    memcpy(&bits, base + index * bytes, bytes); /* little-endian, like all machines with kernels */
    return bits;
}

static void write_element(pccl_dtype dtype, uint8_t *base, size_t index, uint64_t bits)
{
    size_t bytes = dtype_bytes(dtype);
    memcpy(base + index * bytes, &bits, bytes);
}

static uint64_t expected_float(pccl_dtype dtype, pccl_redop op, const uint64_t *values, uint32_t n, uint32_t divisor)
{
    struct format f = format_of(dtype);
    int in_double = dtype == PCCL_FLOAT64;
    double acc = decode(f, values[0]);
    for (uint32_t s = 1; s < n; s++)
        acc = fold_float(op, in_double, acc, decode(f, values[s]));
    if (op == PCCL_AVG)
        acc = in_double ? acc / (double)divisor : (double)((float)acc / (float)divisor);
    return encode(f, acc);
}

static uint64_t expected_integer(pccl_dtype dtype, pccl_redop op, const uint64_t *values, uint32_t n)
{
    unsigned unused = 64 - 8 * (unsigned)dtype_bytes(dtype);
    uint64_t acc = 0;
    for (uint32_t s = 0; s < n; s++) {
        uint64_t value = values[s];
        if (is_signed(dtype))
            value = (uint64_t)((int64_t)(value << unused) >> unused);
        acc = s == 0 ? value : fold_integer(op, is_signed(dtype), acc, value);
    }
    return acc << unused >> unused;
}

static uint64_t expected(pccl_dtype dtype, pccl_redop op, const uint64_t *values, uint32_t n, uint32_t divisor)
{
    return is_float(dtype) ? expected_float(dtype, op, values, n, divisor) : expected_integer(dtype, op, values, n);
}

/* -- one trial ------------------------------------------------------------------------------------------------- */

/* Buffers of one trial; dst is the last. */
static uint8_t buffers[SOURCES_MAX + 1][BUFFER_BYTES];
static uint8_t untouched[BUFFER_BYTES];
static uint64_t wanted[COUNT_MAX];

struct trial {
    const char *isa;
    pccl_dtype dtype;
    pccl_redop op;
    uint32_t n;
    size_t count;
    uint32_t divisor;
    size_t shift; /* source s lies at (shift + 3 s) mod 16 in its buffer, dst after the sources */
    uint32_t dst; /* number of the source that is also dst; n: none */
};

/* Random bits, every fourth value special (floats: zeros, ones, infinities, NaNs, ends of ranges). */
static uint64_t random_value(pccl_dtype dtype, uint64_t *state)
{
    uint64_t bits = test_random(state);
    if (!is_float(dtype) || (bits & 3) != 0)
        return bits >> (64 - 8 * dtype_bytes(dtype));
    struct format f = format_of(dtype);
    uint64_t one = UINT64_C(1) << f.mantissa_bits;
    uint64_t infinite = ((UINT64_C(1) << f.exponent_bits) - 1) << f.mantissa_bits;
    const uint64_t special[] = {0, 1, one - 1, one, infinite >> 1, infinite - 1, infinite, infinite | 1};
    uint64_t sign = (bits >> 2 & 1) << (f.exponent_bits + f.mantissa_bits);
    return special[bits >> 3 & 7] | sign;
}

static uint8_t *place(uint32_t index, size_t shift)
{
    return buffers[index] + 64 + (shift + 3 * index) % 16;
}

static void describe(const struct trial *t)
{
    fprintf(stderr, "    %s %s %s n=%u count=%zu divisor=%u shift=%zu dst=%u\n", t->isa, dtype_name(t->dtype),
            redop_name(t->op), t->n, t->count, t->divisor, t->shift, t->dst);
}

/* Runs the kernel on the sources that lie in place; checks every element, and that nothing around dst is touched. */
static void run_trial(const struct trial *t)
{
    const void *srcs[SOURCES_MAX];
    uint32_t dst_index = t->dst == t->n ? SOURCES_MAX : t->dst;
    uint8_t *dst = place(dst_index, t->shift);
    for (uint32_t s = 0; s < t->n; s++)
        srcs[s] = place(s, t->shift);
    for (size_t i = 0; i < t->count; i++) {
        uint64_t values[SOURCES_MAX] = {0};
        for (uint32_t s = 0; s < t->n; s++)
            values[s] = read_element(t->dtype, srcs[s], i);
        wanted[i] = expected(t->dtype, t->op, values, t->n, t->divisor);
    }
    size_t bytes = t->count * dtype_bytes(t->dtype), before = (size_t)(dst - buffers[dst_index]);
    memcpy(untouched, buffers[dst_index], before + bytes + 64);
    reduce_kernel_isa(t->isa, t->dtype, t->op)(dst, srcs, t->n, t->count, t->divisor);
    int failed_before = test_failed_checks;
    for (size_t i = 0; i < t->count; i++)
        CHECK_EQ_INT(read_element(t->dtype, dst, i), wanted[i]);
    CHECK_EQ_BYTES(buffers[dst_index], untouched, before);
    CHECK_EQ_BYTES(dst + bytes, untouched + before + bytes, 64);
    if (test_failed_checks > failed_before && failed_before < TEST_LINES_MAX)
        describe(t);
}

static void fill_sources(const struct trial *t, uint64_t *state)
{
    for (uint32_t s = 0; s <= SOURCES_MAX; s++)
        memset(place(s, t->shift) - 16, GUARD, t->count * dtype_bytes(t->dtype) + 128);
    for (uint32_t s = 0; s < t->n; s++)
        for (size_t i = 0; i < t->count; i++)
            write_element(t->dtype, place(s, t->shift), i, random_value(t->dtype, state));
}

typedef void trial_fn(struct trial *t);

/* Calls `run` for every kernel that exists here. */
static void for_each_kernel(trial_fn *run)
{
    for (size_t i = 0; i < ISA_COUNT; i++)
        for (int dtype = 0; dtype < PCCL_DTYPE_COUNT; dtype++)
            for (int op = 0; op < PCCL_REDOP_COUNT; op++) {
                struct trial t = {.isa = isas[i], .dtype = (pccl_dtype)dtype, .op = (pccl_redop)op, .divisor = 3};
                if (reduce_kernel_isa(t.isa, t.dtype, t.op) != NULL)
                    run(&t);
            }
}

/* -- tests ----------------------------------------------------------------------------------------------------- */

static void try_counts(struct trial *t)
{
    static const size_t primes[] = {131, 257, 1009, COUNT_MAX};
    uint64_t state = (uint64_t)t->dtype * 8 + t->op;
    for (size_t i = 0; i <= 130 + sizeof primes / sizeof primes[0]; i++) {
        t->count = i <= 130 ? i : primes[i - 131];
        t->n = 1 + (uint32_t)(test_random(&state) % SOURCES_MAX);
        t->dst = (uint32_t)(test_random(&state) % (t->n + 1));
        t->shift = test_random(&state) % 16;
        t->divisor = 1 + (uint32_t)(test_random(&state) % 9);
        fill_sources(t, &state);
        run_trial(t);
    }
}

TEST(counts)
{
    for_each_kernel(try_counts);
}

static void try_source_counts(struct trial *t)
{
    uint64_t state = 5;
    for (t->n = 1; t->n <= SOURCES_MAX; t->n++)
        for (t->count = 0; t->count <= 130; t->count += 1 + t->count / 16) {
            t->dst = t->n;
            fill_sources(t, &state);
            run_trial(t);
        }
}

TEST(source_counts)
{
    for_each_kernel(try_source_counts);
}

static void try_places(struct trial *t)
{
    uint64_t state = 7;
    t->count = 67;
    for (t->n = 1; t->n <= SOURCES_MAX; t->n++)
        for (t->dst = 0; t->dst <= t->n; t->dst++)
            for (t->shift = 0; t->shift < 16; t->shift += 3) {
                fill_sources(t, &state);
                run_trial(t);
            }
}

TEST(alignments_and_aliases)
{
    for_each_kernel(try_places);
}

/* Blocks of the exact size, for the address sanitizer: nothing is read or written behind an end. */
static void try_exact_blocks(struct trial *t)
{
    for (size_t count = 1; count <= 70; count++) {
        size_t bytes = count * dtype_bytes(t->dtype);
        uint8_t *blocks[4];
        for (size_t i = 0; i < 4; i++) {
            blocks[i] = malloc(bytes);
            memset(blocks[i], 1, bytes);
        }
        const void *srcs[3] = {blocks[0], blocks[1], blocks[2]};
        for (uint32_t n = 1; n <= 3; n++)
            reduce_kernel_isa(t->isa, t->dtype, t->op)(blocks[3], srcs, n, count, n);
        CHECK_EQ_BYTES(blocks[0], srcs[1], bytes);
        for (size_t i = 0; i < 4; i++)
            free(blocks[i]);
    }
}

TEST(exact_blocks)
{
    for_each_kernel(try_exact_blocks);
}

static uint64_t special_value(pccl_dtype dtype, size_t index)
{
    struct format f = format_of(dtype);
    uint64_t one = UINT64_C(1) << f.mantissa_bits;
    uint64_t infinite = ((UINT64_C(1) << f.exponent_bits) - 1) << f.mantissa_bits;
    const uint64_t magnitudes[] = {
        0,                     /* zero */
        1,                     /* least subnormal */
        one - 1,               /* greatest subnormal */
        one,                   /* least normal */
        one + 1,
        (infinite >> 1) & ~(one - 1), /* one */
        ((infinite >> 1) & ~(one - 1)) + 1,
        infinite - 1,          /* greatest finite */
        infinite - one,
        infinite,
        infinite | 1,          /* signalling NaN */
        infinite | (one - 1),  /* quiet NaN with a payload */
        infinite | (one >> 1), /* the canonical NaN */
    };
    enum { MAGNITUDES = sizeof magnitudes / sizeof magnitudes[0] };
    return magnitudes[index % MAGNITUDES] | (uint64_t)(index / MAGNITUDES & 1) << (f.exponent_bits + f.mantissa_bits);
}

/* All triples of special values, 26 * 26 at a time. */
static void try_specials(struct trial *t)
{
    enum { VALUES = 26 };
    if (!is_float(t->dtype))
        return;
    t->n = 3, t->dst = 3, t->count = VALUES * VALUES;
    for (size_t third = 0; third < VALUES; third++) {
        for (size_t i = 0; i < t->count; i++) {
            write_element(t->dtype, place(0, 0), i, special_value(t->dtype, i / VALUES));
            write_element(t->dtype, place(1, 0), i, special_value(t->dtype, i % VALUES));
            write_element(t->dtype, place(2, 0), i, special_value(t->dtype, third));
        }
        for (t->n = 2; t->n <= 3; t->n++) {
            t->dst = t->n;
            run_trial(t);
        }
    }
}

TEST(special_values)
{
    for_each_kernel(try_specials);
}

/* Every 16-bit pattern alone (the conversions there and back) and divided (rounding, also to subnormals). */
static void try_all_halves(struct trial *t)
{
    static const uint32_t divisors[] = {1, 3, 10, 1000, 65535, 3000000000u};
    if ((t->dtype != PCCL_FLOAT16 && t->dtype != PCCL_BFLOAT16) || (t->op != PCCL_SUM && t->op != PCCL_AVG))
        return;
    t->n = 1, t->dst = 1, t->count = 4096;
    for (uint64_t first = 0; first < 65536; first += t->count) {
        for (size_t i = 0; i < t->count; i++)
            write_element(t->dtype, place(0, 0), i, first + i);
        for (size_t d = 0; d < (t->op == PCCL_AVG ? sizeof divisors / sizeof divisors[0] : 1); d++) {
            t->divisor = divisors[d];
            run_trial(t);
        }
    }
}

TEST(all_16_bit_patterns)
{
    for_each_kernel(try_all_halves);
}

/* Every 16-bit pattern times and plus values that make ties, overflows and subnormals. */
static void try_half_pairs(struct trial *t)
{
    if ((t->dtype != PCCL_FLOAT16 && t->dtype != PCCL_BFLOAT16) || (t->op != PCCL_SUM && t->op != PCCL_PROD))
        return;
    uint64_t state = 11;
    t->n = 2, t->dst = 2, t->count = 4096;
    for (uint64_t first = 0; first < 65536; first += t->count) {
        for (size_t i = 0; i < t->count; i++) {
            uint64_t bits = first + i;
            uint64_t other = test_random(&state);
            write_element(t->dtype, place(0, 0), i, bits);
            /* near the first in magnitude, so that sums do not just return one of the two */
            write_element(t->dtype, place(1, 0), i, t->op == PCCL_SUM ? bits - other % 4096 : other);
        }
        run_trial(t);
    }
}

TEST(all_16_bit_patterns_in_pairs)
{
    for_each_kernel(try_half_pairs);
}

/* Known values, so that a wrong reference is not mistaken for a wrong kernel. */
TEST(the_reference_itself)
{
    struct format half = format_of(PCCL_FLOAT16), brain = format_of(PCCL_BFLOAT16);
    CHECK_EQ_INT(encode(half, 1.0), 0x3c00);
    CHECK_EQ_INT(encode(half, 65519.0), 0x7bff);
    CHECK_EQ_INT(encode(half, 65520.0), 0x7c00);
    CHECK_EQ_INT(encode(half, -0x1p-24), 0x8001);
    CHECK_EQ_INT(encode(half, 0x1p-25), 0);
    CHECK_EQ_INT(encode(half, 0x1.8p-24), 2);
    CHECK_EQ_INT(encode(half, (double)NAN), 0x7e00);
    CHECK_EQ_INT(encode(brain, 3.140625), 0x4049);
    CHECK_EQ_INT(encode(brain, (double)NAN), 0x7fc0);
    for (uint64_t bits = 0; bits < 0x7c00; bits++)
        CHECK_EQ_INT(encode(half, decode(half, bits)), bits);
    for (uint64_t bits = 0; bits < 0x7f80; bits++)
        CHECK_EQ_INT(encode(brain, decode(brain, bits)), bits);
}

/* Long runs of random bits: every instruction set against the scalar one. */
static void try_against_scalar(struct trial *t)
{
    static uint8_t sources[3][1 << 16], results[2][1 << 16];
    const void *srcs[3] = {sources[0], sources[1], sources[2]};
    uint64_t state = 13;
    for (uint32_t s = 0; s < 3; s++)
        for (size_t i = 0; i < sizeof sources[s]; i += 8) {
            uint64_t bits = test_random(&state);
            memcpy(sources[s] + i, &bits, 8);
        }
    size_t count = sizeof sources[0] / dtype_bytes(t->dtype);
    for (uint32_t n = 1; n <= 3; n++) {
        reduce_kernel_isa("scalar", t->dtype, t->op)(results[0], srcs, n, count, 7);
        reduce_kernel_isa(t->isa, t->dtype, t->op)(results[1], srcs, n, count, 7);
        CHECK_EQ_BYTES(results[1], results[0], sizeof results[0]);
    }
}

TEST(all_instruction_sets_agree)
{
    for_each_kernel(try_against_scalar);
}

TEST(look_ups)
{
    CHECK(reduce_kernel_isa("scalar", PCCL_FLOAT32, PCCL_SUM) != NULL);
    CHECK(reduce_kernel_isa("mmx", PCCL_FLOAT32, PCCL_SUM) == NULL);
    CHECK(reduce_kernel(PCCL_INT32, PCCL_AVG) == NULL);
    CHECK(reduce_kernel(PCCL_DTYPE_COUNT, PCCL_SUM) == NULL);
    CHECK(reduce_kernel(PCCL_FLOAT32, PCCL_REDOP_COUNT) == NULL);
    for (int dtype = 0; dtype < PCCL_DTYPE_COUNT; dtype++)
        for (int op = 0; op < PCCL_REDOP_COUNT; op++) {
            reduce_fn *best = reduce_kernel((pccl_dtype)dtype, (pccl_redop)op);
            CHECK(best == reduce_kernel_isa(reduce_isa(), (pccl_dtype)dtype, (pccl_redop)op));
            CHECK((best != NULL) == (op != PCCL_AVG || is_float((pccl_dtype)dtype)));
        }
    CHECK_EQ_STR(dtype_name(PCCL_BFLOAT16), "bfloat16");
    CHECK_EQ_STR(redop_name(PCCL_MAX), "max");
    CHECK_EQ_INT(dtype_bytes(PCCL_INT16), 2);
    CHECK_EQ_INT(dtype_bytes(PCCL_DTYPE_COUNT), 0);
}

TEST_MAIN("reduce")
