/* link.c - the Link state machine: dialling, the first and the last stream, timers, and the end.
 *
 * A detour is a link whose streams are dialled through a relay (relay.c); nobody is told when it comes and goes.
 * Who dials is decided elsewhere (pccl_member.dial), and a later epoch may turn it round; the other side waits. A link that lost all its streams is BROKEN: the
 * dialler tries again at once and then with growing pauses, and every worse cause is reported once per outage, because a
 * refused dial tells the coordinator more than an end of file does: that nobody is there any more. So the side that
 * waits dials too, only to see whether the peer answers. */
#include "link.h"

#include <string.h>

#include "engine.h"
#include "err.h"

/* Rows: state; columns: WANTED, STREAM_OPEN, STREAMS_GONE, UNWANTED. */
static const enum link_state transitions[LINK_STATE_COUNT][LINK_INPUT_COUNT] = {
    [LINK_IDLE] = {LINK_CONNECTING, LINK_UP, LINK_IDLE, LINK_CLOSED},
    [LINK_CONNECTING] = {LINK_CONNECTING, LINK_UP, LINK_CONNECTING, LINK_CLOSED},
    [LINK_UP] = {LINK_UP, LINK_UP, LINK_BROKEN, LINK_CLOSED},
    [LINK_BROKEN] = {LINK_BROKEN, LINK_UP, LINK_BROKEN, LINK_CLOSED},
    [LINK_CLOSED] = {LINK_CLOSED, LINK_CLOSED, LINK_CLOSED, LINK_CLOSED},
};

const char *link_state_name(enum link_state state)
{
    static const char *const names[] = {"idle", "connecting", "up", "broken", "closed"};
    return state < LINK_STATE_COUNT ? names[state] : "?";
}

static void input(struct link *l, enum link_input in)
{
    l->state = transitions[l->state][in];
}

struct link *link_find(pccl_engine *e, const pccl_peer_id *id, uint32_t detour_epoch)
{
    for (struct link *l = e->links; l; l = l->next)
        if (peer_id_compare(&l->id, id) == 0 && l->detour_epoch == detour_epoch)
            return l;
    return NULL;
}

void link_mark_dirty(struct link *l)
{
    if (l->dirty)
        return;
    l->dirty = 1;
    l->dirty_next = l->engine->dirty;
    l->engine->dirty = l;
}

static void report(struct link *l, uint32_t kind, pccl_cause cause, int sys_errno)
{
    pccl_event event = {.kind = kind, .peer = l->id, .cause = (int32_t)cause, .sys_errno = sys_errno,
                        .epoch = epoch_newest(l->engine)};
    if (!l->detour_epoch)
        engine_emit(l->engine, &event);
}

/* -- connecting ------------------------------------------------------------------------------------------------- */

static void report_down(struct link *l, pccl_cause cause, int sys_errno)
{
    if (l->told == cause || l->told == PCCL_CAUSE_REFUSED)
        return;
    l->told = cause;
    report(l, PCCL_EVENT_LINK_DOWN, cause, sys_errno);
}

static void dial_later(struct link *l)
{
    if (l->redial_at_ns != NEVER)
        return;
    l->redial_at_ns = l->engine->now_ns + l->redial_after_ns;
    l->redial_after_ns = l->redial_after_ns ? 2 * l->redial_after_ns : REDIAL_FIRST_NS;
    if (l->redial_after_ns > REDIAL_MAX_NS)
        l->redial_after_ns = REDIAL_MAX_NS;
    engine_wake_at(l->engine, l->redial_at_ns);
}

static struct conn *dial(struct link *l, uint32_t index, int *sys_errno_p)
{
    const pccl_peer_id *whom = l->detour_epoch ? &l->via : &l->id;
    struct conn *c = conn_reach(l->engine, whom, l->address, !l->detour_epoch || l->dial_via, CONN_DIALLING, sys_errno_p);
    if (c) {
        c->link = l;
        c->index = index;
    }
    return c;
}

/* A stream that is broken off as soon as the peer has answered; nothing to learn once a dial was refused. */
static void check_peer(struct link *l)
{
    int sys_errno = 0;
    if (l->state != LINK_BROKEN || l->check || l->told == PCCL_CAUSE_REFUSED || l->detour_epoch)
        return;
    l->check = dial(l, 0, &sys_errno);
    if (l->check)
        return;
    report_down(l, PCCL_CAUSE_UNREACHABLE, sys_errno);
    dial_later(l);
}

static void check_ended(struct link *l, pccl_cause cause, int sys_errno)
{
    l->check = NULL;
    if (l->state != LINK_BROKEN)
        return;
    if (cause != PCCL_CAUSE_NONE)
        report_down(l, cause, sys_errno);
    dial_later(l);
}

