/* test_wire.c - frame headers, descriptions and handshake messages: round trips, ranges, and every single flipped bit. */
#include "../../csrc/crc32c.h"
#include "../../csrc/wire.h"
#include "test.h"

static uint64_t seed = 1;

static struct desc random_desc(void)
{
    return (struct desc){
        .kind = (uint8_t)(1 + test_random(&seed) % (PCCL_KIND_COUNT - 1)),
        .dtype = (uint8_t)(test_random(&seed) % PCCL_DTYPE_COUNT),
        .redop = (uint8_t)(test_random(&seed) % PCCL_REDOP_COUNT),
        .algorithm = (uint8_t)(test_random(&seed) % PCCL_ALGORITHM_COUNT),
        .count = test_random(&seed) & DESC_COUNT_MAX,
    };
}

/* What the type leaves open. */
static struct frame random_transfer_frame(uint8_t type)
{
    struct frame frame = {
        .payload_crc = (uint32_t)test_random(&seed), .type = type, .name = {.lane = test_random(&seed)},
        .link_seq = (uint32_t)test_random(&seed), .link_ack = (uint32_t)test_random(&seed),
        .bare = (type == FRAME_FETCH || type == FRAME_PIECE) && test_random(&seed) % 2,
    };
    if (type == FRAME_FETCH) {
        frame.step = (uint16_t)(test_random(&seed) % PCCL_PRIORITY_COUNT);
        frame.payload_bytes = WIRE_FETCH_HEAD_BYTES + WIRE_FETCH_RUN_BYTES * (uint32_t)(1 + test_random(&seed) % WIRE_FETCH_RUNS_MAX);
    } else if (type == FRAME_PIECE) {
        frame.offset = test_random(&seed) % WIRE_TRANSFER_BYTES_MAX;
        frame.payload_bytes = 1 + (uint32_t)(test_random(&seed) % WIRE_PAYLOAD_BYTES_MAX);
    } else if (type == FRAME_DENY) {
        frame.step = (uint16_t)(1 + test_random(&seed) % (DENY_REASON_END - 1));
    }
    return frame;
}

static struct frame random_frame(void)
{
    struct desc desc = random_desc();
    uint8_t type = (uint8_t)(1 + test_random(&seed) % (FRAME_TYPE_END - 1));
    if (wire_of_transfer(type))
        return random_transfer_frame(type);
    return (struct frame){
        .payload_crc = (uint32_t)test_random(&seed),
        .payload_bytes = type == FRAME_DATA ? 1 + (uint32_t)(test_random(&seed) % WIRE_PAYLOAD_BYTES_MAX)
                         : type == FRAME_PROBE ? 1 + (uint32_t)(test_random(&seed) % WIRE_PROBE_BYTES_MAX) : 0,
        .type = type, .step = (uint16_t)test_random(&seed), .epoch = (uint32_t)test_random(&seed),
        .name = {.lane = test_random(&seed), .boundary = (uint32_t)test_random(&seed),
                 .seq = (uint32_t)test_random(&seed)},
        .shape = (uint32_t)test_random(&seed), .desc = desc_pack(&desc), .offset = test_random(&seed),
        .link_seq = (uint32_t)test_random(&seed), .link_ack = (uint32_t)test_random(&seed),
    };
}

static void reseal(uint8_t header[WIRE_HEADER_BYTES])
{
    uint32_t crc = crc32c(0, header + 4, WIRE_HEADER_BYTES - 4);
    for (int i = 0; i < 4; i++)
        header[i] = (uint8_t)(crc >> (8 * i));
}

/* Encodes the frame, changed by the caller into something out of range, behind a checksum that holds. */
static pccl_err decode_of(const struct frame *frame)
{
    uint8_t header[WIRE_HEADER_BYTES];
    struct frame decoded;
    wire_encode(frame, header);
    return wire_decode(header, &decoded);
}

