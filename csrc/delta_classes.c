/* delta_classes.c - which bits of old values say most about where changes are: the exponent of one of the usual formats, and which
 * of its values get a class of their own. Integers only, so that all machines choose alike. */
#include "delta_block.h"
#include "delta_word.h"

enum { FIELDS = 256, SAMPLES = 1 << 12, FRACTION_BITS = 16 };

/* The lowest bit of exponents: e4m3 and e5m2; bfloat16 and float16; float32. */
static const struct {
    unsigned low[2];
    unsigned count;
} candidates[3] = {{{3, 2}, 2}, {{7, 10}, 2}, {{23}, 1}};

/* Of a sample: elements and changes, by field. */
struct census {
    uint64_t elements[FIELDS], changes[FIELDS];
};

static void take_census(const struct delta_span *old, const struct delta_changes *changes, unsigned low, struct census *census)
{
    uint32_t stride = old->count / SAMPLES + 1, change_stride = changes->count / SAMPLES + 1;
    *census = (struct census){0};
    for (uint32_t i = 0; i < old->count; i += stride)
        census->elements[field_of(element_of(old->at, old->shift, i), old->shift, low)] += stride;
    for (uint32_t i = 0; i < changes->count; i += change_stride)
        census->changes[field_of(element_of(old->at, old->shift, changes->place[i]), old->shift, low)] += change_stride;
}

/* x log2 x, in 2^-FRACTION_BITS */
static uint64_t x_log_x(uint64_t x)
{
    if (x < 2)
        return 0;
    unsigned whole = bits_log2(x);
    uint64_t mantissa = whole > 31 ? x >> (whole - 31) : x << (31 - whole), fraction = 0;
    for (int i = 0; i < FRACTION_BITS; i++) {
        mantissa = mantissa * mantissa >> 31;
        fraction = fraction << 1 | mantissa >> 32;
        mantissa >>= mantissa >> 32;
    }
    return x * ((uint64_t)whole << FRACTION_BITS | fraction);
}

/* What places cost if the fields are known. */
static uint64_t entropy(const struct census *census)
{
    uint64_t bits = 0;
    for (unsigned f = 0; f < FIELDS; f++) {
        uint64_t m = census->changes[f], n = census->elements[f] > m ? census->elements[f] : m;
        bits += x_log_x(n) - x_log_x(m) - x_log_x(n - m);
    }
    return bits;
}

/* Few elements share the classes at both ends: above are those that hardly change, below those of which there are hardly any. */
static struct delta_classes window(const struct census *census, unsigned low, uint32_t elements)
{
    unsigned top = FIELDS - 1, base = 0;
    for (uint64_t above = census->elements[top]; top > 0 && above <= elements / 256; above += census->elements[top])
        top--;
    for (uint64_t below = census->elements[0]; base < top && below <= elements / 16384; below += census->elements[base])
        base++;
    if (top - base >= DELTA_CLASSES_MAX)
        base = top - DELTA_CLASSES_MAX + 1;
    return (struct delta_classes){.low = low, .base = base, .count = top - base + 1};
}

struct delta_classes delta_classes_of(const struct delta_span *old, const struct delta_changes *changes)
{
    struct delta_classes best = {.count = 1};
    uint64_t least = UINT64_MAX;
    for (unsigned i = 0; i < candidates[old->shift].count; i++) {
        struct census census;
        unsigned low = candidates[old->shift].low[i];
        take_census(old, changes, low, &census);
        uint64_t bits = entropy(&census);
        if (bits >= least)
            continue;
        least = bits;
        best = window(&census, low, old->count);
    }
    return best;
}
