/* test_codec.c - every codec of every instruction set: the same bytes, the values a reference finds, the bounds that
 * codec.h states, and no way to make a decoder misbehave.
 *
 * The reference shares nothing with the kernels: it places codes one at a time and finds the nearest value by distance,
 * in double. It judges the scalar kernels; the others must agree with those in every bit. */
#include "codec.h"

#include <float.h>
#include <math.h>

#include "test.h"

enum { COUNT_MAX = 4099, PAD = 64, VALUE_ROOM = COUNT_MAX * 4 + 2 * PAD, GUARD = 0xa5 };

static const char *const isas[] = {"scalar", "avx2", "avx512", "neon"};
enum { ISA_COUNT = sizeof isas / sizeof isas[0] };

static const uint32_t canonical_nan = 0x7fc00000;

static int exists(const char *isa)
{
    return codec_encode_isa(isa, PCCL_CODEC_NONE, NULL, 0, NULL) == PCCL_OK;
}

static float from_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static uint32_t to_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* -- values ---------------------------------------------------------------------------------------------------- */

/* Kinds of data; all but ANY are finite. */
enum kind { ANY, FINITE, NORMAL, SUBNORMAL, HUGE_VALUES, TIES, SPARSE, KIND_COUNT };

static float normal_value(uint64_t *state)
{
    double sum = 0; /* of 12 uniform ones */
    for (int i = 0; i < 12; i++)
        sum += (double)(test_random(state) >> 11) * 0x1p-53 - 0.5;
    return (float)sum;
}

static float random_value(enum kind kind, uint64_t *state)
{
    uint64_t bits = test_random(state);
    uint32_t sign = (uint32_t)(bits & 1) << 31, any = (uint32_t)(bits >> 32);
    switch (kind) {
    case ANY:
        return from_bits((bits & 0x1fe) == 0 ? any | 0x7f800000 : (bits & 0x1fe) == 2 ? sign | 0x7f800000 : any);
    case FINITE:
        return (any & 0x7f800000) == 0x7f800000 ? 0 : from_bits(any);
    case SUBNORMAL:
        return from_bits(sign | any % 0x04000000); /* up to 2^-119 */
    case HUGE_VALUES:
        return from_bits(sign | (0x7f7fffff - any % 0x1000000));
    case TIES:
        return (float)((int)(any % 1025) - 512) * 0.25f;
    case SPARSE:
        return any % 64 != 0 ? from_bits(sign) : normal_value(state);
    default:
        return normal_value(state);
    }
}

static void fill(uint8_t *values, size_t count, enum kind kind, uint64_t *state)
{
    for (size_t i = 0; i < count; i++) {
        float x = random_value(kind, state);
        memcpy(values + 4 * i, &x, sizeof x);
    }
}

/* Counts 0..600, then primes; one past the end gives COUNT_MAX + 1. */
static size_t next_count(size_t count)
{
    if (count < 600)
        return count + 1;
    return count < 1009 ? 1009 : count < 2053 ? 2053 : count < COUNT_MAX ? COUNT_MAX : COUNT_MAX + 1;
}

/* -- the reference --------------------------------------------------------------------------------------------- */

/* The 16-bit float nearest to x, as a float: m mantissa bits, least normal 2^least, below 2^(most + 1). */
static float nearest_half(float x, int m, int least, int most)
{
    if (isnan(x))
        return from_bits(canonical_nan);
    if (isinf(x) || x == 0)
        return x;
    int exponent;
    frexp((double)x, &exponent);
    int unit = (exponent - 1 > least ? exponent - 1 : least) - m;
    double rounded = ldexp(nearbyint(ldexp(fabs((double)x), -unit)), unit);
    return copysignf(rounded >= ldexp(1, most + 1) ? INFINITY : (float)rounded, x);
}

static float scale_of(pccl_codec codec, float peak)
{
    float least = codec == PCCL_CODEC_INT8 ? 0x1p-126f : 0x1p-120f;
    float scale = codec == PCCL_CODEC_INT8 ? peak / 127.0f : peak;
    if (codec == PCCL_CODEC_INT8 && isinf(127.0f * scale))
        scale = nextafterf(scale, 0);
    return scale < least ? least : scale;
}

/* What a code stands for, in units of the scale. */
static double meaning(pccl_codec codec, int code)
{
    if (codec == PCCL_CODEC_INT8)
        return (double)(int8_t)code;
    double magnitude = (code & 7) == 0 ? 0 : ldexp(1, (code & 7) - 7);
    return code & 8 ? -magnitude : magnitude;
}

