/* delta_forms.c - the forms of a block: each one's body written and read, and the smallest chosen. */
#include "delta_block.h"
#include "delta_word.h"
#include "err.h"

/* -- writing ------------------------------------------------------------------------------------------------------- */

static uint8_t *put_varint(uint8_t *at, uint32_t value)
{
    for (; value >= 128; value >>= 7)
        *at++ = (uint8_t)(value | 128);
    *at++ = (uint8_t)value;
    return at;
}

static uint8_t *put_header(uint8_t *at, uint32_t form, const struct delta_source *s)
{
    *at++ = (uint8_t)(form | s->old.shift << 4);
    at = put_varint(at, s->old.count);
    if (form != PCCL_DELTA_ZERO)
        at = put_varint(at, s->changes.count);
    if (!delta_has_digests(form))
        return at;
    bits_store(at, s->before);
    bits_store(at + 8, s->after);
    return at + 16;
}

static struct delta_group group_of(const struct delta_changes *changes, uint32_t universe, unsigned shift, const struct delta_work *work)
{
    return (struct delta_group){.changes = *changes, .universe = universe, .is_told = 1, .bits = 8u << shift, .spare = work->spare[0],
                                .spare_too = work->spare[1]};
}

static void put_zero(delta_kernels *k, const struct delta_source *s, const struct delta_work *work, struct bit_writer *w)
{
    (void)k, (void)s, (void)work, (void)w;
}

static void put_raw(delta_kernels *k, const struct delta_source *s, const struct delta_work *work, struct bit_writer *w)
{
    (void)k, (void)work;
    size_t bytes = (size_t)s->old.count << s->old.shift;
    if (bytes > 0)
        memcpy(w->at, s->new, bytes);
    w->at += bytes;
}

/* Values begin with a whole byte. */
static void put_abs(delta_kernels *k, const struct delta_source *s, const struct delta_work *work, struct bit_writer *w)
{
    struct delta_group g = group_of(&s->changes, s->old.count, s->old.shift, work);
    k->put_places(w, &g);
    uint8_t *values = bits_end(w);
    for (uint32_t i = 0; i < s->changes.count; i++)
        element_set(values, s->old.shift, i, s->new ? element_of(s->new, s->old.shift, s->changes.place[i]) : s->changes.step[i]);
    *w = (struct bit_writer){.at = values + ((size_t)s->changes.count << s->old.shift)};
}

static void put_a(delta_kernels *k, const struct delta_source *s, const struct delta_work *work, struct bit_writer *w)
{
    struct delta_group g = group_of(&s->changes, s->old.count, s->old.shift, work);
    k->put_group(w, &g);
}

static void put_b(delta_kernels *k, const struct delta_source *s, const struct delta_work *work, struct bit_writer *w)
{
    struct delta_class classes[DELTA_CLASSES_MAX] = {0};
    struct delta_classes how = delta_classes_of(&s->old, &s->changes);
    uint32_t room[DELTA_CLASSES_MAX] = {0}, at = 0;
    for (uint32_t i = 0; i < s->changes.count; i++)
        room[class_of(element_of(s->old.at, s->old.shift, s->changes.place[i]), s->old.shift, &how)]++;
    for (uint32_t c = 0; c < how.count; at += room[c++])
        classes[c].changes = (struct delta_changes){work->lists[1].place + at, work->lists[1].step + at, 0};
    k->rank(&s->old, &how, &s->changes, classes);
    bits_put(w, how.low, 5);
    bits_put(w, how.base, 8);
    bits_put(w, how.count - 1, 4);
    for (uint32_t c = 0; c < how.count; c++) {
        struct delta_group g = group_of(&classes[c].changes, classes[c].elements, s->old.shift, work);
        g.is_told = 0;
        bits_put_number(w, g.changes.count);
        if (g.changes.count > 0)
            k->put_group(w, &g);
    }
}

static void put_dense(delta_kernels *k, const struct delta_source *s, const struct delta_work *work, struct bit_writer *w)
{
    struct delta_group g = group_of(&s->changes, s->old.count, s->old.shift, work);
    k->put_dense(w, &g);
}

/* In the order in which they are tried; of equal ones the first wins. */
static const struct form {
    uint32_t form;
    void (*put)(delta_kernels *k, const struct delta_source *s, const struct delta_work *work, struct bit_writer *w);
} forms_tried[] = {
    {PCCL_DELTA_ZERO, put_zero}, {PCCL_DELTA_DIFF_A, put_a},        {PCCL_DELTA_DIFF_B, put_b},
    {PCCL_DELTA_ABS, put_abs},   {PCCL_DELTA_DENSE_ULP, put_dense}, {PCCL_DELTA_RAW, put_raw},
};

/* The fewest bytes that a form can take, known without writing it. */
static uint64_t least_bytes(uint32_t form, const struct delta_source *s)
{
    if (form == PCCL_DELTA_RAW)
        return (uint64_t)s->old.count << s->old.shift;
    if (form == PCCL_DELTA_ABS)
        return (uint64_t)s->changes.count << s->old.shift;
    return form == PCCL_DELTA_DENSE_ULP ? s->old.count / 8 : 0;
}

