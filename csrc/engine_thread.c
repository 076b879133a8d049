/* engine_thread.c - production's wrapper: one thread that takes turns. The only file that makes a thread. */
#include <fenv.h>
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

static void *run(void *arg)
{
    pccl_engine *e = arg;
    fesetenv(FE_DFL_ENV); /* rounding and denormals are inherited, and would show in the sums */
    e->now_ns = pccl_now_ns();
    while (!close_asked(e)) {
        uint64_t now = pccl_now_ns();
        uint64_t timeout = e->next_timer_ns == NEVER ? NEVER : e->next_timer_ns > now ? e->next_timer_ns - now : 0;
        engine_turn(e, timeout, pccl_now_ns);
    }
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
