/* shared_memory.c - tests of what a transport holds: descriptors, and the memory that "auto" shares with its peer.
 *
 * Some of them speak the protocol by hand, to say what no peer would. */
#include "peers.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "../../transports/shm_ring.h"

/* -- tests: descriptors ---------------------------------------------------------------------------------------- */

TEST(no_descriptor_leaks)
{
    int before = fds_open();
    begin();
    char address[80];
    dead_address(address, sizeof address);
    for (int i = 0; i < 20; i++) {
        struct end *there, *here;
        connect_pair(&there, &here);
        dial(address);
        end_close(i % 2 ? there : here, i % 3 == 0);
    }
    dial(address_b);
    finish();
    CHECK_EQ_INT(fds_open(), before);
}

/* Takes every descriptor below a low limit, beside those taken before; returns how many are taken now. */
static int take_descriptors(int taken[64], int count)
{
    struct rlimit limit;
    CHECK_EQ_INT(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = 64;
    CHECK_EQ_INT(setrlimit(RLIMIT_NOFILE, &limit), 0);
    while (count < 64 && (taken[count] = dup(STDERR_FILENO)) >= 0)
        count++;
    return count;
}

/* With no descriptor left a connection is dropped, and the listener does not stay ready for ever. */
TEST(running_out_of_descriptors_does_not_spin)
{
    if (is_sim())
        return;
    begin();
    struct end *e = dial(address_b);
    struct rlimit old;
    CHECK_EQ_INT(getrlimit(RLIMIT_NOFILE, &old), 0);
    int taken[64], taken_count = take_descriptors(taken, 0);
    TURN_UNTIL(seen_without_stream & TRANSPORT_ACCEPT);
    while (!(e->ready & TRANSPORT_WRITE) && !is_late()) {
        poll_one(a, MILLISECOND); /* the dialler may give descriptors back and try again */
        taken_count = take_descriptors(taken, taken_count);
        poll_one(b, MILLISECOND);
    }
    settle();
    CHECK_EQ_INT(accepted_count, 0);
    seen_without_stream = 0;
    struct transport_ready ready[BATCH];
    CHECK_EQ_INT(ops->poll(b, 1000000, ready, BATCH), 0);
    CHECK_EQ_INT(setrlimit(RLIMIT_NOFILE, &old), 0);
    while (taken_count > 0)
        close(taken[--taken_count]);
    ssize_t last;
    CHECK_EQ_INT(read_until(e, buffer, 1, &last), 0);
    CHECK(last == 0 || last == -ECONNRESET);
    struct end *there, *here;
    connect_pair(&there, &here);
    check_text(there, here, "recovered");
    finish();
}

TEST(any_address_means_both_families)
{
    if (strcmp(subject.listen, "[::1]:0") != 0)
        return;
    const char *listen = subject.listen;
    subject.listen = "[::]:0";
    begin();
    const char *const hosts[] = {"127.0.0.1", "[::1]"};
    for (int i = 0; i < 2; i++) {
        snprintf(address_b, sizeof address_b, "%s:%d", hosts[i], ops->port(b));
        struct end *there, *here;
        connect_pair(&there, &here);
        struct stream_info info;
        ops->info(here->stream, &info);
        CHECK(strncmp(info.remote, hosts[i], strlen(hosts[i])) == 0);
    }
    finish();
    subject.listen = listen;
}

/* -- tests: shared memory ------------------------------------------------------------------------------------------- */

static int in_memory(const struct end *e)
{
    struct stream_info info;
    ops->info(e->stream, &info);
    return info.in_memory;
}

/* Between them nothing is lost or changed, unless somebody sees to that. */
TEST(says_which_streams_are_in_memory)
{
    begin();
    struct end *there, *here;
    connect_pair(&there, &here);
    CHECK_EQ_INT(in_memory(there), is_auto() && !is_faulty());
    CHECK_EQ_INT(in_memory(here), is_auto() && !is_faulty());
    finish();
}

TEST(peers_of_one_host_share_memory)
{
    if (!is_auto())
        return;
    begin();
    struct end *there, *here, *more[2];
    connect_pair(&there, &here);
    CHECK_EQ_INT(memories_mapped(), 2);
    connect_pair(&more[0], &more[1]);
    CHECK_EQ_INT(memories_mapped(), 4);
    check_text(there, here, "through memory");
    end_close(there, 0);
    CHECK_EQ_INT(memories_mapped(), 3);
    end_close(here, 1);
    CHECK_EQ_INT(memories_mapped(), 2);
    finish();
    CHECK_EQ_INT(memories_mapped(), 0);
}

/* A listener at every address is met under each of them. */
TEST(a_listener_everywhere_shares_memory_too)
{
    if (!is_auto())
        return;
    const char *listen = subject.listen;
    subject.listen = listen[0] == '[' ? "[::]:0" : "0.0.0.0:0";
    begin();
    snprintf(address_b, sizeof address_b, "127.0.0.1:%d", ops->port(b));
    struct end *there, *here;
    connect_pair(&there, &here);
    CHECK_EQ_INT(memories_mapped(), 2);
    /* another host's port of the same number is not ours: it is offered nothing */
    char elsewhere[40];
    snprintf(elsewhere, sizeof elsewhere, "203.0.113.1:%d", ops->port(b));
    (void)dial(elsewhere);
    CHECK_EQ_INT(memories_mapped(), 2);
    finish();
    subject.listen = listen;
}

/* A third transport, of plain TCP, beside a and b. */
static const struct transport_ops *tcp;
static struct transport *plain;

static void begin_beside_plain(void)
{
    int sys_errno;
    begin();
    tcp = transport_find("tcp");
    pccl_config config = {.size = sizeof config, .transport = "tcp"};
    snprintf(config.listen, sizeof config.listen, "%s", subject.listen);
    CHECK_EQ_INT(tcp->open(&config, &plain, &sys_errno), PCCL_OK);
}

static void turn_with_plain(void)
{
    struct transport_ready ready[BATCH];
    (void)tcp->poll(plain, MILLISECOND, ready, BATCH);
    turn();
}

static struct stream *accepted_by_plain(void)
{
    struct stream *stream = NULL;
    while (tcp->accept(plain, &stream) != PCCL_OK && !is_late())
        turn_with_plain();
    return stream;
}

/* The plain end of the stream speaks first, and hears the other. */
static void check_plain_end(struct stream *end, struct end *other)
{
    char sent = 'y', got = 0;
    struct iovec out = {&sent, 1}, in = {&got, 1};
    while (tcp->writev(end, &out, 1) != 1 && !is_late())
        turn_with_plain();
    while (read_some(other, &got, 1) != 1 && !is_late())
        turn_with_plain();
    CHECK_EQ_INT(got, 'y');
    CHECK(write_all(other, "z", 1));
    while (tcp->readv(end, &in, 1) != 1 && !is_late())
        turn_with_plain();
    CHECK_EQ_INT(got, 'z');
}

TEST(a_plain_listener_is_met_over_tcp)
{
    if (!is_auto())
        return;
    begin_beside_plain();
    snprintf(strrchr(address_b, ':'), 8, ":%d", tcp->port(plain));
    struct end *e = dial(address_b);
    struct stream *odd = accepted_by_plain();
    TURN_UNTIL(e->ready & TRANSPORT_WRITE);
    check_plain_end(odd, e);
    CHECK_EQ_INT(memories_mapped(), 0);
    tcp->stream_close(odd, 0);
    tcp->close(plain);
    finish();
}

/* Also while an offer of somebody else is open, who never comes: the listener may speak first all the same. */
TEST(a_plain_dialler_is_met_over_tcp)
{
    if (!is_auto())
        return;
    begin_beside_plain();
    for (int with_offer = 0; with_offer < 2; with_offer++) {
        struct end *other = with_offer ? dial(address_b) : NULL;
        if (other)
            end_close(other, 1);
        struct stream *odd;
        int sys_errno, before = accepted_count;
        CHECK_EQ_INT(tcp->dial(plain, address_b, &odd, &sys_errno), PCCL_OK);
        while (accepted_count <= before + with_offer && !is_late())
            turn_with_plain();
        /* the one that was given up is in the queue too, before it */
        struct end *heard = accepted[before + with_offer];
        ops->want(heard->stream, TRANSPORT_WRITE);
        while (!(heard->ready & TRANSPORT_WRITE) && !is_late())
            turn_with_plain();
        CHECK(heard->ready & TRANSPORT_WRITE);
        check_plain_end(odd, heard);
        tcp->stream_close(odd, 0);
    }
    tcp->close(plain);
    finish();
}

/* -- tests: shared memory, by hand ------------------------------------------------------------------------------------ */

enum { TOKEN_BYTES = 16, RING_BYTES = 1 << 20, MEMORY_BYTES = 4096 + 2 * RING_BYTES };

static int connect_tcp_to_b(void)
{
    uint16_t port = htons((uint16_t)atoi(strrchr(address_b, ':') + 1));
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = port, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = port, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    int is_v6 = subject.listen[0] == '[';
    int fd = socket(is_v6 ? AF_INET6 : AF_INET, SOCK_STREAM, 0);
    const struct sockaddr *to = is_v6 ? (const struct sockaddr *)&v6 : (const struct sockaddr *)&v4;
    CHECK_EQ_INT(connect(fd, to, is_v6 ? sizeof v6 : sizeof v4), 0);
    return fd;
}

/* Offers b so many copies of the descriptor, under the token; returns the UNIX socket. */
static int offer_copies(const char *token, size_t token_bytes, int memory_fd, size_t copies)
{
    struct sockaddr_un name;
    socklen_t bytes = name_beside_b(&name);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    CHECK_EQ_INT(connect(fd, (struct sockaddr *)&name, bytes), 0);
    const int fds[] = {memory_fd, memory_fd};
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof fds)];
    } control = {.header = {.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(copies * sizeof(int))}};
    memcpy(CMSG_DATA(&control.header), fds, copies * sizeof(int));
    struct iovec iov = {(void *)(uintptr_t)token, token_bytes};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.room,
                             .msg_controllen = copies ? CMSG_SPACE(copies * sizeof(int)) : 0};
    CHECK_EQ_INT(sendmsg(fd, &message, MSG_NOSIGNAL), token_bytes);
    return fd;
}

