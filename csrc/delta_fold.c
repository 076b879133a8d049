/* delta_fold.c - blocks made of blocks: two in a row as one, the way back, and changes by class as changes by place. */
#include "delta_block.h"
#include "delta_word.h"
#include "err.h"

enum { BY_PLACE = 1u << PCCL_DELTA_ZERO | 1u << PCCL_DELTA_DIFF_A | 1u << PCCL_DELTA_DENSE_ULP };

static pccl_err refuse(const char *why)
{
    err_set("%s", why);
    return PCCL_EINVAL;
}

static int is_diff(const struct delta_block *b)
{
    return b->info.form == PCCL_DELTA_DIFF_A || b->info.form == PCCL_DELTA_DENSE_ULP;
}

static pccl_err copy(const void *in, uint64_t bytes, void *block, uint64_t *bytes_p)
{
    memcpy(block, in, bytes);
    *bytes_p = bytes;
    return PCCL_OK;
}

static pccl_err finish(delta_kernels *k, const struct delta_source *source, uint32_t forms, const struct delta_work *work, void *block,
                       uint64_t *bytes_p)
{
    *bytes_p = delta_write(k, source, forms, work, block);
    return PCCL_OK;
}

/* -- folding ------------------------------------------------------------------------------------------------------- */

/* The union; where both have a place, steps are added, and places whose steps cancel are left out. */
static void merge_steps(const struct delta_changes *a, const struct delta_changes *b, uint32_t mask, struct delta_changes *out)
{
    out->count = 0;
    for (uint32_t i = 0, j = 0; i < a->count || j < b->count;) {
        uint32_t here = i < a->count ? a->place[i] : UINT32_MAX, there = j < b->count ? b->place[j] : UINT32_MAX;
        uint32_t step = (here <= there ? a->step[i++] : 0) + (there <= here ? b->step[j++] : 0);
        out->place[out->count] = here < there ? here : there;
        out->step[out->count] = step & mask;
        out->count += (step & mask) != 0;
    }
}

/* The union; where both have a place, the later value counts. */
static void merge_values(const struct delta_changes *a, const struct delta_changes *b, struct delta_changes *out)
{
    out->count = 0;
    for (uint32_t i = 0, j = 0; i < a->count || j < b->count; out->count++) {
        uint32_t here = i < a->count ? a->place[i] : UINT32_MAX, there = j < b->count ? b->place[j] : UINT32_MAX;
        out->place[out->count] = here < there ? here : there;
        out->step[out->count] = there <= here ? b->step[j] : a->step[i];
        i += here <= there, j += there <= here;
    }
}

/* Both blocks are lists of changes of one kind. */
static pccl_err fold_lists(delta_kernels *k, const struct delta_block *a, const struct delta_block *b, const struct delta_work *work,
                           void *block, uint64_t *bytes_p)
{
    struct delta_changes first = work->lists[0], second = work->lists[1];
    pccl_err err = delta_read(k, a, NULL, work, &first);
    if (err == PCCL_OK)
        err = delta_read(k, b, NULL, work, &second);
    if (err != PCCL_OK)
        return err;
    struct delta_source source = {.old = {NULL, a->info.elements, a->shift}, .before = a->info.before, .after = b->info.after};
    source.changes = work->lists[2];
    if (a->info.form == PCCL_DELTA_ABS) {
        merge_values(&first, &second, &source.changes);
        return finish(k, &source, 1u << PCCL_DELTA_ABS, work, block, bytes_p);
    }
    merge_steps(&first, &second, (uint32_t)bits_mask(8u << a->shift), &source.changes);
    return finish(k, &source, BY_PLACE, work, block, bytes_p);
}

/* Changes of values that are all there. */
static pccl_err fold_on_raw(delta_kernels *k, const struct delta_block *raw, const struct delta_block *b, const void *in, uint64_t bytes,
                            const struct delta_work *work, void *block, uint64_t *bytes_p)
{
    struct delta_changes c = work->lists[0];
    uint8_t *values = (uint8_t *)block + (raw->body - (const uint8_t *)in);
    pccl_err err = delta_read(k, b, raw->body, work, &c);
    if (err != PCCL_OK)
        return err;
    memcpy(block, in, bytes);
    for (uint32_t i = 0; i < c.count; i++) {
        uint32_t old = b->info.form == PCCL_DELTA_ABS ? 0 : element_of(values, raw->shift, c.place[i]);
        element_set(values, raw->shift, c.place[i], old + c.step[i]);
    }
    *bytes_p = bytes;
    return PCCL_OK;
}

/* The kernels and a block from outside. */
static pccl_err take(const char *isa, const void *in, uint64_t bytes, delta_kernels **k_p, struct delta_block *b)
{
    *k_p = delta_kernels_of(isa);
    return *k_p != NULL ? delta_parse(in, bytes, b) : PCCL_EINVAL;
}

