/* shm.c - "auto": TCP, but the bytes between two processes of one host go through memory that they share.
 *
 * Every stream is a stream of tcp.c. One that is dialled to an address of this host is upgraded if the other side can:
 * the dialler makes the memory (two rings of shm_ring.h), passes its descriptor with a random token over a UNIX socket,
 * and then dials; the token is the first it writes to the TCP stream, and tells the acceptor which memory belongs to
 * which stream; the acceptor answers with one byte. From then on the TCP stream carries only doorbells: a byte to a
 * side that said it would sleep. So resets, ends and crashes are seen as tcp.c sees them, and a busy stream costs no
 * system calls.
 *
 * The UNIX socket's name is made of the TCP address and belongs, like it, to one network namespace; it is in no file
 * system, nor is the memory, and both vanish with their processes. Only processes of the same user meet. Whatever
 * goes wrong before the answer ends in an ordinary TCP stream: the dialler dials again, plainly.
 *
 * The acceptor learns of an offer when it accepts the TCP stream, since the offer was made before. While there are
 * offers, an accepted stream is undecided until its first bytes have told whether it is one of them.
 *
 * Engine thread only, except shm_wake (any thread). */
#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <linux/magic.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/un.h>
#include <unistd.h>

#include "../csrc/transport.h"
#include "shm_ring.h"

enum {
    SHM_RING_BYTES = 1 << 20,
    SHM_HEAD_BYTES = 4096,
    SHM_MEMORY_BYTES = SHM_HEAD_BYTES + 2 * SHM_RING_BYTES,
    SHM_BLOCK_BYTES = 512,              /* of st_blocks */
    SHM_SEALS = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL,
    SHM_TOKEN_BYTES = 16,
    SHM_ANSWER = 'R',
    SHM_OFFERS_MAX = 256,
    SHM_BACKLOG = 512,
    SHM_BATCH = 64,
    SHM_NAME_BYTES = 80
};

#define SHM_UNDECIDED_WAIT_NS 50000000u  /* how often poll looks whether an undecided stream still has to wait */

static const char SHM_NAME[] = "pccl-shm-1";

/* Laid out by the dialler at the front of the memory: [0] from it to the acceptor, [1] the other way. */
struct shm_head {
    struct shm_ring_shared ring[2];
};
static_assert(sizeof(struct shm_head) <= SHM_HEAD_BYTES, "the rings' heads fit before the rings");

enum shm_state {
    SHM_PLAIN,                          /* bytes go over TCP */
    SHM_DIALLING,                       /* an offer was made, TCP is not connected yet */
    SHM_ASKED,                          /* the token is written, the answer is awaited */
    SHM_UNDECIDED,                      /* accepted: the first bytes will tell */
    SHM_RING,
    SHM_BROKEN                          /* neither way could be dialled: `error` */
};

/* What a dialler has to give: kept by it until the answer, by the acceptor until the token comes. */
struct shm_offer {
    int fd;                             /* the UNIX socket: its end tells that the other side has given up */
    int has_token;
    int is_gone;                        /* given up */
    uint8_t token[SHM_TOKEN_BYTES];
    void *memory;                       /* NULL: the other side's could not be used */
    struct shm_offer *next;
};

struct shm_stream {
    struct stream base;
    struct shm *shm;
    struct stream *inner;               /* NULL: closed, or broken */
    enum shm_state state;
    unsigned interest;
    unsigned announced;                 /* how the dial ended, to be reported whatever the interest */
    int error;
    int ended;
    struct shm_offer *offer;            /* dialler: ours */
    void *memory;                       /* SHM_RING */
    struct shm_ring in, out;
    uint8_t first[SHM_TOKEN_BYTES];     /* acceptor: the first bytes, which may be the engine's after all */
    uint32_t first_begin, first_end;
    uint64_t reported;                  /* the poll that reported it last */
    struct shm_stream *prev, *next;     /* in shm->watched, circular */
    struct shm_stream *next_dead;
    char address[80];                   /* dialled */
};

