/* op_table.c - ops by name: a chained hash table that grows. */
#include "engine.h"

static uint64_t hash_name(const pccl_op_name *name)
{
    uint64_t h = name->lane ^ ((uint64_t)name->boundary << 32 | name->seq) * 0x9E3779B97F4A7C15ULL;
    h ^= h >> 29;
    h *= 0xBF58476D1CE4E5B9ULL;
    return h ^ h >> 32;
}

pccl_err op_table_init(struct op_table *t)
{
    t->bucket_count = 256;
    t->buckets = mem_alloc(t->bucket_count * sizeof(struct op *));
    return t->buckets ? PCCL_OK : PCCL_ENOMEM;
}

void op_table_free(struct op_table *t)
{
    mem_free(t->buckets);
    t->buckets = NULL;
}

static struct op **bucket(const struct op_table *t, const pccl_op_name *name)
{
    return &t->buckets[hash_name(name) & (t->bucket_count - 1)];
}

struct op *op_table_find(const struct op_table *t, const pccl_op_name *name)
{
    for (struct op *op = *bucket(t, name); op; op = op->hash_next) {
        const pccl_op_name *n = &op->request.name;
        if (n->lane == name->lane && n->seq == name->seq && n->boundary == name->boundary)
            return op;
    }
    return NULL;
}

/* Twice the buckets; a table that cannot grow goes on with longer chains. */
static void grow(struct op_table *t)
{
    struct op_table bigger = {.bucket_count = 2 * t->bucket_count};
    bigger.buckets = mem_alloc(bigger.bucket_count * sizeof(struct op *));
    if (!bigger.buckets)
        return;
    for (uint32_t i = 0; i < t->bucket_count; i++)
        for (struct op *op = t->buckets[i], *next; op; op = next) {
            next = op->hash_next;
            op_table_add(&bigger, op);
        }
    mem_free(t->buckets);
    *t = bigger;
}

void op_table_add(struct op_table *t, struct op *op)
{
    if (t->count >= 2 * t->bucket_count)
        grow(t);
    struct op **at = bucket(t, &op->request.name);
    op->hash_next = *at;
    *at = op;
    t->count++;
}

void op_table_remove(struct op_table *t, struct op *op)
{
    struct op **at = bucket(t, &op->request.name);
    while (*at != op)
        at = &(*at)->hash_next;
    *at = op->hash_next;
    t->count--;
}
