/* tls_context.h - what every TLS stream of a transport shares: the rules of the handshake, and who we are. */
#ifndef PCCL_TLS_CONTEXT_H
#define PCCL_TLS_CONTEXT_H

#include "../csrc/include/pccl.h"
#include "openssl.h"

struct tls_context {
    const struct openssl *o;
    void *ctx;
    void *bio_method;
    int by_psk;                /* else by certificates */
    uint8_t psk[32];
};

/* PCCL_EINVAL: what is configured cannot be used; pccl_last_error says what. On failure there is nothing to close. */
pccl_err tls_context_open(struct tls_context *c, const pccl_config *config);
void tls_context_close(struct tls_context *c);
/* The handshake is over: 1 if the other side has proved itself as this context demands. */
int tls_context_proven(const struct tls_context *c, const void *ssl);

#endif
