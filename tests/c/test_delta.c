/* test_delta.c - deltas of weights: every form takes old to new, bit for bit, by every instruction set in the same bytes; folds and
 * inverses do what they say; a wrong base, a cut and a changed byte never write, crash or pass for something else. */
#include "delta.h"

#include "test.h"

enum { COUNT_MAX = 70000, FORMS = PCCL_DELTA_FORM_COUNT };

static const char *const isas[] = {"scalar", "avx2", "avx512"};
enum { ISA_COUNT = sizeof isas / sizeof isas[0] };

static const uint32_t all_forms = (1u << FORMS) - 1, by_place = 1u << PCCL_DELTA_ZERO | 1u << PCCL_DELTA_DIFF_A | 1u << PCCL_DELTA_DENSE_ULP;
static const uint32_t counts[] = {0, 1, 2, 7, 63, 64, 65, 500, 2047, 2048, 2049, 4100, 10007, COUNT_MAX};

static uint8_t *work, *block, *other, *third, *old_state, *new_state, *state, *values;
static uint32_t *places;

static uint8_t *room(uint64_t bytes)
{
    uint8_t *p = malloc(bytes + 8);
    if (p == NULL)
        abort();
    return p;
}

__attribute__((constructor)) static void make_room(void)
{
    uint64_t bound = pccl_delta_bound(COUNT_MAX, 4);
    work = room(pccl_delta_work(COUNT_MAX, 4));
    block = room(bound), other = room(bound), third = room(bound);
    old_state = room(4 * COUNT_MAX), new_state = room(4 * COUNT_MAX), state = room(4 * COUNT_MAX), values = room(4 * COUNT_MAX);
    places = (uint32_t *)room(4 * COUNT_MAX);
}

__attribute__((destructor)) static void free_room(void)
{
    free(work), free(block), free(other), free(third), free(old_state), free(new_state), free(state), free(values), free(places);
}

/* -- states -------------------------------------------------------------------------------------------------------- */

enum kind { WEIGHTS, ANY, EXTREMES, STEADY, KINDS };

static uint32_t element(enum kind kind, uint32_t width, uint64_t *seed)
{
    uint64_t bits = test_random(seed);
    if (kind == STEADY)
        return 0;
    if (kind == EXTREMES)
        return bits & 1 ? (uint32_t)(bits & 2 ? UINT32_MAX : 0x80808080u) : (uint32_t)(bits & 2);
    if (kind == ANY)
        return (uint32_t)bits;
    /* a float whose exponent falls off by one with each halving of its chance */
    uint32_t exponent = 120 - (uint32_t)__builtin_ctzll(bits | 1u << 20), mantissa = (uint32_t)(bits >> 32) & 0x7fffff;
    uint32_t x = (uint32_t)(bits >> 63) << 31 | exponent << 23 | mantissa;
    return width == 4 ? x : width == 2 ? x >> 16 : x >> 24;
}

/* How likely an element changes: `percent`, or for weights in proportion to how small it is. */
static int is_hit(enum kind kind, uint32_t x, uint32_t width, uint32_t percent, uint64_t *seed)
{
    uint32_t chance = percent * 655;
    if (kind == WEIGHTS && width == 2 && percent < 100) {
        uint32_t exponent = (x >> 7) & 255;
        chance = exponent > 120 ? 0 : exponent < 110 ? 32000 : (percent * 100) << (120 - exponent);
    }
    return test_random(seed) % 65500 < chance;
}

static void put(uint8_t *at, uint32_t width, uint32_t i, uint32_t x)
{
    memcpy(at + (size_t)i * width, &x, width);
}

static uint32_t get(const uint8_t *at, uint32_t width, uint32_t i)
{
    uint32_t x = 0;
    memcpy(&x, at + (size_t)i * width, width);
    return x;
}

static void fill(enum kind kind, uint32_t width, uint32_t count, uint64_t seed)
{
    for (uint32_t i = 0; i < count; i++)
        put(old_state, width, i, element(kind, width, &seed));
}

/* Mostly steps of one, some larger, some anything. */
static void change(const uint8_t *from, uint8_t *to, enum kind kind, uint32_t width, uint32_t count, uint32_t percent, uint64_t seed)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t x = get(from, width, i);
        if (is_hit(kind, x, width, percent, &seed)) {
            uint64_t bits = test_random(&seed);
            uint32_t step = bits % 16 ? 1 : bits % 256 ? (uint32_t)(bits >> 60) + 2 : (uint32_t)(bits >> 16);
            x = kind >= EXTREMES ? (uint32_t)(bits >> 8) : bits >> 63 ? x + step : x - step;
        }
        put(to, width, i, x);
    }
}

