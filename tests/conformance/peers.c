/* peers.c - the two transports of the conformance suite, their loop, and what tests do with streams. */
#include "peers.h"

#include <dirent.h>
#include <errno.h>
#include <stddef.h>
#include <time.h>

struct subject subject;
const struct transport_ops *ops;
struct transport *a, *b;
char address_b[80];
pccl_sim *sim;
static struct end ends[ENDS_MAX];
static int end_count;
struct end *accepted[ENDS_MAX]; /* by b, in order */
int accepted_count;
unsigned seen_without_stream;
uint8_t buffer[BUFFER_BYTES];

/* -- the two transports and their loop --------------------------------------------------------- */

int is_auto(void)
{
    return strcmp(subject.scheme, "auto") == 0;
}

int is_sim(void)
{
    return strstr(subject.scheme, "sim") != NULL;
}

int is_tls(void)
{
    return strstr(subject.scheme, "tls") != NULL;
}

int is_faulty(void)
{
    return strstr(subject.scheme, "faulty") != NULL;
}

pccl_err open_one(const char *listen, struct transport **transport_p, int *sys_errno_p)
{
    pccl_config config = {.size = sizeof config, .fault_seed = subject.fault_seed, .psk = "the run's", .has_psk = 1, .sim = sim};
    snprintf(config.transport, sizeof config.transport, "%s", subject.scheme);
    snprintf(config.listen, sizeof config.listen, "%s", listen);
    return ops->open(&config, transport_p, sys_errno_p);
}

static void address_of(const struct transport *t, char *text, size_t bytes)
{
    if (is_sim())
        snprintf(text, bytes, "sim:%d", ops->port(t));
    else
        snprintf(text, bytes, "%.*s:%d", (int)(strrchr(subject.listen, ':') - subject.listen), subject.listen,
                 ops->port(t));
}

static void set_delay(uint64_t delay_ns)
{
    const pccl_sim_path path = {.delay_ns = delay_ns, .jitter_ns = delay_ns / 2};
    CHECK_EQ_INT(pccl_sim_set_path(sim, 1, 2, &path), PCCL_OK);
    CHECK_EQ_INT(pccl_sim_set_path(sim, 2, 1, &path), PCCL_OK);
}

void begin(void)
{
    int sys_errno;
    end_count = accepted_count = 0;
    seen_without_stream = 0;
    ops = transport_find(subject.scheme);
    sim = NULL;
    if (is_sim()) {
        CHECK_EQ_INT(pccl_sim_new(7, &sim), PCCL_OK);
        set_delay(1000000);
    }
    CHECK_EQ_INT(open_one(is_sim() ? "sim:1" : subject.listen, &a, &sys_errno), PCCL_OK);
    CHECK_EQ_INT(open_one(is_sim() ? "sim:2" : subject.listen, &b, &sys_errno), PCCL_OK);
    address_of(b, address_b, sizeof address_b);
}

void end_close(struct end *e, int abort)
{
    if (e->stream)
        ops->stream_close(e->stream, abort);
    e->stream = NULL;
}

void finish(void)
{
    for (int i = 0; i < end_count; i++)
        end_close(&ends[i], 0);
    ops->close(a);
    ops->close(b);
    pccl_sim_free(sim);
}

static struct end *end_new(struct stream *stream)
{
    struct end *e = &ends[end_count++];
    *e = (struct end){.stream = stream};
    stream->user = e;
    return e;
}

static void accept_all(struct transport *t)
{
    struct stream *stream;
    while (ops->accept(t, &stream) == PCCL_OK)
        accepted[accepted_count++] = end_new(stream);
}

int poll_one(struct transport *t, uint64_t timeout_ns)
{
    struct transport_ready ready[BATCH];
    int count = ops->poll(t, timeout_ns, ready, BATCH), news = 0;
    for (int i = 0; i < count; i++) {
        struct end *e = ready[i].stream ? ready[i].stream->user : NULL;
        unsigned *seen_p = e ? &e->ready : &seen_without_stream;
        news += (ready[i].what & ~*seen_p) != 0;
        *seen_p |= ready[i].what;
        if (ready[i].what & TRANSPORT_ACCEPT)
            accept_all(t);
    }
    return news;
}

int turn(void)
{
    if (poll_one(a, 0) + poll_one(b, 0) > 0)
        return 1;
    if (!is_sim())
        return poll_one(a, 200000) + poll_one(b, 200000) > 0;
    uint64_t next_ns = pccl_sim_next(sim);
    if (next_ns == UINT64_MAX)
        return 0;
    pccl_sim_advance(sim, next_ns);
    return 1;
}

int is_late(void)
{
    static struct timespec start;
    static const char *test;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (test != test_running) {
        test = test_running;
        start = now;
    }
    return now.tv_sec - start.tv_sec > PATIENCE_S;
}

void settle(void)
{
    for (int idle = 0; idle < 20 && !is_late();)
        idle = turn() ? 0 : idle + 1;
}

/* -- streams ------------------------------------------------------------------------------------ */

