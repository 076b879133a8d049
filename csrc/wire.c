/* wire.c - encoding and validation of frame headers and handshake messages. */
#include "wire.h"

#include <string.h>

#include "crc32c.h"
#include "sha256.h"

static void put16(uint8_t *p, uint16_t v) { for (int i = 0; i < 2; i++) p[i] = (uint8_t)(v >> (8 * i)); }
static void put32(uint8_t *p, uint32_t v) { for (int i = 0; i < 4; i++) p[i] = (uint8_t)(v >> (8 * i)); }
static void put64(uint8_t *p, uint64_t v) { for (int i = 0; i < 8; i++) p[i] = (uint8_t)(v >> (8 * i)); }
static uint16_t get16(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }
static uint32_t get32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}
static uint64_t get64(const uint8_t *p) { return (uint64_t)get32(p) | (uint64_t)get32(p + 4) << 32; }

void wire_encode(const struct frame *f, uint8_t b[WIRE_HEADER_BYTES])
{
    put32(b + 4, f->payload_crc);
    put32(b + 8, f->payload_bytes);
    b[12] = f->type;
    b[13] = f->bare;
    put16(b + 14, f->step);
    put32(b + 16, f->epoch);
    put32(b + 20, f->name.boundary);
    put64(b + 24, f->name.lane);
    put32(b + 32, f->name.seq);
    put32(b + 36, f->shape);
    put64(b + 40, f->desc);
    put64(b + 48, f->offset);
    put32(b + 56, f->link_seq);
    put32(b + 60, f->link_ack);
    put32(b, crc32c(0, b + 4, WIRE_HEADER_BYTES - 4));
}

static pccl_err check_transfer(const struct frame *f)
{
    uint32_t run_bytes = f->payload_bytes - WIRE_FETCH_HEAD_BYTES;
    if (f->epoch || f->name.boundary || f->name.seq || f->shape || f->desc || (f->type != FRAME_PIECE && f->offset))
        return PCCL_EPROTO;
    switch (f->type) {
    case FRAME_FETCH:
        if (f->payload_bytes <= WIRE_FETCH_HEAD_BYTES || run_bytes % WIRE_FETCH_RUN_BYTES ||
            run_bytes > WIRE_FETCH_RUNS_MAX * WIRE_FETCH_RUN_BYTES || f->step >= PCCL_PRIORITY_COUNT)
            return PCCL_EPROTO;
        return PCCL_OK;
    case FRAME_DENY: return f->step && f->step < DENY_REASON_END ? PCCL_OK : PCCL_EPROTO;
    default: return f->step == 0 && f->offset < WIRE_TRANSFER_BYTES_MAX ? PCCL_OK : PCCL_EPROTO;
    }
}

static pccl_err check_frame(const struct frame *f)
{
    struct desc desc;
    if (f->type == 0 || f->type >= FRAME_TYPE_END || f->payload_bytes > WIRE_PAYLOAD_BYTES_MAX)
        return PCCL_EPROTO;
    if (wire_has_payload(f->type) ? f->payload_bytes == 0 : f->payload_bytes != 0)
        return PCCL_EPROTO;
    if (f->type == FRAME_PROBE && f->payload_bytes > WIRE_PROBE_BYTES_MAX)
        return PCCL_EPROTO;
    if (f->bare > 1 || (f->bare && f->type != FRAME_FETCH && f->type != FRAME_PIECE))
        return PCCL_EPROTO;
    if (wire_of_transfer(f->type))
        return check_transfer(f);
    if (f->type == FRAME_DATA || f->type == FRAME_GRANT || f->type == FRAME_FIN)
        return desc_unpack(f->desc, &desc);
    return PCCL_OK;
}

pccl_err wire_decode(const uint8_t b[WIRE_HEADER_BYTES], struct frame *frame_p)
{
    if (get32(b) != crc32c(0, b + 4, WIRE_HEADER_BYTES - 4))
        return PCCL_EPROTO;
    struct frame f = {
        .payload_crc = get32(b + 4), .payload_bytes = get32(b + 8), .type = b[12], .bare = b[13], .step = get16(b + 14),
        .epoch = get32(b + 16),
        .name = {.lane = get64(b + 24), .boundary = get32(b + 20), .seq = get32(b + 32)},
        .shape = get32(b + 36), .desc = get64(b + 40), .offset = get64(b + 48),
        .link_seq = get32(b + 56), .link_ack = get32(b + 60),
    };
    if (check_frame(&f) != PCCL_OK)
        return PCCL_EPROTO;
    *frame_p = f;
    return PCCL_OK;
}

