/* wire.h - what travels between engines: frame headers and handshake messages. Pure; fuzzed.
 *
 * Everything is little-endian and of fixed size (docs/protocol.md section 2). Decoders accept any bytes and either
 * fill a struct whose every field is in range, or return PCCL_EPROTO. */
#ifndef PCCL_WIRE_H
#define PCCL_WIRE_H

#include "include/pccl.h"

enum {
    WIRE_VERSION = 1,
    WIRE_HEADER_BYTES = 64,
    WIRE_PAYLOAD_BYTES_MAX = 1 << 20,
    WIRE_PROBE_BYTES_MAX = 64 << 10,
    WIRE_HELLO_BYTES = 132,
    WIRE_CHALLENGE_BYTES = 76,
    WIRE_PROOF_BYTES = 44,
    WIRE_READY_BYTES = 12,
    WIRE_HANDSHAKE_BYTES_MAX = WIRE_HELLO_BYTES,
    WIRE_NONCE_BYTES = 32,
    WIRE_FETCH_HEAD_BYTES = 32,
    WIRE_FETCH_RUN_BYTES = 16,
    WIRE_FETCH_RUNS_MAX = 4096
};

enum frame_type {
    FRAME_DATA = 1,   /* a segment of an op */
    FRAME_GRANT = 2,  /* the receiver has called the op; offset = segments it has room for */
    FRAME_FIN = 3,    /* the sender holds its whole result of the op */
    FRAME_ACK = 4,    /* nothing but link_ack */
    FRAME_PING = 5,   /* offset = time stamp, given back by PONG */
    FRAME_PONG = 6,
    FRAME_VOID = 7,   /* stands for a numbered frame that nobody needs any more */
    /* transfers (docs/protocol.md 2.5): epoch 0, lane = the requester's number for it */
    FRAME_FETCH = 8,  /* asks for parts of a region, named in its payload; step = priority */
    FRAME_PIECE = 9,  /* a segment of them; offset = position in the concatenation of the runs */
    FRAME_DENY = 10,  /* there is no such thing, or no longer; step = deny_reason */
    FRAME_DROP = 11,  /* the requester wants it no more */
    FRAME_CALL = 12,  /* the receiver shall dial the sender, who cannot dial it; offset = the number of the call */
    FRAME_PROBE = 13, /* filler that measures the link; the payload is checked and thrown away */
    FRAME_TYPE_END = 14
};

enum deny_reason { DENY_GONE = 1, DENY_BUSY = 2, DENY_REASON_END = 3 };

struct frame {
    uint32_t payload_crc;
    uint32_t payload_bytes;
    uint8_t type;
    uint8_t bare;              /* FETCH: answer with PIECEs that are; PIECE: its payload has no checksum, its requester has digests */
    uint16_t step;
    uint32_t epoch;
    pccl_op_name name;
    uint32_t shape;
    uint64_t desc;
    uint64_t offset;
    uint32_t link_seq;
    uint32_t link_ack;
    uint8_t summed;            /* not on the wire: payload_crc is the payload's checksum */
};

/* For whoever passes the payload on as it is; NULL: it came without a checksum. */
static inline const uint32_t *frame_crc(const struct frame *frame)
{
    return frame->summed ? &frame->payload_crc : NULL;
}

/* Most bytes of one fetch. */
#define WIRE_TRANSFER_BYTES_MAX (1ULL << 40)

void wire_encode(const struct frame *frame, uint8_t bytes[WIRE_HEADER_BYTES]);
pccl_err wire_decode(const uint8_t bytes[WIRE_HEADER_BYTES], struct frame *frame_p);
/* Is a frame of this type part of a transfer? */
static inline int wire_of_transfer(uint8_t type)
{
    return type >= FRAME_FETCH && type <= FRAME_DROP;
}

/* Is a frame of this type numbered, kept and sent again? */
static inline int wire_numbered(uint8_t type)
{
    return wire_of_transfer(type) || type == FRAME_DATA || type == FRAME_GRANT || type == FRAME_FIN || type == FRAME_VOID;
}

