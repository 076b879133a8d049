/* fuzz_mux.c - the receiving side of links alone: bytes of streams that have proved themselves, straight into conn_recv.c.
 *
 * fuzz_engine.c plays whole peers, with handshakes, on a simulated network; here a stream is memory (fuzz_pipes.h) and its conn is
 * open at once, so that twenty times as many inputs pass. An input is a program of up to COMMANDS_MAX commands: frames whose
 * checksum holds with any fields, raw bytes, in gulps of any size, on several streams, of one member or of two; streams that end or
 * take no more; and what the engine's own user does meanwhile. What must hold is said in fuzz_engine.c; besides, whatever the engine says is
 * a frame of ours, nothing is acknowledged that was not sent, and no parked frame is left over. */
#include "fuzz_pipes.h"

#include "fuzz_blocks.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

enum { COMMANDS_MAX = 16, BIG_PAYLOAD_BYTES = DIRECT_READ_BYTES + 1000 };

static void begin_detour(uint32_t node)
{
    (void)node; /* it has no streams here: pipes belong to links */
}

static void settle(void)
{
    (void)pccl_engine_step(w.engine, w.now_ns);
    take_events();
    for (uint32_t node = 1; node < PEERS; node++) {
        int has_link = link_to(node) != NULL;
        if (pipes.has_link[node] && !has_link) /* the next one begins at number 0 */
            pipes.next_seq[node] = pipes.ack[node] = pipes.sent_end[node] = 0;
        pipes.has_link[node] = has_link;
    }
}

static struct pipe *pick_pipe(uint8_t choice)
{
    for (uint32_t i = 0; i < PIPES; i++) {
        struct pipe *p = &pipes.all[(choice + i) % PIPES];
        if (p->is_open && !p->end)
            return p;
    }
    return NULL;
}

static struct frame next_numbers(const struct pipe *p)
{
    return (struct frame){.link_seq = pipes.next_seq[p->node], .link_ack = pipes.ack[p->node]};
}

/* The frame's number counts as sent from now on. */
static void note_sent(const struct pipe *p, const struct frame *frame, int is_next)
{
    if (!wire_numbered(frame->type))
        return;
    pipes.next_seq[p->node] += is_next != 0;
    if ((int32_t)(frame->link_seq + 1 - pipes.sent_end[p->node]) > 0)
        pipes.sent_end[p->node] = frame->link_seq + 1;
}

static void send_frame(void)
{
    static uint8_t message[WIRE_HEADER_BYTES + 4096];
    uint8_t which = next8(), flags = next8(), place = next8();
    struct pipe *p = pick_pipe(which >> 5);
    if (!p)
        return;
    struct frame frame = next_numbers(p);
    if (!draw_frame(&frame, p->node, which, flags, place))
        return;
    note_sent(p, &frame, !(flags & ANY_NUMBER));
    uint32_t bytes = frame.payload_bytes < 4096 ? frame.payload_bytes : 4096;
    put_frame(&frame, p->node, flags, bytes, message);
    size_t whole = WIRE_HEADER_BYTES + (size_t)bytes;
    put(p, message, which == 255 ? whole * next8() / 256 : whole);
}

/* A payload that is read straight to where it belongs, of an op that nobody has called or of one that is over. */
static void send_big(void)
{
    static uint8_t message[WIRE_HEADER_BYTES + BIG_PAYLOAD_BYTES];
    uint8_t which = next8(), seq = next8();
    struct pipe *p = pick_pipe(which >> 5);
    if (!p)
        return;
    struct desc desc = {.kind = PCCL_BROADCAST, .count = BIG_PAYLOAD_BYTES, .algorithm = PCCL_ALGORITHM_MESH, .dtype = PCCL_INT8};
    struct frame frame = next_numbers(p);
    frame.type = FRAME_DATA;
    frame.epoch = w.epochs[w.epoch_count - 1].number + (which & 1);
    frame.name = (pccl_op_name){.lane = SHAPES, .boundary = w.boundary, .seq = seq};
    frame.desc = desc_pack(&desc);
    frame.payload_bytes = BIG_PAYLOAD_BYTES - (which >> 1 & 7);
    frame.payload_crc = crc32c(0, message + WIRE_HEADER_BYTES, frame.payload_bytes);
    note_sent(p, &frame, 1);
    wire_encode(&frame, message);
    put(p, message, WIRE_HEADER_BYTES + (size_t)frame.payload_bytes);
}