struct shm {
    struct transport base;
    struct transport *inner;
    int listen_fd;                      /* -1: streams can be offered to nobody here */
    struct shm_offer *offers;           /* made to us, not yet taken */
    int offer_count;
    int undecided_count;
    struct shm_stream *watched;         /* those whose readiness is not TCP's alone; where the next scan begins */
    int watched_count;
    struct shm_stream *dead;
    uint64_t poll_number;
};

extern const struct transport_ops auto_ops;
extern const struct transport_ops tcp_ops;

/* -- memory --------------------------------------------------------------------------------------- */

/* A forked child has no business in it. */
static void *memory_map(int fd)
{
    void *memory = mmap(NULL, SHM_MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED)
        return NULL;
    (void)madvise(memory, SHM_MEMORY_BYTES, MADV_DONTFORK);
    return memory;
}

static void memory_unmap(void *memory)
{
    if (memory)
        (void)munmap(memory, SHM_MEMORY_BYTES);
}

/* Allocated at once, so that a lack of memory is seen here and not as SIGBUS. Returns the descriptor. */
static int memory_new(void **memory_p)
{
    int fd = memfd_create("pccl", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return -1;
    if (fallocate(fd, 0, 0, SHM_MEMORY_BYTES) != 0 || fcntl(fd, F_ADD_SEALS, SHM_SEALS) != 0)
        goto fail;
    *memory_p = memory_map(fd);
    if (*memory_p)
        return fd;
fail:
    close(fd);
    return -1;
}

/* The other side's: sealed, so that it cannot shrink under us; of the right size; allocated, and not of huge pages,
 * which may be missing when they are touched. */
static void *memory_take(int fd)
{
    struct stat status;
    struct statfs system;
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & SHM_SEALS) != SHM_SEALS || fstat(fd, &status) != 0 || fstatfs(fd, &system) != 0)
        return NULL;
    if (system.f_type != TMPFS_MAGIC || status.st_size != SHM_MEMORY_BYTES
        || status.st_blocks < SHM_MEMORY_BYTES / SHM_BLOCK_BYTES)
        return NULL;
    return memory_map(fd);
}

/* -- names ---------------------------------------------------------------------------------------- */

union shm_ip {
    struct in_addr v4;
    struct in6_addr v6;
};

/* Reads "127.0.0.1:80" or "[::1]:80"; returns the family, 0 if it is neither. */
static int ip_parse(const char *address, union shm_ip *ip_p, const char **port_p)
{
    char host[64];
    const char *colon = strrchr(address, ':');
    int bracketed = address[0] == '[' && colon && colon[-1] == ']';
    if (!colon || colon - address >= (ptrdiff_t)sizeof host)
        return 0;
    snprintf(host, sizeof host, "%.*s", (int)(colon - address) - 2 * bracketed, address + bracketed);
    *port_p = colon + 1;
    int family = bracketed ? AF_INET6 : AF_INET;
    return inet_pton(family, host, ip_p) == 1 ? family : 0;
}

/* Is this an address of an interface of ours, or of the loopback network? */
static int ip_is_here(int family, const union shm_ip *ip)
{
    struct ifaddrs *all, *i;
    if (family == AF_INET && (ntohl(ip->v4.s_addr) >> 24) == 127)
        return 1;
    if (getifaddrs(&all) != 0)
        return 0;
    for (i = all; i; i = i->ifa_next) {
        if (!i->ifa_addr || i->ifa_addr->sa_family != family)
            continue;
        const union {
            struct sockaddr any;
            struct sockaddr_in v4;
            struct sockaddr_in6 v6;
        } *own_address = (const void *)i->ifa_addr;
        const void *own = family == AF_INET ? (const void *)&own_address->v4.sin_addr : &own_address->v6.sin6_addr;
        if (memcmp(own, ip, family == AF_INET ? sizeof ip->v4 : sizeof ip->v6) == 0)
            break;
    }
    freeifaddrs(all);
    return i != NULL;
}

static int ip_is_any(int family, const union shm_ip *ip)
{
    return family == AF_INET ? ip->v4.s_addr == htonl(INADDR_ANY) : IN6_IS_ADDR_UNSPECIFIED(&ip->v6);
}