TEST(frames_survive_the_wire)
{
    for (int round = 0; round < 10000; round++) {
        uint8_t header[WIRE_HEADER_BYTES], again[WIRE_HEADER_BYTES];
        struct frame frame = random_frame(), decoded;
        wire_encode(&frame, header);
        CHECK_EQ_INT(wire_decode(header, &decoded), PCCL_OK);
        CHECK_EQ_INT(decoded.payload_crc, frame.payload_crc);
        CHECK_EQ_INT(decoded.payload_bytes, frame.payload_bytes);
        CHECK_EQ_INT(decoded.type, frame.type);
        CHECK_EQ_INT(decoded.step, frame.step);
        CHECK_EQ_INT(decoded.epoch, frame.epoch);
        CHECK(decoded.name.lane == frame.name.lane);
        CHECK_EQ_INT(decoded.name.boundary, frame.name.boundary);
        CHECK_EQ_INT(decoded.name.seq, frame.name.seq);
        CHECK_EQ_INT(decoded.shape, frame.shape);
        CHECK(decoded.desc == frame.desc);
        CHECK(decoded.offset == frame.offset);
        CHECK_EQ_INT(decoded.link_seq, frame.link_seq);
        CHECK_EQ_INT(decoded.link_ack, frame.link_ack);
        wire_encode(&decoded, again);
        CHECK_EQ_BYTES(header, again, WIRE_HEADER_BYTES);
    }
}

/* The layout is a promise to other versions: docs/protocol.md section 2.2. */
TEST(header_layout)
{
    struct frame frame = {
        .payload_crc = 0x14131211, .payload_bytes = 0x00021110, .type = FRAME_DATA, .step = 0x2221,
        .epoch = 0x34333231, .name = {.lane = 0x5857565554535251, .boundary = 0x44434241, .seq = 0x64636261},
        .shape = 0x74737271, .desc = 1, .offset = 0x8887868584838281, .link_seq = 0x94939291, .link_ack = 0xa4a3a2a1,
    };
    static const uint8_t expected[WIRE_HEADER_BYTES - 4] = {
        0x11, 0x12, 0x13, 0x14, 0x10, 0x11, 0x02, 0x00, FRAME_DATA, 0, 0x21, 0x22, 0x31, 0x32, 0x33, 0x34,
        0x41, 0x42, 0x43, 0x44, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x61, 0x62, 0x63, 0x64,
        0x71, 0x72, 0x73, 0x74, 1, 0, 0, 0, 0, 0, 0, 0, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88,
        0x91, 0x92, 0x93, 0x94, 0xa1, 0xa2, 0xa3, 0xa4,
    };
    uint8_t header[WIRE_HEADER_BYTES];
    wire_encode(&frame, header);
    CHECK_EQ_BYTES(header + 4, expected, sizeof expected);
}

TEST(a_flipped_bit_of_a_header_is_refused)
{
    for (int round = 0; round < 50; round++) {
        uint8_t header[WIRE_HEADER_BYTES];
        struct frame frame = random_frame(), decoded = {.epoch = 77};
        wire_encode(&frame, header);
        for (int bit = 0; bit < WIRE_HEADER_BYTES * 8; bit++) {
            header[bit / 8] ^= (uint8_t)(1 << bit % 8);
            CHECK_EQ_INT(wire_decode(header, &decoded), PCCL_EPROTO);
            header[bit / 8] ^= (uint8_t)(1 << bit % 8);
        }
        CHECK_EQ_INT(decoded.epoch, 77); /* a refusal leaves the struct alone */
        CHECK_EQ_INT(wire_decode(header, &decoded), PCCL_OK);
    }
}

TEST(types_and_flags_out_of_range)
{
    struct frame frame = {.desc = 1};
    for (int type = 0; type < 256; type++) {
        frame.type = (uint8_t)type;
        int known = ((type >= 1 && type < FRAME_FETCH) || type == FRAME_CALL) && type != FRAME_DATA; /* DATA and PROBE have a payload */
        CHECK_EQ_INT(decode_of(&frame), known ? PCCL_OK : PCCL_EPROTO);
    }
    uint8_t header[WIRE_HEADER_BYTES];
    struct frame decoded;
    for (int flags = 1; flags < 256; flags++)
        for (uint8_t type = 1; type < FRAME_TYPE_END; type++) {
            frame = type == FRAME_DATA || type == FRAME_PROBE ? (struct frame){.type = type, .desc = 1, .payload_bytes = 1}
                    : wire_of_transfer(type) ? random_transfer_frame(type) : (struct frame){.type = type, .desc = 1};
            wire_encode(&frame, header);
            header[13] = (uint8_t)flags;
            reseal(header);
            int may_be_bare = flags == 1 && (type == FRAME_FETCH || type == FRAME_PIECE);
            CHECK_EQ_INT(wire_decode(header, &decoded), may_be_bare ? PCCL_OK : PCCL_EPROTO);
            CHECK(!may_be_bare || decoded.bare);
        }
}

