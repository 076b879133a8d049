/* probe.c - measures a path between two sites. Each end is one process; every line it prints is a JSON object.
 *
 *     probe echo PORT                                               echoes UDP until it is ended
 *     probe ping HOST PORT COUNT                                    {"answers": n, "min_us", "median_us", "mean_us", "max_us"}
 *     probe receive-udp PORT IDLE_MS                                {"packets", "wire_bytes", "seconds"} of the first flood
 *     probe send-udp HOST PORT PACKETS WIRE_BYTES MBIT              {"sent": packets}; MBIT of wire bytes
 *     probe receive-tcp PORT CONNECTIONS WARM_UP_S SECONDS          {"bytes", "seconds", "intact"} after the warm-up
 *     probe send-tcp HOST PORT CONNECTIONS [CONGESTION]             {"retransmits": packets} when the receiver closes
 * Receivers print {"ready": true} first. Hosts are IPv4 or IPv6 addresses. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    CONNECTIONS_MAX = 256,
    PINGS_MAX = 10000,
    PING_INTERVAL_MS = 5,
    PING_TIMEOUT_MS = 2000,
    BATCH = 64,
    UDP_OVERHEAD = 28, /* of IPv4 and UDP headers, counted as on the wire */
    DATAGRAM_MAX = 1472,
    BLOCK_BYTES = 256 << 10,
    PATTERN_BYTES = 262147,
    SOCKET_BUFFER = 32 << 20,
    GIVE_UP_MS = 20000,
};

static void die(const char *what)
{
    fprintf(stderr, "probe: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void ready(void)
{
    printf("{\"ready\": true}\n");
    fflush(stdout);
}

/* -- sockets ------------------------------------------------------------------------------------------------------- */

static int bound(int type, const char *port)
{
    int on = 1, off = 0, bytes = SOCKET_BUFFER, fd = socket(AF_INET6, type | SOCK_CLOEXEC, 0);
    struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)strtoul(port, NULL, 10))};
    if (fd < 0)
        die("socket");
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    if (type == SOCK_DGRAM)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
        die("bind");
    return fd;
}

static int connected(int type, const char *host, const char *port, const char *congestion)
{
    char mapped[INET6_ADDRSTRLEN + 8];
    struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)strtoul(port, NULL, 10))};
    snprintf(mapped, sizeof mapped, "%s%s", strchr(host, ':') ? "" : "::ffff:", host);
    if (inet_pton(AF_INET6, mapped, &address.sin6_addr) != 1) {
        errno = EINVAL;
        die(host);
    }
    int fd = socket(AF_INET6, type | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("socket");
    if (congestion && setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, congestion, (socklen_t)strlen(congestion)) < 0)
        die(congestion);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        die("connect");
    return fd;
}

static bool readable(int fd, int timeout_ms)
{
    struct pollfd poller = {.fd = fd, .events = POLLIN};
    return poll(&poller, 1, timeout_ms) > 0;
}

/* A busy machine's lateness is not the link's. Only for modes that mostly wait. */
static void become_punctual(void)
{
    struct sched_param real_time = {.sched_priority = 1};
    prctl(PR_SET_TIMERSLACK, 1ul);
    sched_setscheduler(0, SCHED_RR, &real_time);
}

/* -- round trips --------------------------------------------------------------------------------------------------- */

static void echo(const char *port)
{
    uint8_t data[2048];
    struct sockaddr_in6 from;
    int fd = bound(SOCK_DGRAM, port);
    become_punctual();
    ready();
    for (;;) {
        socklen_t length = sizeof from;
        ssize_t got = recvfrom(fd, data, sizeof data, 0, (struct sockaddr *)&from, &length);
        if (got > 0 && sendto(fd, data, (size_t)got, 0, (struct sockaddr *)&from, length) < 0)
            die("sendto");
    }
}