/* A frame of a transfer; or a CALL, which is beside the ops as well. */
static void send_transfer_frame(void)
{
    uint8_t which = next8(), flags = next8(), place = next8(), message[WIRE_HEADER_BYTES + TRANSFER_PAYLOAD_BYTES];
    struct pipe *p = pick_pipe(which >> 5);
    if (!p)
        return;
    struct frame frame = next_numbers(p);
    if ((flags & 24) == 24) {
        frame = (struct frame){.type = FRAME_CALL, .offset = place, .link_ack = frame.link_ack};
        wire_encode(&frame, message);
        put(p, message, WIRE_HEADER_BYTES);
        return;
    }
    size_t bytes = put_transfer_frame(&frame, which, flags, place, message);
    note_sent(p, &frame, 1);
    put(p, message, bytes);
}

static void send_raw(void)
{
    uint8_t choice = next8(), count = next8(), bytes[256];
    struct pipe *p = pick_pipe(choice);
    for (uint32_t i = 0; i < count; i++)
        bytes[i] = next8();
    if (p)
        put(p, bytes, count);
}

/* How much one read takes, and how much it still takes from the engine. */
static void narrow(uint8_t choice)
{
    struct pipe *p = pick_pipe(choice >> 5);
    uint8_t gulp = next8(), room = next8();
    if (!p)
        return;
    p->gulp = gulp;
    p->room = choice & 16 ? UINT32_MAX : room;
}

static void end_pipe(uint8_t choice)
{
    struct pipe *p = pick_pipe(choice >> 5);
    if (p)
        p->end = choice & 16 ? -1 : ECONNRESET;
}

static void pass_time(void)
{
    w.now_ns += MILLISECOND << (next8() % 14);
    settle();
}

/* Its top bit: the engine has its turn. Until then what arrives waits in the pipes. */
static void command(void)
{
    uint8_t choice = next8();
    switch (choice & 15) {
    case 4: send_transfer_frame(); break;
    case 5: use_transfers(); break;
    case 6: send_raw(); break;
    case 7: submit(); break;
    case 9: pass_time(); break;
    case 10: end_pipe(choice); break;
    case 11: open_pipe(1 + (choice >> 4 & 1)); break;
    case 12: narrow(choice); break;
    case 13: (void)change_epoch(); break;
    case 14: give_up(); break;
    case 15: send_big(); break;
    default: send_frame(); break;
    }
    if (choice & 128)
        settle();
}

/* -- one input ----------------------------------------------------------------------------------------------------------- */

static void open_world(uint8_t mode)
{
    pccl_config config = {.size = sizeof config, .self = id_of(0), .eager_bytes = 4096, .transport = "pipes"};
    config.sim = (pccl_sim *)&pipes; /* not looked into: nonces come from the engine's seed then */
    pipes_reset();
    REQUIRE(pccl_engine_new(&config, &w.engine) == PCCL_OK);
    configure(mode, 0, 0);
    for (int i = 0; i < 1 + (mode >> 7); i++)
        open_pipe(1);
    if (mode & 4)
        open_pipe(2);
    settle();
}

static void close_world(void)
{
    end_ops();
    engine_shutdown(w.engine);
    REQUIRE(!w.engine->stats.parked_bytes);
    end_engine();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    w = (struct world){.data = data, .left = bytes, .honest = 1};
    open_world(next8());
    for (int i = 0; w.left && i < COMMANDS_MAX; i++)
        command();
    close_world();
    return 0;
}
