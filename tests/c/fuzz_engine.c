/* fuzz_engine.c - one engine in a live epoch, with one or two peers that the input plays.
 *
 * The input is a program for the other side: it knows the run's key, shakes hands (or spoils a handshake), sends frames
 * whose header checksum holds with any fields, raw bytes, closes, dials; and it makes the engine's own user submit ops, freeze,
 * change epochs, give up. Whatever a frame claims to be, its payload is what an honest peer would have put there. So besides
 * "no crash, no leak, no hang" this must hold: every op ends exactly once, a committed result is right, an input that was not
 * committed is as it was. */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../csrc/crc32c.h"
#include "../../csrc/limits.h"
#include "../../csrc/transport.h"
#include "../../csrc/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

enum { PEERS = 3, STREAMS = 8, OPS = 24, EPOCHS = 8, SEGMENT_BYTES = 64, WRITE_BYTES_MAX = 3 << 20 };

#define REQUIRE(holds) ((holds) ? (void)0 : fail(#holds, __LINE__))

static void fail(const char *what, int line)
{
    fprintf(stderr, "fuzz_engine.c:%d: %s does not hold\n", line, what);
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

struct side {
    struct stream *stream;
    uint32_t node;
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
    uint32_t next_seq[PEERS], ack[PEERS];
    struct epoch_view epochs[EPOCHS];
    uint32_t epoch_count, change, boundary;
    struct op_view ops[OPS];
    uint32_t op_count, posted[SHAPES];
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

static void take_events(void)
{
    pccl_event events[32];
    for (int n; (n = pccl_engine_events(w.engine, events, 32)) > 0;)
        for (int i = 0; i < n; i++)
            if (events[i].kind == PCCL_EVENT_OP)
                on_op_end(&events[i]);
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
            if (wire_numbered(frame.type) && (int32_t)(frame.link_seq + 1 - w.ack[s->node]) > 0)
                w.ack[s->node] = frame.link_seq + 1;
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

/* The dialler's side. `spoil_at`: 1 HELLO, 2 PROOF, 0 neither. */
static void dial(uint32_t node, int spoil_at)
{
    struct side *s = free_side();
    int sys_errno;
    uint8_t hello_bytes[WIRE_HELLO_BYTES], challenge[WIRE_CHALLENGE_BYTES], mac[32], proof[WIRE_PROOF_BYTES];
    if (!s || w.transports[node]->ops->dial(w.transports[node], "sim:0", &s->stream, &sys_errno) != PCCL_OK)
        return;
    s->node = node;
    settle();
    struct hello hello = {.dialler = id_of(node), .acceptor = id_of(0), .epoch = 1, .stream = 0, .streams = 2};
    memcpy(hello.run, run_id, 16);
    wire_encode_hello(&hello, hello_bytes);
    send_bytes(s, hello_bytes, spoil(hello_bytes, sizeof hello_bytes, spoil_at == 1));
    if (!receive_exactly(s, challenge, sizeof challenge))
        return;
    wire_dialler_mac(key, hello_bytes, challenge, mac);
    wire_encode_proof(mac, proof);
    send_bytes(s, proof, spoil(proof, sizeof proof, spoil_at == 2));
    s->proven = receive_exactly(s, proof, WIRE_READY_BYTES);
    REQUIRE(spoil_at || !s->proven || wire_decode_ready(proof) == PCCL_OK);
}

/* The acceptor's side, for the streams that the engine dials. */
static void answer(uint32_t node, int spoil_at)
{
    struct side *s = free_side();
    uint8_t hello_bytes[WIRE_HELLO_BYTES], challenge[WIRE_CHALLENGE_BYTES], mac[32], nonce[32] = {7}, last[WIRE_PROOF_BYTES];
    struct hello hello;
    settle();
    if (!s || w.transports[node]->ops->accept(w.transports[node], &s->stream) != PCCL_OK)
        return;
    s->node = node;
    if (!receive_exactly(s, hello_bytes, sizeof hello_bytes))
        return;
    REQUIRE(wire_decode_hello(hello_bytes, &hello) == PCCL_OK);
    wire_acceptor_mac(key, hello_bytes, nonce, mac);
    wire_encode_challenge(nonce, mac, challenge);
    send_bytes(s, challenge, spoil(challenge, sizeof challenge, spoil_at == 1));
    if (!receive_exactly(s, last, WIRE_PROOF_BYTES))
        return;
    wire_encode_ready(last);
    send_bytes(s, last, spoil(last, WIRE_READY_BYTES, spoil_at == 2));
    s->proven = 1;
    settle();
}

/* -- commands of the input --------------------------------------------------------------------------------------------- */

static struct side *pick_side(uint8_t choice)
{
    for (uint32_t i = 0; i < STREAMS; i++) {
        struct side *s = &w.sides[(choice + i) % STREAMS];
        if (s->stream && s->proven)
            return s;
    }
    return NULL;
}

enum { BAD_PAYLOAD_CRC = 8, ANY_DESC = 16, ANY_NUMBER = 32, ANY_NAME = 64, ANY_PLACE = 128 };

/* What the input wants to be otherwise than an honest peer would have it. */
static void distort(struct frame *frame, uint8_t flags)
{
    if (flags & ANY_NAME) {
        frame->epoch = next8();
        frame->name.boundary = next8();
        frame->name.seq = next8();
        frame->shape = next8();
        w.honest = 0;
    }
    if (flags & ANY_DESC)
        frame->desc ^= (uint64_t)next32() << (next8() % 64);
    if (flags & ANY_PLACE) {
        frame->offset ^= (uint64_t)next32() << (next8() % 64);
        frame->payload_bytes = next32() >> (next8() % 32);
    }
    if (flags & ANY_NUMBER) {
        frame->link_seq += (uint32_t)(int8_t)next8() * (next8() & 1 ? 1 : 64);
        frame->link_ack += (uint32_t)(int8_t)next8() * (next8() & 1 ? 1 : 64);
    }
    if (frame->type != FRAME_DATA && !(flags & ANY_PLACE))
        frame->offset = frame->type == FRAME_GRANT ? UINT32_MAX : 0; /* room for all; a FIN speaks for its sender */
    if (frame->type != FRAME_DATA && (flags & (ANY_PLACE | ANY_DESC)) != (ANY_PLACE | ANY_DESC))
        frame->payload_bytes = 0;
}

static void send_frame(void)
{
    uint8_t which = next8(), flags = next8(), place = next8();
    struct side *s = pick_side(which >> 5);
    uint32_t lane = which % 32 % SHAPES;
    const struct shape *shape = &shapes[lane];
    struct desc desc = {.kind = shape->kind, .dtype = shape->dtype, .redop = shape->redop, .count = shape->count,
                        .algorithm = shape->algorithm ? shape->algorithm : PCCL_ALGORITHM_MESH};
    const struct epoch_view *e = epoch_of(w.boundary);
    if (!s || rank_of(e, s->node) == e->n)
        return;
    struct frame frame = {
        .type = (flags & 7) ? flags & 7 : FRAME_DATA, .step = place >> 4, .epoch = e->number, .desc = desc_pack(&desc),
        .name = {.lane = lane, .boundary = w.boundary, .seq = w.posted[lane] ? w.posted[lane] - 1 : 0},
        .link_seq = w.next_seq[s->node], .link_ack = w.ack[s->node],
    };
    natural_place(shape, e, s->node, place & 15, &frame);
    distort(&frame, flags);
    if (!(flags & ANY_NUMBER) && wire_numbered(frame.type))
        w.next_seq[s->node]++;
    uint32_t bytes = frame.payload_bytes < WRITE_BYTES_MAX ? frame.payload_bytes : 4096;
    size_t whole = WIRE_HEADER_BYTES + (size_t)bytes;
    uint8_t *message = calloc(1, whole);
    REQUIRE(message != NULL);
    if (frame.type == FRAME_DATA)
        fill_payload(message + WIRE_HEADER_BYTES, bytes, shape, e, s->node, &frame);
    frame.payload_crc = crc32c(0, message + WIRE_HEADER_BYTES, bytes) ^ ((flags & BAD_PAYLOAD_CRC) ? 1u : 0u);
    wire_encode(&frame, message);
    send_bytes(s, message, which == 255 ? whole * next8() / 256 : whole);
    free(message);
}

static void send_raw(void)
{
    uint8_t choice = next8(), count = next8(), bytes[256];
    struct side *s = &w.sides[choice % STREAMS];
    for (uint32_t i = 0; i < count; i++)
        bytes[i] = next8();
    if (s->stream)
        send_bytes(s, bytes, count);
}

static void submit(void)
{
    uint8_t choice = next8();
    uint32_t lane = choice % SHAPES;
    const struct shape *shape = &shapes[lane];
    const struct epoch_view *e = epoch_of(w.boundary);
    if (w.op_count == OPS || (shape->kind == PCCL_SEND_RECV && rank_of(e, 1) == e->n))
        return;
    struct op_view *op = &w.ops[w.op_count++];
    size_t row = (size_t)shape->count * element_bytes(shape->dtype);
    int exchanges = shape->kind == PCCL_ALL_GATHER || shape->kind == PCCL_ALL_TO_ALL;
    *op = (struct op_view){.shape = shape, .boundary = w.boundary, .seq = w.posted[lane]++,
                           .in_bytes = shape->kind == PCCL_ALL_TO_ALL ? PEERS * row : row,
                           .out_bytes = exchanges ? PEERS * row : row};
    int rooted = shape->kind == PCCL_BROADCAST || shape->kind == PCCL_SEND_RECV;
    if (row && (!rooted || shape->own_root))
        op->in = malloc(op->in_bytes);
    for (size_t k = 0; op->in && k < op->in_bytes / element_bytes(shape->dtype); k++)
        put_element(op->in + k * element_bytes(shape->dtype), shape->dtype, own_value(0, k % shape->count));
    op->out = shape->in_place ? op->in : row && !shape->own_root ? calloc(1, op->out_bytes) : NULL;
    pccl_peer_id origin[PEERS] = {id_of(0), id_of(1), id_of(2)};
    pccl_op_request request = {
        .size = sizeof request, .kind = shape->kind, .dtype = shape->dtype, .redop = shape->redop,
        .algorithm = shape->algorithm, .name = {.lane = lane, .boundary = w.boundary, .seq = op->seq}, .count = shape->count,
        .in = op->in, .out = op->out, .root = id_of(!shape->own_root), .target = id_of(shape->own_root), .origin = origin,
        .origin_count = PEERS, .token = w.op_count, .deadline_ns = choice & 128 ? w.now_ns + MILLISECOND : 0,
    };
    REQUIRE(pccl_engine_submit(w.engine, &request) == PCCL_OK);
    settle();
}

/* A new epoch of the nodes in `mask`, the engine always among them at a rank of the input's choice. */
static void configure(uint8_t choice, uint32_t change, uint32_t from_boundary)
{
    if (w.epoch_count == EPOCHS)
        return;
    struct epoch_view *view = &w.epochs[w.epoch_count];
    uint32_t order = choice >> 4 & 3, count = 0;
    pccl_member members[PEERS];
    pccl_verdict verdicts[OPS];
    *view = (struct epoch_view){.number = w.epoch_count + 1, .from_boundary = from_boundary};
    for (uint32_t i = 0; i < PEERS; i++) {
        uint32_t node = (i + order) % PEERS;
        if (node && !(choice & 1u << node))
            continue;
        members[view->n] = (pccl_member){.id = id_of(node), .dial = node == 2};
        snprintf(members[view->n].address, sizeof members[0].address, "sim:%u", node);
        view->order[view->n++] = (uint8_t)node;
    }
    for (uint32_t i = 0; change && (choice & 1) && i < w.op_count; i++)
        if (!w.ops[i].ended)
            verdicts[count++] = (pccl_verdict){
                .name = {.lane = (uint64_t)(w.ops[i].shape - shapes), .boundary = w.ops[i].boundary, .seq = w.ops[i].seq},
                .status = (int32_t)(next8() % 3 ? PCCL_OK : PCCL_ETIMEOUT)};
    pccl_epoch config = {
        .size = sizeof config, .epoch = view->number, .from_boundary = from_boundary, .change = change,
        .member_count = view->n, .members = members, .verdict_count = count, .verdicts = verdicts,
        .streams = 2, .segment_bytes = SEGMENT_BYTES,
    };
    w.epoch_count++;
    REQUIRE(pccl_engine_configure(w.engine, &config) == PCCL_OK);
    settle();
}

/* A link that was closed begins at number 0 again. */
static void forget_links(void)
{
    pccl_link_stats links[PEERS];
    pass_time(60 * MILLISECOND);
    int count = pccl_engine_links(w.engine, links, PEERS);
    for (uint32_t node = 1; node < PEERS; node++) {
        int there = 0;
        for (int i = 0; i < count && i < PEERS; i++)
            there |= links[i].peer.bytes[0] == id_of(node).bytes[0];
        if (!there)
            w.next_seq[node] = w.ack[node] = 0;
    }
}

static void change_epoch(void)
{
    uint8_t choice = next8();
    if (choice & 128) {
        REQUIRE(pccl_engine_freeze(w.engine, ++w.change) == PCCL_OK);
        settle();
        if (choice & 64)
            return;
        configure(choice, w.change, 0);
    } else {
        configure(choice, 0, w.boundary + 1);
        REQUIRE(pccl_engine_advance(w.engine, ++w.boundary) == PCCL_OK);
        memset(w.posted, 0, sizeof w.posted);
        settle();
    }
    forget_links();
}

static void give_up(void)
{
    uint8_t choice = next8();
    pccl_peer_id peer = id_of(1 + (choice >> 2 & 1));
    if ((choice & 3) == 0)
        REQUIRE(pccl_engine_fail_all(w.engine, PCCL_EEVICTED) == PCCL_OK);
    else if ((choice & 3) == 1)
        REQUIRE(pccl_engine_abandon(w.engine, choice >> 2, PCCL_ECANCELLED) == PCCL_OK);
    else
        REQUIRE(pccl_engine_kill_stream(w.engine, &peer, choice >> 4) == PCCL_OK);
    settle();
}

static void command(void)
{
    uint8_t choice = next8();
    switch (choice & 15) {
    case 6: send_raw(); break;
    case 7: case 8: submit(); break;
    case 9: pass_time(MILLISECOND << (next8() % 14)); break;
    case 10: drop(&w.sides[next8() % STREAMS], choice >> 7); settle(); break;
    case 11: dial(1 + (choice >> 4 & 1), choice >> 6); break;
    case 12: answer(1 + (choice >> 4 & 1), choice >> 6); break;
    case 13: change_epoch(); break;
    case 14: give_up(); break;
    default: send_frame(); break;
    }
}

/* -- one input ----------------------------------------------------------------------------------------------------------- */

static void open_world(void)
{
    pccl_config config = {.size = sizeof config, .self = id_of(0), .eager_bytes = 4096, .transport = "sim"};
    memcpy(config.run, run_id, sizeof run_id);
    memcpy(config.key, key, sizeof key);
    REQUIRE(pccl_sim_new(1, &w.sim) == PCCL_OK);
    config.sim = w.sim;
    snprintf(config.listen, sizeof config.listen, "sim:0");
    REQUIRE(pccl_engine_new(&config, &w.engine) == PCCL_OK);
    for (uint32_t i = 1; i < PEERS; i++) {
        int sys_errno;
        snprintf(config.listen, sizeof config.listen, "sim:%u", i);
        REQUIRE(transport_find("sim")->open(&config, &w.transports[i], &sys_errno) == PCCL_OK);
    }
}

static void close_world(void)
{
    settle(); /* what was sent last still counts */
    REQUIRE(pccl_engine_fail_all(w.engine, PCCL_ECLOSED) == PCCL_OK);
    settle();
    for (uint32_t i = 0; i < w.op_count; i++) {
        REQUIRE(w.ops[i].ended);
        if (w.ops[i].out != w.ops[i].in)
            free(w.ops[i].out);
        free(w.ops[i].in);
    }
    for (uint32_t i = 0; i < STREAMS; i++)
        drop(&w.sides[i], 1);
    pccl_engine_free(w.engine);
    for (uint32_t i = 1; i < PEERS; i++)
        w.transports[i]->ops->close(w.transports[i]);
    pccl_sim_free(w.sim);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    w = (struct world){.data = data, .left = bytes, .honest = 1};
    open_world();
    uint8_t mode = next8();
    if (!(mode & 1)) { /* with an epoch and honest handshakes, else from scratch */
        configure(mode, 0, 0);
        for (int i = 0; i < 1 + (mode >> 7); i++) {
            dial(1, 0);
            answer(2, 0);
        }
    } else {
        configure(2, 0, 0);
    }
    for (int i = 0; w.left && i < 400; i++)
        command();
    close_world();
    return 0;
}