uint64_t delta_write(delta_kernels *k, const struct delta_source *s, uint32_t forms, const struct delta_work *work, uint8_t *block)
{
    uint64_t best = 0;
    uint32_t kept = 0;
    if (s->changes.count > 0)
        forms &= ~(1u << PCCL_DELTA_ZERO);
    for (size_t i = 0; i < sizeof forms_tried / sizeof forms_tried[0]; i++) {
        const struct form *f = &forms_tried[i];
        if (!(forms >> f->form & 1) || (best > 0 && least_bytes(f->form, s) >= best))
            continue;
        uint8_t *draft = work->drafts[1 - kept];
        struct bit_writer w = {.at = put_header(draft, f->form, s)};
        f->put(k, s, work, &w);
        uint64_t bytes = (uint64_t)(bits_end(&w) - draft);
        if (best == 0 || bytes < best)
            best = bytes, kept = 1 - kept;
    }
    memcpy(block, work->drafts[kept], best);
    return best;
}

/* -- reading ------------------------------------------------------------------------------------------------------- */

pccl_err delta_wrong_base(void)
{
    err_set("the delta block was made on another base");
    return PCCL_EMISMATCH;
}

static int get_abs(delta_kernels *k, const struct delta_block *b, const struct delta_work *work, struct bit_reader *r,
                   struct delta_changes *changes)
{
    struct delta_group g = group_of(changes, b->info.elements, b->shift, work);
    if (!k->get_places(r, &g))
        return 0;
    uint64_t at = (r->at + 7) / 8;
    if (b->body_bytes - at != (uint64_t)changes->count << b->shift)
        return 0;
    for (uint32_t i = 0; i < changes->count; i++)
        changes->step[i] = element_of(r->bytes + at, b->shift, i);
    r->at = r->end;
    return 1;
}

/* How changes are classed, and those of each class by rank, in the last lists; `told` are the universes that the block states. */
static int get_classes(delta_kernels *k, const struct delta_block *b, const struct delta_work *work, struct bit_reader *r,
                       struct delta_classes *how, struct delta_class classes[DELTA_CLASSES_MAX], uint32_t told[DELTA_CLASSES_MAX])
{
    const struct delta_changes *lists = &work->lists[2];
    uint32_t elements = b->info.elements, at = 0;
    how->low = (unsigned)bits_get(r, 5), how->base = (unsigned)bits_get(r, 8), how->count = (unsigned)bits_get(r, 4) + 1;
    if (how->low >= 8u << b->shift || (8u << b->shift) - 1 - how->low > 8)
        return 0;
    for (uint32_t c = 0; c < how->count; c++) {
        uint32_t count = bits_get_number(r);
        if (count > b->info.changed - at)
            return 0;
        classes[c].changes = (struct delta_changes){lists->place + at, lists->step + at, count};
        struct delta_group g = group_of(&classes[c].changes, elements, b->shift, work);
        g.is_told = 0;
        if (count > 0 && !k->get_group(r, &g))
            return 0;
        told[c] = count > g.universe / 2 ? g.universe : UINT32_MAX;
        at += count;
    }
    return at == b->info.changed;
}

static pccl_err read_b(delta_kernels *k, const struct delta_block *b, const uint8_t *state, const struct delta_work *work,
                       struct bit_reader *r, struct delta_changes *changes)
{
    struct delta_classes how;
    struct delta_class classes[DELTA_CLASSES_MAX] = {0};
    uint32_t told[DELTA_CLASSES_MAX];
    uint64_t digest;
    if (!get_classes(k, b, work, r, &how, classes, told))
        return delta_malformed("no classes of changes");
    int is_placed = k->place(&(struct delta_span){state, b->info.elements, b->shift}, &how, classes, changes, &digest);
    if (digest != b->info.before)
        return delta_wrong_base();
    for (uint32_t c = 0; c < how.count; c++)
        is_placed = is_placed && (told[c] == UINT32_MAX || told[c] == classes[c].elements);
    return is_placed ? PCCL_OK : delta_malformed("ranks that no element has");
}

static pccl_err read_others(delta_kernels *k, const struct delta_block *b, const uint8_t *state, const struct delta_work *work,
                            struct bit_reader *r, struct delta_changes *changes)
{
    struct delta_group g = group_of(changes, b->info.elements, b->shift, work);
    int is_good = 0;
    if (b->info.form == PCCL_DELTA_ABS)
        is_good = get_abs(k, b, work, r, changes);
    else if (b->info.form == PCCL_DELTA_DIFF_A)
        is_good = k->get_group(r, &g);
    else if (b->info.form == PCCL_DELTA_DENSE_ULP)
        is_good = k->get_dense(r, &g);
    if (!is_good)
        return delta_malformed("no list of changes");
    if (state == NULL || !delta_has_digests(b->info.form))
        return PCCL_OK;
    uint64_t digest = k->digest(&(struct delta_span){state, b->info.elements, b->shift});
    return digest == b->info.before ? PCCL_OK : delta_wrong_base();
}

pccl_err delta_read(delta_kernels *k, const struct delta_block *b, const uint8_t *state, const struct delta_work *work,
                    struct delta_changes *changes)
{
    changes->count = b->info.changed;
    if (b->info.form == PCCL_DELTA_ZERO)
        return PCCL_OK;
    memcpy(work->body, b->body, b->body_bytes);
    memset(work->body + b->body_bytes, 0, BITS_SLACK_BYTES);
    struct bit_reader r = {.bytes = work->body, .end = 8 * b->body_bytes};
    pccl_err err = b->info.form == PCCL_DELTA_DIFF_B ? read_b(k, b, state, work, &r, changes) : read_others(k, b, state, work, &r, changes);
    if (err != PCCL_OK)
        return err;
    return r.end - r.at < 8 ? PCCL_OK : delta_malformed("bytes left over");
}
