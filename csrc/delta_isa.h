/* delta_isa.h - what one instruction set hands to delta.c: the loops over elements and over changes. */
#ifndef PCCL_DELTA_ISA_H
#define PCCL_DELTA_ISA_H

#include "delta.h"
#include "delta_bits.h"

/* A block's elements. width = 1 << shift bytes each. */
struct delta_span {
    const uint8_t *at;
    uint32_t count;
    unsigned shift;
};

/* Changes in the order of their places: where, and by how much (mod 2^w, never 0), or to what. */
struct delta_changes {
    uint32_t *place, *step;
    uint32_t count;
};

/* An element's class: its bits from `low` on without the highest, less `base`; no less than 0 and below `count`. */
struct delta_classes {
    unsigned low, base, count;
};

/* What one class has of a block: its changes, by rank within the class; how many elements it has. */
struct delta_class {
    struct delta_changes changes;
    uint32_t elements;
};

/* Changes whose steps are added, or are new values themselves; and where the new values go, in the elements' width. */
struct delta_patch {
    struct delta_changes changes;
    int is_by_step;
    uint8_t *values;
};

/* A group of changes among `universe` elements, as a string of bits. */
struct delta_group {
    struct delta_changes changes; /* count is known, and at most the room behind its pointers */
    uint32_t universe;
    int is_told;     /* the universe is known to the reader; if not it is in the string when it is needed, and at most the one given */
    unsigned bits;   /* of an element */
    uint32_t *spare; /* two lists, of universe entries each */
    uint32_t *spare_too;
};

typedef const struct delta_kernels {
    uint64_t (*digest)(const struct delta_span *span);
    /* What the bytes from word `first` of a block on add to its digest; only its last ones may be no multiple of 8. `next`: what is read
     * thereafter, and fetched from memory meanwhile; NULL: nothing. */
    uint64_t (*digest_from)(const uint8_t *at, size_t bytes, uint64_t first, const uint8_t *next);
    /* What changed, the digests before and after, and, unless it is NULL, the hash after. */
    void (*scan)(const struct delta_span *old, const uint8_t *new, struct delta_changes *found, uint64_t digests[2], uint8_t *hash);
    /* The digest of a state before, the new values, and the hash after. */
    uint64_t (*patched)(const struct delta_span *old, const struct delta_patch *patch, uint8_t *hash);
    /* Distributes changes over classes, whose lists have room for theirs; counts the elements. */
    void (*rank)(const struct delta_span *old, const struct delta_classes *how, const struct delta_changes *changes,
                 struct delta_class classes[DELTA_CLASSES_MAX]);
    /* The way back, and the digest; 0 if some change has a rank that no element has. */
    int (*place)(const struct delta_span *old, const struct delta_classes *how, struct delta_class classes[DELTA_CLASSES_MAX],
                 struct delta_changes *placed, uint64_t *digest);
    /* Places alone, and places with steps. Readers return 0 if the bytes are no such string. */
    void (*put_places)(struct bit_writer *w, struct delta_group *group);
    int (*get_places)(struct bit_reader *r, struct delta_group *group);
    void (*put_group)(struct bit_writer *w, struct delta_group *group);
    int (*get_group)(struct bit_reader *r, struct delta_group *group);
    /* The steps of all elements, those that are 0 among them. */
    void (*put_dense)(struct bit_writer *w, struct delta_group *group);
    int (*get_dense)(struct bit_reader *r, struct delta_group *group);
} delta_kernels;

extern delta_kernels delta_kernels_scalar;
#if defined(__x86_64__)
extern delta_kernels delta_kernels_avx2;
extern delta_kernels delta_kernels_avx512;
#endif

#endif