/* -- both ways ----------------------------------------------------------------------------------------------------- */

/* Encodes by all instruction sets: the same bytes; 0 if the forms cannot say it. */
static uint64_t encode_all(const uint8_t *from, const uint8_t *to, uint32_t count, uint32_t width, uint32_t forms, uint8_t *out)
{
    uint64_t bytes = 0, others;
    pccl_err err = pccl_delta_encode(NULL, from, to, count, width, forms, work, out, &bytes, NULL);
    for (int i = 0; i < ISA_COUNT; i++) {
        pccl_err same = pccl_delta_encode(isas[i], from, to, count, width, forms, work, third, &others, NULL);
        if (same == PCCL_OK) {
            CHECK_EQ_INT(others, bytes);
            CHECK_EQ_BYTES(third, out, bytes < others ? bytes : others);
        }
    }
    return err == PCCL_OK ? bytes : 0;
}

static void check_decode(const uint8_t *in, uint64_t bytes, const uint8_t *from, const uint8_t *to, uint32_t count, uint32_t width)
{
    for (int i = -1; i < ISA_COUNT; i++) {
        const char *isa = i < 0 ? NULL : isas[i];
        memcpy(state, from, (size_t)count * width);
        pccl_err err = pccl_delta_decode(isa, in, bytes, state, count, width, work);
        if (isa != NULL && err == PCCL_EINVAL)
            continue;
        CHECK_EQ_INT(err, PCCL_OK);
        CHECK_EQ_BYTES(state, to, (size_t)count * width);
    }
}

static void check_patch(const uint8_t *in, uint64_t bytes, const uint8_t *from, const uint8_t *to, uint32_t count, uint32_t width)
{
    pccl_delta_info info = {.size = sizeof info};
    CHECK_EQ_INT(pccl_delta_describe(in, bytes, &info), PCCL_OK);
    CHECK_EQ_INT(info.elements, count);
    CHECK_EQ_INT(info.width, width);
    CHECK_EQ_INT(pccl_delta_patch(NULL, in, bytes, from, count, width, work, places, values, NULL), PCCL_OK);
    memcpy(state, from, (size_t)count * width);
    for (uint32_t i = 0; i < (info.form == PCCL_DELTA_RAW ? count : info.changed); i++)
        put(state, width, places[i], get(values, width, i));
    CHECK_EQ_BYTES(state, to, (size_t)count * width);
}

/* What encode and patch say of the new state by each instruction set, and what patch says when its base is another one. */
static void check_hash(const uint8_t *from, const uint8_t *to, uint32_t count, uint32_t width, uint32_t forms)
{
    uint8_t hash[PCCL_DELTA_HASH_BYTES], same[PCCL_DELTA_HASH_BYTES];
    uint64_t bytes;
    if ((uint64_t)count * width < PCCL_DELTA_HASH_FROM) {
        CHECK_EQ_INT(pccl_delta_encode(NULL, from, to, count, width, forms, work, third, &bytes, hash), PCCL_EINVAL);
        return;
    }
    CHECK_EQ_INT(pccl_delta_encode(NULL, from, to, count, width, forms, work, third, &bytes, hash), PCCL_OK);
    for (int i = 0; i < ISA_COUNT; i++) {
        if (pccl_delta_encode(isas[i], from, to, count, width, forms, work, third, &bytes, same) == PCCL_EINVAL)
            continue;
        CHECK_EQ_BYTES(same, hash, sizeof hash);
        memset(same, 0, sizeof same);
        CHECK_EQ_INT(pccl_delta_patch(isas[i], third, bytes, from, count, width, work, places, values, same), PCCL_OK);
        CHECK_EQ_BYTES(same, hash, sizeof hash);
    }
    memcpy(state, from, (size_t)count * width);
    state[count * width / 2] ^= 4;
    pccl_err err = pccl_delta_patch(NULL, third, bytes, state, count, width, work, places, values, same);
    CHECK(err == ((third[0] & 15) >= PCCL_DELTA_DIFF_A ? PCCL_EMISMATCH : PCCL_OK));
}

/* Of a state that is known. */
static void check_move(const uint8_t *in, uint64_t bytes, const uint8_t *from, const uint8_t *to, uint32_t count, uint32_t width)
{
    memcpy(state, from, (size_t)count * width);
    CHECK_EQ_INT(pccl_delta_move(NULL, in, bytes, state, count, width, work), PCCL_OK);
    CHECK_EQ_BYTES(state, to, (size_t)count * width);
}

