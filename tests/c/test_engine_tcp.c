/* test_engine_tcp.c - engines with threads over real TCP on loopback: many ops from several threads, streams killed at random,
 * facts read meanwhile, closing in the middle, waiting asleep, and two hundred lives without a leak. Meant for the thread sanitizer. */
#include <dirent.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>

#include "include/pccl.h"
#include "test.h"

enum { ENGINES = 3, LANES = 4, OPS_PER_LANE = 40, COUNT = 16000, TOKENS = LANES * OPS_PER_LANE, WAIT_MS = 60000 };

static pccl_engine *engines[ENGINES];
static float *buffers[ENGINES][TOKENS];
static int32_t status_of[ENGINES][TOKENS];
static atomic_int ended[ENGINES];
static atomic_int stop;

static pccl_peer_id id_of(int i)
{
    pccl_peer_id id;
    memset(id.bytes, i + 1, sizeof id.bytes);
    return id;
}

static void open_engines(void)
{
    for (int i = 0; i < ENGINES; i++) {
        pccl_config config = {.size = sizeof config, .self = id_of(i), .transport = "tcp", .listen = "127.0.0.1:0"};
        CHECK_EQ_INT(pccl_engine_new(&config, &engines[i]), PCCL_OK);
        CHECK_EQ_INT(pccl_engine_start(engines[i]), PCCL_OK);
        atomic_store(&ended[i], 0);
        for (int t = 0; t < TOKENS; t++)
            status_of[i][t] = -1;
    }
    atomic_store(&stop, 0);
}

static void configure(uint32_t number, uint32_t change)
{
    pccl_member members[ENGINES];
    for (int i = 0; i < ENGINES; i++) {
        for (int j = 0; j < ENGINES; j++) {
            members[j] = (pccl_member){.id = id_of(j), .dial = i < j};
            snprintf(members[j].address, sizeof members[j].address, "127.0.0.1:%d", pccl_engine_port(engines[j]));
        }
        pccl_epoch epoch = {.size = sizeof epoch, .epoch = number, .change = change, .member_count = ENGINES,
                            .members = members, .streams = 3, .segment_bytes = 8192, .mesh_bytes_max = 60000};
        CHECK_EQ_INT(pccl_engine_configure(engines[i], &epoch), PCCL_OK);
    }
}

/* Takes what is there; returns how many events of ops. */
static int take_events(int i)
{
    pccl_event events[16];
    int ops = 0;
    for (int n; (n = pccl_engine_events(engines[i], events, 16)) > 0;)
        for (int k = 0; k < n; k++) {
            if (events[k].kind != PCCL_EVENT_OP)
                continue;
            CHECK_EQ_INT(status_of[i][events[k].token], -1); /* an op ends once */
            status_of[i][events[k].token] = events[k].status;
            ops++;
        }
    return ops;
}

/* Until so many ops of the engine have ended; 0 if that takes too long. */
static int wait_for_ops(int i, int count)
{
    while (atomic_load(&ended[i]) < count) {
        struct pollfd fd = {.fd = pccl_engine_event_fd(engines[i]), .events = POLLIN};
        if (poll(&fd, 1, WAIT_MS) <= 0)
            return 0;
        atomic_fetch_add(&ended[i], take_events(i));
    }
    return 1;
}

static void wait_until_closed(int i)
{
    struct pollfd nothing = {.fd = -1};
    for (int turns = 0; !pccl_engine_closed(engines[i]) && turns < WAIT_MS; turns++)
        (void)poll(&nothing, 1, 1);
    CHECK(pccl_engine_closed(engines[i]));
}

static void close_engines(void)
{
    for (int i = 0; i < ENGINES; i++)
        pccl_engine_close(engines[i]);
    for (int i = 0; i < ENGINES; i++) {
        wait_until_closed(i);
        atomic_fetch_add(&ended[i], take_events(i));
        pccl_engine_free(engines[i]);
    }
}

/* -- other threads ----------------------------------------------------------------------------------------------- */

struct caller {
    pthread_t thread;
    int engine, lane;
    int accepted;
};

static pccl_op_request request_of(int engine, int lane, int seq)
{
    int token = lane * OPS_PER_LANE + seq;
    return (pccl_op_request){
        .size = sizeof(pccl_op_request), .kind = PCCL_ALL_REDUCE, .dtype = PCCL_FLOAT32, .redop = PCCL_SUM,
        .algorithm = (uint8_t)(token % PCCL_ALGORITHM_COUNT), .name = {.lane = (uint64_t)lane, .seq = (uint32_t)seq},
        .count = COUNT, .in = buffers[engine][token], .out = buffers[engine][token], .token = (uint64_t)token,
    };
}

