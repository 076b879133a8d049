/* fuzz_world.h - what fuzz_engine.c plays with: the engine, its ops and epochs as they should be, and the streams of its two
 * peers with their handshakes. */
#ifndef PCCL_FUZZ_WORLD_H
#define PCCL_FUZZ_WORLD_H

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../csrc/crc32c.h"
#include "../../csrc/engine.h"
#include "../../csrc/limits.h"
#include "../../csrc/transport.h"
#include "../../csrc/wire.h"

enum { PEERS = 3, CHANNELS = 2 * PEERS, STREAMS = 8, OPS = 24, EPOCHS = 8, SEGMENT_BYTES = 64, WRITE_BYTES_MAX = 3 << 20,
       REGIONS = 8, REGION_BYTES = 300, FETCHES = 16, FETCH_BYTES = 250 };

#define REQUIRE(holds) ((holds) ? (void)0 : fail(#holds, __FILE__, __LINE__))

static void fail(const char *what, const char *file, int line)
{
    fprintf(stderr, "%s:%d: %s does not hold\n", file, line, what);
    abort();
}

/* -- the world of one input ------------------------------------------------------------------------------------ */

struct shape {
    uint8_t kind, dtype, redop, algorithm, in_place;
    uint16_t count;
    uint8_t own_root;              /* the engine is the source */
};

static const struct shape shapes[] = {
    {PCCL_ALL_REDUCE, PCCL_FLOAT32, PCCL_SUM, PCCL_ALGORITHM_RING, 1, 100, 0},
    {PCCL_ALL_REDUCE, PCCL_FLOAT32, PCCL_SUM, PCCL_ALGORITHM_MESH, 1, 100, 0},
    {PCCL_ALL_REDUCE, PCCL_INT32, PCCL_SUM, PCCL_ALGORITHM_MESH, 0, 400, 0},
    {PCCL_ALL_REDUCE, PCCL_BFLOAT16, PCCL_AVG, PCCL_ALGORITHM_MESH, 0, 77, 0},
    {PCCL_REDUCE_SCATTER, PCCL_FLOAT32, PCCL_SUM, 0, 0, 90, 0},
    {PCCL_ALL_GATHER, PCCL_INT8, 0, 0, 0, 300, 0},
    {PCCL_BROADCAST, PCCL_FLOAT32, 0, PCCL_ALGORITHM_RING, 0, 70, 0},
    {PCCL_BROADCAST, PCCL_FLOAT32, 0, PCCL_ALGORITHM_MESH, 0, 70, 0},
    {PCCL_ALL_TO_ALL, PCCL_INT32, 0, 0, 0, 40, 0},
    {PCCL_SEND_RECV, PCCL_INT32, 0, 0, 0, 50, 0},
    {PCCL_BARRIER, 0, 0, 0, 0, 0, 0},
    {PCCL_ALL_REDUCE, PCCL_INT32, PCCL_SUM, PCCL_ALGORITHM_RING, 0, 2, 0},
    {PCCL_SEND_RECV, PCCL_INT32, 0, 0, 0, 60, 1},
    {PCCL_BROADCAST, PCCL_FLOAT32, 0, PCCL_ALGORITHM_RING, 0, 70, 1},
    {PCCL_ALL_REDUCE, PCCL_FLOAT32, PCCL_SUM, PCCL_ALGORITHM_ONE_ROUND, 1, 50, 0},
    {PCCL_ALL_REDUCE, PCCL_BFLOAT16, PCCL_AVG, PCCL_ALGORITHM_ONE_ROUND, 0, 50, 0},
};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

struct epoch_view {
    uint32_t number, from_boundary, n;
    uint8_t order[PEERS];          /* node by rank; the engine is node 0 */
};

struct op_view {
    const struct shape *shape;
    uint32_t boundary, seq;
    uint8_t *in, *out;
    size_t in_bytes, out_bytes;
    int ended;
};

/* Freed and NULL when the engine has given it back. */
struct region_view { uint8_t *memory; };
struct fetch_view { uint8_t *memory; };