static void check_inverse(const uint8_t *in, uint64_t bytes, const uint8_t *from, const uint8_t *to, uint32_t count, uint32_t width)
{
    uint64_t back;
    CHECK_EQ_INT(pccl_delta_invert(NULL, in, bytes, from, work, other, &back), PCCL_OK);
    check_decode(other, back, to, from, count, width);
    CHECK_EQ_INT(pccl_delta_as_a(NULL, in, bytes, from, work, other, &back), PCCL_OK);
    check_decode(other, back, from, to, count, width);
}

static void check_all_forms(enum kind kind, uint32_t width, uint32_t count, uint32_t percent, uint64_t seed)
{
    uint64_t least = UINT64_MAX;
    fill(kind, width, count, seed);
    change(old_state, new_state, kind, width, count, percent, seed + 1);
    int is_same = memcmp(old_state, new_state, (size_t)count * width) == 0;
    for (uint32_t form = 0; form < FORMS; form++) {
        uint64_t bytes = encode_all(old_state, new_state, count, width, 1u << form, block);
        CHECK(bytes > 0 || (form == PCCL_DELTA_ZERO && !is_same));
        if (bytes == 0)
            continue;
        CHECK_EQ_INT(block[0] & 15, form);
        CHECK(bytes <= pccl_delta_bound(count, width));
        check_decode(block, bytes, old_state, new_state, count, width);
        check_patch(block, bytes, old_state, new_state, count, width);
        check_move(block, bytes, old_state, new_state, count, width);
        check_hash(old_state, new_state, count, width, 1u << form);
        check_inverse(block, bytes, old_state, new_state, count, width);
        least = bytes < least ? bytes : least;
    }
    uint64_t best = encode_all(old_state, new_state, count, width, all_forms, block);
    CHECK_EQ_INT(best, least);
    CHECK(best <= (uint64_t)count * width + (uint64_t)count * width / 1000 + 9);
}

TEST(every_form_takes_old_to_new_in_the_same_bytes)
{
    static const uint32_t percents[] = {0, 1, 5, 30, 60, 100};
    uint64_t seed = 1;
    for (uint32_t width = 1; width <= 4; width *= 2)
        for (size_t n = 0; n < sizeof counts / sizeof counts[0]; n++)
            for (size_t p = 0; p < sizeof percents / sizeof percents[0]; p++)
                for (enum kind kind = 0; kind < KINDS; kind++)
                    if (counts[n] < 5000 || kind == WEIGHTS)
                        check_all_forms(kind, width, counts[n], percents[p], seed += 2);
}

/* The same element, `steps` apart, in a row of others that change by one or not at all. */
static void check_single_step(uint32_t width, uint32_t from, uint32_t to)
{
    memset(old_state, 0x35, 512 * 4);
    memset(new_state, 0x35, 512 * 4);
    put(old_state, width, 99, from);
    put(new_state, width, 99, to);
    for (uint32_t form = PCCL_DELTA_RAW; form < FORMS; form++) {
        uint64_t bytes = encode_all(old_state, new_state, 512, width, 1u << form, block);
        CHECK(bytes > 0);
        check_decode(block, bytes, old_state, new_state, 512, width);
        check_inverse(block, bytes, old_state, new_state, 512, width);
    }
}

TEST(every_step_of_small_elements_and_the_extreme_ones_of_all)
{
    static const uint32_t odd[] = {0, 1, 2, 0x7f, 0x80, 0x81, 0xff, 0x7fff, 0x8000, 0x8001, 0x7f80, 0x7fc1, 0xff80, 0xffff, 0x7fffffff,
                                   0x80000000, 0x80000001, 0x7f800000, 0x7fc00001, 0xffffffff};
    for (uint32_t to = 0; to < 256; to++)
        check_single_step(1, 200, to);
    for (size_t i = 0; i < sizeof odd / sizeof odd[0]; i++)
        for (size_t j = 0; j < sizeof odd / sizeof odd[0]; j++)
            for (uint32_t width = 2; width <= 4; width *= 2)
                check_single_step(width, odd[i], odd[j]);
}

