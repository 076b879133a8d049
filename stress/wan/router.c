/* router.c - the process that joins the sites: reads their TUN devices, lets the network decide, writes on time.
 *
 *     router SOCKET SEED MEMORY_MB
 *
 * Listens on the UNIX socket for commands (control.c) and ends when its standard input ends, so that it never outlives the
 * program that started it. One thread. It looks no more often than the network's grain, so that busy lines cost few turns;
 * between short delays it is exact instead: it sleeps until the next packet is due, and polls for the last SPIN_NS before. */
#define _GNU_SOURCE
#include <errno.h>
#include <malloc.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "control.h"
#include "network.h"

enum { SPIN_NS = 20000, READS_PER_TURN = 128, MOVES_PER_TURN = 1024, LINE_BYTES = 4096 };

enum source_kind { SOURCE_STDIN, SOURCE_LISTENER, SOURCE_CLIENT, SOURCE_SITE };

/* What a descriptor of the epoll set stands for. */
struct source {
    enum source_kind kind;
    int fd;
    struct site *site;     /* of SOURCE_SITE */
    char line[LINE_BYTES]; /* of SOURCE_CLIENT: what came of the next line */
    size_t line_bytes;
};

struct router {
    struct network network;
    int epoll_fd;
    bool ended;
    uint64_t looked_ns; /* when the last turn began */
    struct packet *spare; /* the next read goes here */
};

static uint64_t clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

__attribute__((noreturn)) static void die(const char *what)
{
    fprintf(stderr, "router: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void watch(struct router *router, enum source_kind kind, int fd, struct site *site)
{
    struct source *source = calloc(1, sizeof *source);
    if (!source)
        die("memory");
    *source = (struct source){.kind = kind, .fd = fd, .site = site};
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = source};
    if (epoll_ctl(router->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0)
        die("epoll_ctl");
}

/* -- packets ------------------------------------------------------------------------------------------------------- */

/* The packet just read, in memory of about its size; the spare one is kept when it was small. NULL at the memory's limit. */
static struct packet *take_spare(struct router *router, uint32_t bytes)
{
    struct packet *packet = router->spare;
    packet->bytes = bytes;
    struct packet *other = packet_new(&router->network.memory, bytes > WAN_PACKET_BYTES_MAX / 2 ? WAN_PACKET_BYTES_MAX : bytes);
    if (!other)
        return NULL;
    if (other->capacity == WAN_PACKET_BYTES_MAX) {
        router->spare = other;
        return packet;
    }
    other->bytes = bytes;
    memcpy(other->data, packet->data, bytes);
    return other;
}

static void read_site(struct router *router, struct site *site)
{
    for (int i = 0; i < READS_PER_TURN; i++) {
        ssize_t got = read(site->tun_fd, router->spare->data, WAN_PACKET_BYTES_MAX);
        if (got <= 0)
            return;
        struct packet *packet = take_spare(router, (uint32_t)got);
        if (!packet) {
            site->overflow++;
            continue;
        }
        packet->from = site->number;
        if (packet_parse(packet)) {
            network_enter(&router->network, packet, clock_ns());
        } else {
            site->unroutable++;
            packet_free(&router->network.memory, packet);
        }
    }
}

/* -- commands ------------------------------------------------------------------------------------------------------ */

static void answer_line(struct router *router, struct source *client, const char *line)
{
    struct text answer = {0};
    struct site *site = NULL;
    control_execute(&router->network, line, clock_ns(), &answer, &site);
    if (site)
        watch(router, SOURCE_SITE, site->tun_fd, site);
    /* A client that does not read its answers is not waited for. */
    if (answer.failed || send(client->fd, answer.data, answer.bytes, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)answer.bytes)
        shutdown(client->fd, SHUT_RDWR);
    text_free(&answer);
}

static void close_client(struct source *client)
{
    close(client->fd);
    free(client);
}

static void read_client(struct router *router, struct source *client)
{
    ssize_t got = read(client->fd, client->line + client->line_bytes, LINE_BYTES - 1 - client->line_bytes);
    if (got <= 0) {
        close_client(client);
        return;
    }
    client->line_bytes += (size_t)got;
    char *end;
    while ((end = memchr(client->line, '\n', client->line_bytes))) {
        *end = '\0';
        answer_line(router, client, client->line);
        client->line_bytes -= (size_t)(end + 1 - client->line);
        memmove(client->line, end + 1, client->line_bytes);
    }
    if (client->line_bytes == LINE_BYTES - 1)
        close_client(client);
}

static void accept_client(struct router *router, int listener)
{
    int bytes = 1 << 20, fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0)
        return;
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    watch(router, SOURCE_CLIENT, fd, NULL);
}

static void handle(struct router *router, struct source *source)
{
    char byte;
    switch (source->kind) {
    case SOURCE_STDIN:
        router->ended = read(source->fd, &byte, 1) <= 0;
        break;
    case SOURCE_LISTENER:
        accept_client(router, source->fd);
        break;
    case SOURCE_CLIENT:
        read_client(router, source);
        break;
    case SOURCE_SITE:
        read_site(router, source->site);
        break;
    }
}

/* -- loop ---------------------------------------------------------------------------------------------------------- */

static struct timespec timespec_of(uint64_t ns)
{
    return (struct timespec){.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
}

/* What comes meanwhile waits for the next turn. */
static void rest(struct router *router)
{
    struct timespec next = timespec_of(router->looked_ns + router->network.grain_ns);
    if (router->network.grain_ns > SPIN_NS)
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
    router->looked_ns = clock_ns();
}

/* Until something comes or the next packet is due. */
static int wait_events(struct router *router, struct epoll_event *events, int count)
{
    uint64_t due = network_due_ns(&router->network), now = clock_ns();
    if (due == UINT64_MAX)
        return epoll_wait(router->epoll_fd, events, count, -1);
    uint64_t spin = router->network.grain_ns > SPIN_NS ? 0 : SPIN_NS;
    struct timespec timeout = timespec_of(due > now + spin ? due - now - spin : 0);
    return epoll_pwait2(router->epoll_fd, events, count, &timeout, NULL);
}

static void run(struct router *router)
{
    struct epoll_event events[WAN_SITES_MAX];
    while (!router->ended) {
        rest(router);
        network_run(&router->network, clock_ns(), MOVES_PER_TURN);
        int count = wait_events(router, events, WAN_SITES_MAX);
        if (count < 0 && errno != EINTR)
            die("epoll_pwait2");
        for (int i = 0; i < count; i++)
            handle(router, events[i].data.ptr);
    }
}

static void deliver(struct network *network, struct site *site, struct packet *packet)
{
    if (write(site->tun_fd, packet->data, packet->bytes) != (ssize_t)packet->bytes)
        site->write_errors++;
    packet_free(&network->memory, packet);
}

static int listen_at(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(address.sun_path, path, strlen(path));
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, 16) < 0)
        return -1;
    return fd;
}

