/* tcp.c - byte streams over TCP: one listener, one epoll, one eventfd.
 *
 * Decides: how addresses are read and written, the socket options, and what the kernel's answers mean in the words of
 * transport.h. Level-triggered epoll; an fd's mask is changed only when the interest really changes. epoll reports
 * errors and hang-ups even to those who want nothing, so a stream without interest is set to edge-triggered: it may
 * fire once more, which poll drops, but it cannot keep the loop spinning.
 *
 * A closed stream gives its fd back at once; its memory, with user = NULL, lives until the next poll, because the batch
 * that the engine is walking through may still name it.
 *
 * Engine thread only, except tcp_wake (any thread). */
#include <errno.h>
#include <fcntl.h>
#include <linux/tcp.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "../csrc/transport.h"

enum {
    TCP_BACKLOG = 512,
    TCP_BATCH = 128,                    /* most events that one poll takes from epoll */
    TCP_DEAD_AFTER_MS = 30000,          /* bytes unacknowledged for so long end the connection */
    TCP_UNSENT_BYTES = 512 << 10,       /* a socket with more than this in its queue is not writable: short queues, */
    TCP_UNSENT_BYTES_MIN = 64 << 10,    /* and shorter ones for slow sockets, but not below this: */
    TCP_UNSENT_PER_S = 25,              /* what the socket delivers in 1/25 s */
    TCP_LOOK_EVERY_MS = 50,             /* how often a full socket is asked what it delivers */
    TCP_KEEPALIVE_IDLE_S = 10,
    TCP_KEEPALIVE_INTERVAL_S = 5,
    TCP_KEEPALIVE_PROBES = 4,
    TCP_DRAIN_BYTES = 1 << 20,          /* most unread bytes that a close throws away so as not to reset */
    TCP_MUTED_WAIT_MS = 100             /* how long accept rests when descriptors or memory ran out */
};

struct tcp_stream {
    struct stream base;
    struct tcp *tcp;
    int fd;                             /* -1: closed */
    int error;                          /* errno that ended it, given again to later calls */
    unsigned interest;
    uint32_t mask;                      /* as epoll knows it */
    int connecting;
    uint64_t looked_ns;                 /* when it was last asked what it delivers */
    uint32_t unsent_bytes;              /* its TCP_NOTSENT_LOWAT */
    struct tcp_stream *next_dead;
    char remote[80];                    /* "host:port", */
    char host[56];                      /* and the host alone */
};

struct tcp {
    struct transport base;
    int epoll_fd;
    int listen_fd;
    int wake_fd;
    int reserve_fd;                     /* given up for a moment to take and drop a connection when fds ran out */
    int port;
    int accept_muted;
    int no_pwait2;                      /* the kernel lacks epoll_pwait2 */
    atomic_int woken;                   /* 1: the eventfd is set already */
    struct tcp_stream *dead;
    char congestion[16];
    int bbr_allowed;
};

extern const struct transport_ops tcp_ops;

union tcp_address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    struct sockaddr_storage room;
};

/* -- addresses ---------------------------------------------------------------------------------- */

/* getaddrinfo would take 70000 for 4464. */
static int is_port(const char *text)
{
    return strlen(text) <= 5 && strspn(text, "0123456789") == strlen(text) && atoi(text) <= UINT16_MAX;
}

