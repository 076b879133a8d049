/* fuzz_engine.c - one engine in a live epoch, with one or two peers that the input plays.
 *
 * The input is a program for the other side: it knows the run's key, shakes hands (or spoils a handshake), sends frames
 * whose header checksum holds with any fields, raw bytes, closes, dials; and it makes the engine's own user submit ops, freeze,
 * change epochs, give up. Its peers ask it to relay, and are reached over each other. Whatever a frame claims to be, its
 * payload is what an honest peer would have put there. So besides "no crash, no leak, no hang" this must hold: every op ends
 * exactly once, a committed result is right, an input that was not committed is as it was; every fetch and every region ends exactly
 * once, and its memory, freed then, is not touched any more. */
#include "fuzz_world.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

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
    int filled = frame->type == FRAME_DATA || frame->type == FRAME_PROBE;
    if (!filled && (flags & (ANY_PLACE | ANY_DESC)) != (ANY_PLACE | ANY_DESC))
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
        .type = (flags & 7) ? flags & 7 : FRAME_PROBE, .step = place >> 4, .epoch = e->number, .desc = desc_pack(&desc),
        .name = {.lane = lane, .boundary = w.boundary, .seq = w.posted[lane] ? w.posted[lane] - 1 : 0},
        .link_seq = w.next_seq[s->channel], .link_ack = w.ack[s->channel],
    };
    natural_place(shape, e, s->node, place & 15, &frame);
    if (frame.type == FRAME_PROBE)
        frame.payload_bytes = 1 + place;
    distort(&frame, flags);
    if (!(flags & ANY_NUMBER) && wire_numbered(frame.type))
        w.next_seq[s->channel]++;
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

/* Asks the engine to dial the node. */
static void send_call(struct side *s, uint8_t number)
{
    struct frame frame = {.type = FRAME_CALL, .offset = number, .link_ack = w.ack[s->channel]};
    uint8_t message[WIRE_HEADER_BYTES];
    wire_encode(&frame, message);
    send_bytes(s, message, sizeof message);
}

/* A frame of a transfer, most often one that an honest peer might send; or a CALL, which is beside the ops as well. */
static void send_transfer_frame(void)
{
    uint8_t which = next8(), flags = next8(), place = next8();
    struct side *s = pick_side(which >> 5);
    if (!s)
        return;
    if ((flags & 24) == 24) {
        send_call(s, place);
        return;
    }
    uint8_t payload[WIRE_FETCH_HEAD_BYTES + 4 * WIRE_FETCH_RUN_BYTES] = {0};
    struct fetch_head head = {.generation = flags >> 6, .segment_bytes = SEGMENT_BYTES, .run_count = 1 + (place & 3)};
    struct frame frame = {.type = (uint8_t)(FRAME_FETCH + (which & 3)), .name = {.lane = 1 + (which >> 2 & 7)},
                          .link_seq = w.next_seq[s->channel], .link_ack = w.ack[s->channel]};
    if (frame.type == FRAME_FETCH) {
        wire_encode_fetch(&head, payload);
        for (uint32_t i = 0; i < head.run_count; i++)
            wire_encode_fetch_run((struct fetch_run){next8(), 1u + next8()}, i, payload);
        frame.payload_bytes = WIRE_FETCH_HEAD_BYTES + head.run_count * WIRE_FETCH_RUN_BYTES;
        frame.step = flags & 3;
    } else if (frame.type == FRAME_PIECE) {
        frame.offset = place & 15u ? (place & 15u) * SEGMENT_BYTES : 0;
        frame.payload_bytes = place & 16 ? 1u + next8() % sizeof payload : SEGMENT_BYTES;
    } else if (frame.type == FRAME_DENY) {
        frame.step = 1 + (flags & 1);
    }
    if (flags & 32)
        payload[next8() % sizeof payload] ^= next8();
    w.next_seq[s->channel]++;
    frame.payload_crc = crc32c(0, payload, frame.payload_bytes);
    uint8_t message[WIRE_HEADER_BYTES + sizeof payload];
    wire_encode(&frame, message);
    memcpy(message + WIRE_HEADER_BYTES, payload, frame.payload_bytes);
    send_bytes(s, message, WIRE_HEADER_BYTES + frame.payload_bytes);
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
        f->memory = calloc(1, FETCH_BYTES);
        pccl_fetch_run runs[] = {{place, 1 + place % 32, f->memory}, {0, 32, f->memory + 32}, {0, FETCH_BYTES - 64, f->memory + 64}};
        pccl_fetch_request request = {.size = sizeof request, .peer = id_of(1 + (choice >> 3 & 1)), .generation = generation,
                                      .run_count = 3, .runs = runs, .token = w.fetch_count,
                                      .deadline_ns = choice & 16 ? w.now_ns + MILLISECOND : 0};
        REQUIRE(f->memory && pccl_engine_fetch(w.engine, &request) == PCCL_OK);
    }
    settle();
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

/* One of the two other members is reached over the other; a new detour begins at number 0. */
static void set_detour(const struct epoch_view *e, pccl_member *members, uint32_t via)
{
    uint32_t end = 3 - via;
    members[rank_of(e, end)].via = (uint16_t)(1 + rank_of(e, via));
    w.next_seq[PEERS + end] = w.ack[PEERS + end] = 0;
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

static void measure(void)
{
    uint8_t choice = next8();
    pccl_peer_id peer = id_of(1 + (choice & 1));
    REQUIRE(pccl_engine_measure(w.engine, &peer, 1ULL << (choice >> 1 & 15), MILLISECOND << (choice >> 5)) == PCCL_OK);
    settle();
}

static void command(void)
{
    uint8_t choice = next8();
    switch (choice & 15) {
    case 3: measure(); break;
    case 4: send_transfer_frame(); break;
    case 5: use_transfers(); break;
    case 6: send_raw(); break;
    case 7: case 8: submit(); break;
    case 9: pass_time(MILLISECOND << (next8() % 14)); break;
    case 10: drop(&w.sides[next8() % STREAMS], choice >> 7); settle(); break;
    case 11: choice >> 6 == 3 ? answer_call(1 + (choice >> 4 & 1)) : dial(1 + (choice >> 4 & 1), choice >> 6, choice >> 5 & 1); break;
    case 12: answer(1 + (choice >> 4 & 1), choice >> 6); break;
    case 13: change_epoch(); break;
    case 14: give_up(); break;
    case 15: relay(); break;
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
    engine_shutdown(w.engine);
    take_events();
    for (uint32_t i = 0; i < w.region_count; i++)
        REQUIRE(!w.regions[i].memory);
    for (uint32_t i = 0; i < w.fetch_count; i++)
        REQUIRE(!w.fetches[i].memory);
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
            dial(1, 0, 0);
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
