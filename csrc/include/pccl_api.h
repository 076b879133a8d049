/* pccl_api.h - the whole C API of the engine; cffi reads this file as it stands (no macros, no includes).
 *
 * Words (design and docs/protocol.md): run, peer, group, epoch, boundary, op, segment, stream, link.
 * Every function returns at once; none blocks, none calls back. All functions except pccl_engine_step and
 * pccl_engine_free may be called from any thread. Commands are copied into a queue and carried out, in the order
 * of the calls, by the engine's thread (or by pccl_engine_step). Answers arrive as events: read the event
 * descriptor, then call pccl_engine_events until it returns 0.
 *
 * Ownership words: "borrows until the op's PCCL_EVENT_OP event", "copies", "takes". */

typedef enum {
    PCCL_OK = 0,
    PCCL_EINVAL = 1,       /* an argument is wrong; nothing happened */
    PCCL_ENOMEM = 2,       /* memory or a budget is exhausted; nothing happened */
    PCCL_EAGAIN = 3,       /* would block: nothing to read, or no room to write */
    PCCL_EIO = 4,          /* the operating system said no; see sys_errno */
    PCCL_EPROTO = 5,       /* bytes from the network were malformed */
    PCCL_EAUTH = 6,        /* the other side does not know the run's secret */
    PCCL_EMISMATCH = 7,    /* peers called one op with different descriptions */
    PCCL_EPEER = 8,        /* a peer that the op cannot do without is gone */
    PCCL_EFEW = 9,         /* fewer peers than the run asks for */
    PCCL_ETIMEOUT = 10,    /* the op's deadline passed */
    PCCL_ECLOSED = 11,     /* the engine or the communicator was closed */
    PCCL_EEVICTED = 12,    /* the coordinator removed this very peer */
    PCCL_ELOST = 13,       /* the coordinator could not be reached any more */
    PCCL_ECANCELLED = 14,  /* a peer took its call back */
    PCCL_EGONE = 15        /* the other side does not offer such a region, or not any more */
} pccl_err;

typedef enum {
    PCCL_FLOAT64 = 0, PCCL_FLOAT32 = 1, PCCL_FLOAT16 = 2, PCCL_BFLOAT16 = 3,
    PCCL_INT8 = 4, PCCL_INT16 = 5, PCCL_INT32 = 6, PCCL_INT64 = 7,
    PCCL_UINT8 = 8, PCCL_UINT16 = 9, PCCL_UINT32 = 10, PCCL_UINT64 = 11,
    PCCL_DTYPE_COUNT = 12
} pccl_dtype;

typedef enum {
    PCCL_SUM = 0, PCCL_AVG = 1, PCCL_PROD = 2, PCCL_MIN = 3, PCCL_MAX = 4, PCCL_REDOP_COUNT = 5
} pccl_redop;

typedef enum {
    PCCL_CODEC_NONE = 0, PCCL_CODEC_BF16 = 1, PCCL_CODEC_FP16 = 2,
    PCCL_CODEC_INT8 = 3,      /* blocks, by their greatest magnitude */
    PCCL_CODEC_E3M0 = 4,      /* 4 bits: sign and power of two, by the block's greatest magnitude */
    PCCL_CODEC_COUNT = 5
} pccl_codec;

typedef enum {
    PCCL_ALL_REDUCE = 1,      /* in: count elements; out: count elements; out may equal in */
    PCCL_REDUCE_SCATTER = 2,  /* in: count; out: room for count, only this peer's span is written */
    PCCL_ALL_GATHER = 3,      /* in: count; out: count per participant, in the order of their ranks or of origin[] */
    PCCL_BROADCAST = 4,       /* root: in; others: out; count */
    PCCL_ALL_TO_ALL = 5,      /* in: count per peer of origin[]; out: count per participant */
    PCCL_SEND_RECV = 6,       /* root sends in, target receives out; count */
    PCCL_BARRIER = 7,         /* no data */
    PCCL_KIND_COUNT = 8
} pccl_kind;

typedef enum {
    PCCL_ALGORITHM_AUTO = 0,  /* the epoch's plan decides, from the op's size */
    PCCL_ALGORITHM_RING = 1,
    PCCL_ALGORITHM_MESH = 2,
    PCCL_ALGORITHM_TWO_LEVEL = 3,  /* all-reduce over regions, see pccl_member.region */
    PCCL_ALGORITHM_ONE_ROUND = 4,  /* all-reduce: everybody sends everything to all, up to 64 MiB out of each peer */
    PCCL_ALGORITHM_COUNT = 5
} pccl_algorithm;

/* Whose segments a link sends first. A matter of the sender alone: peers need not agree. */
typedef enum {
    PCCL_PRIORITY_NORMAL = 0,
    PCCL_PRIORITY_HIGH = 1,   /* before normal ones, of which one segment in 16 still goes */
    PCCL_PRIORITY_LOW = 2,    /* after both, but for one segment in 16 */
    PCCL_PRIORITY_COUNT = 3
} pccl_priority;

typedef struct { uint8_t bytes[16]; } pccl_peer_id;   /* random, one per process and communicator, never reused */

typedef struct pccl_engine pccl_engine;
typedef struct pccl_sim pccl_sim;