/* The abstract name of who listens at so and so; `ip` NULL: at every address. Returns the length for bind. */
static socklen_t name_of(int family, const union shm_ip *ip, long port, struct sockaddr_un *name_p)
{
    char host[INET6_ADDRSTRLEN] = "*";
    if (ip)
        inet_ntop(family, ip, host, sizeof host);
    *name_p = (struct sockaddr_un){.sun_family = AF_UNIX};
    int bytes = snprintf(name_p->sun_path + 1, SHM_NAME_BYTES, "%s/%s/%ld", SHM_NAME, host, port);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)bytes);
}

static int same_user(int fd)
{
    struct ucred other;
    socklen_t bytes = sizeof other;
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &other, &bytes) == 0 && other.uid == geteuid();
}

/* -- offers: the dialler -------------------------------------------------------------------------- */

/* Takes the offer. */
static void offer_free(struct shm_offer *offer)
{
    if (!offer)
        return;
    if (offer->fd >= 0)
        close(offer->fd);
    memory_unmap(offer->memory);
    free(offer);
}

/* Finds who listens for offers at the address: -1 if nobody does, or it is not of this host. */
static int meet(const char *address)
{
    union shm_ip ip;
    const char *port;
    struct sockaddr_un name;
    int family = ip_parse(address, &ip, &port);
    if (!family || !ip_is_here(family, &ip))
        return -1;
    for (int any = 0; any < 2; any++) {
        int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (fd < 0)
            return -1;
        socklen_t bytes = name_of(family, any ? NULL : &ip, strtol(port, NULL, 10), &name);
        if (connect(fd, (const struct sockaddr *)&name, bytes) == 0 && same_user(fd))
            return fd;
        close(fd);
    }
    return -1;
}

/* One message: the token, and the memory's descriptor beside it. */
static int send_offer(const struct shm_offer *offer, int memory_fd)
{
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {.room = {0}};
    struct iovec iov = {(void *)(uintptr_t)offer->token, SHM_TOKEN_BYTES};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.room,
                             .msg_controllen = sizeof control.room};
    struct cmsghdr *c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &memory_fd, sizeof memory_fd);
    return sendmsg(offer->fd, &message, MSG_NOSIGNAL) == SHM_TOKEN_BYTES;
}

/* NULL: a plain stream it is. */
static struct shm_offer *offer_make(const char *address)
{
    struct shm_offer *offer = calloc(1, sizeof *offer);
    if (!offer)
        return NULL;
    offer->fd = meet(address);
    int memory_fd = offer->fd >= 0 ? memory_new(&offer->memory) : -1;
    int sent = memory_fd >= 0 && getrandom(offer->token, SHM_TOKEN_BYTES, 0) == SHM_TOKEN_BYTES
               && send_offer(offer, memory_fd);
    if (memory_fd >= 0)
        close(memory_fd);
    if (sent)
        return offer;
    offer_free(offer);
    return NULL;
}

/* -- offers: the acceptor ------------------------------------------------------------------------- */

/* Reads the message and takes the memory; 0 if the other side has gone, or talks nonsense. */
static int offer_receive(struct shm_offer *offer)
{
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } control;
    uint8_t token[SHM_TOKEN_BYTES + 1];
    struct iovec iov = {token, sizeof token};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.room,
                             .msg_controllen = sizeof control.room};
    ssize_t bytes = recvmsg(offer->fd, &message, MSG_CMSG_CLOEXEC);
    if (bytes < 0)
        return errno == EAGAIN;
    const struct cmsghdr *c = CMSG_FIRSTHDR(&message);
    int memory_fd = -1;
    if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(sizeof(int)))
        memcpy(&memory_fd, CMSG_DATA(c), sizeof memory_fd);
    int good = bytes == SHM_TOKEN_BYTES && !offer->has_token;
    if (good) {
        offer->has_token = 1;
        memcpy(offer->token, token, SHM_TOKEN_BYTES);
        offer->memory = memory_fd >= 0 ? memory_take(memory_fd) : NULL;
    }
    if (memory_fd >= 0)
        close(memory_fd);
    return good;
}

