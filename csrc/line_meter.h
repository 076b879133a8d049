/* line_meter.h - what this peer's own line carries, learned from what its long links carry together (line_meter.c). */
#ifndef PCCL_LINE_METER_H
#define PCCL_LINE_METER_H

#include <stdint.h>

enum {
    LINE_SAMPLES = 24,         /* of the line: so many windows count in which links contended for it */
    LINE_TOTALS = 64           /* of what all links carried together, whatever the reason */
};

/* Sums over all long links, in bytes per second; a ring of the last ones. */
struct line_totals {
    uint64_t totals[LINE_TOTALS];
    uint32_t count;            /* taken since the beginning */
};

/* What was learned so far. */
struct line_meter {
    uint64_t begin_ns, end_ns; /* of the window; begin 0: none */
    uint64_t rtt_ns;           /* of the slowest long link, at its begin */
    struct line_totals sent, received;
    uint64_t samples[LINE_SAMPLES];  /* a ring: bytes per second */
    uint64_t bests[LINE_SAMPLES];    /* of each: what the links had been seen to carry by themselves, in all; 0: it proves nothing */
    uint32_t sample_count;     /* taken since the beginning */
    uint64_t up_bytes_per_s, down_bytes_per_s;  /* 0: not known */
    uint64_t went_up_bytes_per_s, went_down_bytes_per_s;  /* all links together, when they carried much */
};

/* What one link did in a window. */
struct line_share {
    uint64_t sent_bytes;       /* that arrived at the other side */
    uint64_t received_bytes;
    uint64_t best_bytes_per_s; /* that it was seen to carry lately */
    int saturated;             /* had more to send than it could, in the window and a round trip before; and is known */
};

/* Takes what all long links did in a window of so long. */
void line_take(struct line_meter *m, const struct line_share *shares, uint32_t count, uint64_t ns);

struct pccl_engine;
struct link;
/* Once in every turn: looks whether a window is over. Never wakes the engine. */
void line_look(struct pccl_engine *e);

/* Whether it is one of those that may share the line. */
int line_is_long(const struct link *l);

/* line_share.c: bytes per second that a link may send at most, so that those beside it on the line get on; UINT64_MAX: any. */
uint64_t line_share(const struct link *l);

#endif