/* The code whose meaning is nearest; of two, the even one. */
static int nearest_code(pccl_codec codec, float x, float scale)
{
    int codes = codec == PCCL_CODEC_INT8 ? 256 : 16, best = 0;
    double ratio = (double)(x / scale), best_distance = INFINITY;
    for (int code = 0; code < codes; code++) {
        double distance = fabs(meaning(codec, code) - ratio);
        if (codec == PCCL_CODEC_INT8 ? code == 128 : (code >> 3 != 0) != (signbit(x) != 0))
            continue;
        if (distance < best_distance || (distance == best_distance && code % 2 == 0))
            best = code, best_distance = distance;
    }
    return best;
}

/* Where the code of element i of a block of n is: the bit from the start of the block. */
static size_t place_of(pccl_codec codec, size_t i, size_t n)
{
    size_t per_word = codec == PCCL_CODEC_INT8 ? 4 : 8, words = (n + per_word - 1) / per_word;
    return 32 + i % words * 32 + i / words * (32 / per_word);
}

/* Encodes a block of finite values, n <= CODEC_BLOCK; returns its bytes. */
static size_t reference_block(pccl_codec codec, const uint8_t *values, size_t n, uint8_t *block)
{
    float x[CODEC_BLOCK], peak = 0;
    memcpy(x, values, 4 * n);
    for (size_t i = 0; i < n; i++)
        peak = fabsf(x[i]) > peak ? fabsf(x[i]) : peak;
    float scale = scale_of(codec, peak);
    size_t bytes = codec_bytes(codec, n);
    memset(block, 0, bytes);
    memcpy(block, &scale, 4);
    for (size_t i = 0; i < n; i++) {
        size_t place = place_of(codec, i, n);
        block[place / 8] |= (uint8_t)(nearest_code(codec, x[i], scale) << place % 8);
    }
    return bytes;
}

/* -- the codes -------------------------------------------------------------------------------------------------- */

static uint8_t values[VALUE_ROOM], encoded[2][VALUE_ROOM], decoded[2][VALUE_ROOM];

/* Encodes `count` values by one instruction set and decodes them again, at odd addresses, in guarded room. */
static void there_and_back(const char *isa, pccl_codec codec, const uint8_t *src, size_t count, size_t shift, int to)
{
    size_t bytes = codec_bytes(codec, count);
    uint8_t *code = encoded[to] + shift, *back = decoded[to] + shift, guard[PAD];
    memset(encoded[to], GUARD, bytes + 2 * PAD);
    memset(decoded[to], GUARD, 4 * count + 2 * PAD);
    CHECK_EQ_INT(codec_encode_isa(isa, codec, src, count, code), PCCL_OK);
    CHECK_EQ_INT(codec_decode_isa(isa, codec, code, bytes, back, count), PCCL_OK);
    memset(guard, GUARD, sizeof guard);
    CHECK_EQ_BYTES(code + bytes, guard, PAD);
    CHECK_EQ_BYTES(back + 4 * count, guard, PAD);
    CHECK_EQ_BYTES(encoded[to], guard, shift);
    CHECK_EQ_BYTES(decoded[to], guard, shift);
}

TEST(all_instruction_sets_agree)
{
    uint64_t state = 1;
    for (int codec = 0; codec < PCCL_CODEC_COUNT; codec++)
        for (size_t count = 0; count <= COUNT_MAX; count = next_count(count)) {
            size_t shift = test_random(&state) % 32;
            enum kind kind = (enum kind)(count % KIND_COUNT);
            uint8_t *src = values + test_random(&state) % 32;
            fill(src, count, kind, &state);
            there_and_back("scalar", (pccl_codec)codec, src, count, shift, 0);
            for (size_t i = 1; i < ISA_COUNT; i++)
                if (exists(isas[i])) {
                    there_and_back(isas[i], (pccl_codec)codec, src, count, shift, 1);
                    CHECK_EQ_BYTES(encoded[1], encoded[0], codec_bytes((pccl_codec)codec, count) + shift);
                    CHECK_EQ_BYTES(decoded[1], decoded[0], 4 * count + shift);
                }
        }
}

/* Blocks of the exact size, for the address sanitizer: nothing is read or written behind an end. */
TEST(exact_blocks)
{
    for (int codec = 0; codec < PCCL_CODEC_COUNT; codec++)
        for (size_t i = 0; i < ISA_COUNT; i++)
            for (size_t count = 1; exists(isas[i]) && count <= 300; count++) {
                size_t bytes = codec_bytes((pccl_codec)codec, count);
                uint8_t *src = malloc(4 * count), *code = malloc(bytes), *back = malloc(4 * count);
                memset(src, 0x3f, 4 * count);
                CHECK_EQ_INT(codec_encode_isa(isas[i], (pccl_codec)codec, src, count, code), PCCL_OK);
                CHECK_EQ_INT(codec_decode_isa(isas[i], (pccl_codec)codec, code, bytes, back, count), PCCL_OK);
                free(src), free(code), free(back);
            }
}

