/* engine.c - the turn: readiness, commands, timers, sending; and the engine's beginning and end. */
#include "engine.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "err.h"

void engine_wake_at(pccl_engine *e, uint64_t at_ns)
{
    if (at_ns < e->next_timer_ns)
        e->next_timer_ns = at_ns;
}

static uint64_t splitmix(uint64_t *state)
{
    uint64_t z = (*state += 0x9E3779B97F4A7C15ULL);
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ z >> 27) * 0x94D049BB133111EBULL;
    return z ^ z >> 31;
}

/* Nonces: from the system, but from the seed in a simulation, which must replay. */
void engine_random(pccl_engine *e, uint8_t *bytes, size_t count)
{
    if (!e->config.sim) {
        ssize_t n = getrandom(bytes, count, 0);
        ASSERT(n == (ssize_t)count);
        return;
    }
    for (size_t i = 0; i < count; i++)
        bytes[i] = (uint8_t)splitmix(&e->random_state);
}

/* -- the turn -------------------------------------------------------------------------------------------------------- */

static void accept_all(pccl_engine *e)
{
    struct stream *stream;
    while (e->ops->accept(e->transport, &stream) == PCCL_OK)
        conn_accepted(e, stream);
}

/* A conn may die while another one's report is handled: conns live on until the end of the turn. */
static void take_reports(pccl_engine *e, const struct transport_ready *ready, int count)
{
    struct conn *conns[READY_CAP];
    for (int i = 0; i < count; i++)
        conns[i] = ready[i].stream ? ready[i].stream->user : NULL;
    for (int i = 0; i < count; i++) {
        if (conns[i])
            conn_on_ready(conns[i], ready[i].what);
        else if (ready[i].what & TRANSPORT_ACCEPT)
            accept_all(e);
    }
}

static void check_conns(pccl_engine *e)
{
    for (struct conn *c = e->conns; c; c = c->next) {
        if (c->state == CONN_OPEN || c->state == CONN_DEAD)
            continue;
        if (c->deadline_ns <= e->now_ns)
            conn_fail(c, PCCL_CAUSE_UNREACHABLE, ETIMEDOUT);
        else
            engine_wake_at(e, c->deadline_ns);
    }
}

static void check_deadlines(pccl_engine *e)
{
    for (struct op *op = e->ops_first; op; op = op->next) {
        if (!op->request.deadline_ns || op->told_overdue)
            continue;
        if (op->request.deadline_ns <= e->now_ns)
            op_on_overdue(op);
        else
            engine_wake_at(e, op->request.deadline_ns);
    }
}

static void run_timers(pccl_engine *e)
{
    if (e->now_ns < e->next_timer_ns)
        return;
    e->next_timer_ns = NEVER;
    for (struct link *l = e->links; l; l = l->next)
        engine_wake_at(e, link_on_time(l, e->now_ns));
    check_conns(e);
    check_deadlines(e);
    fetch_on_time(e);
    serve_on_time(e);
}

static void send_dirty(pccl_engine *e)
{
    while (e->dirty) {
        struct link *l = e->dirty;
        e->dirty = l->dirty_next;
        l->dirty = 0;
        link_pump(l);
    }
}

static void reap_conns(pccl_engine *e)
{
    if (!e->dead_conns)
        return;
    for (struct conn *c = e->conns, *next; c; c = next) {
        next = c->next;
        if (c->state == CONN_DEAD)
            conn_free(c);
    }
    e->dead_conns = 0;
}

int engine_turn(pccl_engine *e, uint64_t timeout_ns, uint64_t (*clock)(void))
{
    struct transport_ready ready[READY_CAP];
    int count = e->ops->poll(e->transport, timeout_ns, ready, READY_CAP);
    if (clock)
        e->now_ns = clock();
    /* Before what has come: who asks may know, by memory that is read while it changes or by other ways, of an offer that was made since
     * the last turn. */
    engine_commands(e);
    take_reports(e, ready, count);
    run_timers(e);
    send_dirty(e);
    line_look(e);
    reap_conns(e);
    pool_trim(&e->pool, e->now_ns);
    epoch_retire(e);
    engine_publish(e);
    return count;
}

uint64_t pccl_engine_step(pccl_engine *engine, uint64_t now_ns)
{
    pccl_engine *e = engine;
    e->now_ns = now_ns;
    while (engine_turn(e, 0, NULL) > 0)
        ;
    return e->next_timer_ns;
}

