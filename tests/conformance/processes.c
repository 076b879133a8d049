/* processes.c - tests that take more than one process: peers that are killed, wakes, forks, network namespaces. */
#include "peers.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* -- tests: shared memory, between processes ------------------------------------------------------------------------------ */

/* A peer of its own: dials the address, or (NULL) listens and tells its port; then writes and reads for ever. */
static void be_a_peer(const char *address, int port_fd)
{
    struct transport *t;
    struct stream *stream = NULL;
    struct transport_ready ready[BATCH];
    int sys_errno;
    alarm(PATIENCE_S);
    if (open_one(subject.listen, &t, &sys_errno) != PCCL_OK)
        _exit(1);
    int port = ops->port(t);
    if (write(port_fd, &port, sizeof port) != sizeof port)
        _exit(1);
    if (address && ops->dial(t, address, &stream, &sys_errno) != PCCL_OK)
        _exit(1);
    struct iovec iov = {buffer, sizeof buffer};
    for (;;) {
        (void)ops->poll(t, MILLISECOND, ready, BATCH);
        if (!stream && ops->accept(t, &stream) != PCCL_OK)
            continue;
        (void)ops->writev(stream, &iov, 1);
        (void)ops->readv(stream, &iov, 1);
    }
}

/* A peer of its own that listens, sends back what it gets, and sleeps without a time-out in between. */
static void be_an_echo(int port_fd)
{
    struct transport *t;
    struct stream *stream = NULL;
    struct transport_ready ready[BATCH];
    size_t have = 0, done = 0;
    int sys_errno;
    alarm(2 * PATIENCE_S);
    if (open_one(subject.listen, &t, &sys_errno) != PCCL_OK)
        _exit(1);
    int port = ops->port(t);
    if (write(port_fd, &port, sizeof port) != sizeof port)
        _exit(1);
    for (;;) {
        (void)ops->poll(t, UINT64_MAX, ready, BATCH);
        if (!stream && ops->accept(t, &stream) != PCCL_OK)
            continue;
        struct iovec in = {buffer, sizeof buffer};
        ssize_t moved = done == have ? ops->readv(stream, &in, 1) : 0;
        if (moved > 0) {
            have = (size_t)moved;
            done = 0;
        }
        struct iovec out = {buffer + done, have - done};
        moved = done < have ? ops->writev(stream, &out, 1) : 0;
        done += moved > 0 ? (size_t)moved : 0;
        ops->want(stream, done < have ? TRANSPORT_WRITE : TRANSPORT_READ);
    }
}

/* `echoes`: it listens and echoes, whatever the address. */
static pid_t fork_peer(int echoes, const char *address, int *port_p)
{
    int channel[2];
    CHECK_EQ_INT(pipe(channel), 0);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0 && echoes)
        be_an_echo(channel[1]);
    if (child == 0)
        be_a_peer(address, channel[1]);
    CHECK_EQ_INT(read(channel[0], port_p, sizeof *port_p), sizeof *port_p);
    close(channel[0]);
    close(channel[1]);
    return child;
}

static void kill_and_reap(pid_t child)
{
    CHECK_EQ_INT(kill(child, SIGKILL), 0);
    CHECK_EQ_INT(waitpid(child, NULL, 0), child);
}

/* Reads what is left and then the end; returns how long that took. */
static uint64_t ns_until_end(struct end *e)
{
    struct timespec before, after;
    ssize_t last = 1;
    clock_gettime(CLOCK_MONOTONIC, &before);
    while (last > 0 && !is_late())
        (void)read_until(e, buffer, sizeof buffer, &last);
    clock_gettime(CLOCK_MONOTONIC, &after);
    CHECK(last == 0 || last == -ECONNRESET);
    return (uint64_t)((after.tv_sec - before.tv_sec) * 1000000000 + after.tv_nsec - before.tv_nsec);
}

TEST(a_crash_of_either_side_is_seen_and_leaves_nothing)
{
    if (is_sim() || is_faulty())
        return;
    int fds = fds_open();
    for (int dialler_dies = 0; dialler_dies < 2; dialler_dies++) {
        begin();
        int port;
        pid_t child = fork_peer(0, dialler_dies ? address_b : NULL, &port);
        if (!dialler_dies)
            snprintf(strrchr(address_b, ':'), 8, ":%d", port);
        struct end *e = dialler_dies ? NULL : dial(address_b);
        TURN_UNTIL(dialler_dies ? accepted_count == 1 : e->ready & TRANSPORT_WRITE);
        e = e ? e : accepted[0];
        ssize_t last;
        CHECK_EQ_INT(read_until(e, buffer, sizeof buffer, &last), sizeof buffer); /* it is in full swing */
        CHECK_EQ_INT(memories_mapped(), is_auto());
        kill_and_reap(child);
        CHECK(ns_until_end(e) < 100 * (uint64_t)MILLISECOND);
        CHECK(write_some(e, "x", 1) < 0 || write_some(e, "x", 1) < 0);
        finish();
    }
    CHECK_EQ_INT(fds_open(), fds);
    CHECK_EQ_INT(memories_mapped(), 0);
}