/* Has its payload a checksum, where payloads have? */
static inline int wire_sums(const struct frame *frame)
{
    return frame->type != FRAME_PIECE || !frame->bare;
}

static inline int wire_has_payload(uint8_t type)
{
    return type == FRAME_DATA || type == FRAME_FETCH || type == FRAME_PIECE || type == FRAME_PROBE;
}

/* The payload of a FETCH. */
struct fetch_head {
    uint8_t key[16];
    uint64_t generation;
    uint32_t segment_bytes;    /* how the runs are cut, see transfer.h */
    uint32_t run_count;
};

struct fetch_run { uint64_t offset, bytes; };   /* in the region */

void wire_encode_fetch(const struct fetch_head *head, uint8_t *payload);
void wire_encode_fetch_run(struct fetch_run run, uint32_t index, uint8_t *payload);
/* Head and runs are in range, and as many as the payload holds. */
pccl_err wire_decode_fetch(const uint8_t *payload, uint32_t bytes, struct fetch_head *head_p);
struct fetch_run wire_decode_fetch_run(const uint8_t *payload, uint32_t index);

/* The description of an op, packed into the header's `desc`. */
struct desc {
    uint8_t kind, dtype, redop, algorithm, codec;
    uint64_t count;            /* below 2^45 */
};

#define DESC_COUNT_MAX ((1ULL << 45) - 1)

uint64_t desc_pack(const struct desc *desc);
pccl_err desc_unpack(uint64_t packed, struct desc *desc_p);

/* What a stream is for. */
enum hello_purpose {
    HELLO_DIRECT = 0,   /* the link between dialler and acceptor */
    HELLO_RELAY = 1,    /* to be passed on to `target` by the acceptor, over at most `hops` further relays */
    HELLO_RELAYED = 2,  /* the detour between dialler and acceptor that carries frames of `epoch` */
    HELLO_CALLED = 3,   /* the answer to the call whose number is in `epoch`: the acceptor speaks next, as if it had dialled */
    HELLO_PURPOSE_END = 4
};

struct hello {
    uint8_t run[16];
    pccl_peer_id dialler, acceptor, target;  /* target: all 0 but for a RELAY */
    uint32_t epoch, stream, streams;
    uint16_t purpose, hops;
    uint64_t incarnation;      /* of a DIRECT: which of the links that these two have had, one after the other; else 0 */
    uint8_t nonce[WIRE_NONCE_BYTES];
};

void wire_encode_hello(const struct hello *hello, uint8_t bytes[WIRE_HELLO_BYTES]);
pccl_err wire_decode_hello(const uint8_t bytes[WIRE_HELLO_BYTES], struct hello *hello_p);
void wire_encode_challenge(const uint8_t nonce[32], const uint8_t mac[32], uint8_t bytes[WIRE_CHALLENGE_BYTES]);
pccl_err wire_decode_challenge(const uint8_t bytes[WIRE_CHALLENGE_BYTES], uint8_t nonce[32], uint8_t mac[32]);
void wire_encode_proof(const uint8_t mac[32], uint8_t bytes[WIRE_PROOF_BYTES]);
pccl_err wire_decode_proof(const uint8_t bytes[WIRE_PROOF_BYTES], uint8_t mac[32]);
void wire_encode_ready(uint8_t bytes[WIRE_READY_BYTES]);
pccl_err wire_decode_ready(const uint8_t bytes[WIRE_READY_BYTES]);

/* The two proofs. `challenge_nonce` is the acceptor's. */
void wire_acceptor_mac(const uint8_t key[32], const uint8_t hello[WIRE_HELLO_BYTES], const uint8_t challenge_nonce[32],
                       uint8_t mac[32]);
void wire_dialler_mac(const uint8_t key[32], const uint8_t hello[WIRE_HELLO_BYTES],
                      const uint8_t challenge[WIRE_CHALLENGE_BYTES], uint8_t mac[32]);

#endif
