/* fuzz_user.h - what the fuzzers of the engine have in common: the input, the engine's own user with its ops and transfers as they
 * should be, and the frames that honest peers would send, as distorted as the input wants them. */
#ifndef PCCL_FUZZ_USER_H
#define PCCL_FUZZ_USER_H

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

enum { PEERS = 3, OPS = 24, EPOCHS = 8, SEGMENT_BYTES = 64, WRITE_BYTES_MAX = 3 << 20, REGIONS = 8, REGION_BYTES = 300, FETCHES = 16,
       FETCH_BYTES = 250, FETCH_ROOM = 256, PART_BYTES = 8, FETCH_PARTS = 28 };

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
    int named;                     /* row i of out is that of node i */
};

/* Freed and NULL when the engine has given it back. */
struct region_view { uint8_t *memory; };
struct fetch_view {
    uint8_t *memory;
    uint64_t *digests;             /* behind what is fetched, so that both are borrowed as long */
    uint32_t parts;                /* 0: without digests */
};

static const uint64_t fetch_seeds[FETCH_PARTS] = {1, 2, 3};

static struct world {
    const uint8_t *data;
    size_t left;
    pccl_engine *engine;
    uint64_t now_ns;
    struct epoch_view epochs[EPOCHS];
    uint32_t epoch_count, change, boundary;
    struct op_view ops[OPS];
    uint32_t op_count, posted[SHAPES];
    struct region_view regions[REGIONS];
    struct fetch_view fetches[FETCHES];
    uint32_t region_count, fetch_count;
    int honest;                    /* payloads are right in every epoch so far: results can be checked */
} w;

/* Lets the engine and its streams do what they can at this moment. */
static void settle(void);
/* From now on the node is reached by a new detour. */
static void begin_detour(uint32_t node);

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
/* -- what the input makes of it ------------------------------------------------------------------------------------- */

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
    int filled = frame->type == FRAME_DATA || frame->type == FRAME_PROBE;
    if (!filled && (flags & (ANY_PLACE | ANY_DESC)) != (ANY_PLACE | ANY_DESC))
        frame->payload_bytes = 0;
}

/* A segment of an op, or a GRANT, FIN or whatever else `flags` says, from the node to the engine, with the numbers in *frame; 0 if the
 * node is no member. */
static int draw_frame(struct frame *frame, uint32_t node, uint8_t which, uint8_t flags, uint8_t place)
{
    uint32_t lane = which % 32 % SHAPES;
    const struct shape *shape = &shapes[lane];
    struct desc desc = {.kind = shape->kind, .dtype = shape->dtype, .redop = shape->redop, .count = shape->count,
                        .algorithm = shape->algorithm ? shape->algorithm : PCCL_ALGORITHM_MESH};
    const struct epoch_view *e = epoch_of(w.boundary);
    if (rank_of(e, node) == e->n)
        return 0;
    frame->type = (flags & 7) ? flags & 7 : FRAME_PROBE;
    frame->step = place >> 4;
    frame->epoch = e->number;
    frame->desc = desc_pack(&desc);
    frame->name = (pccl_op_name){.lane = lane, .boundary = w.boundary, .seq = w.posted[lane] ? w.posted[lane] - 1 : 0};
    natural_place(shape, e, node, place & 15, frame);
    if (frame->type == FRAME_PROBE)
        frame->payload_bytes = 1 + place;
    distort(frame, flags);
    return 1;
}

/* The frame with a payload of `bytes` bytes, which are what an honest peer would have put there. */
static void put_frame(struct frame *frame, uint32_t node, uint8_t flags, uint32_t bytes, uint8_t *message)
{
    memset(message, 0, WIRE_HEADER_BYTES + (size_t)bytes);
    if (frame->type == FRAME_DATA)
        fill_payload(message + WIRE_HEADER_BYTES, bytes, &shapes[frame->name.lane % SHAPES], epoch_of(w.boundary), node, frame);
    frame->payload_crc = crc32c(0, message + WIRE_HEADER_BYTES, bytes) ^ ((flags & BAD_PAYLOAD_CRC) ? 1u : 0u);
    wire_encode(frame, message);
}

