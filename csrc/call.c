/* call.c - streams to a neighbour that only the neighbour can dial.
 *
 * Of two neighbours one dials (pccl_member.dial). If the other one needs a further stream, for a detour or to pass somebody's on, it
 * calls: a conn waits without a stream, and a CALL frame with its number goes over the link. The neighbour dials, proves itself,
 * names the number, and from then on is an acceptor like any other; the stream is given to the conn that waits, which goes on as
 * if it had dialled. A call that is lost with its stream, or not answered, ends like a dial that is not answered. */
#include <errno.h>

#include "engine.h"
#include "err.h"

static struct conn *call(pccl_engine *e, const pccl_peer_id *peer, enum conn_state state, int *sys_errno_p)
{
    struct link *l = link_find(e, peer, 0);
    *sys_errno_p = EHOSTUNREACH;
    if (!l || !l->open)
        return NULL;
    struct conn *c = conn_waiting(e, peer, state);
    *sys_errno_p = ENOMEM;
    if (c) {
        l->call_now = 1;
        link_mark_dirty(l);
    }
    return c;
}

struct conn *conn_reach(pccl_engine *e, const pccl_peer_id *peer, const char *address, int dial, enum conn_state state,
                        int *sys_errno_p)
{
    if (!dial)
        return call(e, peer, state, sys_errno_p);
    struct conn *c = conn_dial(e, address, peer, sys_errno_p);
    if (c)
        c->state = state;
    return c;
}

struct conn *call_next(const pccl_engine *e, const pccl_peer_id *peer)
{
    for (struct conn *c = e->conns; c; c = c->next)
        if (c->state == CONN_CALLS && !c->asked && peer_id_compare(&c->peer, peer) == 0)
            return c;
    return NULL;
}

void call_answer(struct link *l, uint64_t number)
{
    pccl_engine *e = l->engine;
    int sys_errno;
    if (l->detour_epoch || number == 0 || number > UINT32_MAX || e->strangers >= LIMIT_STRANGERS)
        return;
    struct conn *c = conn_dial(e, l->address, &l->id, &sys_errno);
    if (!c)
        return;
    c->call = (uint32_t)number;
    e->strangers++;
}

void call_hand_over(struct conn *c)
{
    c->call = 0;
    c->state = CONN_WANT_HELLO;
}

/* `c` is left without its stream, and dead. */
static void take_stream(struct conn *waiting, struct conn *c)
{
    waiting->stream = c->stream;
    waiting->stream->user = waiting;
    waiting->interest = c->interest;
    c->stream = NULL;
    conn_fail(c, PCCL_CAUSE_NONE, 0);
    waiting->state = waiting->answered;
    conn_on_ready(waiting, TRANSPORT_WRITE);
}

void call_answered(struct conn *c, uint32_t number)
{
    for (struct conn *waiting = c->engine->conns; waiting; waiting = waiting->next)
        if (waiting->state == CONN_CALLS && waiting->serial == number && peer_id_compare(&waiting->peer, &c->peer) == 0) {
            take_stream(waiting, c);
            return;
        }
    conn_fail(c, PCCL_CAUSE_NONE, 0);
}
