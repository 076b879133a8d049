/* transfer.h - transfers: byte ranges that one peer offers and others fetch, over the links that carry the ops.
 *
 * region.c knows what this peer offers and how much of it is there; serve.c sends what others ask for; fetch.c asks and takes what
 * comes. Transfers belong to no epoch: a freeze or a change does not touch them. A fetch names runs of a region, which are served in
 * order as one concatenation. Both sides cut it alike (cut_next), so that a piece needs no more than its position to be
 * recognised. Engine thread only. */
#ifndef PCCL_TRANSFER_H
#define PCCL_TRANSFER_H

#include "digests.h"
#include "link.h"

struct fetch;
struct serving;

struct range { uint64_t begin, end; };

struct region {
    struct region *hash_next;
    pccl_region offer;
    int whole;
    struct range *ranges;      /* what may be fetched: in order, apart from each other */
    uint32_t range_count, range_cap;
    struct list servings;      /* by serving.of_region */
};

/* The rate cap of one class: a token bucket. */
struct rate_limit {
    uint64_t bytes_per_s;      /* 0: none */
    int64_t tokens;
    uint64_t filled_ns;
    struct list waiting;       /* by serving.waiting */
};

struct transfers {
    struct region **regions;   /* TRANSFER_BUCKETS */
    uint32_t region_count;
    struct fetch **by_id, **by_token;
    uint64_t last_id;
    struct list fetches;       /* that have not ended */
    uint64_t deadline_ns;      /* none of them has an earlier one; 0: none has any */
    struct rate_limit limits[PCCL_PRIORITY_COUNT];
};

/* Of the parts of a fetch; count 0: none are wanted. */
struct part_sums {
    uint64_t part_bytes;
    uint32_t count;
    uint64_t *sums;            /* of what has come */
    uint64_t *seeds;
    uint64_t *digests;         /* the user's */
};

/* The next segment of the runs, of whose first `into` bytes are over: *bytes_p bytes. Returns how many whole small runs it is made of;
 * of a large run (1) it is a part. */
uint32_t cut_next(const struct run *runs, uint32_t run_count, uint64_t into, uint32_t segment_bytes, uint32_t *bytes_p);

/* region.c */
void region_offer(pccl_engine *e, const pccl_region *offer, int whole);
void region_extend(pccl_engine *e, const uint8_t *key, uint64_t generation, struct range part);
void region_withdraw(pccl_engine *e, const uint8_t *key, uint64_t generation);
void region_withdraw_all(pccl_engine *e, pccl_err status);
struct region *region_find(const pccl_engine *e, const uint8_t *key, uint64_t generation);
int region_has(const struct region *r, struct range part);

/* serve.c */
/* PCCL_EPROTO: the payload is none of a FETCH. */
pccl_err serve_on_fetch(struct link *l, const struct frame *frame, const uint8_t *payload);
void serve_on_drop(struct link *l, const struct frame *frame);
void serve_region_grew(struct region *r);
/* Nothing of the region is read any more. */
void serve_region_gone(struct region *r);
void serve_link_closed(struct link *l);
/* So much of a higher class is sent: the cap of the lowest class is for what is left beside that. */
void serve_charge(pccl_engine *e, uint32_t bytes);
void serve_limit(pccl_engine *e, pccl_priority priority, uint64_t bytes_per_s);
void serve_on_time(pccl_engine *e);

/* fetch.c */
void fetch_begin(pccl_engine *e, const pccl_fetch_request *request);
void fetch_cancel(pccl_engine *e, uint64_t token);
/* Where does this PIECE go? As link_on_header. */
pccl_err fetch_place(struct link *l, struct conn *c);
/* PCCL_EPROTO: the segment has been taken since. */
pccl_err fetch_on_piece(struct link *l, const struct frame *frame);
void fetch_on_deny(struct link *l, const struct frame *frame);
void fetch_link_closed(struct link *l);
/* There is a new epoch: fetches whose way is another one now begin again on that. */
void fetch_reroute(pccl_engine *e);
void fetch_on_time(pccl_engine *e);
void fetch_end_all(pccl_engine *e, pccl_err status);

/* fetch_sums.c */
/* `memory`: two numbers for each part, zeroed. */
void sums_begin(struct part_sums *s, const pccl_fetch_request *request, uint64_t *memory);
/* These bytes have come, at this position of the concatenation; each position once. */
void sums_add(const struct part_sums *s, uint64_t position, const uint8_t *at, uint32_t bytes);
/* Everything has come: tells the user. */
void sums_end(const struct part_sums *s);

#endif