/* All bits that a decoder could be given, on every instruction set: codes that no encoder writes, too. */
TEST(all_instruction_sets_decode_alike)
{
    uint64_t state = 2;
    for (int codec = 0; codec < PCCL_CODEC_COUNT; codec++)
        for (int trial = 0; trial < 400; trial++) {
            size_t count = test_random(&state) % 700, bytes = codec_bytes((pccl_codec)codec, count);
            fill(values, bytes / 4 + 1, ANY, &state);
            size_t block = codec_bytes((pccl_codec)codec, CODEC_BLOCK);
            for (size_t at = 0; codec == PCCL_CODEC_INT8 && at < bytes; at++)
                values[at] = values[at] == 0x80 ? 0 : values[at];
            for (size_t at = 0; codec >= PCCL_CODEC_INT8 && at < bytes; at += block) {
                float scale = fabsf(random_value(NORMAL, &state)) + 0.001f;
                memcpy(values + at, &scale, 4);
            }
            CHECK_EQ_INT(codec_decode_isa("scalar", (pccl_codec)codec, values, bytes, decoded[0], count), PCCL_OK);
            for (size_t i = 1; i < ISA_COUNT; i++)
                if (exists(isas[i])) {
                    pccl_err err = codec_decode_isa(isas[i], (pccl_codec)codec, values, bytes, decoded[1], count);
                    CHECK_EQ_INT(err, PCCL_OK);
                    CHECK_EQ_BYTES(decoded[1], decoded[0], 4 * count);
                }
        }
}

static void check_against_reference(pccl_codec codec, size_t count)
{
    uint8_t block[4 + CODEC_BLOCK];
    size_t at = 0;
    there_and_back("scalar", codec, values, count, 0, 0);
    for (size_t first = 0; first < count; first += CODEC_BLOCK) {
        size_t n = count - first < CODEC_BLOCK ? count - first : CODEC_BLOCK;
        size_t n_bytes = reference_block(codec, values + 4 * first, n, block);
        float scale;
        CHECK_EQ_BYTES(encoded[0] + at, block, n_bytes);
        memcpy(&scale, block, 4);
        for (size_t i = 0; i < n; i++) {
            size_t place = place_of(codec, i, n);
            int code = block[place / 8] >> place % 8 & (codec == PCCL_CODEC_INT8 ? 255 : 15);
            uint32_t bits;
            memcpy(&bits, decoded[0] + 4 * (first + i), 4);
            CHECK_EQ_INT(bits, to_bits((float)(meaning(codec, code) * (double)scale)));
        }
        at += n_bytes;
    }
    CHECK_EQ_INT(at, codec_bytes(codec, count));
}

TEST(blocks_are_those_of_the_reference)
{
    static const size_t counts[] = {1, 2, 3, 4, 5, 7, 8, 9, 31, 64, 65, 100, 255, 256, 257, 259, 511, 512, 600, 1009};
    uint64_t state = 3;
    for (int codec = PCCL_CODEC_INT8; codec <= PCCL_CODEC_E3M0; codec++)
        for (int kind = FINITE; kind < KIND_COUNT; kind++)
            for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
                fill(values, counts[i], (enum kind)kind, &state);
                check_against_reference((pccl_codec)codec, counts[i]);
            }
}

/* Quotients at the midpoints between two codes and beside them, by any scale: a division that is not exact shows. */
TEST(blocks_of_midpoints)
{
    uint64_t state = 11;
    for (int trial = 0; trial < 4000; trial++) {
        pccl_codec codec = trial % 2 ? PCCL_CODEC_INT8 : PCCL_CODEC_E3M0;
        float x[64] = {fabsf(normal_value(&state)) + 0.001f}, scale = scale_of(codec, x[0]);
        for (size_t i = 1; i < 64; i++) {
            uint64_t bits = test_random(&state);
            float middle = codec == PCCL_CODEC_INT8 ? (float)(bits % 127) + 0.5f : ldexpf(0.75f, -(int)(bits % 7));
            x[i] = from_bits(to_bits(middle * scale) + (uint32_t)(bits >> 32) % 5 - 2);
        }
        memcpy(values, x, sizeof x);
        check_against_reference(codec, 64);
    }
}

