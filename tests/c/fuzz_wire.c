/* fuzz_wire.c - any bytes through every decoder: what decodes is in range and encodes to the same bytes again.
 *
 * The first byte says whether the checksum is made right first, so that the checks behind it are reached too. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../../csrc/crc32c.h"
#include "../../csrc/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

enum { FIX_CHECKSUM = 1, FIX_SEAL = 2 };

static void require(int holds)
{
    if (!holds)
        abort();
}

static void put32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

/* A block of the exact size with the input's bytes, zeros behind them. */
static uint8_t *take(const uint8_t *data, size_t bytes, size_t wanted)
{
    uint8_t *block = calloc(1, wanted);
    require(block != NULL);
    if (bytes)
        memcpy(block, data, bytes < wanted ? bytes : wanted);
    return block;
}

static void fuzz_header(const uint8_t *data, size_t bytes, int fixes)
{
    uint8_t *header = take(data, bytes, WIRE_HEADER_BYTES), again[WIRE_HEADER_BYTES];
    struct frame frame;
    struct desc desc;
    if (fixes & FIX_CHECKSUM)
        put32(header, crc32c(0, header + 4, WIRE_HEADER_BYTES - 4));
    if (wire_decode(header, &frame) == PCCL_OK) {
        require(frame.type > 0 && frame.type < FRAME_TYPE_END);
        require(frame.payload_bytes <= WIRE_PAYLOAD_BYTES_MAX);
        require(wire_has_payload(frame.type) == (frame.payload_bytes > 0));
        require(frame.type != FRAME_PROBE || frame.payload_bytes <= WIRE_PROBE_BYTES_MAX);
        if (frame.type == FRAME_DATA || frame.type == FRAME_GRANT || frame.type == FRAME_FIN)
            require(desc_unpack(frame.desc, &desc) == PCCL_OK);
        wire_encode(&frame, again);
        require(memcmp(header, again, sizeof again) == 0);
    }
    free(header);
}

static void fuzz_fetch(const uint8_t *data, size_t bytes)
{
    struct fetch_head head;
    if (bytes <= WIRE_FETCH_HEAD_BYTES || wire_decode_fetch(data, (uint32_t)bytes, &head) != PCCL_OK)
        return;
    uint64_t total = 0;
    uint8_t *again = take(data, 0, bytes);
    wire_encode_fetch(&head, again);
    for (uint32_t i = 0; i < head.run_count; i++) {
        struct fetch_run run = wire_decode_fetch_run(data, i);
        require(run.bytes && run.offset + run.bytes >= run.bytes);
        total += run.bytes;
        wire_encode_fetch_run(run, i, again);
    }
    require(total <= WIRE_TRANSFER_BYTES_MAX && head.segment_bytes <= WIRE_PAYLOAD_BYTES_MAX && head.segment_bytes % 64 == 0);
    require(memcmp(again, data, bytes) == 0);
    free(again);
}

static void fuzz_desc(const uint8_t *data, size_t bytes)
{
    uint64_t packed = 0;
    struct desc desc;
    memcpy(&packed, data, bytes < sizeof packed ? bytes : sizeof packed);
    char text[16];
    (void)pccl_desc_text(packed, text, sizeof text);
    if (desc_unpack(packed, &desc) != PCCL_OK)
        return;
    require(desc.kind > 0 && desc.kind < PCCL_KIND_COUNT && desc.dtype < PCCL_DTYPE_COUNT);
    require(desc.redop < PCCL_REDOP_COUNT && desc.algorithm < PCCL_ALGORITHM_COUNT && desc.codec < PCCL_CODEC_COUNT);
    require(desc.count <= DESC_COUNT_MAX && desc_pack(&desc) == packed);
}

static void encode_again(int stage, const uint8_t *message, uint8_t *again)
{
    struct hello hello;
    uint8_t nonce[32], mac[32];
    if (stage == 0 && wire_decode_hello(message, &hello) == PCCL_OK) {
        require(hello.stream < hello.streams);
        wire_encode_hello(&hello, again);
    } else if (stage == 1 && wire_decode_challenge(message, nonce, mac) == PCCL_OK) {
        wire_encode_challenge(nonce, mac, again);
    } else if (stage == 2 && wire_decode_proof(message, mac) == PCCL_OK) {
        wire_encode_proof(mac, again);
    } else if (stage == 3 && wire_decode_ready(message) == PCCL_OK) {
        wire_encode_ready(again);
    }
}

static void fuzz_handshake(const uint8_t *data, size_t bytes, int fixes)
{
    static const size_t sizes[] = {WIRE_HELLO_BYTES, WIRE_CHALLENGE_BYTES, WIRE_PROOF_BYTES, WIRE_READY_BYTES};
    for (int stage = 0; stage < 4; stage++) {
        uint8_t again[WIRE_HANDSHAKE_BYTES_MAX], *message = take(data, bytes, sizes[stage]);
        if (fixes & FIX_SEAL) {
            memcpy(message, "PCCL\1", 6);
            message[6] = (uint8_t)(stage + 1);
        }
        if (fixes & FIX_CHECKSUM)
            put32(message + sizes[stage] - 4, crc32c(0, message, sizes[stage] - 4));
        memcpy(again, message, sizes[stage]);
        encode_again(stage, message, again);
        require(memcmp(again, message, sizes[stage]) == 0);
        free(message);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    if (!bytes)
        return 0;
    int fixes = data[0];
    fuzz_header(data + 1, bytes - 1, fixes);
    fuzz_desc(data + 1, bytes - 1);
    fuzz_fetch(data + 1, bytes - 1);
    fuzz_handshake(data + 1, bytes - 1, fixes);
    return 0;
}