struct side {
    struct stream *stream;
    uint32_t node;
    uint32_t channel;              /* whose numbers: the node's link, or, PEERS later, its detour */
    int proven;
    uint8_t header[WIRE_HEADER_BYTES];
    uint32_t header_bytes, skip_bytes;
};

static struct world {
    const uint8_t *data;
    size_t left;
    pccl_sim *sim;
    pccl_engine *engine;
    struct transport *transports[PEERS];
    struct side sides[STREAMS];
    uint64_t now_ns;
    uint32_t next_seq[CHANNELS], ack[CHANNELS];
    struct epoch_view epochs[EPOCHS];
    uint32_t epoch_count, change, boundary;
    struct op_view ops[OPS];
    uint32_t op_count, posted[SHAPES];
    struct region_view regions[REGIONS];
    struct fetch_view fetches[FETCHES];
    uint32_t region_count, fetch_count;
    uint32_t relays;               /* that the engine was asked for */
    uint32_t call;                 /* number of the last stream that the engine has called for */
    int honest;                    /* payloads are right in every epoch so far: results can be checked */
} w;

static const uint8_t run_id[16] = "fuzz", key[32] = "the key of the run";

static uint8_t next8(void)
{
    if (!w.left)
        return 0;
    w.left--;
    return *w.data++;
}

static uint32_t next32(void)
{
    uint32_t v = 0;
    for (int i = 0; i < 4; i++)
        v = v << 8 | next8();
    return v;
}

static pccl_peer_id id_of(uint32_t node)
{
    pccl_peer_id id;
    memset(id.bytes, (int)(node ? 2 * node - 1 : 2), sizeof id.bytes); /* node 1 dials the engine, which dials node 2 */
    return id;
}

/* -- what honest peers would send ------------------------------------------------------------------------------- */

static uint32_t element_bytes(uint8_t dtype)
{
    return dtype == PCCL_INT8 ? 1 : dtype == PCCL_BFLOAT16 ? 2 : 4;
}

static void put_element(uint8_t *at, uint8_t dtype, float value)
{
    int32_t whole = (int32_t)value;
    if (dtype == PCCL_FLOAT32)
        memcpy(at, &value, 4);
    else if (dtype == PCCL_BFLOAT16)
        memcpy(at, (const uint8_t *)&value + 2, 2);
    else
        memcpy(at, &whole, element_bytes(dtype));
}

static float own_value(uint32_t node, uint64_t element)
{
    return (float)(3 * (node + 1) + element % 5);
}

/* The sum, or mean, over `count` ranks going down from `rank`. */
static float folded(const struct epoch_view *e, uint32_t rank, uint32_t count, uint64_t element, int mean)
{
    float sum = 0;
    for (uint32_t i = 0; i < count; i++)
        sum += own_value(e->order[(rank + e->n - i % e->n) % e->n], element);
    return mean ? sum / (float)count : sum;
}

static uint32_t rank_of(const struct epoch_view *e, uint32_t node)
{
    uint32_t rank = 0;
    while (rank < e->n && e->order[rank] != node)
        rank++;
    return rank;
}

static uint64_t span_at(uint64_t count, uint32_t n, uint32_t i)
{
    return count / n * i + count % n * i / n;
}

static void fill_payload(uint8_t *payload, uint32_t bytes, const struct shape *s, const struct epoch_view *e, uint32_t node,
                         const struct frame *frame)
{
    uint32_t size = element_bytes(s->dtype), from = rank_of(e, node), hops = e->n - 1;
    int ring = s->kind == PCCL_ALL_REDUCE && s->algorithm == PCCL_ALGORITHM_RING;
    int reduces = s->kind == PCCL_ALL_REDUCE || s->kind == PCCL_REDUCE_SCATTER;
    for (uint32_t i = 0; i < bytes / size; i++) {
        uint64_t element = frame->offset / size + i;
        float value = s->kind == PCCL_BROADCAST ? own_value(1, element) : own_value(node, element);
        if (ring && frame->step < hops)
            value = folded(e, from, frame->step + 1u, element, 0);
        else if (reduces && (ring || frame->step))
            value = folded(e, 0, e->n, element, s->redop == PCCL_AVG);
        put_element(payload + (size_t)i * size, s->dtype, value);
    }
}