static float through(pccl_codec codec, float x)
{
    uint8_t code[8];
    float back;
    codec_encode(codec, &x, 1, code);
    CHECK_EQ_INT(codec_decode(codec, code, codec_bytes(codec, 1), &back, 1), PCCL_OK);
    return back;
}

static void check_half(pccl_codec codec, float x)
{
    float wanted = codec == PCCL_CODEC_BF16 ? nearest_half(x, 7, -126, 127) : nearest_half(x, 10, -14, 15);
    CHECK_EQ_INT(to_bits(through(codec, x)), to_bits(wanted));
}

/* Every value of the format, its neighbours, the midpoint to the next, and the midpoint's neighbours. */
TEST(halves_are_the_nearest)
{
    for (int codec = PCCL_CODEC_BF16; codec <= PCCL_CODEC_FP16; codec++)
        for (uint32_t half = 0; half < 65536; half++) {
            uint16_t code = (uint16_t)half;
            float x;
            CHECK_EQ_INT(codec_decode((pccl_codec)codec, (const uint8_t *)&code, 2, &x, 1), PCCL_OK);
            if (isnan(x)) {
                CHECK_EQ_INT(to_bits(x), canonical_nan);
                continue;
            }
            uint32_t midpoint = to_bits(x) + (codec == PCCL_CODEC_BF16 ? 0x8000 : 0x1000);
            for (uint32_t near = 0; near < 3; near++) {
                check_half((pccl_codec)codec, from_bits(to_bits(x) + near - 1));
                check_half((pccl_codec)codec, from_bits(midpoint + near - 1));
            }
            uint16_t again;
            codec_encode((pccl_codec)codec, &x, 1, (uint8_t *)&again);
            CHECK_EQ_INT(again, code);
        }
}

TEST(halves_of_any_bits)
{
    uint64_t state = 4;
    for (int i = 0; i < 300000; i++) {
        float x = random_value(ANY, &state);
        check_half(PCCL_CODEC_BF16, x);
        check_half(PCCL_CODEC_FP16, x);
        check_half(PCCL_CODEC_FP16, from_bits((to_bits(x) & 0x87ffffff) + 0x30000000)); /* in its range */
    }
    CHECK_EQ_INT(to_bits(through(PCCL_CODEC_FP16, -65520.0f)), to_bits(-INFINITY));
    CHECK_EQ_INT(to_bits(through(PCCL_CODEC_FP16, 65519.996f)), to_bits(65504.0f));
    CHECK_EQ_INT(to_bits(through(PCCL_CODEC_BF16, FLT_MAX)), to_bits(INFINITY));
}

static void check_e3m0(float x, float wanted)
{
    float pair[2] = {8, x}, back[2];
    uint8_t code[8];
    for (int sign = 0; sign < 2; sign++, pair[1] = -pair[1], wanted = -wanted) {
        codec_encode(PCCL_CODEC_E3M0, pair, 2, code);
        CHECK_EQ_INT(codec_decode(PCCL_CODEC_E3M0, code, 8, back, 2), PCCL_OK);
        CHECK_EQ_INT(to_bits(back[1]), to_bits(wanted));
    }
}

/* Midpoints go to the even code: 2^-6 is code 1, 1 is code 7. */
TEST(e3m0_thresholds)
{
    check_e3m0(0x1p-4f, 0); /* half of the least */
    check_e3m0(nextafterf(0x1p-4f, 1), 0x1p-3f);
    check_e3m0(0x1p-3f, 0x1p-3f);
    for (int exponent = -3; exponent < 3; exponent++) {
        float low = ldexpf(1, exponent), middle = 1.5f * low;
        int low_code = exponent + 4;
        check_e3m0(low, low);
        check_e3m0(nextafterf(middle, 0), low);
        check_e3m0(middle, low_code % 2 == 0 ? low : 2 * low);
        check_e3m0(nextafterf(middle, 8), 2 * low);
    }
    check_e3m0(8, 8);
}

/* -- promises -------------------------------------------------------------------------------------------------- */

static double bound_of(pccl_codec codec, double x, double peak)
{
    switch (codec) {
    case PCCL_CODEC_BF16:
        return fmax(0x1p-8 * x, 0x1p-134);
    case PCCL_CODEC_FP16:
        return fmax(0x1p-11 * x, 0x1p-25);
    case PCCL_CODEC_INT8:
        return (0.5 + 0x1p-16) * fmax(peak / 127, 0x1p-126);
    case PCCL_CODEC_E3M0:
        return fmax(x / 3, fmax(peak, 0x1p-120) / 128) * (1 + 0x1p-22);
    default:
        return 0;
    }
}