static void dial_missing(struct link *l)
{
    l->redial_at_ns = NEVER;
    if (!l->dial)
        check_peer(l);
    for (uint32_t i = 0; l->dial && i < l->streams; i++) {
        int sys_errno = 0;
        if (l->conns[i])
            continue;
        l->conns[i] = dial(l, i, &sys_errno);
        if (l->conns[i])
            continue;
        if (!l->open)
            report_down(l, PCCL_CAUSE_UNREACHABLE, sys_errno);
        dial_later(l);
        return;
    }
}

static void adopt_strangers(struct link *l)
{
    for (struct conn *c = l->engine->conns, *next; c; c = next) {
        next = c->next;
        if (c->state == CONN_STRANGER && peer_id_compare(&c->peer, &l->id) == 0 && c->detour_epoch == l->detour_epoch)
            conn_meet(c, l);
    }
}

static struct link *link_new(pccl_engine *e, const pccl_member *member, uint32_t streams)
{
    struct link *l = mem_alloc(sizeof *l);
    struct slot *slots = mem_alloc(WINDOW_FRAMES * sizeof *slots);
    if (!l || !slots) {
        mem_free(l);
        mem_free(slots);
        return NULL;
    }
    l->engine = e;
    l->id = member->id;
    memcpy(l->address, member->address, sizeof l->address);
    l->address[sizeof l->address - 1] = 0;
    l->dial = member->dial;
    l->incarnation = member->incarnation;
    l->streams = l->wanted = streams;
    l->slots = slots;
    l->redial_at_ns = l->ack_at_ns = l->look_at_ns = l->tail_at_ns = NEVER;
    l->last_received_ns = e->now_ns;
    l->ping_at_ns = e->now_ns + PING_EVERY_NS;
    engine_wake_at(e, l->ping_at_ns);
    l->next = e->links;
    e->links = l;
    return l;
}

/* A plan with fewer streams leaves the others open, and idle. */
static void choose_used(struct link *l)
{
    l->used = 0;
    l->in_memory = !l->detour_epoch;
    for (uint32_t i = 0; i < l->streams; i++) {
        struct conn *c = l->conns[i];
        if (c && c->state == CONN_OPEN)
            c->used = l->used < l->wanted;
        l->used += c && c->state == CONN_OPEN && c->used;
        if (c && c->state == CONN_OPEN && c->used)
            l->in_memory &= c->in_memory;
    }
    l->meter.pace = 0;
    meter_pace(l);
}

static void connect(struct link *l)
{
    input(l, LINK_WANTED);
    adopt_strangers(l);
    dial_missing(l);
}

/* The other side dials from now on, or this one: dials under way, which may never be answered, make room. */
static void turn(struct link *l)
{
    l->dial = !l->dial;
    for (uint32_t i = 0; i < l->streams; i++)
        if (l->conns[i] && l->conns[i]->state != CONN_OPEN)
            conn_fail(l->conns[i], PCCL_CAUSE_NONE, 0);
    if (l->check)
        conn_fail(l->check, PCCL_CAUSE_NONE, 0);
    l->told = PCCL_CAUSE_NONE;
    l->redial_after_ns = 0;
    dial_missing(l);
}

struct link *link_want(pccl_engine *e, const pccl_member *member, uint32_t streams)
{
    struct link *l = link_find(e, &member->id, 0);
    if (!l) {
        l = link_new(e, member, streams);
        if (!l)
            return NULL;
        connect(l);
        return l;
    }
    if (l->dial != member->dial)
        turn(l);
    l->wanted = streams;
    choose_used(l);
    if (streams > l->streams) {
        l->streams = streams;
        dial_missing(l);
    }
    return l;
}

struct link *link_want_detour(pccl_engine *e, const pccl_member *member, const pccl_member *via, uint32_t epoch,
                              uint32_t streams)
{
    struct link *l = link_new(e, member, streams);
    if (!l)
        return NULL;
    l->detour_epoch = epoch;
    l->via = via->id;
    l->dial_via = via->dial;
    memcpy(l->address, via->address, sizeof l->address);
    connect(l);
    return l;
}

int link_is_drained(const struct link *l)
{
    return l->send_acked == l->send_next && !l->notice_count && queues_empty(l);
}

/* -- streams ----------------------------------------------------------------------------------------------------- */

void link_stream_open(struct link *l, struct conn *c)
{
    struct stream_info info;
    l->engine->ops->info(c->stream, &info);
    c->in_memory = info.in_memory;
    l->last_received_ns = l->engine->now_ns;
    l->redial_after_ns = 0;
    l->told = PCCL_CAUSE_NONE;
    input(l, LINK_STREAM_OPEN);
    l->stream_changes++;
    if (l->open++ == 0)
        report(l, PCCL_EVENT_LINK_UP, PCCL_CAUSE_NONE, 0);
    choose_used(l);
    l->ack_now = 1;
    link_mark_dirty(l);
}