TEST(payload_lengths_out_of_range)
{
    static const uint32_t bad[] = {WIRE_PAYLOAD_BYTES_MAX + 1, 1u << 24, 1u << 31, UINT32_MAX};
    struct frame frame = {.type = FRAME_DATA, .desc = 1, .payload_bytes = 1};
    CHECK_EQ_INT(decode_of(&frame), PCCL_OK);
    frame.payload_bytes = WIRE_PAYLOAD_BYTES_MAX;
    CHECK_EQ_INT(decode_of(&frame), PCCL_OK);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        frame.payload_bytes = bad[i];
        CHECK_EQ_INT(decode_of(&frame), PCCL_EPROTO);
    }
    for (uint8_t type = 1; type < FRAME_TYPE_END; type++) {
        if (wire_of_transfer(type))
            continue;
        frame.type = type;
        frame.payload_bytes = 1;
        CHECK_EQ_INT(decode_of(&frame), type == FRAME_DATA || type == FRAME_PROBE ? PCCL_OK : PCCL_EPROTO);
    }
    frame = (struct frame){.type = FRAME_PROBE, .payload_bytes = WIRE_PROBE_BYTES_MAX};
    CHECK_EQ_INT(decode_of(&frame), PCCL_OK);
    frame.payload_bytes++;
    CHECK_EQ_INT(decode_of(&frame), PCCL_EPROTO);
}

TEST(transfer_frames_out_of_range)
{
    for (uint8_t type = FRAME_FETCH; type <= FRAME_DROP; type++)
        for (int round = 0; round < 50; round++) {
            struct frame good = random_transfer_frame(type), bad[12];
            CHECK_EQ_INT(decode_of(&good), PCCL_OK);
            for (int i = 0; i < 12; i++)
                bad[i] = good;
            bad[0].epoch = bad[1].name.boundary = bad[2].name.seq = bad[3].shape = 1;
            bad[4].desc = 1;
            bad[5].step = 3;
            bad[6].payload_bytes = type == FRAME_FETCH || type == FRAME_PIECE ? 0 : 1;
            bad[7].offset = WIRE_TRANSFER_BYTES_MAX;
            bad[8].payload_bytes = type == FRAME_FETCH ? WIRE_FETCH_HEAD_BYTES : UINT32_MAX;
            bad[9].payload_bytes = type == FRAME_FETCH ? good.payload_bytes + 1 : WIRE_PAYLOAD_BYTES_MAX + 1;
            bad[10].payload_bytes = WIRE_FETCH_HEAD_BYTES + (WIRE_FETCH_RUNS_MAX + 1) * WIRE_FETCH_RUN_BYTES;
            if (type == FRAME_PIECE)
                bad[10].step = 1;
            bad[11].step = type == FRAME_DENY ? 0 : DENY_REASON_END;
            for (int i = 0; i < 12; i++)
                CHECK_EQ_INT(decode_of(&bad[i]), PCCL_EPROTO);
        }
}