/* Values that the 16-bit formats cannot hold are not bound by anything but the policy. */
static int in_range(pccl_codec codec, double x)
{
    return codec == PCCL_CODEC_FP16 ? x < 65520 : codec != PCCL_CODEC_BF16 || x < 0x1.ffp127;
}

static void check_bounds(pccl_codec codec, size_t count)
{
    float x[CODEC_BLOCK], back[CODEC_BLOCK];
    double peak = 0;
    memcpy(x, values, 4 * count);
    codec_encode(codec, x, count, encoded[0]);
    CHECK_EQ_INT(codec_decode(codec, encoded[0], codec_bytes(codec, count), back, count), PCCL_OK);
    for (size_t i = 0; i < count; i++)
        peak = fmax(peak, fabs((double)x[i]));
    for (size_t i = 0; i < count; i++)
        if (in_range(codec, fabs((double)x[i])))
            CHECK(fabs((double)back[i] - (double)x[i]) <= bound_of(codec, fabs((double)x[i]), peak));
        else
            CHECK(isinf(back[i]) && signbit(back[i]) == signbit(x[i]));
}

TEST(error_bounds)
{
    uint64_t state = 5;
    for (int codec = 0; codec < PCCL_CODEC_COUNT; codec++)
        for (int kind = FINITE; kind < KIND_COUNT; kind++)
            for (int trial = 0; trial < 100; trial++) {
                size_t count = 1 + test_random(&state) % CODEC_BLOCK;
                fill(values, count, (enum kind)kind, &state);
                check_bounds((pccl_codec)codec, count);
            }
}

/* Relative L2 error on normally distributed values, and the share of zeros: known figures, within a tenth. */
TEST(errors_are_the_expected)
{
    static const struct {
        pccl_codec codec;
        double error;
    } expected[] = {
        {PCCL_CODEC_BF16, 0.00166}, {PCCL_CODEC_FP16, 0.000207}, {PCCL_CODEC_INT8, 0.0063}, {PCCL_CODEC_E3M0, 0.195}};
    enum { COUNT = 1 << 16 };
    static float x[COUNT], back[COUNT];
    static uint8_t code[4 * COUNT];
    uint64_t state = 6;
    for (size_t i = 0; i < COUNT; i++)
        x[i] = normal_value(&state);
    for (size_t e = 0; e < sizeof expected / sizeof expected[0]; e++) {
        pccl_codec codec = expected[e].codec;
        double error = 0, norm = 0;
        size_t zeros = 0;
        codec_encode(codec, x, COUNT, code);
        CHECK_EQ_INT(codec_decode(codec, code, codec_bytes(codec, COUNT), back, COUNT), PCCL_OK);
        for (size_t i = 0; i < COUNT; i++) {
            error += pow((double)back[i] - (double)x[i], 2);
            norm += pow((double)x[i], 2);
            zeros += back[i] == 0;
        }
        double relative = sqrt(error / norm);
        CHECK(fabs(relative / expected[e].error - 1) < 0.1);
        if (codec == PCCL_CODEC_E3M0)
            CHECK(fabs((double)zeros / (double)COUNT - 0.02) < 0.004);
    }
}

static void check_idempotence(pccl_codec codec, size_t count)
{
    codec_encode(codec, values, count, encoded[0]);
    CHECK_EQ_INT(codec_decode(codec, encoded[0], codec_bytes(codec, count), decoded[0], count), PCCL_OK);
    codec_encode(codec, decoded[0], count, encoded[1]);
    CHECK_EQ_BYTES(encoded[1], encoded[0], codec_bytes(codec, count));
}

TEST(what_was_decoded_encodes_to_the_same_bytes)
{
    uint64_t state = 7;
    for (int codec = 0; codec < PCCL_CODEC_COUNT; codec++)
        for (int kind = ANY; kind < KIND_COUNT; kind++)
            for (int trial = 0; trial < 200; trial++) {
                size_t count = test_random(&state) % 600;
                fill(values, count, (enum kind)kind, &state);
                check_idempotence((pccl_codec)codec, count);
            }
}

/* The scale comes back from the greatest code: peaks all over a binade, at every exponent near the ends. */
TEST(scales_come_back)
{
    for (uint32_t exponent = 0; exponent < 255; exponent += exponent > 12 && exponent < 240 ? 45 : 1)
        for (uint32_t mantissa = 0; mantissa < 1 << 23; mantissa += (mantissa - 1000) < (1 << 23) - 2000 ? 1021 : 1) {
            float x = from_bits(exponent << 23 | mantissa);
            memcpy(values, &x, 4);
            check_idempotence(PCCL_CODEC_INT8, 1);
            check_idempotence(PCCL_CODEC_E3M0, 1);
        }
}