/* How an engine is made. Copied. */
typedef struct {
    uint32_t size;                 /* sizeof(pccl_config) as the caller knows it */
    pccl_peer_id self;
    uint8_t run[16];               /* identifies the run on the wire */
    uint8_t key[32];               /* proves membership: HMAC key derived from the run's secret */
    char transport[16];            /* as transport_find says: "auto", "tcp", "tls", "sim", "faulty+tcp", ... */
    char listen[64];               /* tcp: "0.0.0.0:0", "[::]:29500"; sim: "sim:3" */
    char congestion[16];           /* TCP congestion control to ask for; "" leaves the system's choice */
    uint64_t fault_seed;           /* "faulty+...": seed of the fault schedule */
    uint32_t eager_bytes;          /* most bytes a link may park for ops the receiver has not called yet */
    uint64_t handshake_timeout_ns; /* a new stream that has not proved itself by then is closed */
    uint64_t silence_ns;           /* a link that brought nothing for so long is reported as silent */
    uint32_t defects;              /* planted defects, for tests of the checkers only; 0 in real life */
    uint8_t psk[32];               /* "tls" without certificates: the run's pre-shared key, */
    uint8_t has_psk;               /* if this is 1 */
    char tls_ca[512];              /* "tls" with certificates: PEM files of the authority's certificate, */
    char tls_cert[512];            /* of ours, with those between them, */
    char tls_key[512];             /* and of its private key; all three or none */
    pccl_sim *sim;                 /* the simulated network ("sim" only), outlives the engine; else NULL */
} pccl_config;

/* Planted defects (pccl_config.defects): each breaks one promise on purpose; the simulator's checkers must see it. */
typedef enum {
    PCCL_DEFECT_COMMIT_EARLY = 1,      /* completes an op without waiting for the others' FIN */
    PCCL_DEFECT_NO_BACKUP = 2,         /* keeps no copy of an in-place input */
    PCCL_DEFECT_NO_DEDUPE = 4,         /* takes a segment that was sent again as a new one */
    PCCL_DEFECT_NO_CRC = 8,            /* believes every payload */
    PCCL_DEFECT_NO_FENCE = 16,         /* still accepts frames of a frozen epoch */
    PCCL_DEFECT_ARRIVAL_ORDER = 32,    /* the mesh sums in order of arrival instead of rank */
    PCCL_DEFECT_LOSE_RESEND = 64,      /* forgets the unacknowledged segments of a lost stream */
    PCCL_DEFECT_IGNORE_DEADLINE = 128, /* never reports an overdue op */
    PCCL_DEFECT_NO_RELAY = 256,        /* passes nothing on between others */
    PCCL_DEFECT_LATE_WRITE = 512,      /* goes on to write what arrives for a fetch that has ended */
    PCCL_DEFECT_SERVE_UNREADY = 1024,  /* serves what is not in a region yet */
    PCCL_DEFECT_IGNORE_CANCEL = 2048,  /* ends a fetch that is cancelled only when the other side does */
    PCCL_DEFECT_KEEP_SERVING = 4096,   /* remembers a fetch of another peer that has everything */
    PCCL_DEFECT_STAY_ON_WAY = 8192,    /* leaves a fetch on the link or the detour on which it began */
    PCCL_DEFECT_LEAK_STREAM = 16384    /* does not close a stream that it has given up */
} pccl_defect;

/* One member of an epoch. Rank = position in the array. Copied. */
typedef struct {
    pccl_peer_id id;
    uint32_t since;       /* the boundary at which it entered: it takes part in ops of boundaries >= since */
    uint32_t weight;      /* its share of a mesh all-reduce, relative to the others'; all 0: equal shares */
    uint16_t region;      /* members of one region are close to each other (two-level all-reduce) */
    uint16_t streams;     /* TCP connections of the link to it; 0: the epoch's */
    uint16_t via;         /* there is no link to it: 1 + rank of the member through which it is reached; 0: there is */
    uint64_t incarnation; /* which of the links that the two have had this one is; 0: that of their epochs */
    uint8_t dial;         /* 1: this side dials it; 0: it dials us, also for detours when we ask it to */
    char address[80];     /* where its engine listens: "host:port" with a numeric host; "" for self */
} pccl_member;

/* The name of an op within a group: the same on every peer, kept when the op is retried in a later epoch. */
typedef struct {
    uint64_t lane;        /* 0 for ops matched by order; else a hash of the tag (and of the pair, for send/recv) */
    uint32_t boundary;    /* how many times advance() had been called */
    uint32_t seq;         /* how many ops of this lane came before it since that boundary */
} pccl_op_name;

/* The coordinator's verdict on an op that was pending when the epochs froze. Ops it does not name start again. */
typedef struct {
    pccl_op_name name;
    int32_t status;       /* PCCL_OK: committed; else the error it ends with */
} pccl_verdict;