/* Microseconds until the answer to this one came, negative when it did not. */
static double ping_once(int fd, uint32_t sequence)
{
    uint32_t answer = sequence + 1;
    double start = now_s(), left_ms = PING_TIMEOUT_MS;
    if (send(fd, &sequence, sizeof sequence, 0) < 0)
        return -1;
    while (answer != sequence && left_ms > 0) {
        if (readable(fd, (int)left_ms) && recv(fd, &answer, sizeof answer, 0) < 0)
            return -1;
        left_ms = PING_TIMEOUT_MS - (now_s() - start) * 1e3;
    }
    return answer == sequence ? (now_s() - start) * 1e6 : -1;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void ping(const char *host, const char *port, uint32_t count)
{
    static double times[PINGS_MAX];
    uint32_t answers = 0;
    double sum = 0;
    int fd = connected(SOCK_DGRAM, host, port, NULL);
    become_punctual();
    for (uint32_t i = 0; i < count && i < PINGS_MAX; i++) {
        double us = ping_once(fd, i);
        if (us >= 0) {
            times[answers++] = us;
            sum += us;
        }
        poll(NULL, 0, PING_INTERVAL_MS);
    }
    qsort(times, answers, sizeof *times, compare);
    printf("{\"answers\": %u, \"min_us\": %.1f, \"median_us\": %.1f, \"mean_us\": %.1f, \"max_us\": %.1f}\n", answers, times[0],
           times[answers / 2], answers ? sum / answers : 0.0, answers ? times[answers - 1] : 0.0);
}

/* -- datagrams ----------------------------------------------------------------------------------------------------- */

static void batch_init(struct mmsghdr *messages, struct iovec *pieces, uint8_t *data, size_t each)
{
    memset(messages, 0, BATCH * sizeof *messages);
    for (size_t i = 0; i < BATCH; i++) {
        pieces[i] = (struct iovec){.iov_base = data + i * each, .iov_len = each};
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &pieces[i], .msg_iovlen = 1};
    }
}

static void receive_udp(const char *port, int idle_ms)
{
    static uint8_t data[BATCH * 2048];
    struct mmsghdr messages[BATCH];
    struct iovec pieces[BATCH];
    uint64_t packets = 0, bytes = 0, first_bytes = 0;
    double first = 0, last = 0;
    int fd = bound(SOCK_DGRAM, port);
    become_punctual();
    ready();
    while (readable(fd, packets ? idle_ms : GIVE_UP_MS)) {
        batch_init(messages, pieces, data, 2048);
        int got = recvmmsg(fd, messages, BATCH, MSG_DONTWAIT, NULL);
        last = now_s();
        for (int i = 0; i < got; i++)
            bytes += messages[i].msg_len + UDP_OVERHEAD;
        if (!packets && got > 0) {
            first = last;
            first_bytes = bytes;
        }
        packets += got > 0 ? (uint64_t)got : 0;
    }
    printf("{\"packets\": %llu, \"wire_bytes\": %llu, \"seconds\": %.6f}\n", (unsigned long long)packets,
           (unsigned long long)(bytes - first_bytes), last - first);
}

static void send_udp(const char *host, const char *port, uint64_t count, size_t wire_bytes, double mbit)
{
    static uint8_t data[BATCH * DATAGRAM_MAX];
    struct mmsghdr messages[BATCH];
    struct iovec pieces[BATCH];
    uint64_t sent = 0;
    size_t each = wire_bytes - UDP_OVERHEAD < DATAGRAM_MAX ? wire_bytes - UDP_OVERHEAD : DATAGRAM_MAX;
    int fd = connected(SOCK_DGRAM, host, port, NULL);
    batch_init(messages, pieces, data, each);
    become_punctual();
    double start = now_s();
    while (sent < count) {
        double due = (now_s() - start) * mbit * 1e6 / 8 / (double)(each + UDP_OVERHEAD) - (double)sent;
        unsigned batch = due < BATCH ? (due > 0 ? (unsigned)due : 0) : BATCH;
        if (batch > count - sent)
            batch = (unsigned)(count - sent);
        int done = batch ? sendmmsg(fd, messages, batch, 0) : 0;
        if (done < 0 && errno != ECONNREFUSED && errno != ENOBUFS)
            die("sendmmsg");
        sent += done > 0 ? (uint64_t)done : 0;
        if (due < BATCH)
            poll(NULL, 0, 1);
    }
    printf("{\"sent\": %llu}\n", (unsigned long long)sent);
}

/* -- streams ------------------------------------------------------------------------------------------------------- */

/* A stream carries this pattern over and over: a lost, doubled or moved piece shows. Its period is a prime. */
static uint8_t pattern[PATTERN_BYTES + BLOCK_BYTES];

static void fill_pattern(void)
{
    for (uint32_t i = 0; i < PATTERN_BYTES; i++)
        pattern[i] = (uint8_t)((i * 2654435761u) >> 13);
    memcpy(pattern + PATTERN_BYTES, pattern, BLOCK_BYTES);
}

/* One byte in 61 shows every shift, at little cost. */
static bool as_expected(const uint8_t *data, size_t bytes, uint64_t offset)
{
    const uint8_t *expected = pattern + offset % PATTERN_BYTES;
    for (size_t i = 0; i < bytes; i += 61)
        if (data[i] != expected[i])
            return false;
    return true;
}

struct inflow {
    struct pollfd pollers[CONNECTIONS_MAX];
    uint64_t offsets[CONNECTIONS_MAX];
    int count;
    bool intact;
};