uint64_t pccl_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ULL + (uint64_t)t.tv_nsec;
}

/* -- beginning and end ----------------------------------------------------------------------------------------------- */

void engine_fail_all(pccl_engine *e, pccl_err status)
{
    while (e->ops_first)
        op_end(e->ops_first, status);
}

void engine_shutdown(pccl_engine *e)
{
    if (!e->transport)
        return;
    engine_fail_all(e, PCCL_ECLOSED);
    fetch_end_all(e, PCCL_ECLOSED);
    send_dirty(e);
    while (e->links)
        link_close(e->links);
    for (struct conn *c = e->conns; c; c = c->next)
        conn_fail(c, PCCL_CAUSE_NONE, 0);
    reap_conns(e);
    region_withdraw_all(e, PCCL_ECLOSED); /* behind the links: others are to hear that this peer is gone, not its offers */
    e->ops->close(e->transport);
    e->transport = NULL;
    engine_publish(e);
}

static pccl_err check_config(const pccl_config *config)
{
    if (config->size != sizeof *config) {
        err_set("pccl_config.size is %u, expected %zu", config->size, sizeof *config);
        return PCCL_EINVAL;
    }
    if (!memchr(config->listen, 0, sizeof config->listen) || !memchr(config->transport, 0, sizeof config->transport) ||
        !memchr(config->congestion, 0, sizeof config->congestion)) {
        err_set("a string of pccl_config is not terminated");
        return PCCL_EINVAL;
    }
    if (!transport_find(config->transport)) {
        err_set("unknown transport \"%s\"", config->transport);
        return PCCL_EINVAL;
    }
    return PCCL_OK;
}

static void set_defaults(pccl_config *config)
{
    if (!config->eager_bytes)
        config->eager_bytes = 1 << 20;
    if (!config->handshake_timeout_ns)
        config->handshake_timeout_ns = 5000 * MILLISECOND;
    if (!config->silence_ns)
        config->silence_ns = 2500 * MILLISECOND;
}

pccl_err pccl_engine_new(const pccl_config *config, pccl_engine **engine_p)
{
    pccl_err err = check_config(config);
    if (err != PCCL_OK)
        return err;
    pccl_engine *e = mem_alloc(sizeof *e);
    if (!e)
        return PCCL_ENOMEM;
    e->config = *config;
    set_defaults(&e->config);
    e->next_timer_ns = NEVER;
    memcpy(&e->random_state, config->self.bytes, sizeof e->random_state);
    e->now_ns = config->sim ? 0 : pccl_now_ns();
    e->sink = mem_alloc(LIMIT_SEGMENT_BYTES);
    e->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    pthread_mutex_init(&e->lock, NULL);
    if (!e->sink || op_table_init(&e->table) != PCCL_OK) {
        err = PCCL_ENOMEM;
        goto fail;
    }
    int sys_errno = e->event_fd < 0 ? errno : 0;
    e->ops = transport_find(config->transport);
    err = e->event_fd < 0 ? PCCL_EIO : e->ops->open(&e->config, &e->transport, &sys_errno);
    if (err != PCCL_OK) {
        if (sys_errno)
            err_set("cannot listen at \"%s\": %s", config->listen, strerror(sys_errno));
        goto fail;
    }
    *engine_p = e;
    return PCCL_OK;
fail:
    pccl_engine_free(e);
    return err;
}

void pccl_engine_free(pccl_engine *engine)
{
    pccl_engine *e = engine;
    if (!e)
        return;
    engine_shutdown(e);
    engine_commands(e);
    epoch_free_all(e);
    tombstone_forget(e, UINT32_MAX);
    op_table_free(&e->table);
    pool_drain(&e->pool);
    if (e->event_fd >= 0)
        close(e->event_fd);
    pthread_mutex_destroy(&e->lock);
    lanes_free(e);
    mem_free(e->transfers.by_id);
    mem_free(e->transfers.by_token);
    mem_free(e->events);
    mem_free(e->links_shared);
    mem_free(e->frozen_ops);
    mem_free(e->frozen_lanes);
    mem_free(e->sink);
    mem_free(e->filler);
    mem_free(e);
}

int pccl_engine_port(pccl_engine *engine)
{
    const pccl_engine *e = engine;
    return e->ops->port(e->transport);
}

int pccl_engine_event_fd(pccl_engine *engine)
{
    return (engine)->event_fd;
}

int pccl_wire_version(void)
{
    return WIRE_VERSION;
}