/* An epoch. Copied, with its arrays. */
typedef struct {
    uint32_t size;
    uint32_t epoch;
    uint32_t from_boundary;        /* ops of boundaries >= this run in it */
    uint32_t change;               /* nonzero: ends the freeze of that number and every earlier epoch;
                                      0: a growth, earlier epochs go on for ops of earlier boundaries */
    uint32_t member_count;
    const pccl_member *members;
    uint32_t verdict_count;
    const pccl_verdict *verdicts;
    uint32_t streams;              /* TCP connections per link */
    uint32_t segment_bytes;        /* multiple of 64, at most 1 MiB */
    uint64_t one_round_bytes_max;  /* all-reduces of at most so many bytes take one round, */
    uint64_t mesh_bytes_max;       /* those of at most so many the mesh with equal shares, */
    uint8_t large_algorithm;       /* larger ones this pccl_algorithm (AUTO: the ring), with the members' weights */
} pccl_epoch;

/* An op. Copied; `in` and `out` are borrowed until the op's PCCL_EVENT_OP event. */
typedef struct {
    uint32_t size;
    uint8_t kind;                  /* pccl_kind */
    uint8_t dtype;                 /* pccl_dtype */
    uint8_t redop;                 /* pccl_redop; 0 for kinds that do not reduce */
    uint8_t algorithm;             /* pccl_algorithm */
    uint8_t priority;              /* pccl_priority */
    uint8_t codec;                 /* what float32 all-reduces travel as: 0 plain, or a codec of codec.h (mesh, one round) */
    pccl_op_name name;
    uint32_t shape;                /* hash of the dimensions: compared between peers, not interpreted */
    uint64_t count;                /* elements, as said at pccl_kind */
    const void *in;
    void *out;
    pccl_peer_id root;             /* broadcast: source; send_recv: sender */
    pccl_peer_id target;           /* send_recv: receiver */
    uint32_t origin_count;         /* all_to_all: rows of in and out; all_gather: rows of out, or 0 */
    const pccl_peer_id *origin;    /* all_to_all: for whom each row of in is; all_gather: from whom each row of out; copied */
    uint64_t deadline_ns;          /* on the engine's clock; 0: none */
    uint64_t token;                /* given back in the event */
} pccl_op_request;

/* Memory that others may fetch from, by (key, generation); both may be anything. Copied; `data` is borrowed until the
 * region's PCCL_EVENT_WITHDRAWN. What has been made fetchable must not be written to before that. */
typedef struct {
    uint32_t size;
    uint8_t key[16];
    uint64_t generation;
    const void *data;
    uint64_t bytes;                /* at least 1 */
    uint64_t token;                /* given back in the events */
    uint8_t changes;               /* 1: it is written to while it is offered; whoever fetches must expect a mixture */
    uint8_t watched;               /* 1: PCCL_EVENT_ASKED tells of each fetch of it that begins */
} pccl_region;

/* A part of a region, and where it is wanted. */
typedef struct {
    uint64_t offset;               /* in the region */
    uint64_t bytes;                /* at least 1 */
    void *target;
} pccl_fetch_run;

/* A fetch from a peer that has a link to this one. Copied, with its runs; the targets are borrowed until the PCCL_EVENT_FETCH. */
typedef struct {
    uint32_t size;
    pccl_peer_id peer;
    uint8_t key[16];
    uint64_t generation;
    uint8_t priority;              /* pccl_priority: of the other side's segments */
    uint32_t run_count;            /* 1 to 4096; served in this order, as one concatenation of at most 1 TiB */
    const pccl_fetch_run *runs;
    uint64_t deadline_ns;          /* on the engine's clock; 0: none */
    uint64_t token;                /* given back in the event; pccl_engine_cancel_fetch knows the fetch by it */
    /* Digests of what has come, taken as it comes; for runs of whole parts of one size, whose targets do not overlap. */
    uint32_t part_count;           /* 0: none wanted; 4096 at most */
    uint8_t bare;                  /* 1: without checksums of payloads, for who uses nothing whose digest is not the right one */
    uint64_t part_bytes;           /* a multiple of 8, 16 MiB at most */
    const uint64_t *seeds;         /* of each part, as pccl_digest_pieces takes them; copied */
    uint64_t *digests;             /* of each part; written before an event with PCCL_OK, borrowed until the event */
} pccl_fetch_request;

typedef enum {
    PCCL_EVENT_OP = 1,         /* an op ended: token, status, epoch, retries, bytes, span */
    PCCL_EVENT_LINK_UP = 2,    /* every stream-less link that got its first stream: peer */
    PCCL_EVENT_LINK_DOWN = 3,  /* a link lost its last stream: peer, cause, sys_errno; it is being re-dialled */
    PCCL_EVENT_FROZEN = 4,     /* pccl_engine_freeze is done: token = change; call pccl_engine_frozen */
    PCCL_EVENT_MISMATCH = 5,   /* a peer's description of an op differs: token, peer, desc, shape (theirs) */
    PCCL_EVENT_OVERDUE = 6,    /* an op passed its deadline: token, peer (one that is being waited for) */
    PCCL_EVENT_REFUSED = 7,    /* a stream was refused: cause PCCL_EAUTH or PCCL_EPROTO; peer if known */
    PCCL_EVENT_FETCH = 8,      /* a fetch ended: token, status, peer, received_bytes, span_count (of these, the bytes at the beginning
                                  of the concatenation without a gap), duration_ns */
    PCCL_EVENT_WITHDRAWN = 9,  /* a region's memory is not read any more: token, status */
    PCCL_EVENT_ASKED = 10      /* a peer has begun to fetch from a watched region: token (the region's), peer */
} pccl_event_kind;