/* Steps of which every order of the Golomb code but the last makes the worst. */
TEST(steps_by_powers_of_two_fit_the_bound)
{
    for (uint32_t width = 1; width <= 4; width *= 2)
        for (uint32_t bit = 1; bit < 8 * width; bit++) {
            fill(ANY, width, 5000, bit);
            for (uint32_t i = 0; i < 5000; i++)
                put(new_state, width, i, get(old_state, width, i) + (i % 3 == 2 ? 0 : 1u << bit));
            for (uint32_t form = PCCL_DELTA_RAW; form < FORMS; form++) {
                uint64_t bytes = encode_all(old_state, new_state, 5000, width, 1u << form, block);
                CHECK(bytes <= pccl_delta_bound(5000, width));
                CHECK(form < PCCL_DELTA_DIFF_A || bytes <= 5000 * (width + 1));
                check_decode(block, bytes, old_state, new_state, 5000, width);
            }
        }
}

/* -- blocks of blocks ---------------------------------------------------------------------------------------------- */

static void check_fold(uint32_t width, uint32_t count, uint32_t percent, uint32_t first_forms, uint32_t second_forms, uint64_t seed)
{
    uint8_t *last = room(4 * (uint64_t)count), *folded = room(pccl_delta_bound(count, width));
    uint64_t bytes = 0;
    fill(WEIGHTS, width, count, seed);
    change(old_state, new_state, WEIGHTS, width, count, percent, seed + 1);
    change(new_state, last, WEIGHTS, width, count, percent, seed + 2);
    uint64_t a = encode_all(old_state, new_state, count, width, first_forms, block);
    uint64_t b = encode_all(new_state, last, count, width, second_forms, other);
    CHECK_EQ_INT(pccl_delta_fold(NULL, block, a, other, b, work, folded, &bytes), PCCL_OK);
    check_decode(folded, bytes, old_state, last, count, width);
    if (first_forms == by_place && second_forms == by_place) {
        uint64_t direct = encode_all(old_state, last, count, width, by_place, block);
        CHECK_EQ_INT(bytes, direct); /* and so folding is associative */
        CHECK_EQ_BYTES(folded, block, direct);
    }
    free(last), free(folded);
}

TEST(a_fold_is_what_would_have_been_encoded)
{
    for (uint32_t width = 1; width <= 4; width *= 2)
        for (size_t n = 0; n < sizeof counts / sizeof counts[0] - 1; n++)
            for (uint32_t percent = 0; percent <= 100; percent += 20) {
                uint64_t seed = 1000 * n + percent;
                check_fold(width, counts[n], percent, by_place, by_place, seed);
                check_fold(width, counts[n], percent, 1u << PCCL_DELTA_ABS, 1u << PCCL_DELTA_ABS, seed);
                for (uint32_t form = PCCL_DELTA_RAW; form < FORMS; form++) {
                    check_fold(width, counts[n], percent, 1u << PCCL_DELTA_RAW, 1u << form, seed);
                    check_fold(width, counts[n], percent, 1u << form, 1u << PCCL_DELTA_RAW, seed);
                }
            }
}

TEST(a_fold_of_a_change_and_its_inverse_is_nothing)
{
    uint64_t bytes = 0, back = 0, nothing = 0;
    fill(WEIGHTS, 2, 5000, 5);
    change(old_state, new_state, WEIGHTS, 2, 5000, 4, 6);
    bytes = encode_all(old_state, new_state, 5000, 2, by_place, block);
    CHECK_EQ_INT(pccl_delta_invert(NULL, block, bytes, NULL, work, other, &back), PCCL_OK);
    CHECK_EQ_INT(pccl_delta_fold(NULL, block, bytes, other, back, work, third, &nothing), PCCL_OK);
    CHECK_EQ_INT(third[0] & 15, PCCL_DELTA_ZERO);
    CHECK_EQ_INT(nothing, 3);
}

TEST(a_fold_of_blocks_that_do_not_follow_each_other_is_refused)
{
    uint64_t bytes, folded;
    fill(WEIGHTS, 2, 5000, 5);
    change(old_state, new_state, WEIGHTS, 2, 5000, 4, 6);
    bytes = encode_all(old_state, new_state, 5000, 2, 1u << PCCL_DELTA_DIFF_A, block);
    CHECK_EQ_INT(pccl_delta_fold(NULL, block, bytes, block, bytes, work, other, &folded), PCCL_EMISMATCH);
    bytes = encode_all(old_state, new_state, 5000, 2, 1u << PCCL_DELTA_DIFF_B, block);
    CHECK_EQ_INT(pccl_delta_fold(NULL, block, bytes, block, bytes, work, other, &folded), PCCL_EINVAL);
    CHECK_EQ_INT(pccl_delta_invert(NULL, block, bytes, NULL, work, other, &folded), PCCL_EINVAL);
    uint64_t shorter = encode_all(old_state, new_state, 4999, 2, 1u << PCCL_DELTA_RAW, other);
    CHECK_EQ_INT(pccl_delta_fold(NULL, block, bytes, other, shorter, work, third, &folded), PCCL_EINVAL);
}