static void *call_ops(void *arg)
{
    struct caller *c = arg;
    for (int seq = 0; seq < OPS_PER_LANE; seq++) {
        pccl_op_request request = request_of(c->engine, c->lane, seq);
        c->accepted += pccl_engine_submit(engines[c->engine], &request) == PCCL_OK;
    }
    return NULL;
}

static void *read_facts(void *arg)
{
    uint64_t before = 0;
    (void)arg;
    while (!atomic_load(&stop))
        for (int i = 0; i < ENGINES; i++) {
            pccl_stats stats;
            pccl_link_stats links[ENGINES];
            pccl_engine_stats(engines[i], &stats);
            before += stats.sent_bytes + (uint64_t)pccl_engine_links(engines[i], links, ENGINES);
        }
    CHECK(before > 0);
    return NULL;
}

static void *kill_streams(void *arg)
{
    uint64_t random = 1;
    (void)arg;
    for (int round = 0; round < 60 && !atomic_load(&stop); round++) {
        int from = (int)(test_random(&random) % ENGINES), to = (from + 1 + (int)(test_random(&random) % 2)) % ENGINES;
        pccl_peer_id peer = id_of(to);
        CHECK_EQ_INT(pccl_engine_kill_stream(engines[from], &peer, (uint32_t)test_random(&random)), PCCL_OK);
        struct pollfd nothing = {.fd = -1};
        (void)poll(&nothing, 1, (int)(test_random(&random) % 10));
    }
    return NULL;
}

static void start_callers(struct caller callers[ENGINES * LANES])
{
    for (int k = 0; k < ENGINES * LANES; k++) {
        callers[k] = (struct caller){.engine = k / LANES, .lane = k % LANES};
        CHECK(pthread_create(&callers[k].thread, NULL, call_ops, &callers[k]) == 0);
    }
}

static void join_callers(struct caller callers[ENGINES * LANES], int accepted[ENGINES])
{
    memset(accepted, 0, ENGINES * sizeof accepted[0]);
    for (int k = 0; k < ENGINES * LANES; k++) {
        pthread_join(callers[k].thread, NULL);
        accepted[callers[k].engine] += callers[k].accepted;
    }
}

/* -- memory -------------------------------------------------------------------------------------------------------- */

static void fill_buffers(void)
{
    for (int i = 0; i < ENGINES; i++)
        for (int t = 0; t < TOKENS; t++) {
            buffers[i][t] = malloc(COUNT * sizeof(float));
            for (int k = 0; buffers[i][t] && k < COUNT; k++)
                buffers[i][t][k] = (float)((1 << i) + t);
        }
}

static void free_buffers(void)
{
    for (int i = 0; i < ENGINES; i++)
        for (int t = 0; t < TOKENS; t++)
            free(buffers[i][t]);
}

static int all_equal(const float *array, float value)
{
    for (int k = 0; k < COUNT; k++)
        if (array[k] != value)
            return 0;
    return 1;
}

/* -- tests ------------------------------------------------------------------------------------------------------------ */

TEST(many_ops_from_many_threads_while_streams_die)
{
    struct caller callers[ENGINES * LANES];
    pthread_t reader, killer;
    int accepted[ENGINES];
    fill_buffers();
    open_engines();
    configure(1, 0);
    CHECK(pthread_create(&reader, NULL, read_facts, NULL) == 0);
    CHECK(pthread_create(&killer, NULL, kill_streams, NULL) == 0);
    start_callers(callers);
    for (int i = 0; i < ENGINES; i++)
        CHECK(wait_for_ops(i, TOKENS));
    join_callers(callers, accepted);
    atomic_store(&stop, 1);
    pthread_join(killer, NULL);
    pthread_join(reader, NULL);
    for (int i = 0; i < ENGINES; i++)
        for (int t = 0; t < TOKENS; t++) {
            CHECK_EQ_INT(status_of[i][t], PCCL_OK);
            CHECK(all_equal(buffers[i][t], (float)((1 << ENGINES) - 1 + ENGINES * t)));
        }
    close_engines();
    free_buffers();
}

