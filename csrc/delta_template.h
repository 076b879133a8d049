/* delta_template.h - the loops of delta_isa.h, compiled once per instruction set.
 *
 * The includer defines ISA_TARGET (function attributes that switch the instruction set on), ISA_KERNELS (the name of the table), and before
 * that these functions of 64 elements:
 *   changed_64    a bit for each that differs
 *   classify_64   their classes, as bytes, and the bits of all classes in turn, the lowest first: a bit for each element
 *   pass          adds `counts` to `passed`; a bit for each class of which that is now more than `next`
 *   digest_words  the digest of so many whole words, the first of which has number `first`; fetches as much from `ahead` on
 * and those of delta_hash.h. */

enum { GROUP = 64, TILE_GROUPS = 32, TILE = GROUP * TILE_GROUPS, SCAN_BYTES = 1024 };

#include "delta_group.h"
#include "delta_hash.h"

/* The digest of `bytes` that begin with word `first`; only the last ones of a block may be no multiple of 8. */
ISA_INLINE uint64_t digest_ahead(const uint8_t *at, size_t bytes, uint64_t first, const uint8_t *ahead)
{
    size_t words = bytes / 8;
    uint64_t sum = digest_words(at, words, first, ahead), last = 0;
    if (bytes % 8) {
        memcpy(&last, at + 8 * words, bytes % 8);
        sum += digest_word(last, first + words);
    }
    return sum;
}

/* The same amid memory that is read on. */
ISA_INLINE uint64_t digest_bytes(const uint8_t *at, size_t bytes, uint64_t first)
{
    return digest_ahead(at, bytes, first, at + DIGEST_AHEAD);
}

ISA_TARGET static uint64_t digest(const struct delta_span *span)
{
    return digest_bytes(span->at, (size_t)span->count << span->shift, 0);
}

ISA_TARGET static uint64_t digest_from(const uint8_t *at, size_t bytes, uint64_t first, const uint8_t *next)
{
    size_t head = bytes > DIGEST_AHEAD ? (bytes - DIGEST_AHEAD) / 64 * 64 : 0;
    uint64_t sum = digest_words(at, head / 8, first, at + DIGEST_AHEAD);
    return sum + digest_ahead(at + head, bytes - head, first + head / 8, next ? next : at + head);
}

/* -- what changed -------------------------------------------------------------------------------------------------- */

ISA_INLINE uint32_t take(const uint8_t *old, const uint8_t *new, unsigned shift, uint32_t i, struct delta_changes *found, uint32_t n)
{
    uint32_t step = element_of(new, shift, i) - element_of(old, shift, i);
    found->place[n] = i;
    found->step[n] = step & (uint32_t)bits_mask(8u << shift);
    return step != 0;
}

/* What changed of a group: mostly nothing, one element or two, and which of these no machine can guess. So two are put down without
 * asking whether they are there. */
ISA_INLINE uint32_t take_group(const uint8_t *old, const uint8_t *new, unsigned shift, uint32_t at, struct delta_changes *found, uint32_t n)
{
    uint64_t mask = changed_64(old + ((size_t)at << shift), new + ((size_t)at << shift), shift);
    const uint64_t last = (uint64_t)1 << (GROUP - 1);
    for (unsigned i = 0; i < 2; i++, mask &= mask - 1) {
        (void)take(old, new, shift, at + (uint32_t)__builtin_ctzll(mask | last), found, n);
        n += mask != 0;
    }
    for (; mask; mask &= mask - 1)
        n += take(old, new, shift, at + (uint32_t)__builtin_ctzll(mask), found, n);
    return n;
}

ISA_INLINE void scan_elements(const uint8_t *old, const uint8_t *new, uint32_t count, unsigned shift, struct delta_changes *found,
                              uint64_t digests[2], uint8_t *hash)
{
    uint64_t sums[8];
    size_t total = (size_t)count << shift;
    uint32_t n = 0, step = SCAN_BYTES >> shift;
    memcpy(sums, hash_begin, sizeof sums);
    for (uint32_t i = 0; i < count; i += step) {
        uint32_t end = count - i < step ? count : i + step, at = i;
        size_t from = (size_t)i << shift, bytes = (size_t)(end - i) << shift;
        digests[0] += digest_bytes(old + from, bytes, from / 8);
        digests[1] += digest_bytes(new + from, bytes, from / 8);
        if (hash)
            hash_tile(sums, new + from, from, bytes, total);
        for (; end - at >= GROUP; at += GROUP)
            n = take_group(old, new, shift, at, found, n);
        for (; at < end; at++)
            n += take(old, new, shift, at, found, n);
    }
    if (hash)
        hash_finish(sums, new + total, total, hash);
    found->count = n;
}

ISA_TARGET static void scan(const struct delta_span *old, const uint8_t *new, struct delta_changes *found, uint64_t digests[2], uint8_t *hash)
{
    digests[0] = digests[1] = 0;
    if (old->shift == 0)
        scan_elements(old->at, new, old->count, 0, found, digests, hash);
    else if (old->shift == 1)
        scan_elements(old->at, new, old->count, 1, found, digests, hash);
    else
        scan_elements(old->at, new, old->count, 2, found, digests, hash);
}