/* Blocks encoded together are the blocks encoded alone. */
TEST(data_may_be_cut_between_blocks)
{
    uint64_t state = 8;
    size_t count = 5 * CODEC_BLOCK + 77;
    fill(values, count, NORMAL, &state);
    for (int codec = 0; codec < PCCL_CODEC_COUNT; codec++) {
        uint8_t *end = encoded[1];
        for (size_t first = 0; first < count; first += 2 * CODEC_BLOCK) {
            size_t n = count - first < 2 * CODEC_BLOCK ? count - first : 2 * CODEC_BLOCK;
            codec_encode((pccl_codec)codec, values + 4 * first, n, end);
            end += codec_bytes((pccl_codec)codec, n);
        }
        codec_encode((pccl_codec)codec, values, count, encoded[0]);
        CHECK_EQ_INT(end - encoded[1], codec_bytes((pccl_codec)codec, count));
        CHECK_EQ_BYTES(encoded[1], encoded[0], codec_bytes((pccl_codec)codec, count));
    }
}

/* -- values that are special ----------------------------------------------------------------------------------- */

/* One bad value in a whole block, a neighbour of none, and in a short one. */
TEST(a_poisoned_block_is_all_nan)
{
    static const uint32_t poisons[] = {0x7f800000, 0xff800000, 0x7fc00000, 0x7f800001, 0xffffffff, 0xffc00000};
    uint64_t state = 9;
    size_t count = 3 * CODEC_BLOCK + 50;
    for (int codec = PCCL_CODEC_INT8; codec <= PCCL_CODEC_E3M0; codec++)
        for (size_t p = 0; p < sizeof poisons / sizeof poisons[0]; p++)
            for (size_t at = CODEC_BLOCK; at < count; at += at < 2 * CODEC_BLOCK ? 1 : CODEC_BLOCK + 49) {
                size_t from = at / CODEC_BLOCK * CODEC_BLOCK, to = from + CODEC_BLOCK;
                fill(values, count, NORMAL, &state);
                memcpy(values + 4 * at, &poisons[p], 4);
                there_and_back("scalar", (pccl_codec)codec, values, count, 0, 0);
                for (size_t i = 0; i < count; i++) {
                    float x;
                    memcpy(&x, decoded[0] + 4 * i, 4);
                    CHECK(i >= from && i < to ? to_bits(x) == canonical_nan : isfinite(x));
                }
            }
}

TEST(halves_keep_infinities_and_nans)
{
    static const uint32_t nans[] = {0x7fc00000, 0x7f800001, 0xffffffff, 0xffc00000, 0x7f80ffff, 0x7f801fff};
    for (int codec = PCCL_CODEC_BF16; codec <= PCCL_CODEC_FP16; codec++) {
        for (size_t i = 0; i < sizeof nans / sizeof nans[0]; i++)
            CHECK_EQ_INT(to_bits(through((pccl_codec)codec, from_bits(nans[i]))), canonical_nan);
        CHECK_EQ_INT(to_bits(through((pccl_codec)codec, INFINITY)), to_bits(INFINITY));
        CHECK_EQ_INT(to_bits(through((pccl_codec)codec, -INFINITY)), to_bits(-INFINITY));
        CHECK_EQ_INT(to_bits(through((pccl_codec)codec, -0.0f)), to_bits(-0.0f));
    }
    CHECK_EQ_INT(to_bits(through(PCCL_CODEC_NONE, from_bits(0xff800001))), 0xff800001);
}

TEST(zeros_and_signs)
{
    float zeros[CODEC_BLOCK + 3] = {0};
    for (int codec = 0; codec < PCCL_CODEC_COUNT; codec++) {
        there_and_back("scalar", (pccl_codec)codec, (const uint8_t *)zeros, CODEC_BLOCK + 3, 0, 0);
        CHECK_EQ_BYTES(decoded[0], (const uint8_t *)zeros, sizeof zeros);
    }
    CHECK_EQ_INT(to_bits(through(PCCL_CODEC_INT8, -0.0f)), 0);
    CHECK_EQ_INT(to_bits(through(PCCL_CODEC_E3M0, -0.0f)), to_bits(-0.0f));
}

