/* tls_session.c - plain bytes to records and back, over the inner stream.
 *
 * Ciphertext comes in as much as the inner stream has, up to TLS_IN_BYTES by one readv. A record that has its place
 * in one entry of the caller's list is opened into it; any other is opened where it lies, and copied out as it is
 * asked for. Plain bytes are sealed from the caller's list into a buffer of a few records, which then leave by one
 * inner writev. Records are made only when that buffer is empty, so what was taken from the caller is at most
 * TLS_OUT_RECORDS records ahead of the inner stream. */
#include "tls_session.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { SESSION_QUIET_MAX = 32 }; /* an honest other side has little to say of itself between two records of data */

/* -- ciphertext ---------------------------------------------------------------------------------------- */

int tls_session_flush(struct tls_session *s)
{
    while (tls_session_is_sending(s)) {
        struct iovec iov = {s->out + s->out_begin, s->out_end - s->out_begin};
        ssize_t moved = s->inner->ops->writev(s->inner, &iov, 1);
        if (moved == -EAGAIN || moved == 0)
            return 0;
        if (moved < 0)
            s->write_error = (int)-moved;
        else
            s->out_begin += (uint32_t)moved;
    }
    return !s->write_error;
}

ssize_t tls_session_refill(struct tls_session *s)
{
    uint32_t rest = s->in_end - s->in_begin;
    if (s->in_begin)
        memmove(s->in, s->in + s->in_begin, rest);
    s->in_begin = 0;
    s->in_end = rest;
    struct iovec iov = {s->in + rest, TLS_IN_BYTES - rest};
    ssize_t moved = s->inner->ops->readv(s->inner, &iov, 1);
    if (moved > 0)
        s->in_end += (uint32_t)moved;
    else if (moved != -EAGAIN)
        s->read_error = moved < 0 ? (int)-moved : ECONNRESET; /* an end without close_notify: it was cut */
    return moved;
}

/* Bytes of the record at the front if it is all there; 0: it is not; negative: it is none. */
static int next_record(const struct tls_session *s)
{
    uint32_t have = s->in_end - s->in_begin;
    int bytes = tls_record_bytes(s->in + s->in_begin, have);
    return bytes > 0 && (uint32_t)bytes > have ? 0 : bytes;
}

int tls_session_has_more(const struct tls_session *s)
{
    return s->plain_bytes || next_record(s) != 0;
}

/* -- what the connection says of itself ------------------------------------------------------------------ */

/* Makes one small record behind what is on its way. The caller knows that there is room. */
static void say(struct tls_session *s, enum tls_content type, uint8_t *message, size_t bytes)
{
    struct iovec iov = {message, bytes};
    struct tls_cursor from = tls_cursor_of(&iov, 1);
    size_t made = tls_record_seal(&s->out_way, (uint8_t)type, &from, s->out + s->out_end);
    if (!made)
        s->write_error = EPROTO;
    s->out_end += (uint32_t)made;
}

static void say_alert(struct tls_session *s, int description)
{
    uint8_t message[TLS_ALERT_BYTES];
    if (s->out_begin == s->out_end)
        s->out_begin = s->out_end = 0;
    if (s->write_error || TLS_OUT_BYTES - s->out_end < TLS_HEADER_BYTES + TLS_ALERT_BYTES + TLS_ADDED_BYTES)
        return;
    tls_control_alert(message, description);
    say(s, TLS_ALERT, message, sizeof message);
    (void)tls_session_flush(s);
}

void tls_session_say_end(struct tls_session *s)
{
    if (!s->read_error)
        say_alert(s, TLS_CLOSE_NOTIFY);
}

static void say_new_key(struct tls_session *s)
{
    uint8_t message[TLS_KEY_UPDATE_BYTES];
    tls_control_key_update(message);
    say(s, TLS_HANDSHAKE, message, sizeof message);
    if (!s->write_error && !tls_way_renew(&s->out_way))
        s->write_error = EPROTO;
    s->renew = 0;
}

/* The dialler's handshake is over before the acceptor has looked at its certificate: until the first bytes it may be
 * refused. */
static void note_end(struct tls_session *s, const char *who, int alert)
{
    s->read_error = s->has_read ? EPROTO : EACCES;
    snprintf(s->refusal, sizeof s->refusal, "TLS: %s: alert %d, %s", who, alert,
             s->context->o->SSL_alert_desc_string_long(alert));
}

static void break_off(struct tls_session *s, int alert)
{
    note_end(s, "what came cannot be read", alert);
    say_alert(s, alert);
}

/* -- plain bytes in --------------------------------------------------------------------------------------- */

