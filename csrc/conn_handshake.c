/* conn_handshake.c - HELLO, CHALLENGE, PROOF, READY: who are you, and do you know the run's secret?
 *
 * Linear on purpose: each side sends one message of fixed size, then waits for one. Until the other side has proved
 * itself it costs us one small conn and nothing else. */
#include <errno.h>
#include <string.h>

#include "engine.h"
#include "err.h"
#include "sha256.h"

static void send_later(struct conn *c, const uint8_t *message, uint32_t bytes)
{
    memcpy(c->hand_out, message, bytes);
    c->hand_out_bytes = bytes;
    c->hand_out_sent = 0;
}

static void refuse_because(struct conn *c, pccl_err why, const char *reason)
{
    pccl_event event = {.kind = PCCL_EVENT_REFUSED, .status = (int32_t)why, .cause = (int32_t)why, .peer = c->peer};
    struct stream_info info;
    c->engine->ops->info(c->stream, &info);
    engine_refused(c->engine, &event, info.remote, reason ? reason : info.refusal);
    conn_fail(c, PCCL_CAUSE_PROTOCOL, 0);
}

/* The first bytes of a TLS record: a handshake (22) or an alert (21), of version 3.x. */
static int is_tls(const uint8_t *bytes)
{
    return (bytes[0] == 22 || bytes[0] == 21) && bytes[1] == 3;
}

static void refuse(struct conn *c, pccl_err why)
{
    const char *reason = why == PCCL_EAUTH ? "it does not know the run's secret" : "its handshake is not of this run";
    refuse_because(c, why, reason);
}

/* Before it has said a word of ours. */
static int refuse_tls(struct conn *c, const uint8_t *bytes, uint32_t count)
{
    if (count < 2 || !is_tls(bytes) || (c->state != CONN_WANT_HELLO && c->state != CONN_WANT_CHALLENGE))
        return 0;
    refuse_because(c, PCCL_EAUTH, "it speaks TLS and we do not: all peers of a run must use the same transport");
    return 1;
}

/* On a detour: are we still speaking to the relay? */
static int before_relay(const struct conn *c)
{
    return c->link->detour_epoch && peer_id_compare(&c->peer, &c->link->id) != 0;
}

static void set_purpose(const struct conn *c, struct hello *hello)
{
    if (c->call) {
        hello->purpose = HELLO_CALLED;
        hello->epoch = c->call;
    } else if (c->twin) {
        relay_purpose(c, hello);
    } else if (before_relay(c)) {
        hello->purpose = HELLO_RELAY;
        hello->target = c->link->id;
        hello->hops = LIMIT_HOPS;
    } else if (c->link->detour_epoch) {
        hello->purpose = HELLO_RELAYED;
        hello->epoch = c->link->detour_epoch;
    } else {
        hello->incarnation = c->link->incarnation;
    }
}

void handshake_begin(struct conn *c)
{
    pccl_engine *e = c->engine;
    struct hello hello = {
        .dialler = e->config.self, .acceptor = c->peer, .epoch = epoch_newest(e),
        .stream = c->index, .streams = c->link ? c->link->streams : 1,
    };
    set_purpose(c, &hello);
    memcpy(hello.run, e->config.run, sizeof hello.run);
    engine_random(e, hello.nonce, sizeof hello.nonce);
    wire_encode_hello(&hello, c->hello);
    send_later(c, c->hello, WIRE_HELLO_BYTES);
    c->state = CONN_WANT_CHALLENGE;
}

static void on_challenge(struct conn *c, const uint8_t *message)
{
    uint8_t nonce[32], mac[32], expected[32], proof[WIRE_PROOF_BYTES];
    if (wire_decode_challenge(message, nonce, mac) != PCCL_OK) {
        refuse(c, PCCL_EPROTO);
        return;
    }
    wire_acceptor_mac(c->engine->config.key, c->hello, nonce, expected);
    if (!bytes_equal(mac, expected, 32)) {
        refuse(c, PCCL_EAUTH);
        return;
    }
    if (c->link && c == c->link->check) {
        conn_fail(c, PCCL_CAUSE_NONE, 0);
        return;
    }
    wire_dialler_mac(c->engine->config.key, c->hello, message, mac);
    wire_encode_proof(mac, proof);
    send_later(c, proof, WIRE_PROOF_BYTES);
    c->state = CONN_WANT_READY;
}

static void on_ready_message(struct conn *c, const uint8_t *message)
{
    if (wire_decode_ready(message) != PCCL_OK) {
        refuse(c, PCCL_EPROTO);
        return;
    }
    if (c->call) {
        call_hand_over(c);
    } else if (c->twin) {
        relay_connected(c);
    } else if (before_relay(c)) {
        c->peer = c->link->id;
        handshake_begin(c);
    } else {
        conn_stands(c);
    }
}

static void on_hello(struct conn *c, const uint8_t *message)
{
    pccl_engine *e = c->engine;
    struct hello hello;
    if (refuse_tls(c, message, WIRE_HELLO_BYTES))
        return;
    if (wire_decode_hello(message, &hello) != PCCL_OK || memcmp(hello.run, e->config.run, 16) != 0 ||
        peer_id_compare(&hello.acceptor, &e->config.self) != 0 || hello.streams > LIMIT_STREAMS ||
        peer_id_compare(&hello.dialler, &e->config.self) == 0) {
        refuse(c, PCCL_EPROTO);
        return;
    }
    uint8_t nonce[32], mac[32];
    memcpy(c->hello, message, WIRE_HELLO_BYTES);
    c->peer = hello.dialler;
    engine_random(e, nonce, sizeof nonce);
    wire_acceptor_mac(e->config.key, c->hello, nonce, mac);
    wire_encode_challenge(nonce, mac, c->challenge);
    send_later(c, c->challenge, WIRE_CHALLENGE_BYTES);
    c->state = CONN_WANT_PROOF;
}

