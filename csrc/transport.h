/* transport.h - what moves bytes: the contract between the engine and transports/.
 *
 * A transport gives non-blocking, ordered, reliable byte streams between addresses, and tells which of them are
 * ready. The engine knows no other thing about it; csrc/ names no transport except by the string in pccl_config
 * (transport_find). All functions except wake are called on the engine's thread only; none blocks, except poll for
 * at most its time-out.
 *
 * Readiness is level-triggered against the interest set with want: poll reports a stream as readable while bytes, the
 * end or an error wait to be read, and as writable while it would take bytes. A dialled stream first becomes writable
 * when it is connected, or readable|writable when the dial failed: the next readv or writev then gives the error.
 *
 * A transport that demands more of the other side than bytes ends a stream with -EACCES when it has not got it; info then
 * says why.
 *
 * Ends: close() is idempotent per stream, frees it, never blocks, and poll never reports a closed stream again, not
 * even from a batch that poll has already begun to return. */
#ifndef PCCL_TRANSPORT_H
#define PCCL_TRANSPORT_H

#include <sys/uio.h>

#include "include/pccl.h"

struct transport;
struct stream;

enum { TRANSPORT_READ = 1, TRANSPORT_WRITE = 2, TRANSPORT_ACCEPT = 4, TRANSPORT_WAKE = 8 };

struct transport_ready {
    struct stream *stream;     /* NULL for ACCEPT (call accept until EAGAIN) and for WAKE */
    unsigned what;             /* TRANSPORT_* */
};

enum { STREAM_REFUSAL_BYTES = 160 };

struct stream_info {
    uint64_t rtt_us;           /* the least of late, by the transport's own measurement; 0: none */
    uint64_t rtt_now_us;       /* what it has become behind what is queued on the way; 0: the transport does not tell */
    uint64_t held_bytes;       /* taken from us, and not known to have arrived */
    uint64_t behind_gap_bytes; /* arrived, but kept from the other side until what was lost before them is there */
    uint64_t packets, packets_again;  /* sent so far, and sent again so far; 0: the transport does not tell */
    char remote[80];           /* "host:port" */
    char host[56];             /* of the machine at the other end; "": no machine can be told from another */
    int in_memory;             /* 1: bytes go through memory of this machine only: frames need no checksum of their payload */
    char refusal[STREAM_REFUSAL_BYTES]; /* after -EACCES: why, for people */
};

struct transport_ops {
    const char *scheme;
    int seals;                 /* 1: what readv gives has been verified with a key: frames need no checksum of their payload */
    /* Makes a transport and listens at config->listen. On failure *sys_errno_p says why; 0: err_set has said it. */
    pccl_err (*open)(const pccl_config *config, struct transport **transport_p, int *sys_errno_p);
    /* Every stream must have been closed. May wait a moment (1 s at most) until what they had taken has left. */
    void (*close)(struct transport *t);
    int (*port)(const struct transport *t);
    /* Begins to connect. PCCL_EIO at once, with *sys_errno_p, is as good as an error at the first readiness. */
    pccl_err (*dial)(struct transport *t, const char *address, struct stream **stream_p, int *sys_errno_p);
    /* PCCL_OK with a stream, or PCCL_EAGAIN. Errors of single connections are swallowed (counted by nobody). */
    pccl_err (*accept)(struct transport *t, struct stream **stream_p);
    /* > 0 bytes moved; 0: end of stream (readv only); -errno: -EAGAIN, or the stream is dead. */
    ssize_t (*readv)(struct stream *s, const struct iovec *iov, int iov_count);
    ssize_t (*writev)(struct stream *s, const struct iovec *iov, int iov_count);
    void (*want)(struct stream *s, unsigned interest);   /* TRANSPORT_READ | TRANSPORT_WRITE; a new stream wants READ */
    void (*stream_close)(struct stream *s, int abort);   /* abort 1: reset if the transport can; 0: flush in the background */
    void (*info)(const struct stream *s, struct stream_info *info_p);
    /* Asks not to send faster than this; 0: no limit. May do nothing; NULL: the transport cannot. */
    void (*pace)(struct stream *s, uint64_t bytes_per_s);
    /* Nothing is on its way just now: the time for what would disturb later. 0: not yet, ask again; NULL: never anything to do. */
    int (*rest)(struct stream *s);
    /* Waits at most timeout_ns (0: not at all; UINT64_MAX: for ever) for readiness; fills at most cap entries. */
    int (*poll)(struct transport *t, uint64_t timeout_ns, struct transport_ready *ready, int cap);
    void (*wake)(struct transport *t);                   /* any thread: makes the current or next poll return WAKE */
};

/* Every object of a transport starts with these, so that the engine can hold its own pointer on it. */
struct transport {
    const struct transport_ops *ops;
};

struct stream {
    const struct transport_ops *ops;
    void *user;                /* the engine's; NULL in a new stream */
};

/* "auto" (tcp, and shared memory on one host), "tcp", "tls", "sim", "faulty+" before any, "tls+faulty+tcp"; NULL if unknown. */
const struct transport_ops *transport_find(const char *scheme);

#endif