static void take_new_offers(struct shm *t)
{
    while (t->listen_fd >= 0 && t->offer_count < SHM_OFFERS_MAX) {
        int fd = accept4(t->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return;
        struct shm_offer *offer = same_user(fd) ? calloc(1, sizeof *offer) : NULL;
        if (!offer) {
            close(fd);
            continue;
        }
        offer->fd = fd;
        offer->next = t->offers;
        t->offers = offer;
        t->offer_count++;
    }
}

static void receive_offers(struct shm *t)
{
    take_new_offers(t);
    for (struct shm_offer *offer = t->offers; offer; offer = offer->next)
        offer->is_gone |= !offer_receive(offer);
}

static void drop_gone_offers(struct shm *t)
{
    for (struct shm_offer **at = &t->offers; *at;) {
        struct shm_offer *offer = *at;
        if (!offer->is_gone) {
            at = &offer->next;
            continue;
        }
        *at = offer->next;
        t->offer_count--;
        offer_free(offer);
    }
}

/* Finds an offer whose token begins with these bytes; takes it out if they are all of it. */
static struct shm_offer *offer_match(struct shm *t, const uint8_t *first, uint32_t bytes)
{
    for (struct shm_offer **at = &t->offers; *at; at = &(*at)->next) {
        struct shm_offer *offer = *at;
        if (!offer->has_token || memcmp(offer->token, first, bytes) != 0)
            continue;
        if (bytes == SHM_TOKEN_BYTES) {
            *at = offer->next;
            t->offer_count--;
        }
        return offer;
    }
    return NULL;
}

/* -- the transport -------------------------------------------------------------------------------- */

/* Where offers are taken: beside the TCP listener, and never worth failing for. */
static int offers_listen(const char *listen_text, int port)
{
    union shm_ip ip;
    const char *unused;
    struct sockaddr_un name;
    int family = ip_parse(listen_text, &ip, &unused);
    int fd = family ? socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0) : -1;
    if (fd < 0)
        return -1;
    socklen_t bytes = name_of(family, ip_is_any(family, &ip) ? NULL : &ip, port, &name);
    if (bind(fd, (const struct sockaddr *)&name, bytes) == 0 && listen(fd, SHM_BACKLOG) == 0)
        return fd;
    close(fd);
    return -1;
}

static pccl_err shm_open_transport(const pccl_config *config, struct transport **transport_p, int *sys_errno_p)
{
    struct shm *t = calloc(1, sizeof *t);
    *sys_errno_p = ENOMEM;
    if (!t)
        return PCCL_ENOMEM;
    pccl_err err = tcp_ops.open(config, &t->inner, sys_errno_p);
    if (err != PCCL_OK) {
        free(t);
        return err;
    }
    char listen_text[sizeof config->listen + 1] = "";
    memcpy(listen_text, config->listen, sizeof config->listen);
    t->base.ops = &auto_ops;
    t->listen_fd = offers_listen(listen_text, tcp_ops.port(t->inner));
    *transport_p = &t->base;
    return PCCL_OK;
}

static void bury_dead(struct shm *t)
{
    while (t->dead) {
        struct shm_stream *s = t->dead;
        t->dead = s->next_dead;
        free(s);
    }
}

static void shm_close_transport(struct transport *transport)
{
    struct shm *t = (struct shm *)transport;
    bury_dead(t);
    while (t->offers) {
        struct shm_offer *offer = t->offers;
        t->offers = offer->next;
        offer_free(offer);
    }
    if (t->listen_fd >= 0)
        close(t->listen_fd);
    tcp_ops.close(t->inner);
    free(t);
}

static int shm_port(const struct transport *transport)
{
    return tcp_ops.port(((const struct shm *)transport)->inner);
}

static void shm_wake(struct transport *transport)
{
    tcp_ops.wake(((struct shm *)transport)->inner);
}

/* -- streams: beginnings -------------------------------------------------------------------------- */

static void watch(struct shm_stream *s)
{
    struct shm *t = s->shm;
    t->watched_count++;
    if (!t->watched) {
        t->watched = s->next = s->prev = s;
        return;
    }
    s->next = t->watched;
    s->prev = t->watched->prev;
    s->prev->next = s->next->prev = s;
}

static void unwatch(struct shm_stream *s)
{
    if (!s->next)
        return;
    s->shm->watched_count--;
    if (s->shm->watched == s)
        s->shm->watched = s->next == s ? NULL : s->next;
    s->prev->next = s->next;
    s->next->prev = s->prev;
    s->next = s->prev = NULL;
}