TEST(the_ends_of_the_range)
{
    CHECK_EQ_INT(to_bits(through(PCCL_CODEC_E3M0, FLT_MAX)), to_bits(FLT_MAX));
    CHECK_EQ_INT(to_bits(through(PCCL_CODEC_E3M0, -FLT_MAX)), to_bits(-FLT_MAX));
    CHECK(isfinite(through(PCCL_CODEC_INT8, FLT_MAX)) && through(PCCL_CODEC_INT8, FLT_MAX) > 0.9999f * FLT_MAX);
    CHECK_EQ_INT(to_bits(through(PCCL_CODEC_INT8, 0x1p-126f)), to_bits(0x1p-126f));
    CHECK_EQ_INT(to_bits(through(PCCL_CODEC_INT8, 0x1p-127f)), 0); /* half of the floor: to even */
    CHECK_EQ_INT(to_bits(through(PCCL_CODEC_E3M0, 0x1p-126f)), to_bits(0x1p-126f));
    CHECK_EQ_INT(to_bits(through(PCCL_CODEC_E3M0, 0x1p-127f)), 0);
    CHECK_EQ_INT(to_bits(through(PCCL_CODEC_FP16, 0x1p-24f)), to_bits(0x1p-24f));
    CHECK_EQ_INT(to_bits(through(PCCL_CODEC_FP16, 0x1p-25f)), 0);
    CHECK_EQ_INT(to_bits(through(PCCL_CODEC_BF16, 0x1p-133f)), to_bits(0x1p-133f));
}

/* -- what comes from outside ----------------------------------------------------------------------------------- */

static void check_refused(pccl_codec codec, size_t bytes, size_t count)
{
    memset(decoded[0], GUARD, sizeof decoded[0]);
    memset(decoded[1], GUARD, sizeof decoded[1]);
    CHECK_EQ_INT(codec_decode(codec, encoded[0], bytes, decoded[0], count), PCCL_EPROTO);
    CHECK_EQ_BYTES(decoded[0], decoded[1], sizeof decoded[0]);
}

TEST(wrong_sizes_are_refused)
{
    memset(encoded[0], 0, sizeof encoded[0]);
    for (int codec = 0; codec < PCCL_CODEC_COUNT; codec++)
        for (size_t count = 0; count < 600; count += 37) {
            size_t right = codec_bytes((pccl_codec)codec, count);
            for (size_t bytes = 0; bytes < right + 300; bytes += bytes + 8 < right ? 6 : 1)
                if (bytes != right)
                    check_refused((pccl_codec)codec, bytes, count);
        }
}

/* Sizes that wrap around would be right. */
TEST(absurd_counts_are_refused)
{
    static const size_t counts[] = {SIZE_MAX, SIZE_MAX / 2 + 1, SIZE_MAX / 4 + 1, SIZE_MAX / 8 + 1};
    for (int codec = 0; codec < PCCL_CODEC_COUNT; codec++)
        for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++)
            check_refused((pccl_codec)codec, codec_bytes((pccl_codec)codec, counts[i]), counts[i]);
}

TEST(bad_scales_are_refused)
{
    const float floors[] = {[PCCL_CODEC_INT8] = 0x1p-126f, [PCCL_CODEC_E3M0] = 0x1p-120f};
    const float ceilings[] = {[PCCL_CODEC_INT8] = 0x1.020406p121f, [PCCL_CODEC_E3M0] = FLT_MAX};
    for (int codec = PCCL_CODEC_INT8; codec <= PCCL_CODEC_E3M0; codec++) {
        const uint32_t bad[] = {0, 1, 0x80000000, 0xbf800000, 0x7f800000, 0xff800000, 0x7f800001, 0x7fc00001,
                                0xffc00000, to_bits(floors[codec]) - 1, to_bits(ceilings[codec]) + 1};
        const uint32_t good[] = {to_bits(floors[codec]), to_bits(ceilings[codec]), 0x3f800000, canonical_nan};
        size_t block = codec_bytes((pccl_codec)codec, CODEC_BLOCK), bytes = codec_bytes((pccl_codec)codec, 600);
        memset(values, 0, 2400);
        for (size_t at = 0; at < bytes; at += block) {
            codec_encode((pccl_codec)codec, values, 600, encoded[0]);
            for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
                memcpy(encoded[0] + at, &bad[i], 4);
                check_refused((pccl_codec)codec, bytes, 600);
            }
            for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
                memcpy(encoded[0] + at, &good[i], 4);
                CHECK_EQ_INT(codec_decode((pccl_codec)codec, encoded[0], bytes, decoded[0], 600), PCCL_OK);
            }
        }
    }
}