/* -- what a state will be ------------------------------------------------------------------------------------------ */

/* Pieces are patched in a copy, before which there are the last bytes of the one before: the hash ends with a whole stripe. */
ISA_INLINE uint64_t patched_elements(const struct delta_span *old, unsigned shift, const struct delta_patch *patch, uint8_t *hash)
{
    uint8_t copy[HASH_STRIPE + SCAN_BYTES], *piece = copy + HASH_STRIPE;
    uint64_t sums[8], digest_before = 0;
    size_t total = (size_t)old->count << shift, bytes = 0;
    const struct delta_changes *c = &patch->changes;
    uint32_t i = 0, length = SCAN_BYTES >> shift;
    memcpy(sums, hash_begin, sizeof sums);
    for (uint32_t at = 0; at < old->count; at += length) {
        uint32_t end = old->count - at < length ? old->count : at + length;
        size_t from = (size_t)at << shift;
        if (at > 0)
            memcpy(copy, piece + bytes - HASH_STRIPE, HASH_STRIPE);
        bytes = (size_t)(end - at) << shift;
        digest_before += digest_bytes(old->at + from, bytes, from / 8);
        memcpy(piece, old->at + from, bytes);
        for (; i < c->count && c->place[i] < end; i++) {
            uint32_t place = c->place[i] - at, x = c->step[i] + (patch->is_by_step ? element_of(piece, shift, place) : 0);
            element_set(piece, shift, place, x);
            element_set(patch->values, shift, i, x);
        }
        hash_tile(sums, piece, from, bytes, total);
    }
    hash_finish(sums, piece + bytes, total, hash);
    return digest_before;
}

ISA_TARGET static uint64_t patched(const struct delta_span *old, const struct delta_patch *patch, uint8_t *hash)
{
    if (old->shift == 0)
        return patched_elements(old, 0, patch, hash);
    if (old->shift == 1)
        return patched_elements(old, 1, patch, hash);
    return patched_elements(old, 2, patch, hash);
}

/* -- classes ------------------------------------------------------------------------------------------------------- */

/* A group's classes: bit i of planes[j] is bit j of element i's. */
struct group_classes {
    uint64_t planes[CLASS_BITS], there; /* the elements that there are */
};

/* TILE elements: the class of each, in two forms; how many of a group are of a class. */
struct tile {
    struct group_classes of[TILE_GROUPS];
    uint32_t counts[TILE_GROUPS][DELTA_CLASSES_MAX];
    uint8_t classes[TILE];
    uint32_t groups;
};

/* The elements of a group that are of a class. Most groups have changes of one class or none, so this is made when it is asked for. */
ISA_INLINE uint64_t tile_mask(const struct tile *t, uint32_t g, uint32_t c)
{
    uint64_t mask = t->of[g].there;
    for (unsigned j = 0; j < CLASS_BITS; j++)
        mask &= t->of[g].planes[j] ^ ((uint64_t)(c >> j & 1) - 1);
    return mask;
}

/* Of all classes at once: what the two low bits say, and the two high ones. */
ISA_INLINE void count_classes(const struct group_classes *p, uint32_t counts[DELTA_CLASSES_MAX])
{
    uint64_t a = p->planes[0], b = p->planes[1], c = p->planes[2], d = p->planes[3];
    const uint64_t low[4] = {~(a | b) & p->there, a & ~b & p->there, b & ~a & p->there, a & b & p->there};
    const uint64_t high[4] = {~(c | d), c & ~d, d & ~c, c & d};
    for (unsigned i = 0; i < DELTA_CLASSES_MAX; i++)
        counts[i] = (uint32_t)__builtin_popcountll(low[i & 3] & high[i >> 2]);
}

/* A group of which so many elements are there. */
ISA_INLINE void tile_group(struct tile *t, const uint8_t *at, uint32_t elements, unsigned shift, const struct delta_classes *how)
{
    uint32_t g = t->groups++;
    struct group_classes p = {.there = bits_mask(elements)};
    classify_64(at, shift, how, t->classes + g * GROUP, p.planes);
    count_classes(&p, t->counts[g]);
    t->of[g] = p;
}

/* The tile from an element on; what lies behind the last element is of no class. */
ISA_INLINE void tile_fill(struct tile *t, const struct delta_span *old, unsigned shift, uint32_t from, const struct delta_classes *how)
{
    uint32_t end = old->count - from < TILE ? old->count : from + TILE;
    t->groups = 0;
    for (; end - from >= GROUP; from += GROUP)
        tile_group(t, old->at + ((size_t)from << shift), GROUP, shift, how);
    if (from == end)
        return;
    uint8_t rest[GROUP * 4] = {0};
    memcpy(rest, old->at + ((size_t)from << shift), (size_t)(end - from) << shift);
    tile_group(t, rest, end - from, shift, how);
}

