/* op.h - the op table and the life of an op; the algorithms plug in as struct algorithm.
 *
 * QUEUED -> RUNNING -> FINISHED -> ended (committed), with two side ways: a freeze suspends any of them until the coordinator's
 * verdict, and a change of membership sends it back to QUEUED (restarted from its preserved input). An op ends
 * exactly once, with one event. Engine thread only. */
#ifndef PCCL_OP_H
#define PCCL_OP_H

#include "link.h"

enum op_state { OP_QUEUED, OP_RUNNING, OP_FINISHED, OP_ENDED, OP_STATE_COUNT };
enum op_input { OP_START, OP_RESULT, OP_AGAIN, OP_END, OP_INPUT_COUNT };

struct epoch;

struct algorithm {
    const char *name;
    /* Lays out the op (op->peers, rank, n are set), takes its memory, pushes its first segments. */
    pccl_err (*start)(struct op *op);
    /* Where does this segment go? *target_p NULL: into scratch. PCCL_EPROTO: no such segment. */
    pccl_err (*place)(struct op *op, uint32_t from, const struct frame *frame, uint8_t **target_p);
    /* The segment is complete; `payload` is *target_p or scratch, valid during the call only. */
    void (*arrived)(struct op *op, uint32_t from, const struct frame *frame, const uint8_t *payload);
    /* Gives back what start took; NULL if that is nothing. */
    void (*drop)(struct op *op);
};

extern const struct algorithm ring_all_reduce, mesh_reduce, two_level_reduce, one_round_reduce, direct_exchange;

struct ring_state {
    uint64_t left;             /* segments still to arrive */
};

struct mesh_state {
    uint8_t *slots;            /* (n - 1) * slot_count segments of scratch; NULL for n == 2 */
    uint64_t slots_bytes;
    uint32_t slot_count;
    uint8_t *encoded;          /* with a codec: what this peer sends */
    uint64_t encoded_bytes, encoded_stride;
    uint32_t *arrived;         /* per segment of the own span: contributions so far */
    uint32_t first_open;       /* every segment below is reduced */
    uint32_t granted;
    uint8_t *order;            /* only under PCCL_DEFECT_ARRIVAL_ORDER */
    uint64_t left;             /* reductions and results still to come */
};

struct two_level_state {
    uint8_t *slots;            /* contributions and partial sums of the spans that this peer collects */
    uint64_t slots_bytes;
    uint64_t *slots_begin;     /* per span: where its slots begin */
    uint32_t *arrived;         /* per span and segment: sources so far */
    uint64_t left;             /* results still to come or to be made */
};

struct one_round_state {
    uint8_t *slots;            /* the others' whole contributions, by rank; NULL for n == 2 without a codec */
    uint64_t slots_bytes;
    uint8_t *encoded;          /* with a codec: what this peer sends */
    uint64_t encoded_bytes, encoded_stride;
    uint32_t *arrived;         /* per segment: contributions so far */
    uint64_t left;             /* segments still to be folded */
};

struct direct_state {
    uint64_t left;
};

struct op {
    struct sender sender;
    pccl_engine *engine;
    struct op *hash_next;
    struct op *prev, *next;    /* engine->ops, in the order of submission */
    pccl_op_request request;
    pccl_peer_id *origin;
    enum op_state state;
    int frozen;
    uint64_t started_ns;
    int told_mismatch, told_overdue;

    /* of the current attempt */
    struct epoch *epoch;
    const struct algorithm *algorithm;
    uint32_t n, rank;
    int near;                  /* counts in engine->ops_near */
    struct link **peers;       /* n; NULL at the own rank */
    struct flow *flows;        /* n */
    const pccl_member **members;  /* n; of the epoch */
    uint64_t *spans;           /* n + 1: first elements */
    uint8_t *fins;             /* n */
    uint32_t fin_count;
    uint32_t element_bytes;
    uint32_t segment_elements;
    uint8_t *arrivals;         /* per segment that is to arrive: 1 = taken; NULL under PCCL_DEFECT_NO_DEDUPE */
    uint32_t arrivals_per_group;
    union {
        struct ring_state ring;
        struct mesh_state mesh;
        struct two_level_state two_level;
        struct one_round_state one_round;
        struct direct_state direct;
    } u;

    /* in-place inputs */
    uint8_t *backup;
    uint64_t backup_bytes;
    uint8_t *backed;           /* per segment of the op: 1 = in the backup */
    uint32_t segments_per_span;

    uint64_t received_bytes;
};

struct op_table {
    struct op **buckets;
    uint32_t bucket_count, count;
};

/* one_round.c: is the op little enough? */
int one_round_fits(const struct op *op);

/* op_table.c */
pccl_err op_table_init(struct op_table *t);
void op_table_free(struct op_table *t);
struct op *op_table_find(const struct op_table *t, const pccl_op_name *name);
void op_table_add(struct op_table *t, struct op *op);
void op_table_remove(struct op_table *t, struct op *op);

/* op.c */
pccl_err op_submit(pccl_engine *e, const pccl_op_request *request, const pccl_peer_id *origin);
/* Runs a QUEUED op if an epoch for it is there. */
void op_try_start(struct op *op);
/* Back to QUEUED with its input restored. */
void op_reset(struct op *op);
void op_end(struct op *op, pccl_err status);
void op_freeze(struct op *op);
/* The algorithm calls it when this peer holds its whole result. */
void op_finished(struct op *op);
void op_on_fin(struct op *op, uint32_t from);
/* The other side described the op otherwise. */
void op_on_mismatch(struct op *op, const struct link *from, const struct frame *frame);
void op_on_overdue(struct op *op);
/* Rank of the link's peer among the participants; n if it is none. */
uint32_t op_rank_of(const struct op *op, const struct link *l);
int op_is_pair(const struct op *op);
/* Will several links want the same checksum of what goes to all? Then it is made once, while the cache has the bytes. */
int op_sums_once(const struct op *op);
/* A sender waits for nothing but the receiver's FIN: only then has it finished. */
int op_awaits_receipt(const struct op *op);

/* op_memory.c: the geometry of spans and segments, and the backup of in-place inputs */
pccl_err spans_prepare(struct op *op, const uint32_t *weights);     /* weights NULL: equal spans */
uint32_t span_segments(const struct op *op, uint32_t span);         /* how many segments it has */
struct extent { uint64_t offset; uint32_t bytes; };
struct extent span_segment(const struct op *op, uint32_t span, uint32_t segment);
/* Bytes of a segment on the wire: fewer than its extent with a codec. */
uint32_t span_wire_bytes(const struct op *op, struct extent x);
/* Which segment of the span does (offset, bytes) name? PCCL_EPROTO if it is none. */
pccl_err span_locate(const struct op *op, uint32_t span, uint64_t offset, uint32_t bytes, uint32_t *segment_p);
pccl_err backup_prepare(struct op *op);
/* Keeps the bytes of a segment of an in-place op before they are overwritten the first time. */
void backup_segment(struct op *op, uint32_t span, uint32_t segment);
void backup_restore(struct op *op);
void backup_drop(struct op *op);
/* Each segment is taken once: a peer that sends one again under a new number is refused. A group is a step, a source, ... */
pccl_err arrivals_prepare(struct op *op, uint32_t groups, uint64_t segments_per_group);
int arrival_is_new(const struct op *op, uint32_t group, uint64_t segment);
/* 1 the first time. */
int arrival_take(struct op *op, uint32_t group, uint64_t segment);
/* At least the number of segments of any span. */
uint64_t span_segments_max(const struct op *op);
void op_push(struct op *op, uint32_t to, const struct segment *segment);

#endif