/* Why a link went down (pccl_event.cause of PCCL_EVENT_LINK_DOWN). */
typedef enum {
    PCCL_CAUSE_NONE = 0,
    PCCL_CAUSE_EOF = 1,        /* the other side closed */
    PCCL_CAUSE_RESET = 2,      /* connection reset, broken pipe, ... : sys_errno */
    PCCL_CAUSE_REFUSED = 3,    /* nobody listens at its address any more */
    PCCL_CAUSE_SILENT = 4,     /* nothing arrived for silence_ns */
    PCCL_CAUSE_PROTOCOL = 5,   /* malformed or corrupted frames */
    PCCL_CAUSE_UNREACHABLE = 6 /* could not be dialled: sys_errno */
} pccl_cause;

typedef struct {
    uint32_t kind;             /* pccl_event_kind */
    int32_t status;            /* pccl_err */
    uint64_t token;
    uint32_t epoch;            /* of an op: the epoch in which it ended */
    uint32_t retries;          /* how often it was started again */
    pccl_peer_id peer;
    int32_t cause;
    int32_t sys_errno;
    uint64_t desc;             /* packed description, see pccl_desc_text */
    uint32_t shape;
    uint32_t member_count;     /* of an op: how many peers took part */
    uint64_t span_offset;      /* reduce_scatter: first element of this peer's span */
    uint64_t span_count;
    uint64_t sent_bytes;
    uint64_t received_bytes;
    uint64_t duration_ns;      /* from start to end, waiting included */
} pccl_event;

/* A pending op, as reported when the epochs froze. */
typedef struct {
    pccl_op_name name;
    uint64_t token;
    uint8_t finished;          /* 1: this peer holds the whole result */
} pccl_op_state;

/* How many ops of a lane this peer has called at a boundary, and likewise at those after it up to the next that has entries.
 * The last with entries is the present one. A boundary without ops has one entry, of lane 0, with 0. */
typedef struct {
    uint64_t lane;
    uint32_t boundary;
    uint32_t posted;
} pccl_lane_state;

typedef struct {
    uint32_t size;
    uint32_t links;            /* links with at least one stream */
    uint32_t streams;
    uint32_t ops_pending;
    uint64_t ops_committed;
    uint64_t ops_failed;
    uint64_t ops_retried;
    uint64_t sent_bytes;       /* payload and headers, sent again included */
    uint64_t received_bytes;
    uint64_t frames_resent;
    uint64_t frames_duplicate;
    uint64_t frames_stale;     /* of dead epochs and ended ops, dropped */
    uint64_t frames_corrupt;
    uint64_t parked_bytes;
    uint64_t pool_bytes;       /* scratch and backup memory held */
    uint32_t oldest_boundary;  /* of the pending ops; with none pending, the boundary that the engine was told last */
    uint64_t relayed_bytes;    /* passed on between peers that have no link */
    uint64_t frames_copied;    /* sent on a second stream because the first was late */
    uint64_t up_bytes_per_s;   /* what this peer's line carries, where its long links share one; 0: not known */
    uint64_t down_bytes_per_s; /* at least; 0: not known */
    uint64_t transfer_sent_bytes;      /* payload of transfers */
    uint64_t transfer_received_bytes;
    uint32_t transfers_pending;        /* fetches that have not ended */
    uint32_t transfers_served;         /* fetches of others that are being served, or wait for a part of their region */
    uint64_t went_up_bytes_per_s;      /* what all long links carried together of late, when they carried much: a line has that; */
    uint64_t went_down_bytes_per_s;    /* 0: not known */
    uint32_t regions;          /* on offer */
    uint32_t conns;            /* streams of the transport that are open or being made, of whatever use */
    uint32_t relays;           /* pairs of them that are passed on between others */
} pccl_stats;

/* What a packed description says. */
typedef struct {
    uint8_t kind;              /* pccl_kind */
    uint8_t dtype;
    uint8_t redop;
    uint8_t algorithm;         /* the one that was taken, never PCCL_ALGORITHM_AUTO */
    uint8_t codec;
    uint64_t count;            /* elements */
    uint64_t bytes;            /* of the elements, not encoded */
} pccl_op_desc;

typedef struct {
    pccl_peer_id peer;
    uint32_t streams;          /* in use, of those that are open */
    uint32_t rtt_us;           /* the least of late if the transport measures, else of pings; 0: not yet known */
    uint64_t bytes_per_s;      /* what it carried when it had always more to send; 0: not yet known */
    uint32_t loss_ppm;         /* packets that the transport sent again, of those of late; UINT32_MAX: not yet known */
    uint64_t sent_bytes;
    uint64_t received_bytes;
    uint64_t unacked_frames;
} pccl_link_stats;

/* -- life ---------------------------------------------------------------------------------------------------- */

/* Makes an engine and starts listening. Errors: PCCL_EINVAL (names a bad field by pccl_last_error), PCCL_EIO, PCCL_ENOMEM. */
pccl_err pccl_engine_new(const pccl_config *config, pccl_engine **engine_p);
/* Starts the engine's thread. Not for engines that are driven by pccl_engine_step. */
pccl_err pccl_engine_start(pccl_engine *engine);
/* Asks the thread to end: no new work; every pending op ends with PCCL_ECLOSED, inputs restored; sockets close.
 * Returns at once. Idempotent. */