static const struct epoch_view *epoch_of(uint32_t boundary)
{
    for (uint32_t i = w.epoch_count; i-- > 0;)
        if (w.epochs[i].from_boundary <= boundary)
            return &w.epochs[i];
    return &w.epochs[w.epoch_count - 1];
}

/* Where the k-th segment of this step lies, seen from the engine. */
static void natural_place(const struct shape *s, const struct epoch_view *e, uint32_t node, uint32_t k, struct frame *frame)
{
    uint32_t size = element_bytes(s->dtype), self = rank_of(e, 0), from = rank_of(e, node), hops = e->n - 1, span = self;
    uint64_t first = 0, elements = s->count, per_segment = SEGMENT_BYTES / size;
    int reduces = s->kind == PCCL_ALL_REDUCE || s->kind == PCCL_REDUCE_SCATTER;
    if (reduces && s->kind == PCCL_ALL_REDUCE && s->algorithm == PCCL_ALGORITHM_RING)
        span = frame->step < hops ? self + 2 * e->n - frame->step - 1 : self + 2 * e->n - (frame->step - hops);
    else if (frame->step)
        span = from;
    if (reduces && s->algorithm != PCCL_ALGORITHM_ONE_ROUND) {
        span %= e->n;
        first = span_at(s->count, e->n, span);
        elements = span_at(s->count, e->n, span + 1) - first;
    }
    uint64_t begin = k * per_segment, left = elements > begin ? elements - begin : 0;
    frame->offset = (first + begin) * size;
    frame->payload_bytes = (uint32_t)(left < per_segment ? left : per_segment) * size;
    if (!frame->payload_bytes)
        frame->payload_bytes = size;
}

/* -- time and streams --------------------------------------------------------------------------------------------- */

static int holds(const uint8_t *at, const struct shape *s, uint64_t element, float value)
{
    uint8_t expected[4];
    size_t size = element_bytes(s->dtype);
    put_element(expected, s->dtype, value);
    return memcmp(at + element * size, expected, size) == 0;
}

static void check_input(const struct op_view *op)
{
    const struct shape *s = op->shape;
    for (size_t k = 0; op->in && k < op->in_bytes / element_bytes(s->dtype); k++)
        REQUIRE(holds(op->in, s, k, own_value(0, k % s->count)));
}

static void check_result(const struct op_view *op, const struct epoch_view *e)
{
    const struct shape *s = op->shape;
    uint64_t begin = 0, end = s->count;
    int reduces = s->kind == PCCL_ALL_REDUCE || s->kind == PCCL_REDUCE_SCATTER;
    int exchanges = s->kind == PCCL_ALL_GATHER || s->kind == PCCL_ALL_TO_ALL;
    if (s->kind == PCCL_REDUCE_SCATTER) {
        begin = span_at(s->count, e->n, rank_of(e, 0));
        end = span_at(s->count, e->n, rank_of(e, 0) + 1);
    }
    for (uint32_t row = 0; op->out && row < (exchanges ? e->n : 1); row++)
        for (uint64_t k = begin; k < end; k++) {
            float value = own_value(exchanges ? e->order[row] : 1, k);
            if (reduces)
                value = folded(e, 0, e->n, k, s->redop == PCCL_AVG);
            REQUIRE(holds(op->out, s, row * s->count + k, value));
        }
}

static void on_op_end(const pccl_event *event)
{
    REQUIRE(event->token >= 1 && event->token <= w.op_count);
    struct op_view *op = &w.ops[event->token - 1];
    REQUIRE(!op->ended);
    op->ended = 1;
    if (event->status != PCCL_OK || op->in != op->out)
        check_input(op);
    for (uint32_t i = 0; i < w.epoch_count; i++)
        if (event->status == PCCL_OK && w.honest && w.epochs[i].number == event->epoch)
            check_result(op, &w.epochs[i]);
}