/* The inner stream may be NULL: a dial that is still to begin. */
static struct shm_stream *stream_new(struct shm *t, struct stream *inner)
{
    struct shm_stream *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->base.ops = &auto_ops;
    s->shm = t;
    s->interest = TRANSPORT_READ;
    s->inner = inner;
    if (inner)
        inner->user = s;
    return s;
}

static pccl_err dial_inner(struct shm_stream *s, int *sys_errno_p)
{
    pccl_err err = tcp_ops.dial(s->shm->inner, s->address, &s->inner, sys_errno_p);
    if (err == PCCL_OK)
        s->inner->user = s;
    return err;
}

static pccl_err shm_dial(struct transport *transport, const char *address, struct stream **stream_p, int *sys_errno_p)
{
    struct shm *t = (struct shm *)transport;
    struct shm_stream *s = stream_new(t, NULL);
    *sys_errno_p = ENOMEM;
    if (!s)
        return PCCL_ENOMEM;
    snprintf(s->address, sizeof s->address, "%s", address);
    s->offer = offer_make(address);
    pccl_err err = dial_inner(s, sys_errno_p);
    if (err != PCCL_OK) {
        offer_free(s->offer);
        free(s);
        return err;
    }
    if (s->offer) {
        s->state = SHM_DIALLING;
        watch(s);
    }
    *stream_p = &s->base;
    return PCCL_OK;
}

static pccl_err shm_accept(struct transport *transport, struct stream **stream_p)
{
    struct shm *t = (struct shm *)transport;
    struct stream *inner;
    while (tcp_ops.accept(t->inner, &inner) == PCCL_OK) {
        struct shm_stream *s = stream_new(t, inner);
        if (!s) {
            tcp_ops.stream_close(inner, 1);
            continue;
        }
        receive_offers(t);
        if (t->offers) {
            s->state = SHM_UNDECIDED;
            t->undecided_count++;
            watch(s);
        }
        *stream_p = &s->base;
        return PCCL_OK;
    }
    return PCCL_EAGAIN;
}

/* From here on the bytes go over TCP; those that were read while it was undecided come first. */
static void become_plain(struct shm_stream *s)
{
    s->shm->undecided_count -= s->state == SHM_UNDECIDED;
    s->state = SHM_PLAIN;
    if (s->first_begin == s->first_end)
        unwatch(s);
    tcp_ops.want(s->inner, s->interest);
}

/* Takes the offer. */
static void become_ring(struct shm_stream *s, struct shm_offer *offer, int is_dialler)
{
    struct shm_head *head = offer->memory;
    uint8_t *data = (uint8_t *)offer->memory + SHM_HEAD_BYTES;
    s->shm->undecided_count -= s->state == SHM_UNDECIDED;
    s->state = SHM_RING;
    s->memory = offer->memory;
    offer->memory = NULL;
    offer_free(offer);
    shm_ring_init(&s->out, &head->ring[!is_dialler], data + !is_dialler * SHM_RING_BYTES, SHM_RING_BYTES, 1);
    shm_ring_init(&s->in, &head->ring[is_dialler], data + is_dialler * SHM_RING_BYTES, SHM_RING_BYTES, 0);
    tcp_ops.want(s->inner, TRANSPORT_READ);
}

/* -- streams: moving bytes ------------------------------------------------------------------------ */

static int is_closed(const struct shm_stream *s)
{
    return !s->inner && s->state != SHM_BROKEN;
}

static void fail(struct shm_stream *s, ssize_t error)
{
    s->error = (int)-error;
    if (s->inner)
        tcp_ops.want(s->inner, 0);
}

static ssize_t inner_move(struct shm_stream *s, int writes, void *memory, size_t bytes)
{
    struct iovec iov = {memory, bytes};
    return writes ? tcp_ops.writev(s->inner, &iov, 1) : tcp_ops.readv(s->inner, &iov, 1);
}

/* The other side said that it would sleep. */
static void ring_bell(struct shm_stream *s)
{
    uint8_t bell = 0;
    ssize_t sent = s->ended || s->error ? 1 : inner_move(s, 1, &bell, 1);
    if (sent < 0 && sent != -EAGAIN)
        fail(s, sent);
}