void pccl_engine_close(pccl_engine *engine);
/* 1 once the thread has ended (or none was started), 0 while it runs. */
int pccl_engine_closed(pccl_engine *engine);
/* Frees. Only after pccl_engine_closed() gave 1. */
void pccl_engine_free(pccl_engine *engine);
/* One turn of a passive engine at virtual or real time now_ns. Returns the time at which it wants the next turn
 * if nothing arrives before, UINT64_MAX for never. */
uint64_t pccl_engine_step(pccl_engine *engine, uint64_t now_ns);
/* Monotonic nanoseconds, the clock of deadlines of engines with a thread. */
uint64_t pccl_now_ns(void);

/* -- facts --------------------------------------------------------------------------------------------------- */

/* TCP port (or simulator node) that the engine listens at. */
int pccl_engine_port(pccl_engine *engine);
/* Becomes readable when there are events. Owned by the engine. */
int pccl_engine_event_fd(pccl_engine *engine);
/* Takes up to cap events; returns how many. Clears the descriptor when the queue runs empty. */
int pccl_engine_events(pccl_engine *engine, pccl_event *events, int cap);
/* Writes from where the stream of the last PCCL_EVENT_REFUSED came, or where it went, and why it was refused; returns the
 * length of the text. */
int pccl_engine_refusal(pccl_engine *engine, char *text, int cap);
/* As at the end of the last turn: an event may be there a moment before the figures show what it tells. */
void pccl_engine_stats(pccl_engine *engine, pccl_stats *stats);
/* Fills up to cap entries; returns the number of links (which may exceed cap). */
int pccl_engine_links(pccl_engine *engine, pccl_link_stats *links, int cap);
/* Writes the name of a packed description ("all_reduce sum float32 x 1024 mesh") into text; returns its length. */
int pccl_desc_text(uint64_t desc, char *text, int cap);
/* PCCL_EPROTO: it describes nothing. */
pccl_err pccl_desc_read(uint64_t desc, pccl_op_desc *fields);
const char *pccl_err_name(int err);
/* What went wrong in the calling thread's last failed call, for people. Never NULL. */
const char *pccl_last_error(void);
/* "avx512", "avx2", "neon" or "scalar": the kernels in use. */
const char *pccl_kernels(void);
/* "" if TLS can be used here; else what is missing and what to install. Loads OpenSSL at its first call. */
const char *pccl_tls_missing(void);
/* Version of the library that does TLS ("OpenSSL 3.0.19 ..."); "" if there is none. */
const char *pccl_tls_library(void);
/* Version of the wire format. */
int pccl_wire_version(void);

/* -- commands ------------------------------------------------------------------------------------------------ */

/* Starts an op (queued until an epoch for its boundary is configured). Errors: PCCL_EINVAL, PCCL_ENOMEM, PCCL_ECLOSED;
 * after an error nothing is borrowed and no event will come. */
pccl_err pccl_engine_submit(pccl_engine *engine, const pccl_op_request *request);
/* Tells the engine that this peer has reached a boundary. Ops are submitted in the order of their boundaries, after this. */
pccl_err pccl_engine_advance(pccl_engine *engine, uint32_t boundary);
/* No op of an earlier boundary than this one is pending anywhere in the group: what lanes were then may be forgotten. */
pccl_err pccl_engine_forget(pccl_engine *engine, uint32_t boundary);
/* Opens links ahead of an epoch that will need them, and closes those of earlier calls that no epoch has come to need. */
pccl_err pccl_engine_prepare(pccl_engine *engine, const pccl_member *members, uint32_t member_count, uint32_t streams);
/* Stops all epochs: no op finishes or commits, nothing of theirs is accepted. PCCL_EVENT_FROZEN follows. */
pccl_err pccl_engine_freeze(pccl_engine *engine, uint32_t change);
/* After PCCL_EVENT_FROZEN: the pending ops and the lanes at the moment of the freeze, by boundary, the oldest first. Each count
 * in: capacity, out: needed. */
pccl_err pccl_engine_frozen(pccl_engine *engine, pccl_op_state *ops, uint32_t *op_count,
                            pccl_lane_state *lanes, uint32_t *lane_count);
/* Installs an epoch; see pccl_epoch. Links to peers of no live epoch are closed. */
pccl_err pccl_engine_configure(pccl_engine *engine, const pccl_epoch *epoch);
/* Ends every pending op with `status`, inputs restored (eviction, coordinator lost). */
pccl_err pccl_engine_fail_all(pccl_engine *engine, int status);
/* Ends one pending op with `status`, its input restored, without asking anybody: its outcome on other peers is unknown. */
pccl_err pccl_engine_abandon(pccl_engine *engine, uint64_t token, int status);
/* Measures the link to a peer with filler: at most so many bytes (64 MiB) in so much time (10 s). It ends when the link is known,
 * or has been read anew; at once when an op or a transfer begins here or the peer sends something of one; an engine that has one
 * under way, or no stream to the peer, does nothing. What was found is in pccl_engine_links. PCCL_EINVAL: more, or nothing. */
