/* delta_block.h - a block taken apart, the working memory, and the forms' bodies: what delta.c and delta_fold.c share. */
#ifndef PCCL_DELTA_BLOCK_H
#define PCCL_DELTA_BLOCK_H

#include "delta_isa.h"

struct delta_block {
    pccl_delta_info info;
    unsigned shift; /* width = 1 << shift */
    const uint8_t *body;
    uint64_t body_bytes;
};

/* Lists have room for all elements; `drafts` and `body` for a block of any form and BITS_SLACK_BYTES. */
struct delta_work {
    struct delta_changes lists[3];
    uint32_t *spare[2];
    uint8_t *drafts[2];
    uint8_t *body;
};

/* -- delta.c -- */

/* The kernels of a named instruction set, NULL (and said why) if this machine lacks it; no name: the best. */
delta_kernels *delta_kernels_of(const char *isa);
struct delta_work delta_work_at(void *memory, uint32_t elements, unsigned shift);
__attribute__((warn_unused_result)) pccl_err delta_parse(const void *bytes, uint64_t count, struct delta_block *block);

/* -- delta_forms.c -- */

struct delta_source {
    struct delta_span old;        /* `at` may be NULL where no form of the mask needs old values */
    const uint8_t *new;           /* NULL: raw is not in the mask, and the steps of abs are new values */
    struct delta_changes changes; /* in lists[0] */
    uint64_t before, after;
};

/* Writes the smallest of the forms in the mask; 0 if none can say it. */
uint64_t delta_write(delta_kernels *k, const struct delta_source *source, uint32_t forms, const struct delta_work *work, uint8_t *block);
/* The changes of a block that is not raw; the steps of abs are new values. `state` may be NULL except for diff_b; if there is one and the
 * block builds on it, it is verified. Uses all of `work` but `lists` other than the given one and the last. */
__attribute__((warn_unused_result)) pccl_err delta_read(delta_kernels *k, const struct delta_block *block, const uint8_t *state,
                                                        const struct delta_work *work, struct delta_changes *changes);
__attribute__((warn_unused_result)) pccl_err delta_malformed(const char *what);
__attribute__((warn_unused_result)) pccl_err delta_wrong_base(void);

/* -- delta_classes.c -- */

/* The classes that are likely to make changes cheapest, from a sample. */
struct delta_classes delta_classes_of(const struct delta_span *old, const struct delta_changes *changes);

static inline int delta_has_digests(uint32_t form)
{
    return form >= PCCL_DELTA_DIFF_A;
}

#endif