/* On time even when the machine is busy, before any process that is no real-time one (a nice value would only count within
 * the router's own session); memory that was once used is kept. All of it is of help, none of it needed. */
static void become_punctual(void)
{
    struct sched_param real_time = {.sched_priority = 1};
    prctl(PR_SET_TIMERSLACK, 1ul);
    sched_setscheduler(0, SCHED_RR, &real_time);
    mallopt(M_MMAP_THRESHOLD, 1 << 30);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
}

int main(int argc, char **argv)
{
    static struct router router;
    if (argc != 4) {
        fprintf(stderr, "usage: router SOCKET SEED MEMORY_MB\n");
        return 2;
    }
    router.network.seed = strtoull(argv[2], NULL, 10);
    router.network.memory.limit_bytes = strtoull(argv[3], NULL, 10) << 20;
    router.network.deliver = deliver;
    router.spare = packet_new(&router.network.memory, WAN_PACKET_BYTES_MAX);
    router.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (!router.spare || router.epoll_fd < 0)
        die("start");
    signal(SIGINT, SIG_IGN); /* Ctrl-C is for the program that started it */
    become_punctual();
    int listener = listen_at(argv[1]);
    if (listener < 0)
        die(argv[1]);
    watch(&router, SOURCE_STDIN, STDIN_FILENO, NULL);
    watch(&router, SOURCE_LISTENER, listener, NULL);
    run(&router);
    network_free(&router.network);
    unlink(argv[1]);
    return 0;
}