ISA_INLINE void rank_elements(const struct delta_span *old, unsigned shift, const struct delta_classes *how,
                              const struct delta_changes *changes, struct delta_class *classes)
{
    struct tile t;
    uint32_t i = 0, passed[DELTA_CLASSES_MAX] = {0};
    for (uint32_t at = 0; at < old->count; at += TILE) {
        tile_fill(&t, old, shift, at, how);
        for (uint32_t g = 0; g < t.groups; g++) {
            for (; i < changes->count && changes->place[i] < at + (g + 1) * GROUP; i++) {
                uint32_t place = changes->place[i] - at, c = t.classes[place];
                uint64_t before = tile_mask(&t, g, c) & bits_mask(place % GROUP);
                struct delta_changes *ranked = &classes[c].changes;
                ranked->place[ranked->count] = passed[c] + (uint32_t)__builtin_popcountll(before);
                ranked->step[ranked->count++] = changes->step[i];
            }
            (void)pass(t.counts[g], passed, passed);
        }
    }
    for (uint32_t c = 0; c < how->count; c++)
        classes[c].elements = passed[c];
}

ISA_TARGET static void rank(const struct delta_span *old, const struct delta_classes *how, const struct delta_changes *changes,
                            struct delta_class classes[DELTA_CLASSES_MAX])
{
    if (old->shift == 0)
        rank_elements(old, 0, how, changes, classes);
    else if (old->shift == 1)
        rank_elements(old, 1, how, changes, classes);
    else
        rank_elements(old, 2, how, changes, classes);
}

/* -- from ranks to places ------------------------------------------------------------------------------------------ */

/* How far all classes have got: elements that are passed, the rank of the next change, changes that are placed, and steps that are put in
 * order. */
struct progress {
    uint32_t passed[DELTA_CLASSES_MAX], next[DELTA_CLASSES_MAX];
    uint32_t placed[DELTA_CLASSES_MAX], taken[DELTA_CLASSES_MAX];
};

/* The elements of a group that change, of one class. */
ISA_INLINE uint64_t place_class(const struct delta_changes *ranked, uint64_t mask, uint32_t first, uint32_t end, uint32_t *next_p,
                                uint32_t *placed)
{
    uint64_t found = 0;
    uint32_t next = *next_p, i = *placed;
    while (next < end) {
        found |= nth_bit(mask, next - first);
        next = ++i < ranked->count ? ranked->place[i] : UINT32_MAX;
    }
    *next_p = next, *placed = i;
    return found;
}

ISA_INLINE void place_group(const struct tile *t, uint32_t g, const struct delta_class *classes, struct progress *p,
                            struct delta_changes *out, uint32_t at)
{
    uint64_t found = 0;
    for (uint32_t reached = pass(t->counts[g], p->next, p->passed); reached; reached &= reached - 1) {
        uint32_t c = (uint32_t)__builtin_ctz(reached), end = p->passed[c];
        found |= place_class(&classes[c].changes, tile_mask(t, g, c), end - t->counts[g][c], end, &p->next[c], &p->placed[c]);
    }
    for (; found; found &= found - 1) {
        uint32_t i = (uint32_t)__builtin_ctzll(found), c = t->classes[g * GROUP + i];
        out->place[out->count] = at + i;
        out->step[out->count++] = classes[c].changes.step[p->taken[c]++];
    }
}

ISA_INLINE int place_elements(const struct delta_span *old, unsigned shift, const struct delta_classes *how,
                              struct delta_class *classes, struct delta_changes *out, uint64_t *digest_p)
{
    struct tile t;
    struct progress p = {0};
    uint32_t expected = 0;
    for (uint32_t c = 0; c < DELTA_CLASSES_MAX; c++) {
        expected += classes[c].changes.count;
        p.next[c] = classes[c].changes.count > 0 ? classes[c].changes.place[0] : UINT32_MAX;
    }
    *digest_p = 0, out->count = 0;
    for (uint32_t at = 0; at < old->count; at += TILE) {
        size_t from = (size_t)at << shift, bytes = (size_t)(old->count - at < TILE ? old->count - at : TILE) << shift;
        *digest_p += digest_bytes(old->at + from, bytes, from / 8);
        tile_fill(&t, old, shift, at, how);
        for (uint32_t g = 0; g < t.groups; g++)
            place_group(&t, g, classes, &p, out, at + g * GROUP);
    }
    for (uint32_t c = 0; c < how->count; c++)
        classes[c].elements = p.passed[c];
    return out->count == expected;
}

ISA_TARGET static int place(const struct delta_span *old, const struct delta_classes *how, struct delta_class classes[DELTA_CLASSES_MAX],
                            struct delta_changes *placed, uint64_t *digest_p)
{
    if (old->shift == 0)
        return place_elements(old, 0, how, classes, placed, digest_p);
    if (old->shift == 1)
        return place_elements(old, 1, how, classes, placed, digest_p);
    return place_elements(old, 2, how, classes, placed, digest_p);
}

delta_kernels ISA_KERNELS = {
    .digest = digest,
    .digest_from = digest_from,
    .scan = scan,
    .patched = patched,
    .rank = rank,
    .place = place,
    .put_places = put_places,
    .get_places = get_places,
    .put_group = put_group,
    .get_group = get_group,
    .put_dense = put_dense,
    .get_dense = get_dense,
};