pccl_err pccl_engine_measure(pccl_engine *engine, const pccl_peer_id *peer, uint64_t bytes, uint64_t duration_ns);
/* Fault injection: kills one stream of the link to a peer (index modulo the number of its streams). */
pccl_err pccl_engine_kill_stream(pccl_engine *engine, const pccl_peer_id *peer, uint32_t index);

/* -- transfers: byte ranges that one peer offers and others fetch ------------------------------------------------ */

/* Offers a region: all of it (whole 1), or nothing yet (0, see pccl_engine_extend). PCCL_EVENT_WITHDRAWN follows exactly once: with
 * PCCL_OK after pccl_engine_withdraw, PCCL_ECLOSED when the engine is closed; at once with PCCL_EINVAL if (key, generation) is
 * offered already and with PCCL_ENOMEM if there is no memory or 65536 regions are offered. Errors: PCCL_EINVAL, PCCL_ENOMEM,
 * PCCL_ECLOSED; after an error nothing is borrowed and no event will come. */
pccl_err pccl_engine_offer(pccl_engine *engine, const pccl_region *region, int whole);
/* This part of the region may be fetched from now on; fetches that wait for it go on. What lies outside of the region is ignored,
 * as is a region that is not offered. */
pccl_err pccl_engine_extend(pccl_engine *engine, const uint8_t *key, uint64_t generation, uint64_t offset, uint64_t bytes);
/* Ends the offer: fetches of it that are under way end at the other side with PCCL_EGONE, and PCCL_EVENT_WITHDRAWN says that no byte
 * of the memory will be read again. A region that is not offered is ignored. An engine that is closed withdraws nothing at the other
 * sides: their fetches end with PCCL_EPEER, when they are told that the peer is gone. */
pccl_err pccl_engine_withdraw(pccl_engine *engine, const uint8_t *key, uint64_t generation);
/* Starts a fetch. It waits for a link that is being dialled and for parts of the region that are not available yet, and ends with
 * exactly one PCCL_EVENT_FETCH, after which nothing is written to its targets:
 *   PCCL_OK          everything is there, and was verified (a bare one: only that it came to its place)
 *   PCCL_EGONE       no such region, generation or range there, or it was withdrawn
 *   PCCL_EPEER       no link to the peer and none coming, or the link was closed
 *   PCCL_ETIMEOUT    deadline_ns passed, whatever the other side does
 *   PCCL_ECANCELLED  by pccl_engine_cancel_fetch
 *   PCCL_ENOMEM      no memory, here or there; or 65536 fetches are pending here
 *   PCCL_ECLOSED     the engine was closed
 * After an error the first span_count bytes of the concatenation are there and were verified (but for a bare one); of the others some may be.
 * Errors: PCCL_EINVAL, PCCL_ENOMEM, PCCL_ECLOSED; after an error nothing is borrowed and no event will come. */
pccl_err pccl_engine_fetch(pccl_engine *engine, const pccl_fetch_request *request);
/* Ends the fetches with this token; none if there are none. */
pccl_err pccl_engine_cancel_fetch(pccl_engine *engine, uint64_t token);
/* Sends at most so many bytes per second of fetches of this priority to all peers together; 0: as many as possible. Ops are not
 * limited; what they and fetches of higher priorities send counts against the cap of PCCL_PRIORITY_LOW, which has what is left. */
pccl_err pccl_engine_limit(pccl_engine *engine, int priority, uint64_t bytes_per_s);
/* Keeps a link to a peer for transfers, whether it is in an epoch or not (its `since`, `weight`, `region` and `via` mean nothing). Both sides
 * must ask for it with the same incarnation, and one of them must dial; streams of another incarnation do not join it. A link of a lower
 * one is closed, and its fetches end with PCCL_EPEER. A link that an epoch has made is kept, with its number of streams. */
pccl_err pccl_engine_acquaint(pccl_engine *engine, const pccl_member *member, uint32_t streams);
/* The end of that. The link is closed, and fetches over it end with PCCL_EPEER, unless an epoch or a Hold needs it. */
pccl_err pccl_engine_unacquaint(pccl_engine *engine, const pccl_peer_id *peer);

/* -- memory --------------------------------------------------------------------------------------------------- */

/* Copies `count` pieces: bytes[i] bytes from address from[i] to address to[i], one after the other. No piece overlaps itself. */
void pccl_copy_pieces(const uintptr_t *to, const uintptr_t *from, const uint64_t *bytes, uint32_t count);
/* 64-bit digests of `count` pieces of `bytes` bytes each, at data + offsets[i], bound to seeds[i]; csrc/digests.c has the rule. */
void pccl_digest_pieces(const void *data, const uint64_t *offsets, uint64_t bytes, const uint64_t *seeds, uint32_t count, uint64_t *digests);

/* -- kernels, for tests and benchmarks of the border ------------------------------------------------------------ */

/* dst[i] = op over srcs[0][i], srcs[1][i], ... in that order; see csrc/reduce.h. isa NULL: the best one.
 * PCCL_EINVAL: unknown isa, dtype or op, or an avg of integers. */
pccl_err pccl_reduce(const char *isa, int dtype, int redop, void *dst, const void *const *srcs, uint32_t src_count,
                     uint64_t count, uint32_t divisor);
