/* tls_control.c - messages after the handshake (RFC 8446, 4.6 and 6). A ticket is read over: no session outlives its
 * connection. Everything else but alerts and key updates is refused, since we never offered it. */
#include "tls_control.h"

#include <string.h>

#include "tls_records.h"

enum { NEW_SESSION_TICKET = 4, KEY_UPDATE = 24, WARNING = 1, FATAL = 2, HEAD_BYTES = 4 };

static int take_alert(struct tls_control *c, const uint8_t *content, size_t bytes)
{
    if (bytes != TLS_ALERT_BYTES)
        return -TLS_DECODE_ERROR;
    if (content[1] == TLS_USER_CANCELED) /* an end without error, of which close_notify tells */
        return 0;
    c->told = content[1];
    return content[1] == TLS_CLOSE_NOTIFY ? TLS_ENDED : TLS_BROKEN_OFF;
}

static uint32_t body_bytes(const struct tls_control *c)
{
    return (uint32_t)c->head[1] << 16 | (uint32_t)c->head[2] << 8 | c->head[3];
}

/* The head is there: may such a message come? 0, or an alert. */
static int judge_head(const struct tls_control *c)
{
    if (c->head[0] == KEY_UPDATE)
        return body_bytes(c) == TLS_KEY_UPDATE_BYTES - HEAD_BYTES ? 0 : -TLS_DECODE_ERROR;
    return c->head[0] == NEW_SESSION_TICKET && c->is_dialler ? 0 : -TLS_UNEXPECTED_MESSAGE;
}

/* As many bytes of the message as have come. Returns how many; negative: an alert. */
static int take_part(struct tls_control *c, const uint8_t *at, size_t bytes)
{
    if (c->got < HEAD_BYTES) {
        c->head[c->got++] = *at;
        int bad = c->got == HEAD_BYTES ? judge_head(c) : 0;
        return bad ? bad : 1;
    }
    size_t left = HEAD_BYTES + body_bytes(c) - c->got, part = bytes < left ? bytes : left;
    c->got += (uint32_t)part;
    return (int)part;
}

/* A key changes between two records, so its message ends one. */
static int take_handshake(struct tls_control *c, const uint8_t *content, size_t bytes)
{
    if (!bytes)
        return -TLS_UNEXPECTED_MESSAGE;
    for (size_t at = 0; at < bytes;) {
        int part = take_part(c, content + at, bytes - at);
        if (part < 0)
            return part;
        at += (size_t)part;
        if (c->got < HEAD_BYTES || c->got < HEAD_BYTES + body_bytes(c))
            continue;
        c->got = 0;
        if (c->head[0] != KEY_UPDATE)
            continue;
        if (at != bytes)
            return -TLS_UNEXPECTED_MESSAGE;
        uint8_t asks = content[at - 1];
        return asks > 1 ? -TLS_ILLEGAL_PARAMETER : asks ? TLS_THEIR_KEY | TLS_OUR_KEY : TLS_THEIR_KEY;
    }
    return 0;
}

int tls_control_is_within(const struct tls_control *c)
{
    return c->got > 0;
}

int tls_control_take(struct tls_control *c, int type, const uint8_t *content, size_t bytes)
{
    if (type == TLS_HANDSHAKE)
        return take_handshake(c, content, bytes);
    if (type != TLS_ALERT || tls_control_is_within(c))
        return -TLS_UNEXPECTED_MESSAGE;
    return take_alert(c, content, bytes);
}

void tls_control_key_update(uint8_t message[TLS_KEY_UPDATE_BYTES])
{
    static const uint8_t MESSAGE[TLS_KEY_UPDATE_BYTES] = {KEY_UPDATE, 0, 0, 1, 0}; /* theirs may stay */
    memcpy(message, MESSAGE, sizeof MESSAGE);
}

void tls_control_alert(uint8_t message[TLS_ALERT_BYTES], int description)
{
    message[0] = description == TLS_CLOSE_NOTIFY ? WARNING : FATAL;
    message[1] = (uint8_t)description;
}