uint64_t desc_pack(const struct desc *d)
{
    return (uint64_t)d->kind | (uint64_t)d->dtype << 4 | (uint64_t)d->redop << 9 | (uint64_t)d->algorithm << 12 |
           (uint64_t)d->codec << 15 | d->count << 19;
}

pccl_err desc_unpack(uint64_t packed, struct desc *desc_p)
{
    struct desc d = {
        .kind = packed & 15, .dtype = packed >> 4 & 31, .redop = packed >> 9 & 7, .algorithm = packed >> 12 & 7,
        .codec = packed >> 15 & 15, .count = packed >> 19,
    };
    if (d.kind == 0 || d.kind >= PCCL_KIND_COUNT || d.dtype >= PCCL_DTYPE_COUNT || d.redop >= PCCL_REDOP_COUNT ||
        d.algorithm >= PCCL_ALGORITHM_COUNT || d.codec >= PCCL_CODEC_COUNT)
        return PCCL_EPROTO;
    *desc_p = d;
    return PCCL_OK;
}

/* -- transfers ----------------------------------------------------------------------------------------------- */

void wire_encode_fetch(const struct fetch_head *head, uint8_t *payload)
{
    memcpy(payload, head->key, sizeof head->key);
    put64(payload + 16, head->generation);
    put32(payload + 24, head->segment_bytes);
    put32(payload + 28, head->run_count);
}

void wire_encode_fetch_run(struct fetch_run run, uint32_t index, uint8_t *payload)
{
    uint8_t *at = payload + WIRE_FETCH_HEAD_BYTES + (size_t)index * WIRE_FETCH_RUN_BYTES;
    put64(at, run.offset);
    put64(at + 8, run.bytes);
}

struct fetch_run wire_decode_fetch_run(const uint8_t *payload, uint32_t index)
{
    const uint8_t *at = payload + WIRE_FETCH_HEAD_BYTES + (size_t)index * WIRE_FETCH_RUN_BYTES;
    return (struct fetch_run){get64(at), get64(at + 8)};
}

pccl_err wire_decode_fetch(const uint8_t *payload, uint32_t bytes, struct fetch_head *head_p)
{
    struct fetch_head head = {
        .generation = get64(payload + 16), .segment_bytes = get32(payload + 24), .run_count = get32(payload + 28),
    };
    uint64_t total = 0;
    memcpy(head.key, payload, sizeof head.key);
    if (!head.run_count || head.run_count > WIRE_FETCH_RUNS_MAX || !head.segment_bytes || head.segment_bytes % 64 ||
        head.segment_bytes > WIRE_PAYLOAD_BYTES_MAX ||
        bytes != WIRE_FETCH_HEAD_BYTES + head.run_count * WIRE_FETCH_RUN_BYTES)
        return PCCL_EPROTO;
    for (uint32_t i = 0; i < head.run_count; i++) {
        struct fetch_run run = wire_decode_fetch_run(payload, i);
        if (!run.bytes || run.bytes > WIRE_TRANSFER_BYTES_MAX - total || run.offset > UINT64_MAX - run.bytes)
            return PCCL_EPROTO;
        total += run.bytes;
    }
    *head_p = head;
    return PCCL_OK;
}

/* -- handshake --------------------------------------------------------------------------------------------- */

enum { STAGE_HELLO = 1, STAGE_CHALLENGE = 2, STAGE_PROOF = 3, STAGE_READY = 4 };

static const uint8_t magic[4] = {'P', 'C', 'C', 'L'};

static void seal(uint8_t *b, uint8_t stage, size_t bytes)
{
    memcpy(b, magic, 4);
    put16(b + 4, WIRE_VERSION);
    b[6] = stage;
    b[7] = 0;
    put32(b + bytes - 4, crc32c(0, b, bytes - 4));
}

static pccl_err check_seal(const uint8_t *b, uint8_t stage, size_t bytes)
{
    if (memcmp(b, magic, 4) != 0 || get16(b + 4) != WIRE_VERSION || b[6] != stage || b[7] != 0)
        return PCCL_EPROTO;
    return get32(b + bytes - 4) == crc32c(0, b, bytes - 4) ? PCCL_OK : PCCL_EPROTO;
}

void wire_encode_hello(const struct hello *h, uint8_t b[WIRE_HELLO_BYTES])
{
    memcpy(b + 8, h->run, 16);
    memcpy(b + 24, h->dialler.bytes, 16);
    memcpy(b + 40, h->acceptor.bytes, 16);
    memcpy(b + 56, h->target.bytes, 16);
    put32(b + 72, h->epoch);
    put32(b + 76, h->stream);
    put32(b + 80, h->streams);
    put16(b + 84, h->purpose);
    put16(b + 86, h->hops);
    put64(b + 88, h->incarnation);
    memcpy(b + 96, h->nonce, WIRE_NONCE_BYTES);
    seal(b, STAGE_HELLO, WIRE_HELLO_BYTES);
}