static void give_back(uint8_t **memory)
{
    REQUIRE(*memory != NULL);
    free(*memory);
    *memory = NULL;
}

static void on_transfer_end(const pccl_event *event)
{
    if (event->kind == PCCL_EVENT_WITHDRAWN)
        give_back(&w.regions[event->token - 1].memory);
    else
        give_back(&w.fetches[event->token - 1].memory);
}

static void take_events(void)
{
    pccl_event events[32];
    for (int n; (n = pccl_engine_events(w.engine, events, 32)) > 0;)
        for (int i = 0; i < n; i++)
            if (events[i].kind == PCCL_EVENT_OP)
                on_op_end(&events[i]);
            else if (events[i].kind == PCCL_EVENT_FETCH || events[i].kind == PCCL_EVENT_WITHDRAWN)
                on_transfer_end(&events[i]);
}

/* What the engine sent: only the numbers are of interest, for honest acknowledgements. */
static void read_side(struct side *s)
{
    uint8_t buffer[4096];
    while (s->stream) {
        struct iovec iov = {buffer, sizeof buffer};
        ssize_t n = s->stream->ops->readv(s->stream, &iov, 1);
        if (n == -EAGAIN)
            return;
        if (n <= 0) {
            s->stream->ops->stream_close(s->stream, 1);
            s->stream = NULL;
            return;
        }
        for (ssize_t i = 0; i < n && s->proven;) {
            size_t rest = (size_t)(n - i), taken = s->skip_bytes < rest ? s->skip_bytes : rest;
            s->skip_bytes -= (uint32_t)taken;
            i += (ssize_t)taken;
            if (i == n || s->skip_bytes)
                break;
            s->header[s->header_bytes++] = buffer[i++];
            if (s->header_bytes < WIRE_HEADER_BYTES)
                continue;
            struct frame frame;
            s->header_bytes = 0;
            REQUIRE(wire_decode(s->header, &frame) == PCCL_OK);
            s->skip_bytes = frame.payload_bytes;
            if (frame.type == FRAME_CALL)
                w.call = (uint32_t)frame.offset;
            if (wire_numbered(frame.type) && (int32_t)(frame.link_seq + 1 - w.ack[s->channel]) > 0)
                w.ack[s->channel] = frame.link_seq + 1;
        }
    }
}

/* Runs until nothing moves at this moment. */
static void settle(void)
{
    struct transport_ready ready[16];
    do {
        pccl_engine_step(w.engine, w.now_ns);
        for (uint32_t i = 1; i < PEERS; i++)
            (void)w.transports[i]->ops->poll(w.transports[i], 0, ready, 16);
        for (uint32_t i = 0; i < STREAMS; i++)
            if (w.sides[i].proven)
                read_side(&w.sides[i]);
    } while (pccl_sim_advance(w.sim, w.now_ns) > 0);
    take_events();
}

static void pass_time(uint64_t duration_ns)
{
    uint64_t end_ns = w.now_ns + duration_ns;
    for (int turns = 0; turns < 64; turns++) {
        settle();
        uint64_t next = pccl_engine_step(w.engine, w.now_ns), due = pccl_sim_next(w.sim);
        next = next < due ? next : due;
        if (next > end_ns)
            break;
        w.now_ns = next > w.now_ns ? next : w.now_ns + 1;
        (void)pccl_sim_advance(w.sim, w.now_ns);
    }
    w.now_ns = end_ns > w.now_ns ? end_ns : w.now_ns;
    (void)pccl_sim_advance(w.sim, w.now_ns);
    settle();
}

static void send_bytes(struct side *s, const uint8_t *bytes, size_t count)
{
    for (int tries = 0; s->stream && count && tries < 400; tries++) {
        struct iovec iov = {(void *)(uintptr_t)bytes, count};
        ssize_t n = s->stream->ops->writev(s->stream, &iov, 1);
        if (n > 0) {
            bytes += n;
            count -= (size_t)n;
        } else if (n != -EAGAIN) {
            return;
        }
        settle();
    }
}

