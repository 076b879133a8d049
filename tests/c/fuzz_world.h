/* fuzz_world.h - what fuzz_engine.c plays with beside the engine's user: the streams of its two peers with their handshakes, on a
 * simulated network. */
#ifndef PCCL_FUZZ_WORLD_H
#define PCCL_FUZZ_WORLD_H

#include "fuzz_user.h"

enum { CHANNELS = 2 * PEERS, STREAMS = 8 };

struct side {
    struct stream *stream;
    uint32_t node;
    uint32_t channel;              /* whose numbers: the node's link, or, PEERS later, its detour */
    int proven;
    uint8_t header[WIRE_HEADER_BYTES];
    uint32_t header_bytes, skip_bytes;
};

/* Beside the world of the user. */
static struct net {
    pccl_sim *sim;
    struct transport *transports[PEERS];
    struct side sides[STREAMS];
    uint32_t next_seq[CHANNELS], ack[CHANNELS];
    uint32_t relays;               /* that the engine was asked for */
    uint32_t call;                 /* number of the last stream that the engine has called for */
} net;

static const uint8_t run_id[16] = "fuzz", key[32] = "the key of the run";

/* -- time and streams --------------------------------------------------------------------------------------------- */

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
                net.call = (uint32_t)frame.offset;
            if (wire_numbered(frame.type) && (int32_t)(frame.link_seq + 1 - net.ack[s->channel]) > 0)
                net.ack[s->channel] = frame.link_seq + 1;
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
            (void)net.transports[i]->ops->poll(net.transports[i], 0, ready, 16);
        for (uint32_t i = 0; i < STREAMS; i++)
            if (net.sides[i].proven)
                read_side(&net.sides[i]);
    } while (pccl_sim_advance(net.sim, w.now_ns) > 0);
    take_events();
}

static void pass_time(uint64_t duration_ns)
{
    uint64_t end_ns = w.now_ns + duration_ns;
    for (int turns = 0; turns < 64; turns++) {
        settle();
        uint64_t next = pccl_engine_step(w.engine, w.now_ns), due = pccl_sim_next(net.sim);
        next = next < due ? next : due;
        if (next > end_ns)
            break;
        w.now_ns = next > w.now_ns ? next : w.now_ns + 1;
        (void)pccl_sim_advance(net.sim, w.now_ns);
    }
    w.now_ns = end_ns > w.now_ns ? end_ns : w.now_ns;
    (void)pccl_sim_advance(net.sim, w.now_ns);
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
        if (!net.sides[i].stream) {
            net.sides[i] = (struct side){0};
            return &net.sides[i];
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
    if (net.transports[s->node]->ops->dial(net.transports[s->node], "sim:0", &s->stream, &sys_errno) != PCCL_OK)
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
    REQUIRE(is_hello || net.relays); /* or they are bytes that another side has put in */
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
    if (!s || net.transports[node]->ops->accept(net.transports[node], &s->stream) != PCCL_OK)
        return;
    s->node = s->channel = node;
    go_on(s, spoil_at);
}

/* A stream that the engine has called for, or one that it has not. */
static void answer_call(uint32_t node)
{
    uint8_t other = next8();
    struct side *s = free_side();
    struct hello hello = {.epoch = other ? other : net.call, .purpose = HELLO_CALLED};
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
        if (net.transports[node]->ops->accept(net.transports[node], &s->stream) != PCCL_OK)
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
    net.relays++;
    if (!shake(s, hello, 0))
        return;
    struct side *far = accept_silent(3 - node);
    if (!far)
        return;
    pass_through(s, far, next8() % 64);
    pass_through(far, s, next8() % 64);
}

#endif