static uint32_t count_open(const struct link *l)
{
    uint32_t open = 0;
    for (uint32_t i = 0; i < l->streams; i++)
        open += l->conns[i] && l->conns[i]->state == CONN_OPEN;
    return open;
}

void link_stream_lost(struct link *l, struct conn *c, pccl_cause cause, int sys_errno)
{
    if (c == l->check) {
        check_ended(l, cause, sys_errno);
        return;
    }
    ASSERT(l->conns[c->index] == c);
    uint32_t before = l->open;
    l->conns[c->index] = NULL;
    l->stream_changes++;
    l->open = count_open(l);
    choose_used(l);
    if (l->state == LINK_CLOSED)
        return;
    if (!l->open) {
        if (before)
            input(l, LINK_STREAMS_GONE);
        if (cause != PCCL_CAUSE_NONE)
            report_down(l, cause, sys_errno);
    }
    if (l->dial || !l->open)
        dial_later(l);
    link_mark_dirty(l);
}

void link_close(struct link *l)
{
    pccl_engine *e = l->engine;
    input(l, LINK_UNWANTED);
    for (uint32_t i = 0; i < LIMIT_STREAMS; i++)
        if (l->conns[i])
            conn_fail(l->conns[i], PCCL_CAUSE_NONE, 0);
    if (l->check)
        conn_fail(l->check, PCCL_CAUSE_NONE, 0);
    fetch_link_closed(l);
    serve_link_closed(l);
    ASSERT(queues_empty(l));
    link_drop_parked(l, UINT32_MAX);
    struct link **at = &e->links;
    while (*at != l)
        at = &(*at)->next;
    *at = l->next;
    for (at = &e->dirty; *at; at = &(*at)->dirty_next)
        if (*at == l) {
            *at = l->dirty_next;
            break;
        }
    mem_free(l->slots);
    mem_free(l->notices);
    mem_free(l);
}

/* -- time and sending ------------------------------------------------------------------------------------------------ */

/* Nothing came for so long that the streams must be taken for dead. */
static void on_silence(struct link *l)
{
    report_down(l, PCCL_CAUSE_SILENT, 0);
    for (uint32_t i = 0; i < l->streams; i++)
        if (l->conns[i] && l->conns[i]->state == CONN_OPEN)
            conn_fail(l->conns[i], PCCL_CAUSE_SILENT, 0);
}

uint64_t link_on_time(struct link *l, uint64_t now_ns)
{
    if (l->redial_at_ns <= now_ns)
        dial_missing(l);
    if (l->ack_at_ns <= now_ns) {
        l->ack_at_ns = NEVER;
        l->ack_now = 1;
        link_mark_dirty(l);
    }
    if (l->open && l->last_received_ns + l->engine->config.silence_ns <= now_ns)
        on_silence(l);
    if (l->ping_at_ns <= now_ns) {
        l->ping_at_ns = now_ns + PING_EVERY_NS;
        l->ping_now = l->open != 0;
        meter_ask(l);
        if (l->ping_now)
            link_mark_dirty(l);
    }
    if (l->look_at_ns <= now_ns) {
        l->look_at_ns = NEVER;
        link_mark_dirty(l);
    }
    if (l->tail_at_ns <= now_ns) {
        l->tail_at_ns = NEVER;
        link_mark_dirty(l);
    }
    uint64_t next = l->ping_at_ns < l->look_at_ns ? l->ping_at_ns : l->look_at_ns;
    next = l->redial_at_ns < next ? l->redial_at_ns : next;
    next = l->tail_at_ns < next ? l->tail_at_ns : next;
    return l->ack_at_ns < next ? l->ack_at_ns : next;
}

static int all_blocked(const struct link *l)
{
    for (uint32_t i = 0; i < l->streams; i++)
        if (l->conns[i] && l->conns[i]->state == CONN_OPEN && l->conns[i]->used && !l->conns[i]->blocked)
            return 0;
    return l->open != 0;
}

/* Streams take turns with what has a payload, so that of frames that come one by one those behind a lost packet are few. */
void link_pump(struct link *l)
{
    probe_look(l);
    meter_look(l);
    tail_look(l);
    uint32_t first = l->next_conn, took = l->streams;
    for (uint32_t i = 0; i < l->streams && l->open; i++) {
        uint32_t place = (first + i) % l->streams;
        struct conn *c = l->conns[place];
        if (!c || c->state != CONN_OPEN || c->blocked || !(c->out_count || link_wants_to_send(l)))
            continue;
        uint64_t handed_bytes = c->handed_bytes;
        conn_pump(c);
        if (took == l->streams && c->handed_bytes - handed_bytes > WIRE_HEADER_BYTES)
            took = place;
    }
    if (took < l->streams)
        l->next_conn = (took + 1) % l->streams;
    meter_sent(l, link_wants_to_send(l) && (l->meter.room_bytes <= 0 || all_blocked(l)));
}