static int receive_exactly(struct side *s, uint8_t *bytes, size_t count)
{
    settle();
    struct iovec iov = {bytes, count};
    return s->stream && s->stream->ops->readv(s->stream, &iov, 1) == (ssize_t)count;
}

/* -- handshakes ------------------------------------------------------------------------------------------------------ */

static struct side *free_side(void)
{
    for (uint32_t i = 0; i < STREAMS; i++)
        if (!w.sides[i].stream) {
            w.sides[i] = (struct side){0};
            return &w.sides[i];
        }
    return NULL;
}

static void drop(struct side *s, int abort_it)
{
    if (s->stream)
        s->stream->ops->stream_close(s->stream, abort_it);
    *s = (struct side){0};
}

/* Flips bits of a message, or cuts it, as the input says; 0: as it is. */
static size_t spoil(uint8_t *message, size_t bytes, int spoiled)
{
    if (!spoiled)
        return bytes;
    uint8_t how = next8();
    message[next8() % bytes] ^= next8();
    if (how & 1)
        memcpy(message + bytes - 4, &(uint32_t){crc32c(0, message, bytes - 4)}, 4);
    return how & 2 ? next8() % (bytes + 1) : bytes;
}

/* The dialler's side on a stream that stands, up to the READY; 1 if it came. `spoil_at`: 1 HELLO, 2 PROOF, 0 neither. */
static int say_hello(struct side *s, struct hello hello, int spoil_at)
{
    uint8_t hello_bytes[WIRE_HELLO_BYTES], challenge[WIRE_CHALLENGE_BYTES], mac[32], proof[WIRE_PROOF_BYTES];
    hello.dialler = id_of(s->node);
    hello.acceptor = id_of(0);
    hello.streams = 2;
    memcpy(hello.run, run_id, 16);
    wire_encode_hello(&hello, hello_bytes);
    send_bytes(s, hello_bytes, spoil(hello_bytes, sizeof hello_bytes, spoil_at == 1));
    if (!receive_exactly(s, challenge, sizeof challenge))
        return 0;
    wire_dialler_mac(key, hello_bytes, challenge, mac);
    wire_encode_proof(mac, proof);
    send_bytes(s, proof, spoil(proof, sizeof proof, spoil_at == 2));
    int ready = receive_exactly(s, proof, WIRE_READY_BYTES);
    REQUIRE(spoil_at || !ready || wire_decode_ready(proof) == PCCL_OK);
    return ready;
}

static int shake(struct side *s, struct hello hello, int spoil_at)
{
    int sys_errno;
    if (w.transports[s->node]->ops->dial(w.transports[s->node], "sim:0", &s->stream, &sys_errno) != PCCL_OK)
        return 0;
    settle();
    return say_hello(s, hello, spoil_at);
}

/* A stream of the node's link, or of its detour. */
static void dial(uint32_t node, int spoil_at, int relayed)
{
    struct side *s = free_side();
    struct hello hello = {.epoch = w.epoch_count, .purpose = relayed ? HELLO_RELAYED : HELLO_DIRECT};
    if (!s)
        return;
    s->node = node;
    s->channel = relayed ? PEERS + node : node;
    s->proven = shake(s, hello, spoil_at);
}