enum { TRANSFER_PAYLOAD_BYTES = WIRE_FETCH_HEAD_BYTES + 4 * WIRE_FETCH_RUN_BYTES };

/* A frame of a transfer, most often one that an honest peer might send, with the numbers in *frame. Returns its bytes. */
static size_t put_transfer_frame(struct frame *frame, uint8_t which, uint8_t flags, uint8_t place, uint8_t *message)
{
    uint8_t *payload = message + WIRE_HEADER_BYTES;
    struct fetch_head head = {.generation = flags >> 6, .segment_bytes = SEGMENT_BYTES, .run_count = 1 + (place & 3)};
    memset(message, 0, WIRE_HEADER_BYTES + TRANSFER_PAYLOAD_BYTES);
    frame->type = (uint8_t)(FRAME_FETCH + (which & 3));
    frame->name.lane = 1 + (which >> 2 & 7);
    if (frame->type == FRAME_FETCH) {
        wire_encode_fetch(&head, payload);
        for (uint32_t i = 0; i < head.run_count; i++)
            wire_encode_fetch_run((struct fetch_run){next8(), 1u + next8()}, i, payload);
        frame->payload_bytes = WIRE_FETCH_HEAD_BYTES + head.run_count * WIRE_FETCH_RUN_BYTES;
        frame->step = flags & 3;
    } else if (frame->type == FRAME_PIECE) {
        frame->offset = place & 15u ? (place & 15u) * SEGMENT_BYTES : 0;
        frame->payload_bytes = place & 16 ? 1u + next8() % TRANSFER_PAYLOAD_BYTES : SEGMENT_BYTES;
    } else if (frame->type == FRAME_DENY) {
        frame->step = 1 + (flags & 1);
    }
    if (flags & 32)
        payload[next8() % TRANSFER_PAYLOAD_BYTES] ^= next8();
    frame->payload_crc = crc32c(0, payload, frame->payload_bytes);
    frame->bare = which >> 7;
    wire_encode(frame, message);
    return WIRE_HEADER_BYTES + frame->payload_bytes;
}

/* -- the engine's user ------------------------------------------------------------------------------------------------ */

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
    for (uint32_t rank = 0; op->out && rank < (exchanges ? e->n : 1); rank++) {
        uint32_t row = op->named ? e->order[rank] : rank;
        for (uint64_t k = begin; k < end; k++) {
            float value = own_value(exchanges ? e->order[rank] : 1, k);
            if (reduces)
                value = folded(e, 0, e->n, k, s->redop == PCCL_AVG);
            REQUIRE(holds(op->out, s, row * s->count + k, value));
        }
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

/* Whatever came: the digests are those of what lies there. */
static void check_digests(const struct fetch_view *f)
{
    uint64_t offsets[FETCH_PARTS], found[FETCH_PARTS];
    for (uint32_t i = 0; i < f->parts; i++)
        offsets[i] = i == 0 ? 0 : i < 5 ? 32 + (i - 1) * PART_BYTES : 64 + (i - 5) * PART_BYTES;
    pccl_digest_pieces(f->memory, offsets, PART_BYTES, fetch_seeds, f->parts, found);
    REQUIRE(memcmp(found, f->digests, f->parts * sizeof *found) == 0);
}

static void on_transfer_end(const pccl_event *event)
{
    if (event->kind == PCCL_EVENT_WITHDRAWN) {
        give_back(&w.regions[event->token - 1].memory);
        return;
    }
    struct fetch_view *f = &w.fetches[event->token - 1];
    if (event->status == PCCL_OK && f->parts)
        check_digests(f);
    give_back(&f->memory);
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
                           .out_bytes = exchanges ? PEERS * row : row,
                           .named = shape->kind == PCCL_ALL_GATHER && choice & 64};
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
        .origin_count = shape->kind == PCCL_ALL_TO_ALL || op->named ? PEERS : 0, .token = w.op_count, .deadline_ns = choice & 128 ? w.now_ns + MILLISECOND : 0,
    };
    REQUIRE(pccl_engine_submit(w.engine, &request) == PCCL_OK);
    settle();
}

