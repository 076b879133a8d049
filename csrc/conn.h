/* conn.h - one stream as the engine sees it: handshake, then frames in and frames out.
 *
 * A conn belongs to no link until the other side has proved who it is (dialled conns know whom they want). While it
 * is OPEN it writes frames that its link hands it and feeds frames that it reads to its link. When the stream
 * breaks the conn dies, and the link sends its unacknowledged frames again on the others. A conn whose stream is passed
 * on for others belongs to no link but has a twin (relay.c). Where only the other side can dial, a conn waits without a
 * stream for its answer to a call (call.c). Engine thread only. */
#ifndef PCCL_CONN_H
#define PCCL_CONN_H

#include "limits.h"
#include "transport.h"
#include "wire.h"

struct link;
struct run;
struct sender;

enum conn_state {
    CONN_DIALLING,       /* waits for the transport, then sends HELLO */
    CONN_WANT_CHALLENGE, /* dialler */
    CONN_WANT_READY,     /* dialler */
    CONN_WANT_HELLO,     /* acceptor */
    CONN_WANT_PROOF,     /* acceptor */
    CONN_PROVEN,         /* acceptor: READY is on its way out */
    CONN_STRANGER,       /* proven, but no link of ours wants its peer yet: not read from */
    CONN_OPEN,
    CONN_CALLS,          /* the peer is asked to dial us: no stream yet (call.c) */
    CONN_RELAY_WAITS,    /* proven, and to be passed on: its twin is being dialled; not read from */
    CONN_RELAY_DIALS,    /* such a twin, to the target itself */
    CONN_RELAYS,         /* its bytes go to its twin */
    CONN_DEAD            /* closed; freed at the end of the turn */
};

/* Where a frame's payload lies: in one piece, or in several runs of memory, whole ones from the first on. */
struct payload {
    const uint8_t *data;       /* NULL: in runs, or there is none */
    const struct run *runs;
    int changes;               /* its owner may write to it all the while: a stream takes a copy, and the checksum of that */
};

/* payload.c */
/* The payload from `skip` on, as much of it as fits into `cap` pieces of memory. */
int payload_iov(struct payload payload, uint32_t bytes, uint32_t skip, struct iovec *iov, int cap);
uint32_t payload_crc(struct payload payload, uint32_t bytes);
/* Copies it to one piece, of which so many bytes are there already. */
void payload_copy(struct payload payload, uint32_t bytes, uint32_t already, uint8_t *to);
/* Bytes that belong to its place `from`. */
void payload_fill(struct payload payload, uint32_t from, const uint8_t *bytes, uint32_t count);

/* A frame on its way out. Its payload is user memory, pool memory or the conn's spill. */
struct outgoing {
    uint8_t header[WIRE_HEADER_BYTES];
    struct payload payload;
    uint32_t payload_bytes;
    const struct sender *owner;  /* whose memory the payload is; NULL when it is nobody's */
};

struct conn {
    pccl_engine *engine;
    struct stream *stream;     /* NULL: of a conn that calls, or is dead */
    struct link *link;
    struct conn *prev, *next;  /* all conns of the engine */
    uint32_t serial;           /* never 0; tells conns apart in the link's send slots */
    uint32_t index;            /* position in link->conns; before it has one: what its dialler says */
    enum conn_state state;
    pccl_peer_id peer;         /* who is at the other end: whom we dialled, or who proved itself */
    uint32_t detour_epoch;     /* accepted: the detour it is for, 0: the link, */
    uint64_t incarnation;      /* and which of the links that there have been */
    unsigned interest;
    char host[56];             /* accepted: from where; "": unknown */
    uint64_t deadline_ns;      /* of the handshake; of a relayed stream: when it has been still for too long */

    uint8_t hello[WIRE_HELLO_BYTES], challenge[WIRE_CHALLENGE_BYTES];
    uint8_t hand_out[WIRE_HANDSHAKE_BYTES_MAX];
    uint32_t hand_out_bytes, hand_out_sent;

    /* in */
    uint8_t *staging;          /* bytes read, not yet parsed: [staging_begin, staging_end) */
    uint32_t staging_begin, staging_end, staging_limit;
    int in_payload;            /* a header was accepted, its payload is being read */
    struct frame frame;
    uint32_t got;              /* payload bytes so far, */
    uint32_t got_crc;          /* and their checksum, where they go to one target */
    uint8_t *target;           /* where the payload goes; NULL: to several runs, */
    const struct run *targets; /* whole ones from the first on; NULL too: thrown away */
    const struct sender *owner;  /* who ends the reading into these when it ends; NULL: nobody */
    struct parked *parked;     /* the payload goes to a parked frame */
    int wanted;                /* 0: the payload is a duplicate or stale: no checksum, no delivery */
    int counts;                /* its number may be marked as arrived when it is complete */
    uint8_t *scratch;