static ssize_t moved(struct shm_stream *s, struct shm_ring *ring, ssize_t bytes)
{
    if (bytes > 0 && shm_ring_must_wake(ring))
        ring_bell(s);
    if (bytes == -EPROTO)
        fail(s, bytes);
    return bytes;
}

/* Bytes that lie in the ring come before the end, and before an error. */
static ssize_t ring_readv(struct shm_stream *s, const struct iovec *iov, int iov_count)
{
    ssize_t bytes = moved(s, &s->in, shm_ring_move(&s->in, iov, iov_count));
    if (bytes != -EAGAIN)
        return bytes;
    if (s->error)
        return -s->error;
    return s->ended ? 0 : -EAGAIN;
}

static ssize_t ring_writev(struct shm_stream *s, const struct iovec *iov, int iov_count)
{
    if (s->error)
        return -s->error;
    if (s->ended)
        return -EPIPE;
    return moved(s, &s->out, shm_ring_move(&s->out, iov, iov_count));
}

/* The engine's own bytes, read while the stream was undecided. */
static ssize_t read_first(struct shm_stream *s, const struct iovec *iov, int iov_count)
{
    ssize_t done = 0;
    for (int i = 0; i < iov_count; i++) {
        size_t left = s->first_end - s->first_begin;
        size_t bytes = iov[i].iov_len < left ? iov[i].iov_len : left;
        if (!bytes)
            continue;
        memcpy(iov[i].iov_base, s->first + s->first_begin, bytes);
        s->first_begin += (uint32_t)bytes;
        done += (ssize_t)bytes;
    }
    if (s->first_begin == s->first_end)
        unwatch(s);
    return done;
}

static ssize_t shm_readv(struct stream *stream, const struct iovec *iov, int iov_count)
{
    struct shm_stream *s = (struct shm_stream *)stream;
    if (is_closed(s))
        return -EBADF;
    switch (s->state) {
    case SHM_PLAIN:
        if (s->first_begin < s->first_end)
            return read_first(s, iov, iov_count);
        return tcp_ops.readv(s->inner, iov, iov_count);
    case SHM_RING: return ring_readv(s, iov, iov_count);
    case SHM_BROKEN: return -s->error;
    default: return -EAGAIN;
    }
}

static ssize_t shm_writev(struct stream *stream, const struct iovec *iov, int iov_count)
{
    struct shm_stream *s = (struct shm_stream *)stream;
    if (is_closed(s))
        return -EBADF;
    switch (s->state) {
    case SHM_PLAIN: return tcp_ops.writev(s->inner, iov, iov_count);
    case SHM_RING: return ring_writev(s, iov, iov_count);
    case SHM_BROKEN: return -s->error;
    default: return -EAGAIN;
    }
}

static void shm_want(struct stream *stream, unsigned interest)
{
    struct shm_stream *s = (struct shm_stream *)stream;
    s->interest = interest;
    if (s->state == SHM_PLAIN && s->inner)
        tcp_ops.want(s->inner, interest);
}

static void shm_info(const struct stream *stream, struct stream_info *info_p)
{
    const struct shm_stream *s = (const struct shm_stream *)stream;
    memset(info_p, 0, sizeof *info_p);
    if (s->inner)
        tcp_ops.info(s->inner, info_p);
    else
        memcpy(info_p->remote, s->address, sizeof info_p->remote);
    if (s->state == SHM_RING)
        info_p->unsent_bytes = shm_ring_used(&s->out);
}

static void shm_stream_close(struct stream *stream, int abort)
{
    struct shm_stream *s = (struct shm_stream *)stream;
    if (is_closed(s))
        return;
    memory_unmap(s->memory); /* what lies in the ring stays readable to the other side */
    s->memory = NULL;
    offer_free(s->offer);
    s->offer = NULL;
    s->shm->undecided_count -= s->state == SHM_UNDECIDED;
    unwatch(s);
    if (s->inner)
        tcp_ops.stream_close(s->inner, abort);
    s->inner = NULL;
    s->state = SHM_PLAIN;
    s->base.user = NULL;
    s->next_dead = s->shm->dead;
    s->shm->dead = s;
}

/* -- the upgrade, step by step -------------------------------------------------------------------- */

