/* shm_offer.c - the memory, the UNIX socket that it is passed over, and the names at which processes meet.
 *
 * The socket's name is made of the TCP address and belongs, like it, to one network namespace; it is in no file system,
 * nor is the memory, and both vanish with their processes. Only processes of the same user meet. */
#include "shm_offer.h"

#include <arpa/inet.h>
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

enum {
    SHM_BLOCK_BYTES = 512,              /* of st_blocks */
    SHM_SEALS = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL,
    SHM_OFFERS_MAX = 256,
    SHM_BACKLOG = 512,
    SHM_NAME_BYTES = 80
};

static const char SHM_NAME[] = "pccl-shm-2";

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

void shm_memory_unmap(void *memory)
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

void shm_offer_free(struct shm_offer *offer)
{
    if (!offer)
        return;
    if (offer->fd >= 0)
        close(offer->fd);
    shm_memory_unmap(offer->memory);
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

struct shm_offer *shm_offer_make(const char *address)
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
    shm_offer_free(offer);
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
                             .msg_controllen = CMSG_LEN(sizeof(int))}; /* the room's padding would do for a second */
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

static void take_new_offers(struct shm_offers *o)
{
    while (o->listen_fd >= 0 && o->count < SHM_OFFERS_MAX) {
        int fd = accept4(o->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return;
        struct shm_offer *offer = same_user(fd) ? calloc(1, sizeof *offer) : NULL;
        if (!offer) {
            close(fd);
            continue;
        }
        offer->fd = fd;
        offer->next = o->first;
        o->first = offer;
        o->count++;
    }
}

void shm_offers_receive(struct shm_offers *o)
{
    take_new_offers(o);
    for (struct shm_offer *offer = o->first; offer; offer = offer->next)
        offer->is_gone |= !offer_receive(offer);
}

void shm_offers_drop_gone(struct shm_offers *o)
{
    for (struct shm_offer **at = &o->first; *at;) {
        struct shm_offer *offer = *at;
        if (!offer->is_gone) {
            at = &offer->next;
            continue;
        }
        *at = offer->next;
        o->count--;
        shm_offer_free(offer);
    }
}

struct shm_offer *shm_offers_match(struct shm_offers *o, const uint8_t *first, uint32_t bytes)
{
    for (struct shm_offer **at = &o->first; *at; at = &(*at)->next) {
        struct shm_offer *offer = *at;
        if (!offer->has_token || memcmp(offer->token, first, bytes) != 0)
            continue;
        if (bytes == SHM_TOKEN_BYTES) {
            *at = offer->next;
            o->count--;
        }
        return offer;
    }
    return NULL;
}

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

void shm_offers_open(struct shm_offers *o, const char *listen_text, int port)
{
    *o = (struct shm_offers){.listen_fd = offers_listen(listen_text, port)};
}

void shm_offers_close(struct shm_offers *o)
{
    while (o->first) {
        struct shm_offer *offer = o->first;
        o->first = offer->next;
        shm_offer_free(offer);
    }
    if (o->listen_fd >= 0)
        close(o->listen_fd);
}