/* float32 values encoded and back; see csrc/codec.h for the formats, their errors, and what becomes of NaNs. */
/* Encoded size of count values; 0 for an unknown codec. */
uint64_t pccl_codec_bytes(int codec, uint64_t count);
/* dst: room for that. isa NULL: the best one. PCCL_EINVAL: unknown isa or codec. */
pccl_err pccl_codec_encode(const char *isa, int codec, const void *src, uint64_t count, void *dst);
/* PCCL_EPROTO, and dst untouched: these bytes are no count encoded values. */
pccl_err pccl_codec_decode(const char *isa, int codec, const void *src, uint64_t bytes, void *dst, uint64_t count);
uint32_t pccl_crc32c(uint32_t crc, const void *data, uint64_t bytes);
void pccl_hmac_sha256(const uint8_t *key, uint64_t key_bytes, const uint8_t *data, uint64_t bytes, uint8_t mac[32]);

/* -- deltas of weights ------------------------------------------------------------------------------------------ */

/* How a block says what changed; csrc/delta.h explains them, docs/delta.md has the bytes. */
typedef enum {
    PCCL_DELTA_ZERO = 0, PCCL_DELTA_RAW = 1, PCCL_DELTA_ABS = 2, PCCL_DELTA_DIFF_A = 3, PCCL_DELTA_DIFF_B = 4,
    PCCL_DELTA_DENSE_ULP = 5, PCCL_DELTA_FORM_COUNT = 6
} pccl_delta_form;

typedef struct {
    uint32_t size;              /* sizeof(pccl_delta_info) as the caller knows it */
    uint32_t form;
    uint32_t width;             /* bytes of an element: 1, 2 or 4 */
    uint32_t elements;
    uint32_t changed;           /* of them; what the block says of itself */
    uint64_t before, after;     /* digests of the whole block; 0 in forms that need no base */
} pccl_delta_info;

/* All of these take `isa` (NULL: the best one) and are pure: any number at once, as long as each has its own `work`, of
 * pccl_delta_work() bytes, aligned to 8, whose contents mean nothing. They return PCCL_EINVAL for arguments that are wrong, PCCL_EPROTO for a
 * malformed block, PCCL_EMISMATCH for a block whose base is not the given state; then nothing was written but `work` and `block`. */

/* The hash of a state is xxh3-128, in its canonical form; `hash` of these functions may be NULL. PCCL_EINVAL for one of a state that has
 * fewer than PCCL_DELTA_HASH_FROM bytes. */
enum { PCCL_DELTA_HASH_BYTES = 16, PCCL_DELTA_HASH_FROM = 241 };

/* The most elements of a block. */
uint32_t pccl_delta_elements_max(void);
/* The most bytes of a block of any form; 0 if there is no such block. */
uint64_t pccl_delta_bound(uint32_t elements, uint32_t width);
/* Bytes of working memory; few of its pages are touched where little changed. */
uint64_t pccl_delta_work(uint32_t elements, uint32_t width);
/* The digest of a state, as in pccl_delta_info. */
pccl_err pccl_delta_digest(const char *isa, const void *state, uint32_t elements, uint32_t width, uint64_t *digest_p);
/* What takes `old` to `new`, in the smallest of the forms in the mask `forms` (1 << form; `zero` only where nothing changed);
 * block: room for pccl_delta_bound(). `hash`: of the new state. PCCL_EINVAL: also if no form of the mask can say it. */
pccl_err pccl_delta_encode(const char *isa, const void *old_state, const void *new_state, uint32_t elements, uint32_t width,
                           uint32_t forms, void *work, void *block, uint64_t *bytes_p, uint8_t *hash);
/* Reads the header alone. */
pccl_err pccl_delta_describe(const void *block, uint64_t bytes, pccl_delta_info *info);
/* Takes the state from before to after. */
pccl_err pccl_delta_decode(const char *isa, const void *block, uint64_t bytes, void *state, uint32_t elements, uint32_t width, void *work);
/* The same of a state that is known to be the one before: it is not read but where it changes (diff_b: it is). */
pccl_err pccl_delta_move(const char *isa, const void *block, uint64_t bytes, void *state, uint32_t elements, uint32_t width, void *work);
/* Ascending places and new values of what changes (raw: of all elements); room for as many as the header says (raw: for all).
 * `hash`: of the state with that. `state` may be NULL for zero, raw and abs without a hash. After an error places and values mean nothing. */
pccl_err pccl_delta_patch(const char *isa, const void *block, uint64_t bytes, const void *state, uint32_t elements, uint32_t width,
                          void *work, uint32_t *places, void *values, uint8_t *hash);
/* One block that does what first and then second do: of zero, diff_a and dense_ulp among themselves, abs on abs, anything but diff_b on raw,
 * raw on anything. PCCL_EINVAL for other pairs, and if they have different elements; PCCL_EMISMATCH if second does not build on first. */
pccl_err pccl_delta_fold(const char *isa, const void *first, uint64_t first_bytes, const void *second, uint64_t second_bytes, void *work,
                         void *block, uint64_t *bytes_p);
/* The way back. `state` is the one before; NULL will do for zero, diff_a and dense_ulp. PCCL_EINVAL: it is needed. */
pccl_err pccl_delta_invert(const char *isa, const void *in, uint64_t in_bytes, const void *state, void *work, void *block,
                           uint64_t *bytes_p);
