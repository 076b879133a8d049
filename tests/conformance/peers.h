/* peers.h - what the files of the conformance suite share: two transports in one thread, and a loop over both.
 *
 * begin() opens a and b by the scheme of `subject`. turn() polls both, notes what was reported in the struct end behind
 * stream->user, and moves the virtual clock when nothing is ready. Whatever waits gives up when the test is late. */
#ifndef PCCL_CONFORMANCE_PEERS_H
#define PCCL_CONFORMANCE_PEERS_H

#include <sys/socket.h>
#include <sys/un.h>

#include "../../csrc/transport.h"
#include "../c/test.h"

enum { ENDS_MAX = 512, BATCH = 64, PATIENCE_S = 30, HUGE_BYTES = 32 << 20, BUFFER_BYTES = 128 << 10,
       MILLISECOND = 1000000 };

struct end {
    struct stream *stream;
    unsigned ready;                    /* reported since it was last cleared */
};

/* What is tested now. */
struct subject {
    const char *scheme;                /* as transport_find knows it */
    const char *listen;                /* tcp: where both listen */
    uint64_t fault_seed;
};

extern struct subject subject;
extern const struct transport_ops *ops;
extern struct transport *a, *b;
extern char address_b[80];
extern pccl_sim *sim;
extern struct end *accepted[ENDS_MAX]; /* by b, in order */
extern int accepted_count;
extern unsigned seen_without_stream;
extern uint8_t buffer[BUFFER_BYTES];

#define TURN_UNTIL(condition)               \
    do {                                    \
        while (!(condition) && !is_late())  \
            turn();                         \
        CHECK(condition);                   \
    } while (0)

int is_sim(void);
int is_tls(void);
int is_faulty(void);
pccl_err open_one(const char *listen, struct transport **transport_p, int *sys_errno_p);
void begin(void);
void end_close(struct end *e, int abort);
void finish(void);
/* Returns how much of what was reported is news: streams stay ready until their test does something about it. */
int poll_one(struct transport *t, uint64_t timeout_ns);
/* Polls both once; 0 when there is no news and none is on its way. */
int turn(void);
int is_late(void);
/* Turns until nothing more happens. */
void settle(void);
struct end *dial(const char *address);
/* A connection from a to b: its two ends. */
void connect_pair(struct end **dialled_p, struct end **accepted_p);
ssize_t read_some(struct end *e, void *to, size_t bytes);
ssize_t write_some(struct end *e, const void *from, size_t bytes);
/* Writes all, turning while it would block; false if the stream died. */
int write_all(struct end *e, const void *from, size_t bytes);
/* Reads until `bytes` bytes, the end or an error; returns how many. *last_p: the last answer. */
size_t read_until(struct end *e, void *to, size_t bytes, ssize_t *last_p);
void check_text(struct end *from, struct end *to, const char *text);
/* Byte number `at` of the endless test message. */
uint8_t pattern(size_t at);
size_t fill_pattern(size_t at, size_t end);
size_t wrong_bytes(size_t at, size_t bytes);
/* Writes the pattern until the stream takes no more; returns how far it came. */
size_t write_until_full(struct end *e, size_t end);
/* An address at which nobody listens any more. */
void dead_address(char *text, size_t bytes);
/* Polls when nothing should be ready; returns how long that took. */
uint64_t poll_ns(struct transport *t, uint64_t timeout_ns);
int fds_open(void);
int is_auto(void);
/* How many times memory of this transport is mapped here: one per end of an upgraded stream. */
int memories_mapped(void);
/* The abstract socket beside b's TCP port. */
socklen_t name_beside_b(struct sockaddr_un *name_p);

#endif