TEST(fetch_payloads_survive_the_wire_or_are_refused)
{
    enum { RUNS = 3, PAYLOAD_BYTES = WIRE_FETCH_HEAD_BYTES + RUNS * WIRE_FETCH_RUN_BYTES };
    uint8_t payload[PAYLOAD_BYTES + WIRE_FETCH_RUN_BYTES] = {0};
    struct fetch_head head = {.key = "a key", .generation = 1ULL << 60, .segment_bytes = 4096, .run_count = RUNS}, got;
    static const struct fetch_run runs[RUNS] = {{5, 1}, {UINT64_MAX - 8, 8}, {0, WIRE_TRANSFER_BYTES_MAX - 9}};
    wire_encode_fetch(&head, payload);
    for (uint32_t i = 0; i < RUNS; i++)
        wire_encode_fetch_run(runs[i], i, payload);
    CHECK_EQ_INT(wire_decode_fetch(payload, PAYLOAD_BYTES, &got), PCCL_OK);
    CHECK(memcmp(&head, &got, sizeof head) == 0);
    for (uint32_t i = 0; i < RUNS; i++) {
        struct fetch_run run = wire_decode_fetch_run(payload, i);
        CHECK(run.offset == runs[i].offset && run.bytes == runs[i].bytes);
    }
    CHECK_EQ_INT(wire_decode_fetch(payload, PAYLOAD_BYTES - WIRE_FETCH_RUN_BYTES, &got), PCCL_EPROTO);
    CHECK_EQ_INT(wire_decode_fetch(payload, PAYLOAD_BYTES + WIRE_FETCH_RUN_BYTES, &got), PCCL_EPROTO);
    static const struct fetch_run bad[] = {{0, 0}, {0, WIRE_TRANSFER_BYTES_MAX - 8}, {UINT64_MAX, 1}, {UINT64_MAX - 6, 8}, {0, UINT64_MAX}};
    for (uint32_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        wire_encode_fetch_run(bad[i], 2, payload);
        CHECK_EQ_INT(wire_decode_fetch(payload, PAYLOAD_BYTES, &got), PCCL_EPROTO);
    }
    wire_encode_fetch_run(runs[2], 2, payload);
    static const uint32_t bad_segments[] = {0, 63, 96, WIRE_PAYLOAD_BYTES_MAX + 64, 1u << 31};
    for (uint32_t i = 0; i < sizeof bad_segments / sizeof bad_segments[0]; i++) {
        head.segment_bytes = bad_segments[i];
        wire_encode_fetch(&head, payload);
        CHECK_EQ_INT(wire_decode_fetch(payload, PAYLOAD_BYTES, &got), PCCL_EPROTO);
    }
}

TEST(descriptions_survive_packing)
{
    for (int round = 0; round < 10000; round++) {
        struct desc desc = random_desc(), again;
        CHECK_EQ_INT(desc_unpack(desc_pack(&desc), &again), PCCL_OK);
        CHECK_EQ_INT(again.kind, desc.kind);
        CHECK_EQ_INT(again.dtype, desc.dtype);
        CHECK_EQ_INT(again.redop, desc.redop);
        CHECK_EQ_INT(again.algorithm, desc.algorithm);
        CHECK_EQ_INT(again.codec, 0);
        CHECK(again.count == desc.count);
        CHECK(desc_pack(&again) == desc_pack(&desc));
    }
}

/* Each field through all values that its bits can hold. */
TEST(descriptions_out_of_range)
{
    struct desc base = {.kind = PCCL_ALL_REDUCE, .count = DESC_COUNT_MAX}, again;
    for (int v = 0; v < 16; v++) {
        struct desc d = base;
        d.kind = (uint8_t)v;
        CHECK_EQ_INT(desc_unpack(desc_pack(&d), &again), v >= 1 && v < PCCL_KIND_COUNT ? PCCL_OK : PCCL_EPROTO);
        d = base;
        d.codec = (uint8_t)v;
        CHECK_EQ_INT(desc_unpack(desc_pack(&d), &again), v < PCCL_CODEC_COUNT ? PCCL_OK : PCCL_EPROTO);
    }
    for (int v = 0; v < 32; v++) {
        struct desc d = base;
        d.dtype = (uint8_t)v;
        CHECK_EQ_INT(desc_unpack(desc_pack(&d), &again), v < PCCL_DTYPE_COUNT ? PCCL_OK : PCCL_EPROTO);
    }
    for (int v = 0; v < 8; v++) {
        struct desc d = base;
        d.redop = (uint8_t)v;
        CHECK_EQ_INT(desc_unpack(desc_pack(&d), &again), v < PCCL_REDOP_COUNT ? PCCL_OK : PCCL_EPROTO);
        d = base;
        d.algorithm = (uint8_t)v;
        CHECK_EQ_INT(desc_unpack(desc_pack(&d), &again), v < PCCL_ALGORITHM_COUNT ? PCCL_OK : PCCL_EPROTO);
    }
}

