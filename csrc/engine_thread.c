/* engine_thread.c - production's wrapper: one thread that takes turns, and how long it stays awake between them. The only file that makes
 * a thread. */
#include <fenv.h>
#include <sched.h>
#include <signal.h>

#include "engine.h"
#include "err.h"

static int close_asked(pccl_engine *e)
{
    pthread_mutex_lock(&e->lock);
    int asked = e->close_asked;
    pthread_mutex_unlock(&e->lock);
    return asked;
}

/* When the thread last had something to do, and until when others want the processors. */
struct wakefulness {
    uint64_t busy_ns, crowded_until_ns;
};

/* Falling asleep and waking take longer than an answer from near does. So it looks again and again for a moment, and lets others have the
 * processor in between; but where those keep it, as a program that computes does, only who sleeps gets it back soon. */
static void look_again(struct wakefulness *w)
{
    uint64_t before_ns = pccl_now_ns();
    sched_yield();
    uint64_t after_ns = pccl_now_ns();
    if (after_ns - before_ns > CROWDED_YIELD_NS)
        w->crowded_until_ns = after_ns + CROWDED_FOR_NS;
}

static void turn(pccl_engine *e, struct wakefulness *w)
{
    uint64_t now = pccl_now_ns();
    uint64_t timeout = e->next_timer_ns == NEVER ? NEVER : e->next_timer_ns > now ? e->next_timer_ns - now : 0;
    int awake = e->ops_near && now < w->busy_ns + STAY_AWAKE_NS && now >= w->crowded_until_ns;
    if (engine_turn(e, awake ? 0 : timeout, pccl_now_ns) > 0)
        w->busy_ns = e->now_ns;
    else if (awake)
        look_again(w);
}

static void *run(void *arg)
{
    pccl_engine *e = arg;
    struct wakefulness w = {0};
    fesetenv(FE_DFL_ENV); /* rounding and denormals are inherited, and would show in the sums */
    e->now_ns = pccl_now_ns();
    while (!close_asked(e))
        turn(e, &w);
    engine_commands(e);
    engine_shutdown(e);
    pthread_mutex_lock(&e->lock);
    e->closed = 1;
    pthread_mutex_unlock(&e->lock);
    return NULL;
}

/* Signals belong to the threads of the embedding program. */
pccl_err pccl_engine_start(pccl_engine *engine)
{
    pccl_engine *e = engine;
    sigset_t all, before;
    pthread_attr_t detached;
    sigfillset(&all);
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    e->has_thread = 1;
    int failed = pthread_create(&e->thread, &detached, run, e);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&detached);
    if (failed) {
        e->has_thread = 0;
        err_set("cannot start the engine's thread");
        return PCCL_EIO;
    }
    return PCCL_OK;
}

void pccl_engine_close(pccl_engine *engine)
{
    pccl_engine *e = engine;
    pthread_mutex_lock(&e->lock);
    /* Under the lock the thread cannot have seen the request yet, so its transport is alive. */
    if (!e->close_asked && e->has_thread)
        e->ops->wake(e->transport);
    e->close_asked = 1;
    pthread_mutex_unlock(&e->lock);
}

int pccl_engine_closed(pccl_engine *engine)
{
    pccl_engine *e = engine;
    pthread_mutex_lock(&e->lock);
    int closed = !e->has_thread || e->closed;
    pthread_mutex_unlock(&e->lock);
    return closed;
}