/* Sends bytes through the echo, `window` at most before they are back; sleeps without a time-out that would help. */
static size_t echo_bytes(struct end *e, size_t bytes, size_t window)
{
    size_t sent = 0, got = 0, wrong = 0;
    uint8_t back[4096];
    while (got < bytes && !is_late()) {
        size_t most = sent - got < window ? window - (sent - got) : 0;
        most = most < bytes - sent ? most : bytes - sent;
        ssize_t moved = most ? write_some(e, buffer, fill_pattern(sent, sent + most)) : 0;
        sent += moved > 0 ? (size_t)moved : 0;
        struct iovec in = {back, sizeof back};
        ssize_t came = ops->readv(e->stream, &in, 1);
        for (ssize_t i = 0; i < came; i++)
            wrong += back[i] != pattern(got + (size_t)i);
        got += came > 0 ? (size_t)came : 0;
        ops->want(e->stream, TRANSPORT_READ | (moved == -EAGAIN ? TRANSPORT_WRITE : 0u));
        if (came == -EAGAIN && moved <= 0)
            poll_one(a, (uint64_t)2 * PATIENCE_S * 1000000000u);
    }
    CHECK_EQ_INT(wrong, 0);
    return got;
}

TEST(no_wake_between_processes_is_lost)
{
    if (is_sim())
        return;
    begin();
    int port;
    pid_t child = fork_peer(1, NULL, &port);
    snprintf(strrchr(address_b, ':'), 8, ":%d", port);
    struct end *e = dial(address_b);
    TURN_UNTIL(e->ready & TRANSPORT_WRITE);
    CHECK_EQ_INT(echo_bytes(e, 3000, 1), 3000);               /* both sides wait for bytes */
    CHECK_EQ_INT(echo_bytes(e, 8 << 20, 8 << 20), 8 << 20);   /* and for room */
    kill_and_reap(child);
    finish();
}

/* A child that was only forked, and outlives its parent's streams, holds none of the memory. */
TEST(a_forked_child_does_not_hold_the_memory)
{
    if (!is_auto())
        return;
    begin();
    struct end *there, *here;
    connect_pair(&there, &here);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0)
        _exit(memories_mapped());
    int status;
    CHECK_EQ_INT(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    finish();
}

/* In another network namespace the same address is another place, for the UNIX sockets too. Returns 1 if it is so,
 * 2 if there is no right to try. */
static int dial_from_another_namespace(void)
{
    if (unshare(CLONE_NEWNET) != 0)
        return 2;
    struct sockaddr_un name;
    socklen_t bytes = name_beside_b(&name);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    if (connect(fd, (struct sockaddr *)&name, bytes) == 0)
        return 0;
    struct transport *t;
    struct stream *stream;
    struct transport_ready ready[BATCH];
    int sys_errno = 0, count = 0;
    if (system("ip link set lo up") != 0)
        return 2;
    if (open_one(subject.listen, &t, &sys_errno) != PCCL_OK)
        return 0;
    if (ops->dial(t, address_b, &stream, &sys_errno) != PCCL_OK)
        return sys_errno == ECONNREFUSED;
    while (count == 0 && !is_late())
        count = ops->poll(t, MILLISECOND, ready, BATCH);
    struct iovec iov = {buffer, 1};
    return ops->readv(stream, &iov, 1) == -ECONNREFUSED;
}

TEST(another_namespace_is_another_host)
{
    if (!is_auto())
        return;
    begin();
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        alarm(PATIENCE_S);
        _exit(dial_from_another_namespace());
    }
    int status = 0;
    CHECK_EQ_INT(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) != 0);
    finish();
}

/* Joins this namespace with that of the process by a cable, and gives our end an address. */
static int lay_cable(pid_t to)
{
    char command[160];
    snprintf(command, sizeof command, "ip link add west type veth peer name east netns %d && "
             "ip addr add 10.77.0.1/24 dev west && ip link set west up", (int)to);
    return system(command);
}

/* The peer at the other end of the cable: dials once there is one. */
static void be_a_peer_in_the_east(int ready_fd, int go_fd)
{
    char address[32];
    if (unshare(CLONE_NEWNET) != 0 || write(ready_fd, "r", 1) != 1 || read(go_fd, address, sizeof address) <= 0
        || system("ip addr add 10.77.0.2/24 dev east && ip link set east up") != 0)
        _exit(1);
    be_a_peer(address, ready_fd);
}

/* In a child: 1 if bytes came through the cable and none of our memory is mapped, 2 if there is no right to try. */
static int talk_between_namespaces(void)
{
    int ready[2], go[2], result = 2;
    char byte, address[32] = "";
    if (unshare(CLONE_NEWNET) != 0 || pipe(ready) != 0 || pipe(go) != 0)
        return 2;
    subject.listen = "0.0.0.0:0";
    pid_t east = fork();
    if (east == 0)
        be_a_peer_in_the_east(ready[1], go[0]);
    begin();
    snprintf(address, sizeof address, "10.77.0.1:%d", ops->port(b));
    if (read(ready[0], &byte, 1) == 1 && lay_cable(east) == 0 && write(go[1], address, sizeof address) > 0) {
        ssize_t last;
        while (accepted_count == 0 && !is_late())
            turn();
        result = accepted_count == 1 && read_until(accepted[0], buffer, sizeof buffer, &last) == sizeof buffer
                 && memories_mapped() == 0;
    }
    kill(east, SIGKILL);
    return result;
}

TEST(between_namespaces_it_is_tcp)
{
    if (!is_auto() || subject.listen[0] == '[')
        return;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        alarm(PATIENCE_S);
        _exit(talk_between_namespaces());
    }
    int status = 0;
    CHECK_EQ_INT(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) != 0);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 2)
        printf("between_namespaces_it_is_tcp: not tried, it takes the right to make namespaces\n");
}