TEST(a_bad_description_spoils_the_frames_that_carry_one)
{
    struct frame frame = {.desc = 0};
    for (uint8_t type = 1; type < FRAME_TYPE_END; type++) {
        if (wire_of_transfer(type))
            continue;
        frame.type = type;
        frame.payload_bytes = type == FRAME_DATA || type == FRAME_PROBE;
        int carries = type == FRAME_DATA || type == FRAME_GRANT || type == FRAME_FIN;
        CHECK_EQ_INT(decode_of(&frame), carries ? PCCL_EPROTO : PCCL_OK);
    }
}

/* -- handshake ---------------------------------------------------------------------------------------------- */

static void random_bytes(uint8_t *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++)
        bytes[i] = (uint8_t)test_random(&seed);
}

static struct hello random_hello(void)
{
    struct hello hello = {.epoch = (uint32_t)test_random(&seed), .stream = 3, .streams = 4};
    random_bytes(hello.run, sizeof hello.run);
    random_bytes(hello.dialler.bytes, sizeof hello.dialler.bytes);
    random_bytes(hello.acceptor.bytes, sizeof hello.acceptor.bytes);
    random_bytes(hello.nonce, sizeof hello.nonce);
    hello.purpose = (uint16_t)(test_random(&seed) % HELLO_PURPOSE_END);
    if (hello.purpose == HELLO_RELAY) {
        random_bytes(hello.target.bytes, sizeof hello.target.bytes);
        hello.hops = (uint16_t)test_random(&seed);
    } else if (hello.purpose == HELLO_DIRECT) {
        hello.incarnation = test_random(&seed);
    }
    return hello;
}

static pccl_err decode_hello(const uint8_t *b) { struct hello h; return wire_decode_hello(b, &h); }
static pccl_err decode_challenge(const uint8_t *b) { uint8_t n[32], m[32]; return wire_decode_challenge(b, n, m); }
static pccl_err decode_proof(const uint8_t *b) { uint8_t m[32]; return wire_decode_proof(b, m); }
static pccl_err decode_ready(const uint8_t *b) { return wire_decode_ready(b); }

struct message {
    pccl_err (*decode)(const uint8_t *);
    size_t bytes;
    uint8_t data[WIRE_HANDSHAKE_BYTES_MAX];
};

static void make_messages(struct message messages[4])
{
    struct hello hello = random_hello();
    uint8_t nonce[32], mac[32];
    random_bytes(nonce, sizeof nonce);
    random_bytes(mac, sizeof mac);
    messages[0] = (struct message){decode_hello, WIRE_HELLO_BYTES, {0}};
    wire_encode_hello(&hello, messages[0].data);
    messages[1] = (struct message){decode_challenge, WIRE_CHALLENGE_BYTES, {0}};
    wire_encode_challenge(nonce, mac, messages[1].data);
    messages[2] = (struct message){decode_proof, WIRE_PROOF_BYTES, {0}};
    wire_encode_proof(mac, messages[2].data);
    messages[3] = (struct message){decode_ready, WIRE_READY_BYTES, {0}};
    wire_encode_ready(messages[3].data);
}

TEST(handshake_messages_survive_the_wire)
{
    for (int round = 0; round < 1000; round++) {
        struct hello hello = random_hello(), decoded;
        uint8_t bytes[WIRE_HELLO_BYTES], nonce[32], mac[32], nonce2[32], mac2[32];
        wire_encode_hello(&hello, bytes);
        CHECK_EQ_INT(wire_decode_hello(bytes, &decoded), PCCL_OK);
        CHECK_EQ_BYTES(&decoded, &hello, sizeof hello);
        random_bytes(nonce, sizeof nonce);
        random_bytes(mac, sizeof mac);
        wire_encode_challenge(nonce, mac, bytes);
        CHECK_EQ_INT(wire_decode_challenge(bytes, nonce2, mac2), PCCL_OK);
        CHECK_EQ_BYTES(nonce, nonce2, 32);
        CHECK_EQ_BYTES(mac, mac2, 32);
        wire_encode_proof(mac, bytes);
        memset(mac2, 0, sizeof mac2);
        CHECK_EQ_INT(wire_decode_proof(bytes, mac2), PCCL_OK);
        CHECK_EQ_BYTES(mac, mac2, 32);
    }
}