static void on_control(struct tls_session *s, int type, const uint8_t *content, size_t bytes)
{
    int news = tls_control_take(&s->control, type, content, bytes);
    if (news < 0)
        break_off(s, -news);
    else if (news & TLS_BROKEN_OFF)
        note_end(s, "the other side has ended it", s->control.told);
    else if (news & TLS_ENDED)
        s->ended = 1;
    else if (news & TLS_THEIR_KEY && !tls_way_renew(&s->in_way))
        s->read_error = EPROTO;
    if (news > 0 && news & TLS_OUR_KEY)
        s->renew = 1;
}

/* Opens the record at the front, which is all there. Returns how many bytes of it went straight to the caller. */
static size_t open_record(struct tls_session *s, size_t bytes, struct tls_cursor *to)
{
    uint8_t *record = s->in + s->in_begin, *at = record + TLS_HEADER_BYTES, *place;
    size_t most = bytes - TLS_HEADER_BYTES - TLS_ADDED_BYTES, content = 0;
    int direct = most && tls_cursor_stretch(to) >= most;
    if (direct)
        at = (uint8_t *)to->iov->iov_base + to->at;
    int type = tls_record_open(&s->in_way, record, bytes, at, &content);
    s->in_begin += (uint32_t)bytes;
    s->quiet = type == TLS_DATA && content ? 0 : s->quiet + 1;
    if (type < 0 || s->quiet > SESSION_QUIET_MAX || (type == TLS_DATA && tls_control_is_within(&s->control))) {
        break_off(s, type < 0 ? -type : TLS_UNEXPECTED_MESSAGE);
        return 0;
    }
    if (type != TLS_DATA) {
        on_control(s, type, at, content);
        return 0;
    }
    s->has_read |= content > 0;
    if (direct)
        return tls_cursor_next(to, content, &place);
    s->plain = at;
    s->plain_bytes = (uint32_t)content;
    return 0;
}

static size_t copy_out(struct tls_session *s, struct tls_cursor *to)
{
    uint8_t *place;
    size_t bytes = tls_cursor_next(to, s->plain_bytes, &place);
    memcpy(place, s->plain, bytes);
    s->plain += bytes;
    s->plain_bytes -= (uint32_t)bytes;
    return bytes;
}

/* Fills the caller's list as far as records go, and asks the inner stream for more while it seems to have it. */
static size_t read_into(struct tls_session *s, struct tls_cursor *to)
{
    size_t done = 0;
    int dry = 0;
    while (to->left && !s->ended && !s->read_error) {
        int bytes = s->plain_bytes ? 0 : next_record(s);
        if (s->plain_bytes) {
            done += copy_out(s, to);
        } else if (bytes) {
            if (bytes < 0)
                break_off(s, -bytes);
            else
                done += open_record(s, (size_t)bytes, to);
        } else {
            if (dry)
                break;
            ssize_t moved = tls_session_refill(s);
            dry = moved <= 0 || s->in_end < TLS_IN_BYTES;
        }
    }
    return done;
}

/* The end and errors stay, and come after the bytes before them. */
ssize_t tls_session_read(struct tls_session *s, const struct iovec *iov, int iov_count)
{
    struct tls_cursor to = tls_cursor_of(iov, iov_count);
    size_t done = s->ended || s->read_error ? 0 : read_into(s, &to);
    s->maybe_more = !s->ended && !s->read_error && tls_session_has_more(s);
    if (done)
        return (ssize_t)done;
    return s->ended ? 0 : s->read_error ? -s->read_error : -EAGAIN;
}

/* -- plain bytes out -------------------------------------------------------------------------------------- */

/* As many records as the empty buffer holds. */
static void seal_some(struct tls_session *s, struct tls_cursor *from)
{
    s->out_begin = s->out_end = 0;
    if (s->renew || s->out_way.sequence >= TLS_RECORDS_PER_KEY - TLS_OUT_RECORDS)
        say_new_key(s);
    for (int i = 0; i < TLS_OUT_RECORDS && from->left && !s->write_error; i++) {
        size_t made = tls_record_seal(&s->out_way, TLS_DATA, from, s->out + s->out_end);
        if (!made)
            s->write_error = EPROTO;
        s->out_end += (uint32_t)made;
    }
}

ssize_t tls_session_write(struct tls_session *s, const struct iovec *iov, int iov_count)
{
    struct tls_cursor from = tls_cursor_of(iov, iov_count);
    const size_t all = from.left;
    while (!s->read_error && tls_session_flush(s) && from.left)
        seal_some(s, &from);
    if (s->write_error || s->read_error)
        return s->write_error ? -s->write_error : -s->read_error;
    return all > from.left ? (ssize_t)(all - from.left) : -EAGAIN;
}