static int offer(const char *token, size_t token_bytes, int memory_fd)
{
    return offer_copies(token, token_bytes, memory_fd, memory_fd >= 0);
}

static int memory(size_t bytes, int allocate, int seals)
{
    int fd = memfd_create("pccl", MFD_ALLOW_SEALING);
    CHECK_EQ_INT(ftruncate(fd, (off_t)bytes), 0);
    if (allocate)
        CHECK_EQ_INT(fallocate(fd, 0, 0, (off_t)bytes), 0);
    CHECK_EQ_INT(fcntl(fd, F_ADD_SEALS, seals), 0);
    return fd;
}

/* What b answers to an offer and its token: 1 a ring, 0 a reset or an end. */
static int answer_to(int tcp_fd, const char *token)
{
    char answer = 0;
    CHECK_EQ_INT(send(tcp_fd, token, TOKEN_BYTES, MSG_NOSIGNAL), TOKEN_BYTES);
    ssize_t bytes = -1;
    while (!is_late() && (bytes = recv(tcp_fd, &answer, 1, MSG_DONTWAIT)) < 0 && errno == EAGAIN)
        turn();
    return bytes == 1 && answer == 'R';
}

TEST(memory_that_could_hurt_is_refused)
{
    if (!is_auto())
        return;
    const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    begin();
    const struct {
        int memory_fd, is_good;
    } cases[] = {
        {memory(MEMORY_BYTES, 1, seals), 1},
        {memory(MEMORY_BYTES - 4096, 1, seals), 0},
        {memory(MEMORY_BYTES + 4096, 1, seals), 0},
        {memory(MEMORY_BYTES, 0, seals), 0},
        {memory(MEMORY_BYTES, 1, F_SEAL_GROW), 0},
        {memory(MEMORY_BYTES, 1, seals | F_SEAL_WRITE), 0},
        {open("/dev/zero", O_RDWR), 0},
        {-1, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char token[TOKEN_BYTES + 1];
        snprintf(token, sizeof token, "a token number %zu", i);
        int unix_fd = offer(token, TOKEN_BYTES, cases[i].memory_fd), tcp_fd = connect_tcp_to_b();
        CHECK_EQ_INT(answer_to(tcp_fd, token), cases[i].is_good);
        CHECK_EQ_INT(memories_mapped(), cases[i].is_good);
        for (int k = 0; k < accepted_count; k++)
            end_close(accepted[k], 1);
        close(unix_fd);
        close(tcp_fd);
        if (cases[i].memory_fd >= 0)
            close(cases[i].memory_fd);
    }
    struct end *there, *here;
    connect_pair(&there, &here);
    check_text(there, here, "unimpressed");
    finish();
}

TEST(nonsense_offers_are_dropped)
{
    if (!is_auto())
        return;
    int before = fds_open();
    begin();
    int memory_fd = memory(MEMORY_BYTES, 1, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    int unix_fd[] = {offer("short", 5, memory_fd), offer("much too long a token", 21, memory_fd),
                     offer("nobody dials me.", TOKEN_BYTES, memory_fd), offer_copies("two at a time", 13, memory_fd, 2)};
    struct end *there, *here;
    connect_pair(&there, &here);
    check_text(there, here, "none of them is this one");
    int tcp_fd = connect_tcp_to_b(), before_it = accepted_count;
    TURN_UNTIL(accepted_count > before_it);
    end_close(accepted[before_it], 1); /* while it is undecided */
    settle();
    CHECK(poll_ns(b, 100 * MILLISECOND) >= 100 * MILLISECOND);
    for (int i = 0; i < 4; i++)
        close(unix_fd[i]);
    close(tcp_fd);
    connect_pair(&there, &here);
    check_text(here, there, "nor this one");
    close(memory_fd);
    finish();
    CHECK_EQ_INT(fds_open(), before);
    CHECK_EQ_INT(memories_mapped(), 0);
}

/* The other side of a ring, in a thread: when its byte has been read it writes the next, a little later each time, so
 * that it comes while b is about to sleep; and rings only when b has said that it sleeps. */
enum { LATE_BYTES = 20000 };
static struct shm_ring_shared *late_ring;
static int late_fd;

static void *write_late(void *unused)
{
    for (uint64_t i = 1; i <= LATE_BYTES; i++) {
        while (atomic_load(&late_ring->read) < i - 1)
            sched_yield();
        for (volatile uint64_t pause = i % 512; pause > 0; pause--)
            ;
        atomic_store(&late_ring->written, i);
        if (atomic_load(&late_ring->reader_sleeps) && atomic_exchange(&late_ring->reader_sleeps, 0))
            (void)!send(late_fd, "b", 1, MSG_NOSIGNAL);
    }
    return unused;
}

TEST(falling_asleep_it_looks_once_more)
{
    if (!is_auto())
        return;
    begin();
    int memory_fd = memory(MEMORY_BYTES, 1, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), got = 0;
    int unix_fd = offer("sixteen letters.", TOKEN_BYTES, memory_fd);
    late_fd = connect_tcp_to_b();
    CHECK(answer_to(late_fd, "sixteen letters."));
    late_ring = mmap(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, memory_fd, 0);
    pthread_t thread;
    CHECK_EQ_INT(pthread_create(&thread, NULL, write_late, NULL), 0);
    struct transport_ready ready[BATCH];
    while (got < LATE_BYTES && !is_late()) {
        (void)ops->poll(b, (uint64_t)2 * PATIENCE_S * 1000000000u, ready, BATCH);
        ssize_t moved = read_some(accepted[0], buffer, 1);
        got += moved > 0;
    }
    CHECK_EQ_INT(got, LATE_BYTES);
    pthread_join(thread, NULL);
    munmap(late_ring, MEMORY_BYTES);
    close(memory_fd);
    close(unix_fd);
    close(late_fd);
    finish();
}

/* The other side writes positions that cannot be true: an error of that stream, and of nothing else. */
TEST(a_lying_ring_ends_its_stream)
{
    if (!is_auto())
        return;
    begin();
    for (int of_reader = 0; of_reader < 2; of_reader++) {
        int memory_fd = memory(MEMORY_BYTES, 1, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), before = accepted_count;
        int unix_fd = offer("sixteen letters.", TOKEN_BYTES, memory_fd), tcp_fd = connect_tcp_to_b();
        CHECK(answer_to(tcp_fd, "sixteen letters."));
        struct shm_ring_shared *ring = mmap(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, memory_fd, 0);
        struct end *victim = accepted[before];
        CHECK_EQ_INT(write_some(victim, "honest", 6), 6);
        CHECK_EQ_INT(read_some(victim, buffer, 1), -EAGAIN);
        if (of_reader)
            atomic_store(&ring[1].read, 7);
        else
            atomic_store(&ring[0].written, RING_BYTES + 1);
        victim->ready = 0;
        ops->want(victim->stream, TRANSPORT_READ | TRANSPORT_WRITE);
        TURN_UNTIL(victim->ready & (of_reader ? TRANSPORT_WRITE : TRANSPORT_READ));
        CHECK_EQ_INT(of_reader ? write_some(victim, "x", 1) : read_some(victim, buffer, sizeof buffer), -EPROTO);
        CHECK_EQ_INT(write_some(victim, "x", 1), -EPROTO);
        end_close(victim, 1);
        munmap(ring, MEMORY_BYTES);
        close(unix_fd);
        close(tcp_fd);
        close(memory_fd);
    }
    finish();
}

/* Somebody takes offers in b's name, but b knows nothing of them and hangs up: the dialler comes back over TCP. */
TEST(an_upgrade_refused_ends_in_tcp)
{
    if (!is_auto())
        return;
    begin_beside_plain();
    snprintf(strrchr(address_b, ':'), 8, ":%d", tcp->port(plain));
    struct sockaddr_un name;
    socklen_t bytes = name_beside_b(&name);
    int squatter = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    CHECK_EQ_INT(bind(squatter, (struct sockaddr *)&name, bytes), 0);
    CHECK_EQ_INT(listen(squatter, 5), 0);
    struct end *e = dial(address_b);
    struct stream *first = accepted_by_plain();
    char token[TOKEN_BYTES];
    struct iovec iov = {token, sizeof token};
    while (tcp->readv(first, &iov, 1) != TOKEN_BYTES && !is_late())
        turn_with_plain();
    CHECK_EQ_INT(e->ready, 0);
    tcp->stream_close(first, 1);
    struct stream *second = accepted_by_plain();
    TURN_UNTIL(e->ready);
    CHECK_EQ_INT(e->ready, TRANSPORT_WRITE);
    check_plain_end(second, e);
    CHECK_EQ_INT(memories_mapped(), 0);
    tcp->stream_close(second, 0);
    tcp->close(plain);
    close(squatter);
    finish();
}