/* One of the two other members is reached over the other. */
static void set_detour(const struct epoch_view *e, pccl_member *members, uint32_t via)
{
    uint32_t end = 3 - via;
    members[rank_of(e, end)].via = (uint16_t)(1 + rank_of(e, via));
    begin_detour(end);
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
    if ((choice & 8) && view->n == PEERS)
        set_detour(view, members, 1 + (order & 1));
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

/* The engine's own user offers, extends, withdraws, fetches, cancels. */
static void use_transfers(void)
{
    uint8_t choice = next8(), place = next8();
    static const uint8_t name[16];
    uint64_t generation = choice >> 6;
    if ((choice & 7) == 0 && w.region_count < REGIONS) {
        struct region_view *r = &w.regions[w.region_count++];
        r->memory = calloc(1, REGION_BYTES);
        pccl_region region = {.size = sizeof region, .generation = generation, .data = r->memory, .bytes = REGION_BYTES,
                              .token = w.region_count};
        REQUIRE(r->memory && pccl_engine_offer(w.engine, &region, choice >> 3 & 1) == PCCL_OK);
    } else if ((choice & 7) == 1) {
        REQUIRE(pccl_engine_withdraw(w.engine, name, generation) == PCCL_OK);
    } else if ((choice & 7) == 2) {
        REQUIRE(pccl_engine_cancel_fetch(w.engine, 1 + place % FETCHES) == PCCL_OK);
    } else if ((choice & 7) == 3) {
        REQUIRE(pccl_engine_limit(w.engine, place % PCCL_PRIORITY_COUNT, (uint64_t)(place >> 4) * 1000) == PCCL_OK);
    } else if ((choice & 7) == 4) {
        REQUIRE(pccl_engine_extend(w.engine, name, generation, place, next8()) == PCCL_OK);
    } else if (w.fetch_count < FETCHES) {
        struct fetch_view *f = &w.fetches[w.fetch_count++];
        f->parts = choice & 32 ? FETCH_PARTS : 0;
        f->memory = calloc(1, FETCH_ROOM + FETCH_PARTS * sizeof *f->digests);
        f->digests = (uint64_t *)(void *)(f->memory + FETCH_ROOM);
        uint64_t first = f->parts ? PART_BYTES : 1u + place % 32, last = f->parts ? (FETCH_PARTS - 5) * PART_BYTES : FETCH_BYTES - 64;
        pccl_fetch_run runs[] = {{place, first, f->memory}, {0, 32, f->memory + 32}, {0, last, f->memory + 64}};
        pccl_fetch_request request = {.size = sizeof request, .peer = id_of(1 + (choice >> 3 & 1)), .generation = generation,
                                      .run_count = 3, .runs = runs, .token = w.fetch_count, .part_count = f->parts,
                                      .part_bytes = PART_BYTES, .bare = f->parts && choice & 8, .seeds = fetch_seeds, .digests = f->digests,
                                      .deadline_ns = choice & 16 ? w.now_ns + MILLISECOND : 0};
        REQUIRE(f->memory && pccl_engine_fetch(w.engine, &request) == PCCL_OK);
    }
    settle();
}

/* Freezes, installs an epoch after a change, or a growth at the next boundary. 1: there is another epoch. */
static int change_epoch(void)
{
    uint8_t choice = next8();
    if (choice & 128) {
        REQUIRE(pccl_engine_freeze(w.engine, ++w.change) == PCCL_OK);
        settle();
        if (choice & 64)
            return 0;
        configure(choice, w.change, 0);
    } else {
        configure(choice, 0, w.boundary + 1);
        REQUIRE(pccl_engine_advance(w.engine, ++w.boundary) == PCCL_OK);
        memset(w.posted, 0, sizeof w.posted);
        settle();
    }
    return 1;
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

/* Every op ends now, if it has not. */
static void end_ops(void)
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
}

/* And everything else. */
static void end_engine(void)
{
    engine_shutdown(w.engine);
    take_events();
    for (uint32_t i = 0; i < w.region_count; i++)
        REQUIRE(!w.regions[i].memory);
    for (uint32_t i = 0; i < w.fetch_count; i++)
        REQUIRE(!w.fetches[i].memory);
    pccl_engine_free(w.engine);
}

#endif
