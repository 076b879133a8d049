/* engine.h - the passive engine: commands in, events out, one turn at a time.
 *
 * engine_turn does everything that can be done at `now`: commands, readiness, timers, sending. Nothing in it blocks,
 * allocates on the data path after an op has started, or reads a clock. Production wraps it in a thread
 * (engine_thread.c); the simulator calls it for many engines on one virtual clock. */
#ifndef PCCL_ENGINE_H
#define PCCL_ENGINE_H

#include <pthread.h>

#include "line_meter.h"
#include "mem.h"
#include "op.h"
#include "transfer.h"

struct command;

/* An epoch that is alive: ops run in it, or may yet start in it. */
struct epoch {
    struct epoch *next;        /* newest first */
    uint32_t number, from_boundary;
    uint32_t member_count;
    pccl_member *members;
    uint32_t streams, segment_bytes;
    uint64_t one_round_bytes_max, mesh_bytes_max;
    uint8_t large_algorithm;
    uint32_t ops;              /* that run in it */
};

/* Numbers of ops called so far in a lane since the current boundary. */
struct lane {
    uint64_t lane;
    uint32_t posted;
    uint8_t used;
};

struct lane_table {
    struct lane *lanes;        /* open addressing */
    uint32_t cap, count;
};

/* What the table was at an earlier boundary, and at those after it up to the next record's. */
struct lane_record {
    struct lane_record *next;
    uint32_t count;
    pccl_lane_state lanes[];
};

/* A verdict on an op that this peer has not called yet: it ends with it as soon as it is called. */
struct tombstone {
    struct tombstone *next;
    pccl_verdict verdict;
};

enum { PCCL_REFUSAL_BYTES = 256 };

struct pccl_engine {
    pccl_config config;
    const struct transport_ops *ops;
    struct transport *transport;
    uint64_t now_ns;
    uint64_t random_state;     /* of simulated engines */

    struct conn *conns;
    uint32_t dead_conns;
    uint32_t strangers;
    uint32_t relays;           /* streams that are passed on for others */
    int lingering;             /* some detour's epoch is over */
    uint32_t next_serial;
    struct link *links, *dirty;
    struct op *ops_first, *ops_last;
    uint64_t ops_submitted;
    uint32_t ops_thrown_back;  /* pending ones that have been retried */
    uint32_t ops_near;         /* that run, and whose peers answer sooner than a thread wakes */
    struct op_table table;
    struct lane_table lanes;
    struct lane_record *records_first, *records_last;
    uint32_t record_lanes;     /* in all of them */
    struct epoch *epochs;
    struct tombstone *tombstones;
    uint32_t boundary;
    int frozen;
    struct transfers transfers;
    struct pool pool;
    uint8_t *sink;             /* where unwanted payloads go */
    uint8_t *filler;           /* WIRE_PROBE_BYTES_MAX for probes; NULL before the first */
    uint32_t filler_crc;
    uint64_t next_timer_ns;
    struct line_meter line;
    pccl_stats stats;
    int closing;

    /* shared with other threads, under lock */
    pthread_mutex_t lock;
    struct command *commands_first, *commands_last;
    pccl_event *events;        /* ring */
    uint32_t event_head, event_count, event_cap;
    int event_fd, event_signalled;
    char refusal[PCCL_REFUSAL_BYTES]; /* of the last PCCL_EVENT_REFUSED, for people */
    pccl_stats stats_shared;
    pccl_link_stats *links_shared;
    uint32_t links_shared_count, links_shared_cap;
    uint64_t published_ns;
    pccl_op_state *frozen_ops;
    uint32_t frozen_op_count;
    pccl_lane_state *frozen_lanes;
    uint32_t frozen_lane_count;
    int close_asked, closed, has_thread;
    pthread_t thread;
};

static inline int engine_defect(const pccl_engine *e, pccl_defect defect)
{
    return __builtin_expect(e->config.defects & (uint32_t)defect, 0) != 0;
}

/* engine.c */
/* Waits up to timeout_ns for readiness (0: not at all), then does everything. `clock` NULL: now_ns is the caller's.
 * Returns how many reports of readiness it took. */
int engine_turn(pccl_engine *e, uint64_t timeout_ns, uint64_t (*clock)(void));
void engine_wake_at(pccl_engine *e, uint64_t at_ns);
void engine_random(pccl_engine *e, uint8_t *bytes, size_t count);
/* Ends every op, closes every stream and the transport. Idempotent. */
void engine_shutdown(pccl_engine *e);
void engine_fail_all(pccl_engine *e, pccl_err status);

/* events.c */
void engine_emit(pccl_engine *e, const pccl_event *event);
/* Emits that a stream was refused, and keeps for people from where and why. */
void engine_refused(pccl_engine *e, const pccl_event *event, const char *remote, const char *reason);
/* Makes the turn visible to other threads: counters, and the event descriptor. Comes after sending, so that what a peer
 * waits for has left before its own program is woken. */
void engine_publish(pccl_engine *e);

/* commands.c: carries out what other threads asked for */
void engine_commands(pccl_engine *e);

/* epoch.c */
struct epoch *epoch_for(const pccl_engine *e, uint32_t boundary);
/* What carries the frames of this epoch to and from a member: its link, or the epoch's detour. */
struct link *epoch_link(pccl_engine *e, const struct epoch *epoch, const pccl_member *member);
/* The newest live epoch's entry of a member, and that epoch (epoch_p may be NULL); NULL: it is a member of none. */
const pccl_member *epoch_member(const pccl_engine *e, const pccl_peer_id *id, const struct epoch **epoch_p);
int epoch_live(const pccl_engine *e, uint32_t number);
uint32_t epoch_newest(const pccl_engine *e);
uint32_t epoch_oldest(const pccl_engine *e);
void epoch_freeze(pccl_engine *e, uint32_t change);
void epoch_install(pccl_engine *e, const pccl_epoch *config);
void epoch_retire(pccl_engine *e);
/* Closes links that neither an epoch wants, nor a hold, nor a transfer. */
void epoch_close_unwanted(pccl_engine *e);
void epoch_acquaint(pccl_engine *e, const pccl_member *member, uint32_t streams);
void epoch_unacquaint(pccl_engine *e, const pccl_peer_id *peer);
void epoch_free_all(pccl_engine *e);
/* The verdict on an op that is being called only now; PCCL_OK if there is none. */
pccl_err tombstone_take(pccl_engine *e, const pccl_op_name *name);
void tombstone_forget(pccl_engine *e, uint32_t boundary);

/* lanes.c */
uint32_t lane_posted(const pccl_engine *e, uint64_t lane);
pccl_err lane_note(pccl_engine *e, uint64_t lane, uint32_t posted);
/* On to a later boundary: the table becomes a record. */
void lanes_pass(pccl_engine *e, uint32_t boundary);
/* Drops the records that speak of boundaries below this one only. */
void lanes_forget(pccl_engine *e, uint32_t boundary);
/* All records, the oldest first, then the table; NULL: no memory. The caller frees it. */
pccl_lane_state *lanes_report(const pccl_engine *e, uint32_t *count_p);
void lanes_free(pccl_engine *e);
/* Is this an op that this peer has called and that has ended? (Only asked for ops that are not in the table.) */
int op_is_over(const pccl_engine *e, const pccl_op_name *name);

static inline int peer_id_compare(const pccl_peer_id *a, const pccl_peer_id *b)
{
    return __builtin_memcmp(a->bytes, b->bytes, sizeof a->bytes);
}

#endif