static uint64_t receive_ready(struct inflow *in)
{
    static uint8_t block[BLOCK_BYTES];
    uint64_t bytes = 0;
    for (int i = 0; i < in->count; i++) {
        ssize_t got = in->pollers[i].revents ? recv(in->pollers[i].fd, block, sizeof block, MSG_DONTWAIT) : 0;
        if (got <= 0)
            continue;
        in->intact = in->intact && as_expected(block, (size_t)got, in->offsets[i]);
        in->offsets[i] += (uint64_t)got;
        bytes += (uint64_t)got;
    }
    return bytes;
}

static void receive_tcp(const char *port, int connections, double warm_up_s, double seconds)
{
    static struct inflow in = {.intact = true};
    fill_pattern();
    int listener = bound(SOCK_STREAM, port);
    if (listen(listener, CONNECTIONS_MAX) < 0)
        die("listen");
    ready();
    for (; in.count < connections && in.count < CONNECTIONS_MAX; in.count++) {
        int fd = readable(listener, GIVE_UP_MS) ? accept(listener, NULL, NULL) : -1;
        if (fd < 0)
            die("accept");
        in.pollers[in.count] = (struct pollfd){.fd = fd, .events = POLLIN};
    }
    uint64_t bytes = 0;
    double start = now_s(), from = 0, now = start;
    while (now < start + warm_up_s + seconds) {
        poll(in.pollers, (nfds_t)in.count, 20);
        uint64_t got = receive_ready(&in);
        now = now_s();
        if (from > 0)
            bytes += got;
        else if (now >= start + warm_up_s)
            from = now;
    }
    printf("{\"bytes\": %llu, \"seconds\": %.6f, \"intact\": %s}\n", (unsigned long long)bytes, now - from,
           in.intact ? "true" : "false");
    fflush(stdout);
    _exit(0); /* with unread data: the senders see a reset at once */
}

static uint64_t retransmits(const struct pollfd *pollers, int count)
{
    uint64_t total = 0;
    for (int i = 0; i < count; i++) {
        struct tcp_info info = {0};
        socklen_t length = sizeof info;
        if (getsockopt(pollers[i].fd, IPPROTO_TCP, TCP_INFO, &info, &length) == 0)
            total += info.tcpi_total_retrans;
    }
    return total;
}

/* False when the receiver has closed. */
static bool send_ready(struct pollfd *pollers, uint64_t *offsets, int count)
{
    for (int i = 0; i < count; i++) {
        if (!pollers[i].revents)
            continue;
        const uint8_t *block = pattern + offsets[i] % PATTERN_BYTES;
        ssize_t sent = send(pollers[i].fd, block, BLOCK_BYTES, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN)
            return false;
        offsets[i] += sent > 0 ? (uint64_t)sent : 0;
    }
    return true;
}

static void send_tcp(const char *host, const char *port, int connections, const char *congestion)
{
    static struct pollfd pollers[CONNECTIONS_MAX];
    static uint64_t offsets[CONNECTIONS_MAX];
    int count = connections < CONNECTIONS_MAX ? connections : CONNECTIONS_MAX;
    fill_pattern();
    for (int i = 0; i < count; i++)
        pollers[i] = (struct pollfd){.fd = connected(SOCK_STREAM, host, port, congestion), .events = POLLOUT};
    uint64_t total = 0;
    do {
        total = retransmits(pollers, count);
        if (poll(pollers, (nfds_t)count, GIVE_UP_MS) <= 0)
            die("the receiver reads nothing");
    } while (send_ready(pollers, offsets, count));
    printf("{\"retransmits\": %llu}\n", (unsigned long long)total);
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";
    if (argc == 3 && !strcmp(mode, "echo"))
        echo(argv[2]);
    else if (argc == 5 && !strcmp(mode, "ping"))
        ping(argv[2], argv[3], (uint32_t)strtoul(argv[4], NULL, 10));
    else if (argc == 4 && !strcmp(mode, "receive-udp"))
        receive_udp(argv[2], (int)strtol(argv[3], NULL, 10));
    else if (argc == 7 && !strcmp(mode, "send-udp"))
        send_udp(argv[2], argv[3], strtoull(argv[4], NULL, 10), strtoul(argv[5], NULL, 10), strtod(argv[6], NULL));
    else if (argc == 6 && !strcmp(mode, "receive-tcp"))
        receive_tcp(argv[2], (int)strtol(argv[3], NULL, 10), strtod(argv[4], NULL), strtod(argv[5], NULL));
    else if ((argc == 5 || argc == 6) && !strcmp(mode, "send-tcp"))
        send_tcp(argv[2], argv[3], (int)strtol(argv[4], NULL, 10), argc == 6 ? argv[5] : NULL);
    else {
        fprintf(stderr, "usage: see the head of probe.c\n");
        return 2;
    }
    return 0;
}
