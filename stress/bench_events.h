/* bench_events.h - what the engine's benchmarks have in common: they wait for events, and end at the first thing that went wrong. */
#ifndef PCCL_BENCH_EVENTS_H
#define PCCL_BENCH_EVENTS_H

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>

#include "include/pccl.h"

static inline void die_of(const char *program, const char *what)
{
    fprintf(stderr, "%s: %s: %s\n", program, what, pccl_last_error());
    exit(1);
}

/* Waits; returns how many events of the kind there were, all of them good ends. */
static inline uint32_t take_ended(const char *program, pccl_engine *engine, pccl_event_kind kind)
{
    struct pollfd fd = {.fd = pccl_engine_event_fd(engine), .events = POLLIN};
    pccl_event events[64];
    uint32_t ended = 0;
    poll(&fd, 1, -1);
    int count = pccl_engine_events(engine, events, 64);
    for (int i = 0; i < count; i++) {
        if (events[i].kind != (uint32_t)kind)
            continue;
        if (events[i].status != PCCL_OK)
            die_of(program, pccl_err_name(events[i].status));
        ended++;
    }
    return ended;
}

#endif
