/* delta.c - blocks from outside and back: arguments, headers, which kernels this machine uses; encode, decode and patch. */
#include "delta.h"

#include "delta_block.h"
#include "delta_word.h"
#include "err.h"
#include "reduce.h"

static const struct isa {
    const char *name;
    delta_kernels *kernels;
} isas[] = {
#if defined(__x86_64__)
    {"avx512", &delta_kernels_avx512},
    {"avx2", &delta_kernels_avx2},
#endif
    {"scalar", &delta_kernels_scalar},
};

enum { ISA_COUNT = sizeof isas / sizeof isas[0] };

/* The vectors that work here reduce.h knows; bits are asked for besides. */
static int works(const char *name)
{
    int has_bits = 1;
#if defined(__x86_64__)
    has_bits = strcmp(name, "scalar") == 0 ||
               (__builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt"));
#endif
    return has_bits && reduce_has_isa(name);
}

/* Where the best that works has no kernels of ours, the scalar ones do. */
delta_kernels *delta_kernels_of(const char *isa)
{
    const char *name = isa != NULL ? isa : reduce_isa();
    for (size_t i = 0; i < ISA_COUNT; i++)
        if (strcmp(name, isas[i].name) == 0 && works(name))
            return isas[i].kernels;
    if (isa == NULL)
        return &delta_kernels_scalar;
    err_set("no such kernels here: '%s'", isa);
    return NULL;
}

/* -- sizes --------------------------------------------------------------------------------------------------------- */

/* log2 of a width; -1 if there is none such. */
static int shift_of(uint32_t width)
{
    return width == 1 ? 0 : width == 2 ? 1 : width == 4 ? 2 : -1;
}

static int is_size(uint32_t elements, uint32_t width)
{
    return elements <= DELTA_ELEMENTS_MAX && shift_of(width) >= 0;
}

uint32_t pccl_delta_elements_max(void)
{
    return DELTA_ELEMENTS_MAX;
}

/* Places take a bit of each element at most (Rice's order 0 is a bitmap), signs and the places of exceptions too, magnitudes no more
 * than their own bits; steps of all elements two more than those: less than width + 1 bytes. Numbers and orders: less than 16 bytes for
 * each class. */
uint64_t pccl_delta_bound(uint32_t elements, uint32_t width)
{
    return is_size(elements, width) ? (uint64_t)elements * (width + 1) + 16 * DELTA_CLASSES_MAX + DELTA_HEADER_MAX + 64 : 0;
}

static uint64_t list_bytes(uint32_t elements)
{
    return ((uint64_t)elements * 4 + 64) & ~(uint64_t)7;
}

static uint64_t buffer_bytes(uint32_t elements, uint32_t width)
{
    return (pccl_delta_bound(elements, width) + 2 * BITS_SLACK_BYTES) & ~(uint64_t)7;
}

enum { LISTS = 8, BUFFERS = 3 };

uint64_t pccl_delta_work(uint32_t elements, uint32_t width)
{
    return is_size(elements, width) ? LISTS * list_bytes(elements) + BUFFERS * buffer_bytes(elements, width) : 0;
}

struct delta_work delta_work_at(void *memory, uint32_t elements, unsigned shift)
{
    uint32_t *list[LISTS];
    for (size_t i = 0; i < LISTS; i++)
        list[i] = (uint32_t *)((uint8_t *)memory + i * list_bytes(elements));
    uint8_t *buffers = (uint8_t *)memory + LISTS * list_bytes(elements);
    uint64_t room = buffer_bytes(elements, 1u << shift);
    return (struct delta_work){.lists = {{list[0], list[1], 0}, {list[2], list[3], 0}, {list[4], list[5], 0}},
                               .spare = {list[6], list[7]},
                               .drafts = {buffers, buffers + room},
                               .body = buffers + 2 * room};
}

/* -- headers ------------------------------------------------------------------------------------------------------- */

pccl_err delta_malformed(const char *what)
{
    err_set("malformed delta block: %s", what);
    return PCCL_EPROTO;
}

/* A number of at most 28 bits, 7 in each byte; NULL if there is none. */
static const uint8_t *get_varint(const uint8_t *at, const uint8_t *end, uint32_t *value)
{
    *value = 0;
    for (unsigned i = 0; i < 28; i += 7, at++) {
        if (at == end)
            return NULL;
        *value |= (uint32_t)(*at & 127) << i;
        if (*at < 128)
            return at + 1;
    }
    return NULL;
}

pccl_err delta_parse(const void *bytes, uint64_t count, struct delta_block *block)
{
    const uint8_t *at = bytes, *end = at + count;
    pccl_delta_info *info = &block->info;
    *block = (struct delta_block){.info = {.size = sizeof *info}};
    if (count < 1)
        return delta_malformed("no bytes");
    block->shift = *at >> 4;
    info->form = *at++ & 15;
    if (info->form >= PCCL_DELTA_FORM_COUNT || block->shift > 2)
        return delta_malformed("unknown form or width");
    info->width = 1u << block->shift;
    at = get_varint(at, end, &info->elements);
    if (at != NULL && info->form != PCCL_DELTA_ZERO)
        at = get_varint(at, end, &info->changed);
    if (at == NULL || info->elements > DELTA_ELEMENTS_MAX || info->changed > info->elements)
        return delta_malformed("counts are cut off or out of range");
    if (delta_has_digests(info->form)) {
        if (end - at < 16)
            return delta_malformed("digests are cut off");
        info->before = bits_load(at), info->after = bits_load(at + 8);
        at += 16;
    }
    block->body = at;
    block->body_bytes = (uint64_t)(end - at);
    if (block->body_bytes > pccl_delta_bound(info->elements, info->width))
        return delta_malformed("too long");
    uint64_t raw_bytes = info->form == PCCL_DELTA_RAW ? (uint64_t)info->elements << block->shift : 0;
    if (info->form <= PCCL_DELTA_RAW && block->body_bytes != raw_bytes)
        return delta_malformed("it is not of the length that its elements take");
    return PCCL_OK;
}

pccl_err pccl_delta_describe(const void *block, uint64_t bytes, pccl_delta_info *info)
{
    struct delta_block b;
    if (info->size != sizeof *info) {
        err_set("pccl_delta_info of %u bytes", (unsigned)info->size);
        return PCCL_EINVAL;
    }
    pccl_err err = delta_parse(block, bytes, &b);
    if (err == PCCL_OK)
        *info = b.info;
    return err;
}

/* -- encode -------------------------------------------------------------------------------------------------------- */

static pccl_err refuse_size(uint32_t elements, uint32_t width)
{
    err_set("no delta block has %u elements of %u bytes", (unsigned)elements, (unsigned)width);
    return PCCL_EINVAL;
}

/* Whether a hash that is asked for can be had. */
static int has_hash(const uint8_t *hash, uint32_t elements, uint32_t width)
{
    if (hash == NULL || (uint64_t)elements * width >= PCCL_DELTA_HASH_FROM)
        return 1;
    err_set("a state of %u elements of %u bytes is too short to be hashed here", (unsigned)elements, (unsigned)width);
    return 0;
}

pccl_err pccl_delta_digest(const char *isa, const void *state, uint32_t elements, uint32_t width, uint64_t *digest_p)
{
    delta_kernels *k = delta_kernels_of(isa);
    if (k == NULL)
        return PCCL_EINVAL;
    if (!is_size(elements, width))
        return refuse_size(elements, width);
    *digest_p = k->digest(&(struct delta_span){state, elements, (unsigned)shift_of(width)});
    return PCCL_OK;
}

pccl_err pccl_delta_encode(const char *isa, const void *old_state, const void *new_state, uint32_t elements, uint32_t width,
                           uint32_t forms, void *memory, void *block, uint64_t *bytes_p, uint8_t *hash)
{
    delta_kernels *k = delta_kernels_of(isa);
    if (k == NULL || !has_hash(hash, elements, width))
        return PCCL_EINVAL;
    if (!is_size(elements, width))
        return refuse_size(elements, width);
    unsigned shift = (unsigned)shift_of(width);
    struct delta_work work = delta_work_at(memory, elements, shift);
    struct delta_source source = {.old = {old_state, elements, shift}, .new = new_state, .changes = work.lists[0]};
    uint64_t digests[2];
    k->scan(&source.old, new_state, &source.changes, digests, hash);
    source.before = digests[0], source.after = digests[1];
    uint64_t bytes = delta_write(k, &source, forms, &work, block);
    if (bytes == 0) {
        err_set("none of the forms in mask 0x%x says that %u elements changed", (unsigned)forms, (unsigned)source.changes.count);
        return PCCL_EINVAL;
    }
    *bytes_p = bytes;
    return PCCL_OK;
}

/* -- decode and patch ---------------------------------------------------------------------------------------------- */

/* A block and the state that it is for. */
struct target {
    struct delta_block b;
    struct delta_changes changes; /* of a block that is not raw */
    delta_kernels *k;
    void *memory;
    uint32_t elements, width;
};

static pccl_err open_block(struct target *t, const char *isa, const void *block, uint64_t bytes, int has_state)
{
    t->k = delta_kernels_of(isa);
    if (t->k == NULL)
        return PCCL_EINVAL;
    pccl_err err = delta_parse(block, bytes, &t->b);
    if (err != PCCL_OK)
        return err;
    if (t->b.info.elements != t->elements || t->b.info.width != t->width) {
        err_set("a delta block of %u elements of %u bytes, for %u of %u", (unsigned)t->b.info.elements, (unsigned)t->b.info.width,
                (unsigned)t->elements, (unsigned)t->width);
        return PCCL_EINVAL;
    }
    if (!has_state && delta_has_digests(t->b.info.form) && t->elements > 0) {
        err_set("this form of a delta block needs the old values");
        return PCCL_EINVAL;
    }
    return PCCL_OK;
}

/* The changes of a block that is not raw. `is_known`: that the state is the one before; only diff_b looks at it then. */
static pccl_err read_block(struct target *t, const void *state, int is_known)
{
    struct delta_work work = delta_work_at(t->memory, t->elements, t->b.shift);
    t->changes = work.lists[0];
    if (t->b.info.form == PCCL_DELTA_RAW)
        return PCCL_OK;
    return delta_read(t->k, &t->b, is_known && t->b.info.form != PCCL_DELTA_DIFF_B ? NULL : state, &work, &t->changes);
}

enum { WRITE_AHEAD = 24 }; /* changes; see scatter.c */

static void write_state(const struct target *t, uint8_t *state)
{
    const struct delta_changes *c = &t->changes;
    unsigned shift = t->b.shift;
    int is_by_step = t->b.info.form != PCCL_DELTA_ABS;
    if (t->b.info.form == PCCL_DELTA_RAW) {
        if (t->elements > 0)
            memcpy(state, t->b.body, t->b.body_bytes);
        return;
    }
    for (uint32_t i = 0; i < c->count; i++) {
        if (c->count - i > WRITE_AHEAD)
            __builtin_prefetch(state + ((size_t)c->place[i + WRITE_AHEAD] << shift), 1);
        element_set(state, shift, c->place[i], c->step[i] + (is_by_step ? element_of(state, shift, c->place[i]) : 0));
    }
}

static pccl_err apply_block(const char *isa, const void *block, uint64_t bytes, void *state, int is_known, struct target *t)
{
    pccl_err err = open_block(t, isa, block, bytes, state != NULL);
    if (err == PCCL_OK)
        err = read_block(t, state, is_known);
    if (err == PCCL_OK)
        write_state(t, state);
    return err;
}

pccl_err pccl_delta_decode(const char *isa, const void *block, uint64_t bytes, void *state, uint32_t elements, uint32_t width, void *work)
{
    struct target t = {.memory = work, .elements = elements, .width = width};
    return apply_block(isa, block, bytes, state, 0, &t);
}

pccl_err pccl_delta_move(const char *isa, const void *block, uint64_t bytes, void *state, uint32_t elements, uint32_t width, void *work)
{
    struct target t = {.memory = work, .elements = elements, .width = width};
    return apply_block(isa, block, bytes, state, 1, &t);
}

/* Places and new values. */
static void list_values(const struct target *t, const uint8_t *state, uint32_t *places, uint8_t *values)
{
    const struct delta_changes *c = &t->changes;
    unsigned shift = t->b.shift;
    for (uint32_t i = 0; i < c->count; i++) {
        uint32_t old = t->b.info.form == PCCL_DELTA_ABS ? 0 : element_of(state, shift, c->place[i]);
        places[i] = c->place[i];
        element_set(values, shift, i, old + c->step[i]);
    }
}

static void list_raw(const struct target *t, uint32_t *places, uint8_t *values, uint8_t *hash)
{
    for (uint32_t i = 0; i < t->elements; i++)
        places[i] = i;
    memcpy(values, t->b.body, t->b.body_bytes);
    if (hash != NULL)
        (void)t->k->patched(&(struct delta_span){values, t->elements, t->b.shift}, &(struct delta_patch){.values = values}, hash);
}

/* The same as list_values with a hash: the state is read once, for all that there is to be known of it. */
static pccl_err list_hashed(const struct target *t, const uint8_t *state, uint32_t *places, uint8_t *values, uint8_t *hash)
{
    struct delta_patch patch = {t->changes, t->b.info.form != PCCL_DELTA_ABS, values};
    uint64_t before = t->k->patched(&(struct delta_span){state, t->elements, t->b.shift}, &patch, hash);
    if (t->changes.count > 0)
        memcpy(places, t->changes.place, (size_t)t->changes.count * sizeof *places);
    return delta_has_digests(t->b.info.form) && before != t->b.info.before ? delta_wrong_base() : PCCL_OK;
}

pccl_err pccl_delta_patch(const char *isa, const void *block, uint64_t bytes, const void *state, uint32_t elements, uint32_t width,
                          void *work, uint32_t *places, void *values, uint8_t *hash)
{
    struct target t = {.memory = work, .elements = elements, .width = width};
    if (!has_hash(hash, elements, width))
        return PCCL_EINVAL;
    pccl_err err = open_block(&t, isa, block, bytes, state != NULL);
    if (err == PCCL_OK && hash != NULL && state == NULL) {
        err_set("a hash needs the old values");
        err = PCCL_EINVAL;
    }
    if (err == PCCL_OK)
        err = read_block(&t, state, hash != NULL);
    if (err != PCCL_OK)
        return err;
    if (t.b.info.form == PCCL_DELTA_RAW)
        list_raw(&t, places, values, hash);
    else if (hash != NULL)
        return list_hashed(&t, state, places, values, hash);
    else
        list_values(&t, state, places, values);
    return PCCL_OK;
}