pccl_err pccl_delta_fold(const char *isa, const void *first, uint64_t first_bytes, const void *second, uint64_t second_bytes, void *memory,
                         void *block, uint64_t *bytes_p)
{
    delta_kernels *k;
    struct delta_block a, b;
    pccl_err err = take(isa, first, first_bytes, &k, &a);
    if (err == PCCL_OK)
        err = delta_parse(second, second_bytes, &b);
    if (err != PCCL_OK)
        return err;
    if (a.info.elements != b.info.elements || a.shift != b.shift)
        return refuse("delta blocks of different elements cannot be folded");
    if (b.info.form == PCCL_DELTA_RAW || a.info.form == PCCL_DELTA_ZERO)
        return copy(second, second_bytes, block, bytes_p);
    if (b.info.form == PCCL_DELTA_ZERO)
        return copy(first, first_bytes, block, bytes_p);
    struct delta_work work = delta_work_at(memory, a.info.elements, a.shift);
    if (a.info.form == PCCL_DELTA_RAW)
        return fold_on_raw(k, &a, &b, first, first_bytes, &work, block, bytes_p);
    if (a.info.form == PCCL_DELTA_ABS && b.info.form == PCCL_DELTA_ABS)
        return fold_lists(k, &a, &b, &work, block, bytes_p);
    if (!is_diff(&a) || !is_diff(&b))
        return refuse("delta blocks of these forms cannot be folded without old values");
    if (a.info.after != b.info.before) {
        err_set("the second delta block does not build on the first");
        return PCCL_EMISMATCH;
    }
    return fold_lists(k, &a, &b, &work, block, bytes_p);
}

/* -- the way back -------------------------------------------------------------------------------------------------- */

/* Of values: what the state had there. */
static pccl_err invert_values(delta_kernels *k, const struct delta_block *b, const void *state, const struct delta_work *work, void *block,
                              uint64_t *bytes_p)
{
    struct delta_source source = {.old = {state, b->info.elements, b->shift}, .new = state, .changes = work->lists[0]};
    source.changes.count = b->info.changed;
    pccl_err err = b->info.form == PCCL_DELTA_RAW ? PCCL_OK : delta_read(k, b, NULL, work, &source.changes);
    return err == PCCL_OK ? finish(k, &source, 1u << b->info.form, work, block, bytes_p) : err;
}

pccl_err pccl_delta_invert(const char *isa, const void *in, uint64_t in_bytes, const void *state, void *memory, void *block,
                           uint64_t *bytes_p)
{
    delta_kernels *k;
    struct delta_block b;
    pccl_err err = take(isa, in, in_bytes, &k, &b);
    if (err != PCCL_OK)
        return err;
    if (b.info.form == PCCL_DELTA_ZERO)
        return copy(in, in_bytes, block, bytes_p);
    if (state == NULL && !is_diff(&b))
        return refuse("the inverse of this form of a delta block needs the old values");
    struct delta_work work = delta_work_at(memory, b.info.elements, b.shift);
    if (!delta_has_digests(b.info.form))
        return invert_values(k, &b, state, &work, block, bytes_p);
    struct delta_source source = {.old = {NULL, b.info.elements, b.shift}, .before = b.info.after, .after = b.info.before};
    source.changes = work.lists[0];
    err = delta_read(k, &b, state, &work, &source.changes);
    if (err != PCCL_OK)
        return err;
    for (uint32_t i = 0; i < source.changes.count; i++)
        source.changes.step[i] = (0u - source.changes.step[i]) & (uint32_t)bits_mask(8u << b.shift);
    return finish(k, &source, BY_PLACE, &work, block, bytes_p);
}

pccl_err pccl_delta_as_a(const char *isa, const void *in, uint64_t in_bytes, const void *state, void *memory, void *block,
                         uint64_t *bytes_p)
{
    delta_kernels *k;
    struct delta_block b;
    pccl_err err = take(isa, in, in_bytes, &k, &b);
    if (err != PCCL_OK)
        return err;
    if (b.info.form != PCCL_DELTA_DIFF_B)
        return copy(in, in_bytes, block, bytes_p);
    struct delta_work work = delta_work_at(memory, b.info.elements, b.shift);
    struct delta_source source = {.old = {NULL, b.info.elements, b.shift}, .before = b.info.before, .after = b.info.after};
    source.changes = work.lists[0];
    err = delta_read(k, &b, state, &work, &source.changes);
    return err == PCCL_OK ? finish(k, &source, 1u << PCCL_DELTA_DIFF_A, &work, block, bytes_p) : err;
}