    /* out */
    struct outgoing out[SEND_BATCH_FRAMES];
    uint32_t out_first, out_count, out_sent;  /* out_sent: bytes of the first frame already written */
    uint8_t *spill;            /* rest of a half-written frame whose memory had to be given back */
    int used;                  /* may be given new frames */
    int in_memory;             /* its bytes go through memory of this machine */
    uint64_t rested_ns;        /* when its stream was last told that nothing is on its way */
    int blocked;               /* the stream took no more: wait for writability */

    /* passed on for others */
    struct conn *twin;
    int outward;               /* the half that was dialled */
    int ended;                 /* its last byte was read */

    /* calls */
    enum conn_state answered;  /* CALLS: what it becomes with the stream that answers */
    int asked;                 /* CALLS: the frame has gone */
    uint32_t call;             /* dialled in answer to the peer's call of this number; 0: for ourselves, or accepted */

    uint64_t sent_bytes, received_bytes;
    uint64_t handed_bytes;     /* of all frames that it was ever given to send */
};

struct conn *conn_dial(pccl_engine *e, const char *address, const pccl_peer_id *peer, int *sys_errno_p);
/* A conn without a stream, until there is one; `state` as it is then. NULL: no memory. */
struct conn *conn_waiting(pccl_engine *e, const pccl_peer_id *peer, enum conn_state state);
struct conn *conn_accepted(pccl_engine *e, struct stream *stream);
void conn_on_ready(struct conn *c, unsigned what);
/* The stream is gone, or must go: tells the link (which sends again), closes, marks DEAD. */
void conn_fail(struct conn *c, pccl_cause cause, int sys_errno);
/* Writes what it can of its own frames and of its link's. */
void conn_pump(struct conn *c);
/* The memory of the op or transfer must not be touched any more. */
void conn_detach(struct conn *c, const struct sender *owner);
/* Do payloads have a checksum here? Not where the transport verifies all that comes, or nothing leaves this machine's memory; but always
 * on a detour: what lies behind its relays is neither. */
int conn_sums(const struct conn *c);
/* The payload of the conn's next frame, copied to where nobody writes to it; itself, if there is no memory for that. */
struct payload conn_copy_payload(struct conn *c, struct payload payload, uint32_t bytes);
/* If the frame being read is `link_seq`, throw the rest of it away (a second copy is arriving elsewhere). */
void conn_discard_seq(struct conn *c, uint32_t link_seq);
/* A proven stream and the link to its peer: joins it, is closed if it is of an earlier link between the two, and waits if it is of a later
 * one, which we have not been told of yet. */
void conn_meet(struct conn *c, struct link *link);
/* Its handshake is done: it carries frames of its link from now on. */
void conn_stands(struct conn *c);
void conn_free(struct conn *c);
void conn_want(struct conn *c, unsigned interest);

/* conn_handshake.c */
void handshake_begin(struct conn *c);
void handshake_turn(struct conn *c, unsigned what);
/* conn_recv.c */
void conn_receive(struct conn *c);
/* call.c */
/* A stream to a neighbour: dialled, or where the neighbour is the one who dials, asked for. It becomes `state` when it
 * stands. NULL: no way to it, see *sys_errno_p. */
struct conn *conn_reach(pccl_engine *e, const pccl_peer_id *peer, const char *address, int dial, enum conn_state state,
                        int *sys_errno_p);
/* The next conn that calls this peer and has not been asked for; NULL: none. */
struct conn *call_next(const pccl_engine *e, const pccl_peer_id *peer);
/* The peer of the link wants to be dialled. */
void call_answer(struct link *l, uint64_t number);
/* A proven stream answers our call of this number. */
void call_answered(struct conn *c, uint32_t number);
/* The stream that we dialled for the peer's call stands: the peer speaks next. */
void call_hand_over(struct conn *c);
/* The payload goes to memory of the conn's own. PCCL_ENOMEM: there is none. */
pccl_err conn_to_scratch(struct conn *c);
/* relay.c */
/* The peer has proved itself and asked for a target: dials on. */
void relay_begin(struct conn *c);
/* The HELLO to the next relay. */
void relay_purpose(const struct conn *outward, struct hello *hello);
/* The way to the target stands: from now on bytes pass. */
void relay_connected(struct conn *outward);
void relay_turn(struct conn *c, unsigned what);
/* A half has died: its twin is alone. */
void relay_part(struct conn *c);
/* Ends what is passed on between peers that are no members any more. */
void relay_drop_strangers(pccl_engine *e);

#endif