/* No answer will come: dials again without an offer. */
static void dial_plainly(struct shm_stream *s)
{
    offer_free(s->offer);
    s->offer = NULL;
    tcp_ops.stream_close(s->inner, 1);
    s->inner = NULL;
    if (dial_inner(s, &s->error) == PCCL_OK) {
        become_plain(s);
        return;
    }
    s->state = SHM_BROKEN;
    s->announced = TRANSPORT_READ | TRANSPORT_WRITE;
}

/* TCP is connected, or its dial has failed, which is then reported as it is. */
static unsigned on_dial_end(struct shm_stream *s, unsigned what)
{
    if (what & TRANSPORT_READ) {
        offer_free(s->offer);
        s->offer = NULL;
        become_plain(s);
        return what;
    }
    s->state = SHM_ASKED;
    if (inner_move(s, 1, s->offer->token, SHM_TOKEN_BYTES) != SHM_TOKEN_BYTES)
        dial_plainly(s);
    return 0;
}

static void on_answer(struct shm_stream *s)
{
    uint8_t answer;
    ssize_t bytes = inner_move(s, 0, &answer, 1);
    if (bytes == -EAGAIN)
        return;
    if (bytes != 1 || answer != SHM_ANSWER) {
        dial_plainly(s);
        return;
    }
    struct shm_offer *offer = s->offer;
    s->offer = NULL;
    become_ring(s, offer, 1);
    s->announced = TRANSPORT_WRITE;
}

/* An offer whose memory cannot be used is answered with a reset: the other side dials again, plainly. */
static void accept_offer(struct shm_stream *s, struct shm_offer *offer)
{
    uint8_t answer = SHM_ANSWER;
    if (offer->memory && inner_move(s, 1, &answer, 1) == 1) {
        become_ring(s, offer, 0);
        return;
    }
    offer_free(offer);
    s->first_begin = s->first_end = 0;
    s->shm->undecided_count--;
    s->state = SHM_BROKEN;
    tcp_ops.stream_close(s->inner, 1);
    s->inner = NULL;
    fail(s, -ECONNRESET);
}

static void on_first_bytes(struct shm_stream *s)
{
    ssize_t bytes = inner_move(s, 0, s->first + s->first_end, SHM_TOKEN_BYTES - s->first_end);
    if (bytes == -EAGAIN)
        return;
    s->first_end += bytes > 0 ? (uint32_t)bytes : 0;
    struct shm_offer *offer = bytes > 0 ? offer_match(s->shm, s->first, s->first_end) : NULL;
    if (!offer)
        become_plain(s);
    else if (s->first_end == SHM_TOKEN_BYTES)
        accept_offer(s, offer);
}

/* The bell itself says nothing: whoever was woken looks at the ring. */
static void on_bell(struct shm_stream *s)
{
    uint8_t bells[64];
    ssize_t bytes = inner_move(s, 0, bells, sizeof bells);
    if (bytes == 0) {
        s->ended = 1;
        tcp_ops.want(s->inner, 0);
    } else if (bytes < 0 && bytes != -EAGAIN) {
        fail(s, bytes);
    }
}

/* What of TCP's report is to be passed on at once. */
static unsigned on_inner(struct shm_stream *s, unsigned what)
{
    switch (s->state) {
    case SHM_DIALLING: return on_dial_end(s, what);
    case SHM_ASKED: on_answer(s); return 0;
    case SHM_UNDECIDED: on_first_bytes(s); return 0;
    case SHM_RING: on_bell(s); return 0;
    default: return what;
    }
}

/* -- readiness ------------------------------------------------------------------------------------ */

/* What a watched stream is ready for. */
static unsigned readiness(const struct shm_stream *s)
{
    unsigned what = 0;
    if (s->error || s->ended)
        what = TRANSPORT_READ | TRANSPORT_WRITE;
    else if (s->state == SHM_RING)
        what = (shm_ring_ready(&s->in) ? TRANSPORT_READ : 0u) | (shm_ring_ready(&s->out) ? TRANSPORT_WRITE : 0u);
    else if (s->first_begin < s->first_end && s->state == SHM_PLAIN)
        what = TRANSPORT_READ;
    return (what & s->interest) | s->announced;
}

