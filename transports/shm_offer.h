/* shm_offer.h - how two processes of one host come to share memory: one offers it, the other takes the offer.
 *
 * An offer is made before its stream is dialled, so whoever has accepted the stream has only to look. Engine thread only. */
#ifndef PCCL_SHM_OFFER_H
#define PCCL_SHM_OFFER_H

#include <stdint.h>

enum {
    SHM_RING_BYTES = 1 << 20,
    SHM_HEAD_BYTES = 4096,
    SHM_MEMORY_BYTES = SHM_HEAD_BYTES + 2 * SHM_RING_BYTES,
    SHM_TOKEN_BYTES = 16
};

/* What a dialler has to give: kept by it until the answer, by the acceptor until the token comes. */
struct shm_offer {
    int fd;                             /* the UNIX socket: its end tells that the other side has given up */
    int has_token;
    int is_gone;                        /* given up */
    uint8_t token[SHM_TOKEN_BYTES];
    void *memory;                       /* NULL: the other side's could not be used */
    struct shm_offer *next;
};

/* Those made to us and not yet taken. */
struct shm_offers {
    int listen_fd;                      /* -1: nobody can offer us anything */
    struct shm_offer *first;
    int count;
};

/* Offers memory to whoever listens at the address; NULL if nobody does, it is not of this host, or anything fails. */
struct shm_offer *shm_offer_make(const char *address);
void shm_offer_free(struct shm_offer *offer);
void shm_memory_unmap(void *memory);

/* Listens beside the TCP port; that this may fail is nobody's concern. */
void shm_offers_open(struct shm_offers *o, const char *listen_text, int port);
void shm_offers_close(struct shm_offers *o);
/* Takes what has come, without waiting, and marks what was given up. */
void shm_offers_receive(struct shm_offers *o);
void shm_offers_drop_gone(struct shm_offers *o);
/* Finds an offer whose token begins with these bytes; takes it out if they are all of it. */
struct shm_offer *shm_offers_match(struct shm_offers *o, const uint8_t *first, uint32_t bytes);

#endif