struct end *dial(const char *address)
{
    struct stream *stream;
    int sys_errno;
    if (ops->dial(a, address, &stream, &sys_errno) != PCCL_OK)
        return NULL;
    return end_new(stream);
}

void connect_pair(struct end **dialled_p, struct end **accepted_p)
{
    int before = accepted_count;
    struct end *e = dial(address_b);
    TURN_UNTIL((e->ready & TRANSPORT_WRITE) && accepted_count > before);
    CHECK_EQ_INT(e->ready, TRANSPORT_WRITE);
    e->ready = 0;
    *dialled_p = e;
    *accepted_p = accepted[before];
}

ssize_t read_some(struct end *e, void *to, size_t bytes)
{
    struct iovec iov = {.iov_base = to, .iov_len = bytes};
    return ops->readv(e->stream, &iov, 1);
}

ssize_t write_some(struct end *e, const void *from, size_t bytes)
{
    struct iovec iov = {.iov_base = (void *)(uintptr_t)from, .iov_len = bytes};
    return ops->writev(e->stream, &iov, 1);
}

int write_all(struct end *e, const void *from, size_t bytes)
{
    const uint8_t *at = from;
    while (bytes > 0 && !is_late()) {
        ssize_t moved = write_some(e, at, bytes);
        if (moved < 0 && moved != -EAGAIN)
            return 0;
        if (moved == -EAGAIN)
            turn();
        else {
            at += moved;
            bytes -= (size_t)moved;
        }
    }
    return bytes == 0;
}

size_t read_until(struct end *e, void *to, size_t bytes, ssize_t *last_p)
{
    size_t done = 0;
    *last_p = -EAGAIN;
    while (done < bytes && !is_late()) {
        *last_p = read_some(e, (uint8_t *)to + done, bytes - done);
        if (*last_p > 0)
            done += (size_t)*last_p;
        else if (*last_p == -EAGAIN)
            turn();
        else
            break;
    }
    return done;
}

void check_text(struct end *from, struct end *to, const char *text)
{
    char got[64] = "";
    ssize_t last;
    CHECK(write_all(from, text, strlen(text)));
    CHECK_EQ_INT(read_until(to, got, strlen(text), &last), strlen(text));
    CHECK_EQ_STR(got, text);
}

uint8_t pattern(size_t at)
{
    return (uint8_t)((at * 2654435761u) >> 11 ^ at >> 16);
}

size_t fill_pattern(size_t at, size_t end)
{
    size_t bytes = end - at < BUFFER_BYTES ? end - at : BUFFER_BYTES;
    for (size_t i = 0; i < bytes; i++)
        buffer[i] = pattern(at + i);
    return bytes;
}

size_t wrong_bytes(size_t at, size_t bytes)
{
    size_t wrong = 0;
    for (size_t i = 0; i < bytes; i++)
        wrong += buffer[i] != pattern(at + i);
    return wrong;
}

size_t write_until_full(struct end *e, size_t end)
{
    size_t at = 0;
    ops->want(e->stream, TRANSPORT_WRITE);
    e->ready = TRANSPORT_WRITE;
    while ((e->ready & TRANSPORT_WRITE) && at < end && !is_late()) {
        ssize_t moved = write_some(e, buffer, fill_pattern(at, end));
        if (moved > 0)
            at += (size_t)moved;
        if (moved != -EAGAIN)
            continue;
        e->ready = 0;
        settle();
    }
    return at;
}

void dead_address(char *text, size_t bytes)
{
    struct transport *t;
    int sys_errno;
    CHECK_EQ_INT(open_one(is_sim() ? "sim:3" : subject.listen, &t, &sys_errno), PCCL_OK);
    address_of(t, text, bytes);
    ops->close(t);
}

uint64_t poll_ns(struct transport *t, uint64_t timeout_ns)
{
    struct transport_ready ready[BATCH];
    struct timespec before, after;
    clock_gettime(CLOCK_MONOTONIC, &before);
    CHECK_EQ_INT(ops->poll(t, timeout_ns, ready, BATCH), 0);
    clock_gettime(CLOCK_MONOTONIC, &after);
    return (uint64_t)((after.tv_sec - before.tv_sec) * 1000000000 + after.tv_nsec - before.tv_nsec);
}

/* -- what a process holds -------------------------------------------------------------------------- */

int fds_open(void)
{
    int count = 0;
    DIR *directory = opendir("/proc/self/fd");
    while (directory && readdir(directory))
        count++;
    if (directory)
        closedir(directory);
    return count;
}

int memories_mapped(void)
{
    char line[512];
    int count = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps && fgets(line, sizeof line, maps))
        count += strstr(line, "/memfd:pccl") != NULL;
    if (maps)
        fclose(maps);
    return count;
}

socklen_t name_beside_b(struct sockaddr_un *name_p)
{
    *name_p = (struct sockaddr_un){.sun_family = AF_UNIX};
    int bytes = snprintf(name_p->sun_path + 1, 80, "pccl-shm-2/%s/%s", subject.listen[0] == '[' ? "::1" : "127.0.0.1",
                         strrchr(address_b, ':') + 1);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)bytes);
}