/* Adds watched streams that are ready and were not yet reported in this poll; returns the new count. */
static int report_watched(struct shm *t, struct transport_ready *ready, int count, int cap)
{
    struct shm_stream *first = t->watched, *s = first;
    if (!first)
        return count;
    do {
        unsigned what = count < cap && s->reported != t->poll_number ? readiness(s) : 0;
        if (what) {
            ready[count++] = (struct transport_ready){.stream = &s->base, .what = what};
            s->reported = t->poll_number;
            s->announced = 0;
            t->watched = s->next;
        }
        s = s->next;
    } while (s != first);
    return count;
}

static int report_inner(struct shm *t, uint64_t timeout_ns, struct transport_ready *ready, int count, int cap)
{
    struct transport_ready inner[SHM_BATCH];
    int inner_cap = cap - count < SHM_BATCH ? cap - count : SHM_BATCH;
    int inner_count = inner_cap ? tcp_ops.poll(t->inner, timeout_ns, inner, inner_cap) : 0;
    for (int i = 0; i < inner_count; i++) {
        struct shm_stream *s = inner[i].stream ? inner[i].stream->user : NULL;
        unsigned what = s ? on_inner(s, inner[i].what) : inner[i].what;
        if (!what || (s && s->reported == t->poll_number))
            continue;
        ready[count++] = (struct transport_ready){.stream = s ? &s->base : NULL, .what = what};
        if (s)
            s->reported = t->poll_number;
    }
    return count;
}

/* Tells the others that we sleep, or do not: never outside poll, because a bell rung for a stream that is closed would
 * be answered with a reset, and hide its end. Returns 1 if a stream is ready after all. */
static int set_sleep(struct shm *t, int sleeps)
{
    struct shm_stream *s = t->watched;
    int any = 0;
    if (!s)
        return 0;
    do {
        if (s->state == SHM_RING && (s->interest & TRANSPORT_READ))
            shm_ring_sleep(&s->in, sleeps);
        if (s->state == SHM_RING && (s->interest & TRANSPORT_WRITE))
            shm_ring_sleep(&s->out, sleeps);
        any |= readiness(s) != 0;
        s = s->next;
    } while (s != t->watched);
    return any;
}

/* Offers that were given up are dropped, but only after every stream had its chance to name them; when there are none
 * left, what is undecided is plain. */
static void decide(struct shm *t)
{
    receive_offers(t);
    struct shm_stream *s = t->watched, *next;
    for (int left = t->watched_count; left > 0; left--, s = next) {
        next = s->next;
        if (s->state == SHM_UNDECIDED)
            on_first_bytes(s);
    }
    drop_gone_offers(t);
    s = t->watched;
    for (int left = t->offers ? 0 : t->watched_count; left > 0; left--, s = next) {
        next = s->next;
        if (s->state == SHM_UNDECIDED)
            become_plain(s);
    }
}

static int shm_poll(struct transport *transport, uint64_t timeout_ns, struct transport_ready *ready, int cap)
{
    struct shm *t = (struct shm *)transport;
    bury_dead(t);
    t->poll_number++;
    if (t->undecided_count)
        decide(t);
    if (t->undecided_count && timeout_ns > SHM_UNDECIDED_WAIT_NS)
        timeout_ns = SHM_UNDECIDED_WAIT_NS;
    /* half of the room each, so that neither kind starves the other */
    int count = report_watched(t, ready, 0, (cap + (int)(t->poll_number & 1)) / 2);
    int sleeps = count == 0 && timeout_ns > 0;
    if (count || (sleeps && set_sleep(t, 1)))
        timeout_ns = 0;
    count = report_inner(t, timeout_ns, ready, count, cap);
    if (sleeps)
        (void)set_sleep(t, 0);
    return report_watched(t, ready, count, cap);
}

const struct transport_ops auto_ops = {
    .scheme = "auto", .open = shm_open_transport, .close = shm_close_transport, .port = shm_port, .dial = shm_dial,
    .accept = shm_accept, .readv = shm_readv, .writev = shm_writev, .want = shm_want,
    .stream_close = shm_stream_close, .info = shm_info, .poll = shm_poll, .wake = shm_wake,
};