static void on_proof(struct conn *c, const uint8_t *message)
{
    pccl_engine *e = c->engine;
    uint8_t mac[32], expected[32], ready[WIRE_READY_BYTES];
    wire_dialler_mac(e->config.key, c->hello, c->challenge, expected);
    if (wire_decode_proof(message, mac) != PCCL_OK || !bytes_equal(mac, expected, 32)) {
        refuse(c, PCCL_EAUTH);
        return;
    }
    wire_encode_ready(ready);
    send_later(c, ready, WIRE_READY_BYTES);
    c->state = CONN_PROVEN;
}

/* The READY has left: the stream is passed on, or joins its link, or waits for one. */
static void proven(struct conn *c)
{
    struct hello hello;
    ASSERT(wire_decode_hello(c->hello, &hello) == PCCL_OK);
    if (hello.purpose == HELLO_RELAY) {
        relay_begin(c);
        return;
    }
    if (hello.purpose == HELLO_CALLED) {
        call_answered(c, hello.epoch);
        return;
    }
    c->index = hello.stream;
    c->detour_epoch = hello.purpose == HELLO_RELAYED ? hello.epoch : 0;
    c->incarnation = hello.incarnation;
    struct link *l = link_find(c->engine, &c->peer, c->detour_epoch);
    if (l) {
        conn_meet(c, l);
    } else if (c->detour_epoch && c->detour_epoch < epoch_oldest(c->engine)) {
        conn_fail(c, PCCL_CAUSE_NONE, 0);
    } else {
        c->state = CONN_STRANGER;
        conn_want(c, 0);
    }
}

static uint32_t expected_bytes(enum conn_state state)
{
    switch (state) {
    case CONN_WANT_CHALLENGE: return WIRE_CHALLENGE_BYTES;
    case CONN_WANT_READY: return WIRE_READY_BYTES;
    case CONN_WANT_HELLO: return WIRE_HELLO_BYTES;
    case CONN_WANT_PROOF: return WIRE_PROOF_BYTES;
    default: return 0;
    }
}

static void on_message(struct conn *c, const uint8_t *message)
{
    switch (c->state) {
    case CONN_WANT_CHALLENGE: on_challenge(c, message); break;
    case CONN_WANT_READY: on_ready_message(c, message); break;
    case CONN_WANT_HELLO: on_hello(c, message); break;
    case CONN_WANT_PROOF: on_proof(c, message); break;
    default: break;
    }
}

static int in_handshake(const struct conn *c)
{
    return c->state <= CONN_PROVEN;
}

/* Sends what is left of our message. 1: all of it is out. */
static int flush(struct conn *c)
{
    if (!in_handshake(c))
        return 0;
    while (c->hand_out_sent < c->hand_out_bytes) {
        struct iovec iov = {c->hand_out + c->hand_out_sent, c->hand_out_bytes - c->hand_out_sent};
        ssize_t n = c->engine->ops->writev(c->stream, &iov, 1);
        if (n == -EAGAIN || n == 0)
            return 0;
        if (n == -EACCES) {
            refuse_because(c, PCCL_EAUTH, NULL);
            return 0;
        }
        if (n < 0) {
            conn_fail(c, n == -ECONNREFUSED ? PCCL_CAUSE_REFUSED : PCCL_CAUSE_UNREACHABLE, (int)-n);
            return 0;
        }
        c->hand_out_sent += (uint32_t)n;
    }
    c->hand_out_bytes = c->hand_out_sent = 0;
    return 1;
}

/* Reads exactly the message that is due. 1: it is there. */
static int read_message(struct conn *c, uint32_t bytes)
{
    while (c->staging_end < bytes) {
        struct iovec iov = {c->staging + c->staging_end, bytes - c->staging_end};
        ssize_t n = c->engine->ops->readv(c->stream, &iov, 1);
        if (n == -EAGAIN)
            return 0;
        if (n == -EACCES) {
            refuse_because(c, PCCL_EAUTH, NULL);
            return 0;
        }
        if (n <= 0 && refuse_tls(c, c->staging, c->staging_end))
            return 0;
        if (n <= 0) {
            pccl_cause cause = n == -ECONNREFUSED ? PCCL_CAUSE_REFUSED : n == 0 ? PCCL_CAUSE_EOF : PCCL_CAUSE_RESET;
            conn_fail(c, cause, (int)-n);
            return 0;
        }
        c->staging_end += (uint32_t)n;
    }
    c->staging_end = 0;
    return 1;
}

void handshake_turn(struct conn *c, unsigned what)
{
    if (c->state == CONN_DIALLING) {
        if (!(what & TRANSPORT_WRITE))
            return;
        handshake_begin(c);
    }
    while (flush(c)) {
        if (c->state == CONN_PROVEN) {
            proven(c);
            break;
        }
        uint32_t bytes = expected_bytes(c->state);
        if (!bytes || !read_message(c, bytes))
            break;
        on_message(c, c->staging);
    }
    if (in_handshake(c))
        conn_want(c, TRANSPORT_READ | (c->hand_out_bytes ? TRANSPORT_WRITE : 0u));
}