/* Reads "127.0.0.1:80" or "[::1]:80"; numeric only, so that nothing waits for a name server. */
static pccl_err address_parse(const char *text, union tcp_address *address_p, socklen_t *bytes_p)
{
    char host[64];
    const char *colon = strrchr(text, ':');
    if (!colon || colon == text || !colon[1] || !is_port(colon + 1))
        return PCCL_EINVAL;
    size_t host_bytes = (size_t)(colon - text);
    int bracketed = text[0] == '[' && colon[-1] == ']';
    if (bracketed) {
        text++;
        host_bytes -= 2;
    }
    if (host_bytes == 0 || host_bytes >= sizeof host)
        return PCCL_EINVAL;
    memcpy(host, text, host_bytes);
    host[host_bytes] = 0;
    if (!bracketed && strchr(host, ':'))
        return PCCL_EINVAL;

    struct addrinfo *found = NULL;
    struct addrinfo hints = {.ai_family = bracketed ? AF_INET6 : AF_INET,
                             .ai_socktype = SOCK_STREAM,
                             .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV};
    if (getaddrinfo(host, colon + 1, &hints, &found) != 0 || !found)
        return PCCL_EINVAL;
    memcpy(address_p, found->ai_addr, found->ai_addrlen);
    *bytes_p = found->ai_addrlen;
    freeaddrinfo(found);
    return PCCL_OK;
}

/* Writes "host:port"; an IPv4 peer of a dual-stack listener is shown as what it is. */
static void address_text(const union tcp_address *address, char *text, size_t text_bytes)
{
    union tcp_address plain = *address;
    if (address->any.sa_family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&address->v6.sin6_addr)) {
        memset(&plain, 0, sizeof plain);
        plain.v4.sin_family = AF_INET;
        plain.v4.sin_port = address->v6.sin6_port;
        memcpy(&plain.v4.sin_addr, &address->v6.sin6_addr.s6_addr[12], 4);
    }
    char host[INET6_ADDRSTRLEN + 16], port[8];
    int is_v6 = plain.any.sa_family == AF_INET6;
    socklen_t bytes = is_v6 ? sizeof plain.v6 : sizeof plain.v4;
    if (getnameinfo(&plain.any, bytes, host, sizeof host, port, sizeof port, NI_NUMERICHOST | NI_NUMERICSERV) != 0)
        snprintf(text, text_bytes, "?");
    else
        snprintf(text, text_bytes, is_v6 ? "[%s]:%s" : "%s:%s", host, port);
}

static int address_port(int fd)
{
    union tcp_address address;
    socklen_t bytes = sizeof address;
    if (getsockname(fd, &address.any, &bytes) != 0)
        return 0;
    return ntohs(address.any.sa_family == AF_INET6 ? address.v6.sin6_port : address.v4.sin_port);
}

/* A dial to a free port of this host may meet itself (simultaneous open): that is nobody listening. */
static int connected_to_itself(int fd)
{
    union tcp_address here = {.room = {0}}, there = {.room = {0}};
    socklen_t here_bytes = sizeof here, there_bytes = sizeof there;
    return getsockname(fd, &here.any, &here_bytes) == 0 && getpeername(fd, &there.any, &there_bytes) == 0
        && here_bytes == there_bytes && memcmp(&here, &there, here_bytes) == 0;
}

/* -- sockets ------------------------------------------------------------------------------------ */

static void set_option(int fd, int level, int name, int value)
{
    (void)!setsockopt(fd, level, name, &value, sizeof value);
}

/* Options are wishes: none of them is worth losing a connection for. Accepted sockets inherit the listener's. */
static void set_congestion(int fd, const char *name)
{
    (void)!setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, (socklen_t)strlen(name));
}

/* May a socket be given bbr, so that it can be taken away for a moment? */
static int is_bbr_allowed(void)
{
    char names[256] = "";
    int fd = open("/proc/sys/net/ipv4/tcp_allowed_congestion_control", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t bytes = read(fd, names, sizeof names - 1);
    close(fd);
    const char *found = bytes > 0 ? strstr(names, "bbr") : NULL;
    return found && (found[3] == ' ' || found[3] == '\n') && (found == names || found[-1] == ' ');
}

static void tune(int fd, const char *congestion)
{
    set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, TCP_DEAD_AFTER_MS);
    set_option(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, TCP_UNSENT_BYTES);
    set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, TCP_KEEPALIVE_IDLE_S);
    set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, TCP_KEEPALIVE_INTERVAL_S);
    set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, TCP_KEEPALIVE_PROBES);
    if (congestion[0])
        set_congestion(fd, congestion);
}

