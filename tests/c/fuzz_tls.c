/* fuzz_tls.c - a TLS session behind its handshake, whose other side has the keys and does as it likes.
 *
 * Input: flags (who dialled, the suite, how much a call of the inner stream moves), then commands: bytes that come
 * as they are; a record of any type and content, well sealed; the other side's next key; a read into three pieces; a
 * write; the end of the stream. What is read must be what data records held, in order; what is written must come out
 * of our records, which must all be good. */
#include "tls_ends.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

enum { COMMAND_RAW, COMMAND_RECORD, COMMAND_KEY, COMMAND_READ, COMMAND_WRITE, COMMAND_CUT, COMMAND_COUNT };
enum { EXPECTED_BYTES = 1 << 19, ROOM_BYTES = 40000, GUARD = 0xa5 };

static struct tls_context context;
static uint8_t expected[EXPECTED_BYTES];   /* what the data records held, as far as it was not read */
static size_t expected_begin, expected_end;
static uint8_t written;                    /* the byte that is written next, and the one that comes out next */
static uint8_t came_out;

struct input {
    const uint8_t *at, *end;
};

static void require(int holds)
{
    if (!holds)
        abort();
}

static uint8_t take(struct input *in)
{
    return in->at < in->end ? *in->at++ : 0;
}

/* So many bytes of the input; fewer at its end. */
static const uint8_t *take_bytes(struct input *in, size_t *count)
{
    const uint8_t *from = in->at;
    if (*count > (size_t)(in->end - in->at))
        *count = (size_t)(in->end - in->at);
    in->at += *count;
    return from;
}

/* A record may be large with little input: its content is repeated. The type of a padded one is its last byte that
 * is not 0. */
static void send_record(struct forged *f, struct input *in)
{
    static uint8_t content[TLS_PLAIN_BYTES + 1];
    uint8_t type = take(in), times = take(in);
    size_t part = take(in), count;
    const uint8_t *from = take_bytes(in, &part);
    for (count = 0; part && count + part <= TLS_PLAIN_BYTES && count < (size_t)part * (times + 1u); count += part)
        memcpy(content + count, from, part);
    forged_send(f, type, content, count);
    content[count] = type;
    while (count && !content[count])
        count--;
    if (content[count] == TLS_DATA && EXPECTED_BYTES - expected_end >= count) {
        memcpy(expected + expected_end, content, count);
        expected_end += count;
    }
}

static void do_read(struct forged *f, struct input *in)
{
    static uint8_t room[ROOM_BYTES + 1];
    size_t first = take(in), second = (size_t)take(in) << 4, third = (size_t)take(in) << 7;
    struct iovec iov[] = {{room, first}, {room + first, second}, {room + first + second, third}};
    room[first + second + third] = GUARD;
    ssize_t moved = tls_session_read(&f->end->session, iov, 3);
    require(room[first + second + third] == GUARD);
    if (moved <= 0)
        return;
    require((size_t)moved <= expected_end - expected_begin);
    require(memcmp(room, expected + expected_begin, (size_t)moved) == 0);
    expected_begin += (size_t)moved;
}

static void do_write(struct forged *f, struct input *in)
{
    uint8_t some[1024];
    size_t first = take(in), second = (size_t)take(in) << 1;
    for (size_t i = 0; i < first + second; i++)
        some[i] = (uint8_t)(written + i);
    struct iovec iov[] = {{some, first}, {some + first, second}};
    ssize_t moved = tls_session_write(&f->end->session, iov, 2);
    if (moved > 0)
        written = (uint8_t)(written + moved);
}

/* What the session has said so far. */
static void look(struct forged *f)
{
    static uint8_t content[TLS_PLAIN_BYTES];
    size_t bytes;
    for (int type; (type = forged_receive(f, content, &bytes)) != 0;) {
        require(type == TLS_DATA || (type == TLS_ALERT && bytes == TLS_ALERT_BYTES) ||
                (type == TLS_HANDSHAKE && bytes == TLS_KEY_UPDATE_BYTES));
        if (type == TLS_HANDSHAKE)
            require(tls_way_renew(&f->from));
        for (size_t i = 0; type == TLS_DATA && i < bytes; i++)
            require(content[i] == came_out++);
    }
}

static void obey(struct forged *f, struct input *in)
{
    size_t count;
    const uint8_t *from;
    switch (take(in) % COMMAND_COUNT) {
    case COMMAND_RAW:
        count = take(in);
        from = take_bytes(in, &count);
        pipe_put(&f->end->pipes.in, from, count);
        break;
    case COMMAND_RECORD: send_record(f, in); break;
    case COMMAND_KEY: require(tls_way_renew(&f->to)); break;
    case COMMAND_READ: do_read(f, in); break;
    case COMMAND_WRITE: do_write(f, in); break;
    default: f->end->pipes.in.is_cut = 1; break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static const unsigned SUITES[] = {SUITE_AES_128, SUITE_AES_256, SUITE_CHACHA};
    struct input in = {data, data + bytes};
    struct forged f;
    if (!openssl())
        return 0;
    if (!context.ctx)
        require(tls_context_by_key(&context) == PCCL_OK);
    expected_begin = expected_end = 0;
    written = came_out = 0;
    uint8_t flags = take(&in);
    require(forged_begin(&f, &context, SUITES[(flags >> 1) % 3], flags & 1));
    f.end->pipes.most = flags & 8 ? 1 + (size_t)take(&in) : SIZE_MAX;
    while (in.at < in.end && PIPE_BYTES - f.end->pipes.in.end > 2 * TLS_RECORD_BYTES) {
        obey(&f, &in);
        look(&f);
        require(tls_session_has_more(&f.end->session) || !f.end->session.maybe_more);
    }
    tls_session_say_end(&f.end->session);
    look(&f);
    forged_end(&f);
    return 0;
}