TEST(a_flipped_bit_of_a_handshake_message_is_refused)
{
    struct message messages[4];
    make_messages(messages);
    for (int i = 0; i < 4; i++) {
        struct message *m = &messages[i];
        CHECK_EQ_INT(m->decode(m->data), PCCL_OK);
        for (size_t bit = 0; bit < m->bytes * 8; bit++) {
            m->data[bit / 8] ^= (uint8_t)(1 << bit % 8);
            CHECK_EQ_INT(m->decode(m->data), PCCL_EPROTO);
            m->data[bit / 8] ^= (uint8_t)(1 << bit % 8);
        }
    }
}

/* A message cut short and filled up with zeros, ones or noise is none. */
TEST(truncated_messages_are_refused)
{
    struct message messages[4];
    make_messages(messages);
    for (int i = 0; i < 4; i++)
        for (size_t kept = 0; kept < messages[i].bytes; kept++)
            for (int filler = 0; filler < 3; filler++) {
                struct message m = messages[i];
                uint8_t noise[WIRE_HANDSHAKE_BYTES_MAX];
                random_bytes(noise, sizeof noise);
                for (size_t k = kept; k < m.bytes; k++)
                    m.data[k] = filler == 0 ? 0 : filler == 1 ? 0xff : noise[k];
                if (memcmp(m.data, messages[i].data, m.bytes) != 0)
                    CHECK_EQ_INT(m.decode(m.data), PCCL_EPROTO);
            }
}

/* No message passes for another, whatever its length. */
TEST(stages_are_not_confused)
{
    struct message messages[4];
    make_messages(messages);
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++)
            CHECK_EQ_INT(messages[j].decode(messages[i].data), i == j ? PCCL_OK : PCCL_EPROTO);
}

static void reseal_message(uint8_t *bytes, size_t count)
{
    uint32_t crc = crc32c(0, bytes, count - 4);
    for (int i = 0; i < 4; i++)
        bytes[count - 4 + (size_t)i] = (uint8_t)(crc >> (8 * i));
}

TEST(handshake_fields_out_of_range)
{
    struct message messages[4];
    make_messages(messages);
    for (int i = 0; i < 4; i++)
        for (size_t at = 0; at < 8; at++) { /* magic, version, stage, reserved: only these values */
            struct message m = messages[i];
            for (int change = 1; change < 256; change++) {
                m.data[at] = messages[i].data[at] ^ (uint8_t)change;
                reseal_message(m.data, m.bytes);
                CHECK_EQ_INT(m.decode(m.data), PCCL_EPROTO);
            }
        }
    struct hello hello = random_hello();
    static const uint32_t numbers[][2] = {{0, 0}, {1, 0}, {1, 1}, {4, 4}, {5, 4}, {UINT32_MAX, UINT32_MAX}};
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        uint8_t bytes[WIRE_HELLO_BYTES];
        hello.stream = numbers[i][0];
        hello.streams = numbers[i][1];
        wire_encode_hello(&hello, bytes);
        CHECK_EQ_INT(decode_hello(bytes), PCCL_EPROTO);
    }
}