/* A diff_b block as diff_a, with the state before; other forms come back as they are. */
pccl_err pccl_delta_as_a(const char *isa, const void *in, uint64_t in_bytes, const void *state, void *work, void *block, uint64_t *bytes_p);

/* New values for one tensor: addresses, because there are many and they are made in bulk. */
typedef struct {
    uint64_t to;                /* of `elements` elements of `width` bytes: 1, 2 or 4 */
    uint64_t places;            /* of `count` integers of `place_width` bytes, ascending, each once */
    uint64_t values;            /* of `count` elements */
    uint64_t count;
    uint64_t elements;
    uint32_t width;
    uint32_t place_width;       /* 4: uint32_t, 8: int64_t */
} pccl_scatter;

/* Whether all parts may be run; PCCL_EINVAL and the number of the first that may not. Writes nothing. */
pccl_err pccl_scatter_check(const pccl_scatter *parts, uint64_t count, uint64_t *bad_p);
/* Writes them. They must have been checked, and their memory must still be there. */
void pccl_scatter_run(const pccl_scatter *parts, uint64_t count);

/* -- bf16 values in fewer bits, without loss: csrc/exponents.h --------------------------------------------------- */

/* The most bytes that so many values take; room for them must be given. */
uint64_t pccl_exponents_bound(uint64_t count);
pccl_err pccl_exponents_encode(const void *values, uint64_t count, void *encoded, uint64_t *bytes_p);
/* PCCL_EPROTO: these bytes are no such encoding of so many values; `values` are then undefined. */
pccl_err pccl_exponents_decode(const void *encoded, uint64_t bytes, void *values, uint64_t count);

/* -- bf16 values in 8 bits, with loss: csrc/eight_bits.c --------------------------------------------------------- */

/* Of a block of one layer: keys, then values, each [tokens, heads, channels], or [heads, tokens, channels]. */
typedef struct {
    uint32_t tokens;
    uint32_t heads;
    uint32_t channels;
    uint32_t heads_first;
} pccl_slab;

/* What so many slabs take: the scales of all keys, one for each channel of each head, a float32 each; the keys, -127 to 127, in their
 * order; the scales of all values, one for each token; the values. A scale is a 127th of the greatest; NaN, with codes of 0, where a
 * value is not finite. */
uint64_t pccl_eight_bytes(const pccl_slab *slab, uint64_t slabs);
/* `values` and `encoded` are aligned to 4. PCCL_EINVAL: keys do not have a multiple of 4 cells. */
pccl_err pccl_eight_encode(const void *values, const pccl_slab *slab, uint64_t slabs, void *encoded);
/* The same; PCCL_EPROTO: the bytes are not as many as they must be. NaN becomes the quiet one. */
pccl_err pccl_eight_decode(const void *encoded, uint64_t bytes, const pccl_slab *slab, uint64_t slabs, void *values);

/* -- the simulated network (transport "sim") --------------------------------------------------------------------- */

/* One direction between two nodes. */
typedef struct {
    uint64_t delay_ns;
    uint64_t jitter_ns;         /* uniform, per write; streams are independent, so segments of a link reorder */
    uint64_t bytes_per_s;       /* 0: no limit */
    uint32_t reset_ppm;         /* chance, per write, that the stream is reset instead */
    uint32_t corrupt_ppm;       /* chance, per write, that one byte is changed */
    uint32_t duplicate_ppm;     /* chance, per write, that its bytes arrive twice */
    uint8_t cut;                /* 1: nothing passes; bytes wait and go on when healed, dials time out */
    uint8_t dials;              /* 1: dials are not answered, 2: they are refused, as by a firewall or NAT; 0: they pass */
} pccl_sim_path;

pccl_err pccl_sim_new(uint64_t seed, pccl_sim **sim_p);
void pccl_sim_free(pccl_sim *sim);
/* Sets the direction from -> to; nodes are small integers ("sim:3" listens at node 3). */
pccl_err pccl_sim_set_path(pccl_sim *sim, uint32_t from, uint32_t to, const pccl_sim_path *path);
/* The process at the node is gone: its streams are reset at the others after the path's delay, dials are refused. */
pccl_err pccl_sim_crash(pccl_sim *sim, uint32_t node);
/* Resets one live stream between two nodes (index modulo their number); PCCL_EAGAIN if there is none. */
pccl_err pccl_sim_reset(pccl_sim *sim, uint32_t a, uint32_t b, uint32_t index);
/* 1 if something has happened to the node, by the network, since this was asked last: its engine may have something to do. */
int pccl_sim_stirred(pccl_sim *sim, uint32_t node);
/* Streams that the process at the node has not closed. */
uint32_t pccl_sim_streams(pccl_sim *sim, uint32_t node);
/* Time of the next delivery, UINT64_MAX for none. */
uint64_t pccl_sim_next(pccl_sim *sim);
/* Delivers everything due by now_ns; returns the number of deliveries. */
uint32_t pccl_sim_advance(pccl_sim *sim, uint64_t now_ns);
/* Running digest of every delivery: two runs of a seed must agree. */
uint64_t pccl_sim_digest(pccl_sim *sim);