TEST(the_code_that_int8_lacks_is_refused)
{
    size_t bytes = codec_bytes(PCCL_CODEC_INT8, 300);
    memset(values, 0, 1200);
    codec_encode(PCCL_CODEC_INT8, values, 300, encoded[0]);
    for (size_t at = 4; at < bytes; at++) {
        if (at >= 260 && at < 264)
            continue; /* the scale of the second block */
        encoded[0][at] = 0x80;
        check_refused(PCCL_CODEC_INT8, bytes, 300);
        encoded[0][at] = 0;
    }
}

/* -- sizes, names, the border ---------------------------------------------------------------------------------- */

TEST(sizes)
{
    static const size_t counts[] = {0, 1, 4, 5, 8, 9, 256, 257, 600};
    static const size_t int8[] = {0, 8, 8, 12, 12, 16, 260, 268, 2 * 260 + 4 + 88};
    static const size_t e3m0[] = {0, 8, 8, 8, 8, 12, 132, 140, 2 * 132 + 4 + 44};
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        CHECK_EQ_INT(codec_bytes(PCCL_CODEC_NONE, counts[i]), 4 * counts[i]);
        CHECK_EQ_INT(codec_bytes(PCCL_CODEC_BF16, counts[i]), 2 * counts[i]);
        CHECK_EQ_INT(codec_bytes(PCCL_CODEC_FP16, counts[i]), 2 * counts[i]);
        CHECK_EQ_INT(codec_bytes(PCCL_CODEC_INT8, counts[i]), int8[i]);
        CHECK_EQ_INT(codec_bytes(PCCL_CODEC_E3M0, counts[i]), e3m0[i]);
    }
    CHECK_EQ_INT(codec_bytes(PCCL_CODEC_COUNT, 100), 0);
    for (size_t count = 256; count < 100000; count += 97) {
        CHECK((double)codec_bytes(PCCL_CODEC_INT8, count) <= 0.27 * 4 * (double)count);
        CHECK((double)codec_bytes(PCCL_CODEC_E3M0, count) <= 0.14 * 4 * (double)count);
    }
}

TEST(names)
{
    static const char *const names[] = {"none", "bf16", "fp16", "int8", "e3m0"};
    pccl_codec codec = PCCL_CODEC_NONE;
    for (int i = 0; i < PCCL_CODEC_COUNT; i++) {
        CHECK_EQ_STR(codec_name((pccl_codec)i), names[i]);
        CHECK_EQ_INT(codec_from_name(names[i], &codec), PCCL_OK);
        CHECK_EQ_INT(codec, i);
    }
    CHECK_EQ_INT(codec_from_name("int4", &codec), PCCL_EINVAL);
    CHECK_EQ_INT(codec, PCCL_CODEC_E3M0);
    CHECK_EQ_STR(codec_name(PCCL_CODEC_COUNT), "?");
}

TEST(the_border)
{
    uint64_t state = 10;
    fill(values, 300, NORMAL, &state);
    for (int codec = 0; codec < PCCL_CODEC_COUNT; codec++) {
        uint64_t bytes = pccl_codec_bytes(codec, 300);
        CHECK_EQ_INT(bytes, codec_bytes((pccl_codec)codec, 300));
        codec_encode((pccl_codec)codec, values, 300, encoded[0]);
        CHECK_EQ_INT(pccl_codec_encode(NULL, codec, values, 300, encoded[1]), PCCL_OK);
        CHECK_EQ_BYTES(encoded[1], encoded[0], bytes);
        CHECK_EQ_INT(pccl_codec_decode("scalar", codec, encoded[0], bytes, decoded[0], 300), PCCL_OK);
        CHECK_EQ_INT(pccl_codec_decode(NULL, codec, encoded[0], bytes, decoded[1], 300), PCCL_OK);
        CHECK_EQ_BYTES(decoded[1], decoded[0], 1200);
        CHECK_EQ_INT(pccl_codec_decode(NULL, codec, encoded[0], bytes - 1, decoded[1], 300), PCCL_EPROTO);
        CHECK_EQ_INT(pccl_codec_encode("mmx", codec, values, 300, encoded[1]), PCCL_EINVAL);
        CHECK_EQ_INT(pccl_codec_decode("mmx", codec, encoded[0], bytes, decoded[1], 300), PCCL_EINVAL);
    }
    for (int codec = -1; codec <= PCCL_CODEC_COUNT; codec += PCCL_CODEC_COUNT + 1) {
        CHECK_EQ_INT(pccl_codec_bytes(codec, 300), 0);
        CHECK_EQ_INT(pccl_codec_encode(NULL, codec, values, 300, encoded[1]), PCCL_EINVAL);
        CHECK_EQ_INT(pccl_codec_decode(NULL, codec, encoded[0], 0, decoded[1], 300), PCCL_EINVAL);
    }
}

TEST_MAIN("codec")
