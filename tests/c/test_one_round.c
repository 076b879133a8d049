/* test_one_round.c - the all-reduce of one round: the same bytes on every peer as by the mesh, in two one-way delays instead of three. */
#include "cluster.h"
#include "engine.h"
#include "reduce.h"

enum { COUNT = 1000, BYTES_MAX = COUNT * 8, DELAY_MS = 40, MS = 1000000 };

static struct cluster c;
static uint8_t in[CLUSTER_NODES_MAX][BYTES_MAX], out[CLUSTER_NODES_MAX][BYTES_MAX], by_mesh[BYTES_MAX];

/* -- inputs ------------------------------------------------------------------------------------------------------------ */

/* Uneven numbers, so that another order of summation gives other bits; no NaNs, whose payload depends on the hardware. */
static void fill(uint32_t n, pccl_dtype dtype)
{
    uint64_t random = 17 + (uint64_t)dtype;
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t k = 0; k < COUNT; k++) {
            uint64_t bits = test_random(&random);
            double value = (double)(int64_t)bits / 1e19 * (double)(1 + k % 50);
            float narrow = (float)value;
            uint32_t word;
            memcpy(&word, &narrow, 4);
            switch (dtype) {
            case PCCL_FLOAT64: memcpy(in[i] + k * 8, &value, 8); break;
            case PCCL_FLOAT32: memcpy(in[i] + k * 4, &narrow, 4); break;
            case PCCL_BFLOAT16: memcpy(in[i] + k * 2, (uint8_t *)&word + 2, 2); break;
            case PCCL_FLOAT16: bits = 0x3000 | (bits & 0x8fff); memcpy(in[i] + k * 2, &bits, 2); break;
            default: memcpy(in[i] + k * dtype_bytes(dtype), &bits, dtype_bytes(dtype)); break;
            }
        }
}

/* Reduces everywhere; the op's event at node 0. */
static const pccl_event *reduce(uint32_t n, pccl_op_request r, int in_place)
{
    size_t bytes = (size_t)r.count * dtype_bytes((pccl_dtype)r.dtype);
    cluster_epoch(&c, 1, 0, 0, (1u << n) - 1, ~0u, NULL, 0);
    cluster_run(&c, SECOND);
    for (uint32_t i = 0; i < n; i++) {
        memset(out[i], 0xee, bytes);
        if (in_place)
            memcpy(out[i], in[i], bytes);
        r.in = in_place ? out[i] : in[i];
        r.out = out[i];
        r.token = 1;
        cluster_submit(&c, i, &r);
    }
    cluster_run(&c, 5 * SECOND);
    for (uint32_t i = 0; i < n; i++) {
        const pccl_event *e = cluster_event(&c, i, PCCL_EVENT_OP, 1);
        CHECK(e && e->status == PCCL_OK);
        CHECK_EQ_BYTES(out[i], out[0], bytes);
    }
    return cluster_event(&c, 0, PCCL_EVENT_OP, 1);
}

static pccl_op_request request_of(pccl_dtype dtype, pccl_redop redop, pccl_algorithm algorithm)
{
    return (pccl_op_request){.kind = PCCL_ALL_REDUCE, .dtype = (uint8_t)dtype, .redop = (uint8_t)redop,
                             .algorithm = (uint8_t)algorithm, .count = COUNT};
}

static void check_algorithm(const pccl_event *e, pccl_algorithm expected)
{
    struct desc d = {0};
    CHECK(e && desc_unpack(e->desc, &d) == PCCL_OK);
    CHECK_EQ_INT(d.algorithm, expected);
}

/* -- bytes --------------------------------------------------------------------------------------------------------------- */

TEST(every_type_and_op_gives_the_bytes_of_the_mesh)
{
    for (int dtype = 0; dtype < PCCL_DTYPE_COUNT; dtype++)
        for (int redop = 0; redop < PCCL_REDOP_COUNT; redop++) {
            if (!reduce_kernel((pccl_dtype)dtype, (pccl_redop)redop))
                continue;
            uint32_t n = 2 + (uint32_t)(dtype + redop) % 4;
            fill(n, (pccl_dtype)dtype);
            cluster_open(&c, n, 1, "sim", 0);
            check_algorithm(reduce(n, request_of((pccl_dtype)dtype, (pccl_redop)redop, PCCL_ALGORITHM_MESH), 0), PCCL_ALGORITHM_MESH);
            cluster_close(&c);
            memcpy(by_mesh, out[0], BYTES_MAX);
            for (int in_place = 0; in_place < 2; in_place++) {
                cluster_open(&c, n, 2, "faulty+sim", 0);
                const pccl_event *e = reduce(n, request_of((pccl_dtype)dtype, (pccl_redop)redop, PCCL_ALGORITHM_ONE_ROUND), in_place);
                check_algorithm(e, PCCL_ALGORITHM_ONE_ROUND);
                CHECK_EQ_INT(e ? e->sent_bytes : 0, (n - 1) * COUNT * dtype_bytes((pccl_dtype)dtype));
                cluster_close(&c);
                CHECK_EQ_BYTES(out[0], by_mesh, COUNT * dtype_bytes((pccl_dtype)dtype));
            }
        }
}

