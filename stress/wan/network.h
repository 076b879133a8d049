/* network.h - the emulated network: what happens to a packet between the site that sends it and the site that gets it.
 *
 *     uplink of the site  ->  pair's rate  ->  random loss  ->  pair's delay  ->  downlink of the site  ->  deliver
 *
 * A local pair (a LAN within a region) goes by neither uplink nor downlink.
 * A passive object in virtual time: the caller brings packets and the time, packets leave through `deliver`. A stage is a
 * first-in first-out queue; the first packet of every busy stage has a time at which it moves on, and a heap orders those.
 * Lateness of the caller therefore never adds up: a packet moves on at the time it was due, not at the time it was looked at. */
#ifndef WAN_NETWORK_H
#define WAN_NETWORK_H

#include <stdbool.h>
#include <stdint.h>

#include "packet.h"

enum { WAN_SITES_MAX = 64, WAN_NAME_BYTES = 48 };

enum stage_kind { STAGE_UPLINK, STAGE_RATE, STAGE_DELAY, STAGE_DOWNLINK };

struct stage {
    enum stage_kind kind;
    uint8_t from, to; /* site numbers */
    struct packet *head, **tail;
    uint64_t due_ns;       /* of the head */
    uint32_t heap_index;   /* 1.. while in the heap, else 0 */
    double ns_per_byte;    /* 0: no limit. Not used by STAGE_DELAY. */
    uint64_t limit_bytes;  /* wire bytes that may wait */
    uint64_t queued_bytes; /* wire bytes that wait */
    uint64_t drops;        /* wire packets that found it full */
};

struct pair_counters {
    uint64_t packets, wire_bytes; /* that came to the pair, in wire packets */
    uint64_t losses, cut_drops, corruptions; /* wire packets */
    uint64_t delivered_packets, delivered_bytes;
};

struct pair {
    struct stage rate, delay;
    uint64_t delay_ns, jitter_ns;
    uint64_t last_due_ns; /* nobody overtakes */
    double loss;
    uint64_t until_loss; /* wire packets that pass before the next one is lost */
    double corrupt;
    uint64_t until_corrupt; /* wire packets that pass before the next one is corrupted */
    uint64_t loss_random, jitter_random, corrupt_random;
    bool cut, local;
    struct pair_counters counters;
};

struct site {
    char name[WAN_NAME_BYTES];
    uint8_t number;
    int tun_fd;
    struct stage up, down;
    uint64_t overflow, unroutable, write_errors; /* packets read from or written to its device */
};

struct network {
    struct packet_memory memory;
    uint64_t seed;
    uint32_t site_count;
    struct site *sites[WAN_SITE_NUMBERS];                   /* by number */
    struct pair *pairs[WAN_SITE_NUMBERS][WAN_SITE_NUMBERS]; /* by from, to */
    struct stage **heap;                                    /* heap[1..heap_count] */
    uint32_t heap_count, heap_capacity;
    uint64_t late_ns_max, late_ns_sum, late_count;      /* how late the caller was */
    uint64_t grain_ns;                                  /* so late he may be: nobody can tell beside the delays */
    void (*deliver)(struct network *network, struct site *site, struct packet *packet); /* takes the packet */
};

/* A site with pairs to and from all others, without limits. NULL when the number is taken or memory is short. */
struct site *network_add_site(struct network *network, const char *name, uint8_t number, int tun_fd);
struct site *network_find(struct network *network, const char *name);
void network_free(struct network *network);

/* Takes a parsed packet that the site packet->from has sent. */
void network_enter(struct network *network, struct packet *packet, uint64_t now_ns);
/* Moves on what is due, at most `moves` times. */
void network_run(struct network *network, uint64_t now_ns, uint32_t moves);
/* When the next packet is due; UINT64_MAX when none is under way. */
uint64_t network_due_ns(const struct network *network);

/* A changed rate holds for the packets that wait, and for the rest of the one on its way out; 0: no limit. */
void network_set_rate(struct network *network, struct stage *stage, double bits_per_s, uint64_t now_ns);
/* To be called when a pair's delay has changed. */
void network_set_grain(struct network *network);
void network_set_loss(struct pair *pair, double loss);
void network_set_corrupt(struct pair *pair, double corrupt);
/* Loses what is under way, and everything that follows until it is healed. */
void network_cut(struct network *network, struct pair *pair, bool cut);

#endif