/* The acceptor's part of one handshake; 1 if the engine has proved itself. `dialled_p`: what it said. */
static int answer_once(struct side *s, int spoil_at, struct hello *dialled_p)
{
    uint8_t hello_bytes[WIRE_HELLO_BYTES], challenge[WIRE_CHALLENGE_BYTES], mac[32], nonce[32] = {7}, last[WIRE_PROOF_BYTES];
    if (!receive_exactly(s, hello_bytes, sizeof hello_bytes))
        return 0;
    int is_hello = wire_decode_hello(hello_bytes, dialled_p) == PCCL_OK;
    REQUIRE(is_hello || w.relays); /* or they are bytes that another side has put in */
    if (!is_hello)
        return 0;
    wire_acceptor_mac(key, hello_bytes, nonce, mac);
    wire_encode_challenge(nonce, mac, challenge);
    send_bytes(s, challenge, spoil(challenge, sizeof challenge, spoil_at == 1));
    if (!receive_exactly(s, last, WIRE_PROOF_BYTES))
        return 0;
    wire_encode_ready(last);
    send_bytes(s, last, spoil(last, WIRE_READY_BYTES, spoil_at == 2));
    return 1;
}

/* The acceptor's side of a stream that stands. As a relay the node goes on as the target that was asked for; the node whose
 * call is answered goes on as a dialler. */
static void go_on(struct side *s, int spoil_at)
{
    struct hello hello = {0};
    uint32_t node = s->node;
    int proven = answer_once(s, spoil_at, &hello);
    if (proven && hello.purpose == HELLO_RELAY) {
        s->node = 3 - node;
        s->channel = PEERS + s->node;
        proven = answer_once(s, spoil_at, &hello);
        REQUIRE(!proven || (hello.purpose == HELLO_RELAYED && memcmp(&hello.acceptor, &(pccl_peer_id[]){id_of(s->node)}, 16) == 0));
    } else if (proven && hello.purpose == HELLO_CALLED) {
        proven = say_hello(s, (struct hello){.epoch = w.epoch_count, .purpose = HELLO_DIRECT}, 0);
    }
    s->proven = proven;
    settle();
}

/* A stream that the engine dials. */
static void answer(uint32_t node, int spoil_at)
{
    struct side *s = free_side();
    settle();
    if (!s || w.transports[node]->ops->accept(w.transports[node], &s->stream) != PCCL_OK)
        return;
    s->node = s->channel = node;
    go_on(s, spoil_at);
}

/* A stream that the engine has called for, or one that it has not. */
static void answer_call(uint32_t node)
{
    uint8_t other = next8();
    struct side *s = free_side();
    struct hello hello = {.epoch = other ? other : w.call, .purpose = HELLO_CALLED};
    if (!s || !hello.epoch)
        return;
    s->node = s->channel = node;
    if (shake(s, hello, 0))
        go_on(s, 0);
}

/* Bytes put in on one side come out on the other, as they were. */
static void pass_through(struct side *from, struct side *to, uint8_t count)
{
    uint8_t sent[256] = {0}, got[256];
    for (uint32_t i = 0; i < count; i++)
        sent[i] = next8();
    send_bytes(from, sent, count);
    if (count && receive_exactly(to, got, count))
        REQUIRE(memcmp(sent, got, count) == 0);
}

/* The stream that the engine has dialled for somebody else: on its own it begins with a HELLO. */
static struct side *accept_silent(uint32_t node)
{
    uint8_t first;
    settle();
    for (struct side *s; (s = free_side()) != NULL; drop(s, 1)) {
        if (w.transports[node]->ops->accept(w.transports[node], &s->stream) != PCCL_OK)
            return NULL;
        s->node = s->channel = node;
        if (!receive_exactly(s, &first, 1))
            return s;
    }
    return NULL;
}

/* A node asks the engine to pass a stream on to the other one, to itself, to the engine or to a stranger. */
static void relay(void)
{
    uint8_t choice = next8();
    uint32_t node = 1 + (choice & 1), target = (choice & 6) ? 3 - node : choice >> 3 & 3;
    struct side *s = free_side();
    struct hello hello = {.purpose = HELLO_RELAY, .target = id_of(target), .hops = choice >> 5};
    if (!s)
        return;
    s->node = s->channel = node;
    w.relays++;
    if (!shake(s, hello, 0))
        return;
    struct side *far = accept_silent(3 - node);
    if (!far)
        return;
    pass_through(s, far, next8() % 64);
    pass_through(far, s, next8() % 64);
}

#endif