/* Every op that was accepted ends exactly once, well or with its input restored. */
TEST(closing_while_ops_are_in_flight)
{
    for (int round = 0; round < 2 * ENGINES; round++) { /* each of them closes first, early and late */
        struct caller callers[ENGINES * LANES];
        int accepted[ENGINES];
        fill_buffers();
        open_engines();
        configure(1, 0);
        start_callers(callers);
        if (round % 2)
            CHECK(wait_for_ops(0, 1 + round));
        for (int i = 0; i < ENGINES; i++)
            pccl_engine_close(engines[(i + round) % ENGINES]);
        join_callers(callers, accepted);
        for (int i = 0; i < ENGINES; i++)
            wait_until_closed(i);
        close_engines();
        for (int i = 0; i < ENGINES; i++) {
            CHECK_EQ_INT(atomic_load(&ended[i]), accepted[i]);
            for (int t = 0; t < TOKENS; t++)
                if (status_of[i][t] > PCCL_OK)
                    CHECK(all_equal(buffers[i][t], (float)((1 << i) + t)));
        }
        free_buffers();
    }
}

/* Freeze and a new epoch of the same peers, with nothing committed in between: all ops start again and end well. */
TEST(a_change_under_load)
{
    struct caller callers[ENGINES * LANES];
    int accepted[ENGINES];
    fill_buffers();
    open_engines();
    configure(1, 0);
    for (int i = 0; i < ENGINES; i++)
        CHECK_EQ_INT(pccl_engine_freeze(engines[i], 1), PCCL_OK);
    start_callers(callers);
    join_callers(callers, accepted);
    for (int i = 0; i < ENGINES; i++)
        CHECK_EQ_INT(take_events(i), 0);
    configure(2, 1);
    for (int i = 0; i < ENGINES; i++)
        CHECK(wait_for_ops(i, TOKENS));
    for (int t = 0; t < TOKENS; t++)
        CHECK(all_equal(buffers[0][t], (float)((1 << ENGINES) - 1 + ENGINES * t)));
    close_engines();
    free_buffers();
}

static void submit_one(int engine, int seq)
{
    pccl_op_request request = request_of(engine, 0, seq);
    CHECK_EQ_INT(pccl_engine_submit(engines[engine], &request), PCCL_OK);
}

static uint64_t processor_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000ULL + (uint64_t)t.tv_nsec;
}

/* Near peers stay awake for a moment: not for as long as others do not call an op. */
TEST(who_waits_for_long_sleeps)
{
    enum { MS = 400 };
    struct pollfd nothing = {.fd = -1};
    fill_buffers();
    open_engines();
    configure(1, 0);
    for (int i = 0; i < ENGINES; i++)
        submit_one(i, 0);
    for (int i = 0; i < ENGINES; i++)
        CHECK(wait_for_ops(i, 1));
    submit_one(0, 1);
    uint64_t before_ns = processor_ns();
    (void)poll(&nothing, 1, MS);
    CHECK(processor_ns() - before_ns < MS * 1000000ULL / 2);
    for (int i = 1; i < ENGINES; i++)
        submit_one(i, 1);
    for (int i = 0; i < ENGINES; i++)
        CHECK(wait_for_ops(i, 2));
    close_engines();
    free_buffers();
}

static int entries_of(const char *directory)
{
    DIR *d = opendir(directory);
    int count = 0;
    while (d && readdir(d))
        count++;
    if (d)
        closedir(d);
    return count;
}

/* Threads of ours that end are gone from the process a moment after they said so. */
static int settle_at(const char *directory, int wanted)
{
    struct pollfd nothing = {.fd = -1};
    for (int turns = 0; entries_of(directory) > wanted && turns < WAIT_MS / 10; turns++)
        (void)poll(&nothing, 1, 10);
    return entries_of(directory);
}

TEST(two_hundred_lives_leave_nothing)
{
    int fds = 0, threads = 0;
    for (int life = 0; life <= 200; life++) {
        open_engines();
        if (life % 2)
            configure(1, 0);
        close_engines();
        if (life) /* the first one counts what a sanitizer starts for itself, too */
            continue;
        fds = entries_of("/proc/self/fd");
        threads = entries_of("/proc/self/task");
    }
    CHECK(settle_at("/proc/self/fd", fds) <= fds);
    CHECK(settle_at("/proc/self/task", threads) <= threads);
}

TEST_MAIN("engine_tcp")