static int listen_at(const union tcp_address *address, socklen_t address_bytes, const char *congestion)
{
    int fd = socket(address->any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    set_option(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    if (address->any.sa_family == AF_INET6)
        set_option(fd, IPPROTO_IPV6, IPV6_V6ONLY, 0);
    tune(fd, congestion);
    if (bind(fd, &address->any, address_bytes) != 0 || listen(fd, TCP_BACKLOG) != 0) {
        int error = errno;
        close(fd);
        return -error;
    }
    return fd;
}

/* "[::]" means every address, also on a machine without IPv6. */
static int listen_open(const char *text, const char *congestion)
{
    union tcp_address address;
    socklen_t bytes;
    if (address_parse(text, &address, &bytes) != PCCL_OK)
        return -EINVAL;
    int fd = listen_at(&address, bytes, congestion);
    if ((fd == -EAFNOSUPPORT || fd == -EADDRNOTAVAIL) && address.any.sa_family == AF_INET6
        && IN6_IS_ADDR_UNSPECIFIED(&address.v6.sin6_addr)) {
        union tcp_address v4 = {.v4 = {.sin_family = AF_INET, .sin_port = address.v6.sin6_port}};
        fd = listen_at(&v4, sizeof v4.v4, congestion);
    }
    return fd;
}

/* -- the transport ------------------------------------------------------------------------------ */

static int reserve_open(void)
{
    return open("/dev/null", O_RDONLY | O_CLOEXEC);
}

static void close_if_open(int fd)
{
    if (fd >= 0)
        close(fd);
}

static void bury_dead(struct tcp *t)
{
    while (t->dead) {
        struct tcp_stream *s = t->dead;
        t->dead = s->next_dead;
        free(s);
    }
}

static void tcp_close(struct transport *transport)
{
    struct tcp *t = (struct tcp *)transport;
    bury_dead(t);
    close_if_open(t->listen_fd);
    close_if_open(t->wake_fd);
    close_if_open(t->reserve_fd);
    close_if_open(t->epoll_fd);
    free(t);
}

static int watch(struct tcp *t, int op, int fd, uint32_t mask, void *object)
{
    struct epoll_event event = {.events = mask, .data = {.ptr = object}};
    return epoll_ctl(t->epoll_fd, op, fd, &event);
}

/* Opens the descriptors; on failure returns the errno and leaves what is open to tcp_close. */
static int open_descriptors(struct tcp *t, const char *listen_text)
{
    t->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (t->epoll_fd < 0)
        return errno;
    t->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (t->wake_fd < 0)
        return errno;
    t->reserve_fd = reserve_open();
    int fd = listen_open(listen_text, t->congestion);
    if (fd < 0)
        return -fd;
    t->listen_fd = fd;
    t->port = address_port(fd);
    if (watch(t, EPOLL_CTL_ADD, t->wake_fd, EPOLLIN, &t->wake_fd) != 0
        || watch(t, EPOLL_CTL_ADD, t->listen_fd, EPOLLIN, &t->listen_fd) != 0)
        return errno;
    return 0;
}

static pccl_err tcp_open(const pccl_config *config, struct transport **transport_p, int *sys_errno_p)
{
    struct tcp *t = calloc(1, sizeof *t);
    *sys_errno_p = ENOMEM;
    if (!t)
        return PCCL_ENOMEM;
    t->base.ops = &tcp_ops;
    t->epoll_fd = t->listen_fd = t->wake_fd = t->reserve_fd = -1;
    memcpy(t->congestion, config->congestion, sizeof t->congestion - 1);
    t->bbr_allowed = is_bbr_allowed();
    char listen_text[sizeof config->listen + 1] = "";
    memcpy(listen_text, config->listen, sizeof config->listen);

    int error = open_descriptors(t, listen_text);
    *sys_errno_p = error;
    if (error) {
        tcp_close(&t->base);
        return error == EINVAL ? PCCL_EINVAL : PCCL_EIO;
    }
    *transport_p = &t->base;
    return PCCL_OK;
}

static int tcp_port(const struct transport *transport)
{
    return ((const struct tcp *)transport)->port;
}

/* -- interest ----------------------------------------------------------------------------------- */

static uint32_t mask_of(const struct tcp_stream *s)
{
    uint32_t mask = 0;
    if (s->interest & TRANSPORT_READ)
        mask |= EPOLLIN;
    if ((s->interest & TRANSPORT_WRITE) || s->connecting)
        mask |= EPOLLOUT;
    return mask ? mask : EPOLLET;
}

static void update_mask(struct tcp_stream *s)
{
    uint32_t mask = mask_of(s);
    if (mask == s->mask || s->fd < 0)
        return;
    s->mask = mask;
    (void)watch(s->tcp, EPOLL_CTL_MOD, s->fd, mask, s);
}

static void tcp_want(struct stream *stream, unsigned interest)
{
    struct tcp_stream *s = (struct tcp_stream *)stream;
    s->interest = interest;
    update_mask(s);
}

/* -- streams ------------------------------------------------------------------------------------ */

/* Takes the fd, also on failure, when it closes it. */
static struct tcp_stream *stream_new(struct tcp *t, int fd, int connecting)
{
    struct tcp_stream *s = calloc(1, sizeof *s);
    if (!s)
        goto close_fd;
    s->base.ops = &tcp_ops;
    s->tcp = t;
    s->fd = fd;
    s->connecting = connecting;
    s->interest = TRANSPORT_READ;
    s->unsent_bytes = TCP_UNSENT_BYTES;
    s->mask = mask_of(s);
    if (watch(t, EPOLL_CTL_ADD, fd, s->mask, s) != 0)
        goto free_stream;
    return s;

free_stream:
    free(s);
close_fd:
    close(fd);
    return NULL;
}

/* Once: a stream is asked about itself thousands of times a second. */
static void name_remote(struct tcp_stream *s, const union tcp_address *address)
{
    address_text(address, s->remote, sizeof s->remote);
    const char *colon = strrchr(s->remote, ':');
    snprintf(s->host, sizeof s->host, "%.*s", colon ? (int)(colon - s->remote) : 0, s->remote);
}

static pccl_err tcp_dial(struct transport *transport, const char *text, struct stream **stream_p, int *sys_errno_p)
{
    struct tcp *t = (struct tcp *)transport;
    union tcp_address address;
    socklen_t bytes;
    *sys_errno_p = EINVAL;
    if (address_parse(text, &address, &bytes) != PCCL_OK)
        return PCCL_EINVAL;
    int fd = socket(address.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    *sys_errno_p = errno;
    if (fd < 0)
        return PCCL_EIO;
    tune(fd, t->congestion);
    if (connect(fd, &address.any, bytes) != 0 && errno != EINPROGRESS) {
        *sys_errno_p = errno;
        close(fd);
        return PCCL_EIO;
    }
    *sys_errno_p = ENOMEM;
    struct tcp_stream *s = stream_new(t, fd, 1);
    if (!s)
        return PCCL_ENOMEM;
    *sys_errno_p = 0;
    name_remote(s, &address);
    *stream_p = &s->base;
    return PCCL_OK;
}

/* No descriptor is left: takes the connection with the reserve one and drops it, lest the listener stay ready for
 * ever. Without a reserve, or without memory, the listener rests for a moment instead. */
static void accept_starved(struct tcp *t, int error)
{
    if (t->reserve_fd >= 0 && (error == EMFILE || error == ENFILE)) {
        close(t->reserve_fd);
        close_if_open(accept4(t->listen_fd, NULL, NULL, SOCK_CLOEXEC));
        t->reserve_fd = reserve_open();
        return;
    }
    t->accept_muted = 1;
    (void)watch(t, EPOLL_CTL_MOD, t->listen_fd, 0, &t->listen_fd);
}

static void accept_unmute(struct tcp *t)
{
    t->accept_muted = 0;
    if (t->reserve_fd < 0)
        t->reserve_fd = reserve_open();
    (void)watch(t, EPOLL_CTL_MOD, t->listen_fd, EPOLLIN, &t->listen_fd);
}

static pccl_err tcp_accept(struct transport *transport, struct stream **stream_p)
{
    struct tcp *t = (struct tcp *)transport;
    for (int tries = 0; tries < TCP_BACKLOG && !t->accept_muted; tries++) {
        union tcp_address address = {.room = {0}};
        socklen_t bytes = sizeof address;
        int fd = accept4(t->listen_fd, &address.any, &bytes, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return PCCL_EAGAIN;
        if (fd < 0) {
            if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
                accept_starved(t, errno);
            continue;
        }
        struct tcp_stream *s = stream_new(t, fd, 0);
        if (!s)
            continue;
        name_remote(s, &address);
        *stream_p = &s->base;
        return PCCL_OK;
    }
    return PCCL_EAGAIN;
}

/* A socket tells its error only once, and after it an end of stream; the stream remembers it. */
static ssize_t moved(struct tcp_stream *s, ssize_t bytes)
{
    if (bytes >= 0)
        return bytes;
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)
        return -EAGAIN;
    s->error = errno;
    return -s->error;
}

/* Bytes that came before an error are still given, even if a write met the error first. */
static ssize_t tcp_readv(struct stream *stream, const struct iovec *iov, int iov_count)
{
    struct tcp_stream *s = (struct tcp_stream *)stream;
    ssize_t bytes = readv(s->fd, iov, iov_count);
    if (bytes <= 0 && s->error)
        return -s->error;
    return moved(s, bytes);
}

/* A full socket: what is urgent should not have to wait behind much that is not, but the network must not run dry while we
 * sleep. So the queue holds what goes out in a moment, by the kernel's own measurement; older kernels tell nothing. */
static void shorten_queue(struct tcp_stream *s)
{
    struct timespec now;
    struct tcp_info kernel;
    socklen_t bytes = sizeof kernel;
    clock_gettime(CLOCK_MONOTONIC, &now);
    uint64_t now_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    if (now_ns - s->looked_ns < TCP_LOOK_EVERY_MS * 1000000ull)
        return;
    s->looked_ns = now_ns;
    memset(&kernel, 0, sizeof kernel);
    if (getsockopt(s->fd, IPPROTO_TCP, TCP_INFO, &kernel, &bytes) != 0 || kernel.tcpi_delivery_rate == 0)
        return;
    uint64_t fit = kernel.tcpi_delivery_rate / TCP_UNSENT_PER_S;
    fit = fit < TCP_UNSENT_BYTES_MIN ? TCP_UNSENT_BYTES_MIN : fit > TCP_UNSENT_BYTES ? TCP_UNSENT_BYTES : fit;
    if (fit == s->unsent_bytes)
        return;
    s->unsent_bytes = (uint32_t)fit;
    set_option(s->fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, (int)fit);
}

static ssize_t tcp_writev(struct stream *stream, const struct iovec *iov, int iov_count)
{
    struct tcp_stream *s = (struct tcp_stream *)stream;
    if (s->error)
        return -s->error;
    struct msghdr message = {.msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = (size_t)iov_count};
    ssize_t bytes = moved(s, sendmsg(s->fd, &message, MSG_NOSIGNAL));
    if (bytes == -EAGAIN)
        shorten_queue(s);
    return bytes;
}

/* The kernel resets, and may lose what it has yet to send, when bytes are unread at the close: throw those away. */
static void end_gently(int fd)
{
    (void)shutdown(fd, SHUT_WR);
    /* not by recv(): the sanitizers take it for a write to address 0 */
    (void)syscall(SYS_recvfrom, fd, NULL, (size_t)TCP_DRAIN_BYTES, MSG_TRUNC | MSG_DONTWAIT, NULL, NULL);
}

static void tcp_stream_close(struct stream *stream, int abort)
{
    struct tcp_stream *s = (struct tcp_stream *)stream;
    if (s->fd < 0)
        return;
    /* not left to close(): a forked child may hold the socket too, and epoll would go on naming freed memory */
    (void)watch(s->tcp, EPOLL_CTL_DEL, s->fd, 0, NULL);
    if (abort) {
        struct linger reset = {.l_onoff = 1, .l_linger = 0};
        (void)setsockopt(s->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    } else {
        end_gently(s->fd);
    }
    close(s->fd);
    s->fd = -1;
    s->error = EBADF;
    s->base.user = NULL;
    s->next_dead = s->tcp->dead;
    s->tcp->dead = s;
}

static void tcp_info(const struct stream *stream, struct stream_info *info_p)
{
    const struct tcp_stream *s = (const struct tcp_stream *)stream;
    struct tcp_info kernel;
    socklen_t bytes = sizeof kernel;
    memset(&kernel, 0, sizeof kernel);
    memset(info_p, 0, sizeof *info_p);
    if (getsockopt(s->fd, IPPROTO_TCP, TCP_INFO, &kernel, &bytes) == 0) {
        info_p->rtt_us = kernel.tcpi_min_rtt != UINT32_MAX ? kernel.tcpi_min_rtt : 0;
        info_p->rtt_now_us = kernel.tcpi_rtt;
        info_p->held_bytes =
            kernel.tcpi_notsent_bytes + (uint64_t)(kernel.tcpi_unacked - kernel.tcpi_sacked) * kernel.tcpi_snd_mss;
        info_p->behind_gap_bytes = (uint64_t)kernel.tcpi_sacked * kernel.tcpi_snd_mss;
        info_p->packets = kernel.tcpi_segs_out;
        info_p->packets_again = kernel.tcpi_total_retrans;
    }
    memcpy(info_p->remote, s->remote, sizeof info_p->remote);
    memcpy(info_p->host, s->host, sizeof info_p->host);
}

static void tcp_pace(struct stream *stream, uint64_t bytes_per_s)
{
    const struct tcp_stream *s = (const struct tcp_stream *)stream;
    uint64_t rate = bytes_per_s ? bytes_per_s : UINT64_MAX;
    (void)!setsockopt(s->fd, SOL_SOCKET, SO_MAX_PACING_RATE, &rate, sizeof rate);
}

/* A bbr connection that has been busy for 10 s sends next to nothing for 200 ms, to see the path's shortest round trip. While it
 * rests that is seen without any pause: bbr begins anew with the round trip that the kernel knows, the window stays. Not while the
 * window is small because of a loss. */
static int tcp_rest(struct stream *stream)
{
    const struct tcp_stream *s = (const struct tcp_stream *)stream;
    struct tcp_info kernel = {0};
    char name[16] = "";
    socklen_t name_bytes = sizeof name, bytes = sizeof kernel;
    if (!s->tcp->bbr_allowed || getsockopt(s->fd, IPPROTO_TCP, TCP_CONGESTION, name, &name_bytes) || strcmp(name, "bbr") != 0)
        return 1;
    if (getsockopt(s->fd, IPPROTO_TCP, TCP_INFO, &kernel, &bytes) || kernel.tcpi_ca_state || kernel.tcpi_sacked || kernel.tcpi_lost)
        return 0;
    set_congestion(s->fd, "reno");
    set_congestion(s->fd, "bbr");
    return 1;
}

/* -- readiness ---------------------------------------------------------------------------------- */

static int wait_for_events(struct tcp *t, uint64_t timeout_ns, struct epoll_event *events, int cap)
{
    const struct timespec timeout = {.tv_sec = (time_t)(timeout_ns / 1000000000u),
                                     .tv_nsec = (long)(timeout_ns % 1000000000u)};
    int forever = timeout_ns == UINT64_MAX;
#ifdef SYS_epoll_pwait2
    if (!t->no_pwait2) {
        long count = syscall(SYS_epoll_pwait2, t->epoll_fd, events, cap, forever ? NULL : &timeout, NULL, 0);
        if (count >= 0 || (errno != ENOSYS && errno != EPERM))
            return (int)count;
        t->no_pwait2 = 1;
    }
#endif
    uint64_t timeout_ms = timeout_ns / 1000000u + (timeout_ns % 1000000u != 0);
    int clipped_ms = timeout_ms > 1000000u ? 1000000 : (int)timeout_ms;
    return epoll_wait(t->epoll_fd, events, cap, forever ? -1 : clipped_ms);
}

/* Reads first, then clears the flag: a wake in between writes nothing, and is answered by this very poll. */
static unsigned take_wake(struct tcp *t)
{
    uint64_t count;
    (void)!read(t->wake_fd, &count, sizeof count);
    (void)atomic_exchange(&t->woken, 0);
    return TRANSPORT_WAKE;
}

/* The first readiness of a dialled stream tells how the dial ended, whatever the interest. */
static unsigned take_connect(struct tcp_stream *s, uint32_t events)
{
    if (!(events & (EPOLLOUT | EPOLLERR | EPOLLHUP)))
        return 0;
    socklen_t bytes = sizeof s->error;
    if (getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &s->error, &bytes) != 0)
        s->error = errno;
    if (!s->error && connected_to_itself(s->fd))
        s->error = ECONNREFUSED;
    s->connecting = 0;
    update_mask(s);
    return s->error ? TRANSPORT_READ | TRANSPORT_WRITE : TRANSPORT_WRITE;
}

static unsigned take_readiness(struct tcp_stream *s, uint32_t events)
{
    if (s->connecting)
        return take_connect(s, events);
    unsigned what = 0;
    if (events & (EPOLLIN | EPOLLERR | EPOLLHUP))
        what |= TRANSPORT_READ;
    if (events & (EPOLLOUT | EPOLLERR | EPOLLHUP))
        what |= TRANSPORT_WRITE;
    return what & s->interest;
}

static struct transport_ready translate(struct tcp *t, const struct epoll_event *event)
{
    if (event->data.ptr == &t->wake_fd)
        return (struct transport_ready){.what = take_wake(t)};
    if (event->data.ptr == &t->listen_fd)
        return (struct transport_ready){.what = t->accept_muted ? 0 : TRANSPORT_ACCEPT};
    struct tcp_stream *s = event->data.ptr;
    return (struct transport_ready){.stream = &s->base, .what = take_readiness(s, event->events)};
}

static int tcp_poll(struct transport *transport, uint64_t timeout_ns, struct transport_ready *ready, int cap)
{
    struct tcp *t = (struct tcp *)transport;
    struct epoll_event events[TCP_BATCH];
    bury_dead(t);
    int muted = t->accept_muted;
    if (muted && timeout_ns > TCP_MUTED_WAIT_MS * 1000000ull)
        timeout_ns = TCP_MUTED_WAIT_MS * 1000000ull;
    int event_count = wait_for_events(t, timeout_ns, events, cap < TCP_BATCH ? cap : TCP_BATCH);
    int ready_count = 0;
    for (int i = 0; i < event_count; i++) {
        ready[ready_count] = translate(t, &events[i]);
        if (ready[ready_count].what)
            ready_count++;
    }
    if (muted)
        accept_unmute(t);
    return ready_count;
}

static void tcp_wake(struct transport *transport)
{
    struct tcp *t = (struct tcp *)transport;
    const uint64_t one = 1;
    if (atomic_exchange(&t->woken, 1) == 0)
        (void)!write(t->wake_fd, &one, sizeof one);
}

const struct transport_ops tcp_ops = {
    .scheme = "tcp", .open = tcp_open, .close = tcp_close, .port = tcp_port, .dial = tcp_dial, .accept = tcp_accept,
    .readv = tcp_readv, .writev = tcp_writev, .want = tcp_want, .stream_close = tcp_stream_close, .info = tcp_info,
    .pace = tcp_pace, .rest = tcp_rest,
    .poll = tcp_poll, .wake = tcp_wake,
};
