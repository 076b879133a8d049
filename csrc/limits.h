/* limits.h - every fixed limit and time of the engine, in one place. */
#ifndef PCCL_LIMITS_H
#define PCCL_LIMITS_H

#include <stdint.h>

enum {
    LIMIT_PEERS = 1024,              /* members of an epoch */
    LIMIT_STREAMS = 64,              /* streams of a link */
    LIMIT_SEGMENT_BYTES = 1 << 20,   /* one DATA payload */
    LIMIT_STRANGERS = 256,           /* accepted streams that have not proved themselves, or whose peer is not known yet */
    LIMIT_STRANGERS_PER_HOST = 128,  /* of these, from one host, as long as they have not proved themselves */
    LIMIT_RELAYS = 1024,             /* streams that are passed on for others */
    LIMIT_HOPS = 15,                 /* relays that a stream may go over after the first */
    LIMIT_PARKED_FRAMES = 1 << 16,   /* frames a link keeps for ops not called yet */
    LIMIT_RECORD_LANES = 8192,       /* entries of lane records about earlier boundaries */
    LIMIT_REGIONS = 1 << 16,         /* that are offered */
    LIMIT_FETCHES = 1 << 16,         /* that have not ended */
    LIMIT_SERVED = 1024,             /* fetches that a link's other side may have under way here; it asks for half as many at most, */
    LIMIT_ASKED = 512,               /* so that what it has just given up does not count against it, */
    ASKED_RESERVE = 64,              /* and keeps so many of these back for each higher class */
    TRANSFER_BUCKETS = 4096,         /* of each hash table of regions and fetches */
    TRANSFER_SEGMENT_BYTES = 256 << 10,  /* one PIECE, where no epoch says otherwise */
    SHARE_RUNS_MAX = 64,             /* runs that share a PIECE */
    WINDOW_FRAMES = 4096,            /* numbered frames in flight on a link; a power of two */
    PROBE_BYTES_MAX = 64 << 20,      /* filler that measures a link */
    METER_SAMPLES = 24,              /* of a link's bandwidth: the best of so many counts */
    WINDOW_RESERVE = 64,             /* of these, kept back for FIN and GRANT */
    SEND_BATCH_FRAMES = 16,          /* frames handed to one writev at most, */
    SEND_BATCH_BYTES = 64 << 10,    /* and from so many bytes on no further one */
    SEND_IOV_MAX = 128,             /* pieces of memory handed to one writev */
    STAGING_BYTES = 64 << 10,        /* bytes read ahead of the frame in hand */
    DIRECT_READ_BYTES = 16 << 10,    /* payloads from this size on are read straight to where they belong */
    READ_BUDGET_BYTES = 4 << 20,     /* per stream and turn, so that one stream cannot starve the others; */
    READ_BUDGET_MEMORY_BYTES = 512 << 10,  /* of a stream in memory, so that what is made of it leaves while the cache has it */
    ACK_EVERY_FRAMES = 32,
    READY_CAP = 64,                  /* readiness reports taken per turn */
    DESC_TEXT_BYTES = 96
};

#define MILLISECOND 1000000ULL
#define ACK_DELAY_NS (10 * MILLISECOND)
#define PING_EVERY_NS (500 * MILLISECOND)
#define REDIAL_FIRST_NS (2 * MILLISECOND)
#define REDIAL_MAX_NS (1000 * MILLISECOND)
/* Peers are near from which an answer comes about as soon as a thread falls asleep and wakes: while an op among such runs, the engine's thread
 * looks for so long whether more has come before it sleeps. */
#define NEAR_RTT_US 300u
#define STAY_AWAKE_NS (50 * 1000ULL)
/* Who lets others have the processor and gets it back no sooner than that sleeps instead, for so long. */
#define CROWDED_YIELD_NS (60 * 1000ULL)
#define CROWDED_FOR_NS (1000 * MILLISECOND)
/* So long a detour of an epoch that is over may try to say the rest. */
#define LINGER_NS (5000 * MILLISECOND)
#define PROBE_NS_MAX (10000 * MILLISECOND)
#define NEVER UINT64_MAX

/* Scratch that a mesh keeps per op for contributions that wait for their turn. */
#define MESH_SCRATCH_BYTES (64ULL << 20)
/* What a peer sends, and keeps of others, in one round at most; an all-reduce of more takes the mesh. */
#define ONE_ROUND_BYTES_MAX (64ULL << 20)
/* Scratch slots per source beyond which a source must wait, whatever the budget allows. */
#define MESH_SLOTS_MIN 4u

#endif
