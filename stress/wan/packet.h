/* packet.h - one packet between two sites: what it costs on the wire, and cutting wire packets out of a large one.
 *
 * A packet is what one read of a TUN device gives: a virtio_net_hdr and an IP packet of up to 64 KiB. With a gso_size in its
 * header it stands for several wire packets ("segments") that share one set of headers. */
#ifndef WAN_PACKET_H
#define WAN_PACKET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    WAN_VNET_BYTES = 10,
    WAN_PACKET_BYTES_MAX = WAN_VNET_BYTES + 65536,
    WAN_SITE_NUMBERS = 256, /* site n owns 10.n.0.0/16 and fd70:6363:6c00:n::/64; 0 belongs to nobody */
};

struct packet {
    struct packet *next;
    uint64_t due_ns;     /* when it leaves the delay line */
    uint32_t capacity;   /* of data */
    uint32_t bytes;      /* of data in use: virtio_net_hdr and IP packet */
    uint32_t wire_bytes; /* of all its segments, each with its IP and transport header */
    uint32_t segments;
    uint16_t header_bytes;  /* IP and transport header, when there are several segments */
    uint16_t segment_bytes; /* of payload, when there are several segments */
    uint8_t from, to;       /* site numbers; to is 0 when nobody owns the address */
    uint8_t data[];
};

/* Memory of all packets alive, bounded: packet_new returns NULL at the limit. */
struct packet_memory {
    uint64_t used_bytes, limit_bytes, peak_bytes;
};

struct packet *packet_new(struct packet_memory *memory, uint32_t capacity);
void packet_free(struct packet_memory *memory, struct packet *packet);

/* Reads the headers of packet->data[0..bytes). False for anything that is not a whole IPv4 or IPv6 packet. */
bool packet_parse(struct packet *packet);

/* Wire bytes of its first `segments` segments. */
uint32_t packet_wire_bytes(const struct packet *packet, uint32_t segments);

/* A new packet with `count` segments of it from `first` on, in every header as the sender's kernel would have cut it.
 * NULL when the memory is at its limit. */
struct packet *packet_slice(struct packet_memory *memory, const struct packet *packet, uint32_t first, uint32_t count);

/* Changes one byte of its TCP payload, which `random` chooses, and sets the checksum to what the changed bytes sum up to: only
 * a checksum of the application's can tell. False when it has no TCP payload. */
bool packet_corrupt(struct packet *packet, uint64_t random);

/* Drops all but the first `count` >= 1 segments. */
void packet_trim(struct packet *packet, uint32_t count);

#endif