/* A target and hops belong to what is to be relayed, an epoch to what has been, a number there to what was called for. */
TEST(purposes_out_of_range)
{
    static const struct { uint16_t purpose, hops; uint8_t target; uint32_t epoch; int fine; uint64_t incarnation; } cases[] = {
        {HELLO_DIRECT, 0, 0, 0, 1, 0}, {HELLO_DIRECT, 0, 0, 7, 1, 0}, {HELLO_DIRECT, 0, 1, 0, 0, 0}, {HELLO_DIRECT, 1, 0, 0, 0, 0},
        {HELLO_RELAY, 0, 1, 0, 1, 0}, {HELLO_RELAY, UINT16_MAX, 1, 7, 1, 0}, {HELLO_RELAY, 0, 0, 0, 0, 0}, {HELLO_RELAY, 1, 0, 7, 0, 0},
        {HELLO_RELAYED, 0, 0, 7, 1, 0}, {HELLO_RELAYED, 0, 0, 0, 0, 0}, {HELLO_RELAYED, 0, 1, 7, 0, 0}, {HELLO_RELAYED, 1, 0, 7, 0, 0},
        {HELLO_CALLED, 0, 0, 7, 1, 0}, {HELLO_CALLED, 0, 0, 0, 0, 0}, {HELLO_CALLED, 0, 1, 7, 0, 0}, {HELLO_CALLED, 1, 0, 7, 0, 0},
        {HELLO_PURPOSE_END, 0, 0, 7, 0, 0}, {UINT16_MAX, 0, 0, 7, 0, 0},
        {HELLO_DIRECT, 0, 0, 7, 1, 9}, {HELLO_RELAY, 0, 1, 0, 0, 9}, {HELLO_RELAYED, 0, 0, 7, 0, 9}, {HELLO_CALLED, 0, 0, 7, 0, 9},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint8_t bytes[WIRE_HELLO_BYTES];
        struct hello hello = {.stream = 3, .streams = 4, .purpose = cases[i].purpose, .hops = cases[i].hops,
                              .epoch = cases[i].epoch, .incarnation = cases[i].incarnation, .target.bytes = {[15] = cases[i].target}};
        wire_encode_hello(&hello, bytes);
        CHECK_EQ_INT(decode_hello(bytes), cases[i].fine ? PCCL_OK : PCCL_EPROTO);
    }
}

/* As docs/protocol.md section 2.1 has it. */
TEST(hello_layout)
{
    struct hello hello = {.epoch = 0x04030201, .stream = 1, .streams = 0x14131211, .purpose = HELLO_RELAY, .hops = 0x2221};
    static const uint8_t middle[16] = {1, 2, 3, 4, 1, 0, 0, 0, 0x11, 0x12, 0x13, 0x14, HELLO_RELAY, 0, 0x21, 0x22};
    uint8_t bytes[WIRE_HELLO_BYTES];
    memset(hello.run, 'r', 16);
    memset(hello.dialler.bytes, 'd', 16);
    memset(hello.acceptor.bytes, 'a', 16);
    memset(hello.target.bytes, 't', 16);
    memset(hello.nonce, 'n', 32);
    hello.incarnation = 0x3837363534333231;
    wire_encode_hello(&hello, bytes);
    CHECK_EQ_BYTES(bytes, "PCCL\1\0\1\0rrrrrrrrrrrrrrrrddddddddddddddddaaaaaaaaaaaaaaaatttttttttttttttt", 72);
    CHECK_EQ_BYTES(bytes + 72, middle, sizeof middle);
    CHECK_EQ_BYTES(bytes + 88, "12345678", 8);
    CHECK_EQ_BYTES(bytes + 96, "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn", 32);
}

/* Every input of a proof is bound by it: key, HELLO, both nonces, and the side that makes it. */
TEST(proofs_bind_what_was_said)
{
    struct hello hello = random_hello();
    uint8_t key[32], said[WIRE_HELLO_BYTES], nonce[32], challenge[WIRE_CHALLENGE_BYTES], acceptor[32], dialler[32], mac[32];
    random_bytes(key, sizeof key);
    random_bytes(nonce, sizeof nonce);
    wire_encode_hello(&hello, said);
    wire_acceptor_mac(key, said, nonce, acceptor);
    wire_encode_challenge(nonce, acceptor, challenge);
    wire_dialler_mac(key, said, challenge, dialler);
    CHECK(memcmp(acceptor, dialler, 32) != 0);
    uint8_t *parts[] = {key, said, nonce, challenge};
    size_t sizes[] = {sizeof key, sizeof said, sizeof nonce, sizeof challenge};
    for (int part = 0; part < 4; part++)
        for (size_t at = 0; at < sizes[part]; at++) {
            parts[part][at] ^= 1;
            wire_acceptor_mac(key, said, nonce, mac);
            CHECK((memcmp(mac, acceptor, 32) != 0) == (part != 3));
            wire_dialler_mac(key, said, challenge, mac);
            CHECK((memcmp(mac, dialler, 32) != 0) == (part != 2));
            parts[part][at] ^= 1;
        }
}

TEST_MAIN("wire")
