/* loss_meter.h - what a path loses again and again, apart from what an overfull queue loses at once (loss_meter.c). */
#ifndef PCCL_LOSS_METER_H
#define PCCL_LOSS_METER_H

#include <stdint.h>

enum { LOSS_ROUNDS = 64 };

struct loss_meter {
    uint64_t begin_ns;         /* of the round; 0: none yet */
    uint64_t packets, again;   /* sent, and sent again, on all streams until then */
    uint32_t rounds;           /* that have ended, ever */
    uint32_t sent[LOSS_ROUNDS], lost[LOSS_ROUNDS];  /* rings: of the last rounds */
    int is_known;
    uint32_t ppm;              /* parts per million, once it is known */
};

/* Counts: `packets` and `again` are of all streams since each was opened. A round takes `round_ns` at least. */
void loss_count(struct loss_meter *m, uint64_t now_ns, uint64_t round_ns, uint64_t packets, uint64_t again);

#endif
