/* tls_control.h - what a TLS 1.3 connection says of itself after its handshake: alerts, new keys, tickets. Pure:
 * judges what has come, and says what follows from it. */
#ifndef PCCL_TLS_CONTROL_H
#define PCCL_TLS_CONTROL_H

#include <stddef.h>
#include <stdint.h>

enum { TLS_KEY_UPDATE_BYTES = 5, TLS_ALERT_BYTES = 2 };

struct tls_control {
    int is_dialler;
    uint8_t head[4];                       /* of the message that is coming: its type, and how long it is */
    uint32_t got;                          /* of its bytes; it may come in several records */
    uint8_t told;                          /* the alert of the other side that ended it */
};

/* What follows: several may. */
enum { TLS_ENDED = 1, TLS_BROKEN_OFF = 2, TLS_THEIR_KEY = 4, TLS_OUR_KEY = 8 };

/* The content of one record, of any type but application data. Negative: the alert to answer with. */
int tls_control_take(struct tls_control *c, int type, const uint8_t *content, size_t bytes);
/* 1: a message has begun to come and has not ended, and nothing else may come before it has. */
int tls_control_is_within(const struct tls_control *c);

/* The messages that we send. */
void tls_control_key_update(uint8_t message[TLS_KEY_UPDATE_BYTES]);
void tls_control_alert(uint8_t message[TLS_ALERT_BYTES], int description);

#endif