static pccl_err check_hello(const struct hello *h)
{
    static const pccl_peer_id nobody;
    int relay = h->purpose == HELLO_RELAY, targeted = memcmp(&h->target, &nobody, sizeof nobody) != 0;
    if (h->streams == 0 || h->stream >= h->streams || h->purpose >= HELLO_PURPOSE_END)
        return PCCL_EPROTO;
    if (relay != targeted || (!relay && h->hops) || (h->purpose >= HELLO_RELAYED && !h->epoch) ||
        (h->purpose != HELLO_DIRECT && h->incarnation))
        return PCCL_EPROTO;
    return PCCL_OK;
}

pccl_err wire_decode_hello(const uint8_t b[WIRE_HELLO_BYTES], struct hello *hello_p)
{
    struct hello h;
    if (check_seal(b, STAGE_HELLO, WIRE_HELLO_BYTES) != PCCL_OK)
        return PCCL_EPROTO;
    memcpy(h.run, b + 8, 16);
    memcpy(h.dialler.bytes, b + 24, 16);
    memcpy(h.acceptor.bytes, b + 40, 16);
    memcpy(h.target.bytes, b + 56, 16);
    h.epoch = get32(b + 72);
    h.stream = get32(b + 76);
    h.streams = get32(b + 80);
    h.purpose = get16(b + 84);
    h.hops = get16(b + 86);
    h.incarnation = get64(b + 88);
    memcpy(h.nonce, b + 96, WIRE_NONCE_BYTES);
    if (check_hello(&h) != PCCL_OK)
        return PCCL_EPROTO;
    *hello_p = h;
    return PCCL_OK;
}

void wire_encode_challenge(const uint8_t nonce[32], const uint8_t mac[32], uint8_t b[WIRE_CHALLENGE_BYTES])
{
    memcpy(b + 8, nonce, 32);
    memcpy(b + 40, mac, 32);
    seal(b, STAGE_CHALLENGE, WIRE_CHALLENGE_BYTES);
}

pccl_err wire_decode_challenge(const uint8_t b[WIRE_CHALLENGE_BYTES], uint8_t nonce[32], uint8_t mac[32])
{
    if (check_seal(b, STAGE_CHALLENGE, WIRE_CHALLENGE_BYTES) != PCCL_OK)
        return PCCL_EPROTO;
    memcpy(nonce, b + 8, 32);
    memcpy(mac, b + 40, 32);
    return PCCL_OK;
}

void wire_encode_proof(const uint8_t mac[32], uint8_t b[WIRE_PROOF_BYTES])
{
    memcpy(b + 8, mac, 32);
    seal(b, STAGE_PROOF, WIRE_PROOF_BYTES);
}

pccl_err wire_decode_proof(const uint8_t b[WIRE_PROOF_BYTES], uint8_t mac[32])
{
    if (check_seal(b, STAGE_PROOF, WIRE_PROOF_BYTES) != PCCL_OK)
        return PCCL_EPROTO;
    memcpy(mac, b + 8, 32);
    return PCCL_OK;
}

void wire_encode_ready(uint8_t b[WIRE_READY_BYTES])
{
    seal(b, STAGE_READY, WIRE_READY_BYTES);
}

pccl_err wire_decode_ready(const uint8_t b[WIRE_READY_BYTES])
{
    return check_seal(b, STAGE_READY, WIRE_READY_BYTES);
}

void wire_acceptor_mac(const uint8_t key[32], const uint8_t hello[WIRE_HELLO_BYTES], const uint8_t challenge_nonce[32],
                       uint8_t mac[32])
{
    uint8_t text[8 + WIRE_HELLO_BYTES + 32];
    memcpy(text, "acceptor", 8);
    memcpy(text + 8, hello, WIRE_HELLO_BYTES);
    memcpy(text + 8 + WIRE_HELLO_BYTES, challenge_nonce, 32);
    hmac_sha256(key, 32, text, sizeof text, mac);
}

void wire_dialler_mac(const uint8_t key[32], const uint8_t hello[WIRE_HELLO_BYTES],
                      const uint8_t challenge[WIRE_CHALLENGE_BYTES], uint8_t mac[32])
{
    uint8_t text[8 + WIRE_HELLO_BYTES + WIRE_CHALLENGE_BYTES];
    memcpy(text, "dialler ", 8);
    memcpy(text + 8, hello, WIRE_HELLO_BYTES);
    memcpy(text + 8 + WIRE_HELLO_BYTES, challenge, WIRE_CHALLENGE_BYTES);
    hmac_sha256(key, 32, text, sizeof text, mac);
}