/* -- what is refused ----------------------------------------------------------------------------------------------- */

/* Decodes a copy of the exact size; the state stays as it was unless it was accepted. */
static pccl_err try_decode(const uint8_t *in, uint64_t bytes, uint32_t count, uint32_t width)
{
    uint8_t *exact = malloc(bytes ? bytes : 1);
    if (exact == NULL)
        abort();
    memcpy(exact, in, bytes);
    memcpy(state, old_state, (size_t)count * width);
    pccl_err err = pccl_delta_decode(NULL, exact, bytes, state, count, width, work);
    if (err != PCCL_OK)
        CHECK_EQ_BYTES(state, old_state, (size_t)count * width);
    free(exact);
    return err;
}

TEST(any_other_base_is_refused_and_left_alone)
{
    enum { COUNT = 3000 };
    fill(WEIGHTS, 2, COUNT, 7);
    change(old_state, new_state, WEIGHTS, 2, COUNT, 4, 8);
    for (uint32_t form = PCCL_DELTA_DIFF_A; form < FORMS; form++) {
        uint64_t bytes = encode_all(old_state, new_state, COUNT, 2, 1u << form, block);
        for (uint32_t bit = 0; bit < COUNT * 16; bit += 7) {
            old_state[bit / 8] ^= (uint8_t)(1u << bit % 8);
            pccl_err err = try_decode(block, bytes, COUNT, 2);
            CHECK_EQ_INT(err, PCCL_EMISMATCH);
            old_state[bit / 8] ^= (uint8_t)(1u << bit % 8);
        }
        CHECK_EQ_INT(try_decode(block, bytes, COUNT, 2), PCCL_OK);
    }
}

TEST(cut_and_changed_blocks_are_refused_or_harmless)
{
    enum { COUNT = 1500 };
    fill(WEIGHTS, 2, COUNT, 9);
    change(old_state, new_state, WEIGHTS, 2, COUNT, 10, 10);
    for (uint32_t form = 0; form < FORMS; form++) {
        uint64_t bytes = encode_all(old_state, new_state, COUNT, 2, 1u << form, block);
        for (uint64_t cut = 0; cut < bytes; cut++)
            CHECK_EQ_INT(try_decode(block, cut, COUNT, 2), PCCL_EPROTO);
        if (bytes > 0) {
            block[bytes] = 0;
            CHECK_EQ_INT(try_decode(block, bytes + 1, COUNT, 2), PCCL_EPROTO);
        }
        for (uint64_t bit = 0; bit < bytes * 8; bit++) {
            block[bit / 8] ^= (uint8_t)(1u << bit % 8);
            (void)try_decode(block, bytes, COUNT, 2);
            block[bit / 8] ^= (uint8_t)(1u << bit % 8);
        }
    }
}

TEST(wrong_arguments_are_named)
{
    pccl_delta_info info = {.size = 1};
    uint64_t bytes;
    uint8_t one[] = {0, 1};
    CHECK_EQ_INT(pccl_delta_describe(one, 2, &info), PCCL_EINVAL);
    CHECK_EQ_INT(pccl_delta_encode(NULL, one, one, 1, 3, all_forms, work, block, &bytes, NULL), PCCL_EINVAL);
    CHECK_EQ_INT(pccl_delta_encode(NULL, one, one, DELTA_ELEMENTS_MAX + 1, 1, all_forms, work, block, &bytes, NULL), PCCL_EINVAL);
    CHECK_EQ_INT(pccl_delta_encode("abacus", one, one, 2, 1, all_forms, work, block, &bytes, NULL), PCCL_EINVAL);
    CHECK_EQ_INT(pccl_delta_encode(NULL, one, one, 2, 1, 0, work, block, &bytes, NULL), PCCL_EINVAL);
    CHECK_EQ_INT(pccl_delta_decode(NULL, one, 2, one, 2, 1, work), PCCL_EINVAL);
    CHECK_EQ_INT(pccl_delta_bound(1, 3), 0);
    CHECK_EQ_INT(pccl_delta_work(DELTA_ELEMENTS_MAX + 1, 1), 0);
}

TEST_MAIN("delta")