/* Each input is encoded once, results never: nearer to the exact sum than by the mesh, and equal everywhere. */
TEST(codecs_encode_once)
{
    static const double share[PCCL_CODEC_COUNT] = {1, 0.5, 0.5, 0.27, 0.14};
    for (uint8_t codec = PCCL_CODEC_BF16; codec < PCCL_CODEC_COUNT; codec++)
        for (uint32_t n = 2; n <= 5; n++) {
            double error[2] = {0};
            fill(n, PCCL_FLOAT32);
            for (int one_round = 0; one_round < 2; one_round++) {
                pccl_op_request r = request_of(PCCL_FLOAT32, PCCL_SUM, one_round ? PCCL_ALGORITHM_ONE_ROUND : PCCL_ALGORITHM_MESH);
                r.codec = codec;
                cluster_open(&c, n, codec, "sim", 0);
                const pccl_event *e = reduce(n, r, (int)n & 1);
                check_algorithm(e, (pccl_algorithm)r.algorithm);
                if (one_round)
                    CHECK(e && (double)e->sent_bytes <= share[codec] * 1.03 * COUNT * 4 * (n - 1));
                cluster_close(&c);
                for (uint32_t k = 0; k < COUNT; k++) {
                    double exact = 0;
                    for (uint32_t i = 0; i < n; i++)
                        exact += (double)((const float *)(const void *)in[i])[k];
                    double off = (double)((const float *)(const void *)out[0])[k] - exact;
                    error[one_round] += off * off;
                }
            }
            CHECK(error[1] > 0 && error[1] < error[0]);
        }
}

/* -- time ---------------------------------------------------------------------------------------------------------------- */

static uint64_t duration_ms(uint32_t n, pccl_algorithm algorithm, uint8_t codec)
{
    pccl_sim_path path = {.delay_ns = DELAY_MS * MS};
    pccl_op_request r = request_of(PCCL_FLOAT32, PCCL_SUM, algorithm);
    uint64_t longest = 0;
    r.codec = codec;
    cluster_open(&c, n, 1, "sim", 0);
    for (uint32_t a = 0; a < n; a++)
        for (uint32_t b = 0; b < n; b++)
            CHECK(pccl_sim_set_path(c.sim, a, b, &path) == PCCL_OK);
    (void)reduce(n, r, 1);
    for (uint32_t i = 0; i < n; i++) {
        const pccl_event *e = cluster_event(&c, i, PCCL_EVENT_OP, 1);
        longest = e && e->duration_ns > longest ? e->duration_ns : longest;
    }
    cluster_close(&c);
    CHECK_EQ_INT(longest % MS, 0);
    return longest / MS;
}

TEST(two_one_way_delays_instead_of_three)
{
    fill(5, PCCL_FLOAT32);
    for (uint32_t n = 2; n <= 5; n++) {
        CHECK_EQ_INT(duration_ms(n, PCCL_ALGORITHM_MESH, PCCL_CODEC_NONE), 3 * DELAY_MS);
        CHECK_EQ_INT(duration_ms(n, PCCL_ALGORITHM_ONE_ROUND, PCCL_CODEC_NONE), 2 * DELAY_MS);
        CHECK_EQ_INT(duration_ms(n, PCCL_ALGORITHM_ONE_ROUND, PCCL_CODEC_INT8), 2 * DELAY_MS);
    }
}

/* -- who takes it ---------------------------------------------------------------------------------------------------------- */

static void check_choice(uint64_t count, pccl_algorithm asked, uint8_t codec, pccl_algorithm expected)
{
    cluster_open(&c, 3, 1, "sim", 0);
    c.one_round_bytes_max = 400;
    c.mesh_bytes_max = 2000;
    pccl_op_request r = request_of(PCCL_FLOAT32, PCCL_SUM, asked);
    r.count = count;
    r.codec = codec;
    check_algorithm(reduce(3, r, 0), expected);
    cluster_close(&c);
}

TEST(the_plan_says_up_to_which_size)
{
    fill(3, PCCL_FLOAT32);
    check_choice(0, PCCL_ALGORITHM_AUTO, PCCL_CODEC_NONE, PCCL_ALGORITHM_ONE_ROUND);
    check_choice(100, PCCL_ALGORITHM_AUTO, PCCL_CODEC_NONE, PCCL_ALGORITHM_ONE_ROUND);
    check_choice(101, PCCL_ALGORITHM_AUTO, PCCL_CODEC_NONE, PCCL_ALGORITHM_MESH);
    check_choice(501, PCCL_ALGORITHM_AUTO, PCCL_CODEC_NONE, PCCL_ALGORITHM_RING);
    check_choice(100, PCCL_ALGORITHM_AUTO, PCCL_CODEC_INT8, PCCL_ALGORITHM_ONE_ROUND);
    check_choice(501, PCCL_ALGORITHM_AUTO, PCCL_CODEC_INT8, PCCL_ALGORITHM_MESH);
    check_choice(100, PCCL_ALGORITHM_MESH, PCCL_CODEC_NONE, PCCL_ALGORITHM_MESH);
    check_choice(100, PCCL_ALGORITHM_RING, PCCL_CODEC_NONE, PCCL_ALGORITHM_RING);
    check_choice(501, PCCL_ALGORITHM_ONE_ROUND, PCCL_CODEC_NONE, PCCL_ALGORITHM_ONE_ROUND);
}

TEST(what_is_too_much_for_one_round_takes_the_mesh)
{
    struct op op = {.n = 5, .element_bytes = 4, .request.count = ONE_ROUND_BYTES_MAX / 16};
    CHECK(one_round_fits(&op));
    op.request.count++;
    CHECK(!one_round_fits(&op));
}

TEST_MAIN("one_round")
