/* relay.c - passes streams on between peers that have no link: what comes in on one conn goes out on its twin.
 *
 * The inward half came from a peer that proved itself and asked for a target; the outward half goes to the target or to the next
 * relay, dialled or called (call.c). Once that stands, bytes pass both ways through the halves' staging buffers, unread, and a half reads
 * again only when its twin has taken what it read before. The frames are the business of the ends. */
#include <errno.h>

#include "engine.h"
#include "err.h"

static pccl_peer_id target_of(const struct conn *inward, uint16_t *hops_p)
{
    struct hello hello;
    ASSERT(wire_decode_hello(inward->hello, &hello) == PCCL_OK);
    if (hops_p)
        *hops_p = hello.hops;
    return hello.target;
}

static void give_up(struct conn *c)
{
    conn_fail(c, PCCL_CAUSE_UNREACHABLE, EHOSTUNREACH);
}

/* To whom the way to the target goes first: itself, or the relay on our own detour. NULL: no such way. */
static const pccl_member *next_hop(const pccl_engine *e, const pccl_peer_id *target, uint16_t hops)
{
    const struct epoch *epoch;
    const pccl_member *m = epoch_member(e, target, &epoch);
    if (!m || peer_id_compare(target, &e->config.self) == 0)
        return NULL;
    if (!m->via)
        return m;
    return hops ? &epoch->members[m->via - 1] : NULL;
}

void relay_begin(struct conn *c)
{
    pccl_engine *e = c->engine;
    uint16_t hops;
    int sys_errno;
    pccl_peer_id target = target_of(c, &hops);
    const pccl_member *next = epoch_member(e, &c->peer, NULL) ? next_hop(e, &target, hops) : NULL;
    int willing = next && e->relays < LIMIT_RELAYS && !engine_defect(e, PCCL_DEFECT_NO_RELAY);
    enum conn_state state = next && peer_id_compare(&next->id, &target) == 0 ? CONN_RELAY_DIALS : CONN_DIALLING;
    struct conn *outward = willing ? conn_reach(e, &next->id, next->address, next->dial, state, &sys_errno) : NULL;
    if (!outward) {
        give_up(c);
        return;
    }
    outward->twin = c;
    outward->outward = 1;
    c->twin = outward;
    c->state = CONN_RELAY_WAITS;
    e->strangers--;
    e->relays++;
    conn_want(c, 0);
}

void relay_purpose(const struct conn *outward, struct hello *hello)
{
    uint16_t hops;
    hello->purpose = HELLO_RELAY;
    hello->target = target_of(outward->twin, &hops);
    hello->hops = (uint16_t)(hops - 1);
}

/* -- passing on ------------------------------------------------------------------------------------------------------ */

static int has_rest(const struct conn *c)
{
    return c->staging_begin < c->staging_end;
}

static void update_interest(struct conn *c)
{
    unsigned interest = has_rest(c) || c->ended ? 0 : TRANSPORT_READ;
    conn_want(c, interest | (has_rest(c->twin) ? TRANSPORT_WRITE : 0u));
}

/* While anything moves, neither half is taken for dead. */
static void note_life(struct conn *c)
{
    c->deadline_ns = c->twin->deadline_ns = c->engine->now_ns + c->engine->config.silence_ns;
}

/* Gives the twin what it takes of what was read. 0: both are gone. */
static int hand_on(struct conn *c)
{
    struct conn *to = c->twin;
    while (has_rest(c)) {
        struct iovec iov = {c->staging + c->staging_begin, c->staging_end - c->staging_begin};
        ssize_t n = c->engine->ops->writev(to->stream, &iov, 1);
        if (n == -EAGAIN || n == 0)
            return 1;
        if (n < 0) {
            conn_fail(to, PCCL_CAUSE_RESET, (int)-n);
            return 0;
        }
        c->staging_begin += (uint32_t)n;
        c->engine->stats.relayed_bytes += (uint64_t)n;
        note_life(c);
    }
    c->staging_begin = c->staging_end = 0;
    return 1;
}

/* Reads the next bytes, or the end. 0: nothing is there, or both are gone. */
static int take_in(struct conn *c)
{
    struct iovec iov = {c->staging, STAGING_BYTES};
    ssize_t n = c->engine->ops->readv(c->stream, &iov, 1);
    if (n == -EAGAIN)
        return 0;
    if (n < 0) {
        conn_fail(c, PCCL_CAUSE_RESET, (int)-n);
        return 0;
    }
    c->ended = n == 0;
    c->staging_end = (uint32_t)n;
    note_life(c);
    return 1;
}

/* Moves bytes from c to its twin until one of them takes a rest. 0: both are gone. */
static int pass_on(struct conn *c)
{
    size_t budget = READ_BUDGET_BYTES;
    for (;;) {
        if (!hand_on(c))
            return 0;
        if (has_rest(c) || !budget)
            return 1;
        if (c->ended) {
            conn_fail(c, PCCL_CAUSE_NONE, 0); /* gently: what the twin has been given still arrives */
            return 0;
        }
        if (!take_in(c))
            return c->state != CONN_DEAD;
        budget -= c->staging_end < budget ? c->staging_end : budget;
    }
}

void relay_connected(struct conn *outward)
{
    struct conn *inward = outward->twin;
    ASSERT(!has_rest(inward) && !has_rest(outward));
    inward->state = outward->state = CONN_RELAYS;
    note_life(outward);
    update_interest(inward);
    update_interest(outward);
}

void relay_turn(struct conn *c, unsigned what)
{
    if (c->state == CONN_RELAY_DIALS && (what & TRANSPORT_WRITE))
        relay_connected(c); /* or the dial has failed: the first read will tell */
    if (c->state != CONN_RELAYS)
        return;
    struct conn *twin = c->twin;
    if ((what & TRANSPORT_READ) && !pass_on(c))
        return;
    if ((what & TRANSPORT_WRITE) && !pass_on(twin))
        return;
    update_interest(c);
    update_interest(twin);
}

void relay_part(struct conn *c)
{
    struct conn *twin = c->twin;
    if (!twin)
        return;
    c->twin = twin->twin = NULL;
    c->engine->relays--;
}

void relay_drop_strangers(pccl_engine *e)
{
    for (struct conn *c = e->conns, *next; c; c = next) {
        next = c->next;
        if (!c->twin || c->outward)
            continue;
        pccl_peer_id target = target_of(c, NULL);
        if (!epoch_member(e, &c->peer, NULL) || !epoch_member(e, &target, NULL))
            conn_fail(c, PCCL_CAUSE_NONE, 0);
    }
}
