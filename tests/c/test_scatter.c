/* test_scatter.c - values come to their places in many tensors, and nowhere else; what does not fit is found before. */
#include "include/pccl.h"

#include "test.h"

enum { ELEMENTS = 1000, PARTS = 9 };

static uint64_t address(const void *p)
{
    return (uint64_t)(uintptr_t)p;
}

static pccl_scatter part_of(void *to, const int64_t *places, const void *values, uint64_t count, uint32_t width)
{
    return (pccl_scatter){address(to), address(places), address(values), count, ELEMENTS, width, 8};
}

/* The same with places of 4 bytes, which are written to `room`. */
static pccl_scatter narrowed(pccl_scatter part, uint32_t *room)
{
    const int64_t *places = (const int64_t *)(uintptr_t)part.places;
    for (uint64_t i = 0; i < part.count; i++)
        room[i] = (uint32_t)places[i];
    part.places = address(room), part.place_width = 4;
    return part;
}

TEST(values_come_to_their_places_and_nowhere_else)
{
    static uint32_t to[PARTS][ELEMENTS], expected[PARTS][ELEMENTS], values[PARTS][ELEMENTS];
    static int64_t places[PARTS][ELEMENTS];
    static uint32_t narrow[PARTS][ELEMENTS], before[PARTS][ELEMENTS];
    pccl_scatter parts[PARTS];
    uint64_t seed = 1;
    for (int p = 0; p < PARTS; p++) {
        uint32_t width = 1u << p % 3;
        uint64_t count = 0;
        for (int i = 0; i < ELEMENTS; i++)
            to[p][i] = expected[p][i] = (uint32_t)test_random(&seed), values[p][i] = (uint32_t)test_random(&seed);
        for (int i = 0; i < ELEMENTS; i++)
            if (test_random(&seed) % PARTS < (uint64_t)p) {
                memcpy((uint8_t *)expected[p] + width * (uint32_t)i, (uint8_t *)values[p] + width * count, width);
                places[p][count++] = i;
            }
        parts[p] = part_of(to[p], places[p], values[p], count, width);
    }
    uint64_t bad;
    memcpy(before, to, sizeof to);
    CHECK_EQ_INT(pccl_scatter_check(parts, PARTS, &bad), PCCL_OK);
    pccl_scatter_run(parts, PARTS);
    CHECK(memcmp(to, expected, sizeof to) == 0);
    pccl_scatter_run(parts, PARTS);
    CHECK(memcmp(to, expected, sizeof to) == 0);
    memcpy(to, before, sizeof to);
    for (int p = 0; p < PARTS; p++)
        parts[p] = narrowed(parts[p], narrow[p]);
    CHECK_EQ_INT(pccl_scatter_check(parts, PARTS, &bad), PCCL_OK);
    pccl_scatter_run(parts, PARTS);
    CHECK(memcmp(to, expected, sizeof to) == 0);
}

TEST(what_does_not_fit_is_found)
{
    static uint32_t to[ELEMENTS], values[4];
    static const int64_t good[] = {0, 5, ELEMENTS - 1}, beyond[] = {0, 5, ELEMENTS}, negative[] = {-1, 5, 6}, twice[] = {4, 4, 6}, back[] = {4, 3, 6};
    uint64_t bad = 77;
    pccl_scatter parts[] = {part_of(to, good, values, 3, 4), part_of(to, good, values, 3, 4)};
    CHECK_EQ_INT(pccl_scatter_check(parts, 2, &bad), PCCL_OK);
    const int64_t *wrong[] = {beyond, negative, twice, back};
    uint32_t narrow[4];
    for (int i = 0; i < 4; i++) {
        parts[1] = part_of(to, wrong[i], values, 3, 4);
        CHECK_EQ_INT(pccl_scatter_check(parts, 2, &bad), PCCL_EINVAL);
        CHECK_EQ_INT(bad, 1);
        parts[1] = narrowed(parts[1], narrow);
        CHECK_EQ_INT(pccl_scatter_check(parts, 2, &bad), PCCL_EINVAL);
    }
    parts[1] = narrowed(part_of(to, good, values, 3, 4), narrow);
    CHECK_EQ_INT(pccl_scatter_check(parts, 2, &bad), PCCL_OK);
    parts[1].place_width = 2;
    CHECK_EQ_INT(pccl_scatter_check(parts, 2, &bad), PCCL_EINVAL);
    parts[1].place_width = 4, parts[1].places += 2;
    CHECK_EQ_INT(pccl_scatter_check(parts, 2, &bad), PCCL_EINVAL);
    parts[1] = part_of(to, good, values, 3, 3);
    CHECK_EQ_INT(pccl_scatter_check(parts, 2, &bad), PCCL_EINVAL);
    parts[1] = part_of((uint8_t *)to + 1, good, values, 3, 2);
    CHECK_EQ_INT(pccl_scatter_check(parts, 2, &bad), PCCL_EINVAL);
    parts[0] = part_of(to, NULL, NULL, 0, 1);
    CHECK_EQ_INT(pccl_scatter_check(parts, 1, &bad), PCCL_OK);
    pccl_scatter_run(parts, 1);
}

TEST_MAIN("scatter")
