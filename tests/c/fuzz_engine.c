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
        struct side *s = &net.sides[(choice + i) % STREAMS];
        if (s->stream && s->proven)
            return s;
    }
    return NULL;
}

static void send_frame(void)
{
    uint8_t which = next8(), flags = next8(), place = next8();
    struct side *s = pick_side(which >> 5);
    if (!s)
        return;
    struct frame frame = {.link_seq = net.next_seq[s->channel], .link_ack = net.ack[s->channel]};
    if (!draw_frame(&frame, s->node, which, flags, place))
        return;
    if (!(flags & ANY_NUMBER) && wire_numbered(frame.type))
        net.next_seq[s->channel]++;
    uint32_t bytes = frame.payload_bytes < WRITE_BYTES_MAX ? frame.payload_bytes : 4096;
    size_t whole = WIRE_HEADER_BYTES + (size_t)bytes;
    uint8_t *message = malloc(whole);
    REQUIRE(message != NULL);
    put_frame(&frame, s->node, flags, bytes, message);
    send_bytes(s, message, which == 255 ? whole * next8() / 256 : whole);
    free(message);
}

/* Asks the engine to dial the node. */
static void send_call(struct side *s, uint8_t number)
{
    struct frame frame = {.type = FRAME_CALL, .offset = number, .link_ack = net.ack[s->channel]};
    uint8_t message[WIRE_HEADER_BYTES];
    wire_encode(&frame, message);
    send_bytes(s, message, sizeof message);
}

/* A frame of a transfer; or a CALL, which is beside the ops as well. */
static void send_transfer_frame(void)
{
    uint8_t which = next8(), flags = next8(), place = next8(), message[WIRE_HEADER_BYTES + TRANSFER_PAYLOAD_BYTES];
    struct side *s = pick_side(which >> 5);
    if (!s)
        return;
    if ((flags & 24) == 24) {
        send_call(s, place);
        return;
    }
    struct frame frame = {.link_seq = net.next_seq[s->channel]++, .link_ack = net.ack[s->channel]};
    send_bytes(s, message, put_transfer_frame(&frame, which, flags, place, message));
}

static void begin_detour(uint32_t node)
{
    net.next_seq[PEERS + node] = net.ack[PEERS + node] = 0;
}

static void send_raw(void)
{
    uint8_t choice = next8(), count = next8(), bytes[256];
    struct side *s = &net.sides[choice % STREAMS];
    for (uint32_t i = 0; i < count; i++)
        bytes[i] = next8();
    if (s->stream)
        send_bytes(s, bytes, count);
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
            net.next_seq[node] = net.ack[node] = 0;
    }
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
    case 10: drop(&net.sides[next8() % STREAMS], choice >> 7); settle(); break;
    case 11: choice >> 6 == 3 ? answer_call(1 + (choice >> 4 & 1)) : dial(1 + (choice >> 4 & 1), choice >> 6, choice >> 5 & 1); break;
    case 12: answer(1 + (choice >> 4 & 1), choice >> 6); break;
    case 13:
        if (change_epoch())
            forget_links();
        break;
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
    REQUIRE(pccl_sim_new(1, &net.sim) == PCCL_OK);
    config.sim = net.sim;
    snprintf(config.listen, sizeof config.listen, "sim:0");
    REQUIRE(pccl_engine_new(&config, &w.engine) == PCCL_OK);
    for (uint32_t i = 1; i < PEERS; i++) {
        int sys_errno;
        snprintf(config.listen, sizeof config.listen, "sim:%u", i);
        REQUIRE(transport_find("sim")->open(&config, &net.transports[i], &sys_errno) == PCCL_OK);
    }
}

static void close_world(void)
{
    end_ops();
    for (uint32_t i = 0; i < STREAMS; i++)
        drop(&net.sides[i], 1);
    end_engine();
    for (uint32_t i = 1; i < PEERS; i++)
        net.transports[i]->ops->close(net.transports[i]);
    pccl_sim_free(net.sim);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    net = (struct net){0};
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
