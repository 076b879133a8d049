/* packet.c - one packet between two sites: what it costs on the wire, and cutting wire packets out of a large one.
 *
 * A cut must look as if the sender's kernel had segmented the packet and the network had lost some of it: sequence numbers
 * and IP ids go on counting, FIN and PSH belong to the last segment, CWR to the first, lengths are those of the piece. The
 * transport checksum stays partial (NEEDS_CSUM): its field holds the sum over the pseudo header, which contains the length. */
#include "packet.h"

#include <arpa/inet.h>
#include <linux/virtio_net.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

/* Not in the kernel headers of older systems. */
#ifndef VIRTIO_NET_HDR_GSO_UDP_L4
#define VIRTIO_NET_HDR_GSO_UDP_L4 5
#endif

enum { TCP_FIN = 0x01, TCP_PSH = 0x08, TCP_CWR = 0x80, TCP_FLAGS_AT = 13, IPV6_HEADER = 40, UDP_HEADER = 8, TCP_HEADER = 20 };

_Static_assert(sizeof(struct virtio_net_hdr) == WAN_VNET_BYTES, "the size TUNSETVNETHDRSZ is told");

static const uint8_t site_prefix[6] = {0xfd, 0x70, 0x63, 0x63, 0x6c, 0x00};

/* -- bytes --------------------------------------------------------------------------------------------------------- */

static uint16_t get16(const uint8_t *at)
{
    return (uint16_t)(at[0] << 8 | at[1]);
}

static void put16(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static void add32(uint8_t *at, uint32_t increment)
{
    uint32_t value;
    memcpy(&value, at, 4);
    value = htonl(ntohl(value) + increment);
    memcpy(at, &value, 4);
}

static uint32_t sum16(const uint8_t *at, uint32_t bytes, uint32_t sum)
{
    for (uint32_t i = 0; i + 1 < bytes; i += 2)
        sum += get16(at + i);
    return sum;
}

static uint16_t fold(uint32_t sum)
{
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

/* -- memory -------------------------------------------------------------------------------------------------------- */

struct packet *packet_new(struct packet_memory *memory, uint32_t capacity)
{
    uint64_t bytes = sizeof(struct packet) + capacity;
    if (memory->used_bytes + bytes > memory->limit_bytes)
        return NULL;
    struct packet *packet = malloc(bytes);
    if (!packet)
        return NULL;
    memset(packet, 0, sizeof *packet);
    packet->capacity = capacity;
    memory->used_bytes += bytes;
    if (memory->used_bytes > memory->peak_bytes)
        memory->peak_bytes = memory->used_bytes;
    return packet;
}

void packet_free(struct packet_memory *memory, struct packet *packet)
{
    if (!packet)
        return;
    memory->used_bytes -= sizeof *packet + packet->capacity;
    free(packet);
}

/* -- reading ------------------------------------------------------------------------------------------------------- */

static struct virtio_net_hdr vnet_of(const struct packet *packet)
{
    struct virtio_net_hdr vnet;
    memcpy(&vnet, packet->data, sizeof vnet);
    return vnet;
}

/* Length of the IP header, 0 when there is none; finds the site that owns the destination. */
static uint32_t parse_ip(struct packet *packet, uint8_t *protocol_p)
{
    const uint8_t *ip = packet->data + WAN_VNET_BYTES;
    uint32_t bytes = packet->bytes - WAN_VNET_BYTES;
    if (bytes >= 20 && ip[0] >> 4 == 4) {
        uint32_t header = (ip[0] & 15u) * 4;
        if (header < 20 || header > bytes)
            return 0;
        *protocol_p = ip[9];
        packet->to = ip[16] == 10 ? ip[17] : 0;
        return header;
    }
    if (bytes >= IPV6_HEADER && ip[0] >> 4 == 6) {
        *protocol_p = ip[6];
        packet->to = memcmp(ip + 24, site_prefix, sizeof site_prefix) == 0 && ip[30] == 0 ? ip[31] : 0;
        return IPV6_HEADER;
    }
    return 0;
}

static uint32_t transport_header(const struct packet *packet, uint32_t ip_header, uint8_t protocol)
{
    uint32_t bytes = packet->bytes - WAN_VNET_BYTES;
    if (protocol == IPPROTO_UDP)
        return ip_header + UDP_HEADER <= bytes ? UDP_HEADER : 0;
    if (protocol != IPPROTO_TCP || ip_header + TCP_HEADER > bytes)
        return 0;
    uint32_t header = (packet->data[WAN_VNET_BYTES + ip_header + 12] >> 4) * 4u;
    return header >= TCP_HEADER && ip_header + header <= bytes ? header : 0;
}

bool packet_parse(struct packet *packet)
{
    if (packet->bytes <= WAN_VNET_BYTES)
        return false;
    uint8_t protocol = 0;
    uint32_t ip_header = parse_ip(packet, &protocol);
    if (!ip_header)
        return false;
    packet->segments = 1;
    packet->wire_bytes = packet->bytes - WAN_VNET_BYTES;
    struct virtio_net_hdr vnet = vnet_of(packet);
    uint32_t transport = transport_header(packet, ip_header, protocol);
    if (vnet.gso_type == VIRTIO_NET_HDR_GSO_NONE || !vnet.gso_size || !transport)
        return true;
    uint32_t payload = packet->wire_bytes - ip_header - transport;
    packet->header_bytes = (uint16_t)(ip_header + transport);
    packet->segment_bytes = vnet.gso_size;
    packet->segments = payload ? (payload + vnet.gso_size - 1) / vnet.gso_size : 1;
    packet->wire_bytes = packet_wire_bytes(packet, packet->segments);
    return true;
}

static uint32_t payload_of(const struct packet *packet)
{
    return packet->bytes - WAN_VNET_BYTES - packet->header_bytes;
}

uint32_t packet_wire_bytes(const struct packet *packet, uint32_t segments)
{
    if (packet->segments == 1)
        return segments ? packet->wire_bytes : 0;
    uint32_t payload = segments * packet->segment_bytes;
    if (payload > payload_of(packet))
        payload = payload_of(packet);
    return payload + segments * packet->header_bytes;
}

/* -- cutting ------------------------------------------------------------------------------------------------------- */

/* Writes the lengths for a transport header and payload of `transport_bytes`. Returns the sum of the pseudo header. */
static uint16_t rewrite_ip(uint8_t *ip, uint32_t ip_header, uint32_t transport_bytes, uint32_t id_increment)
{
    if (ip[0] >> 4 == 6) {
        put16(ip + 4, transport_bytes);
        return fold(sum16(ip + 8, 32, ip[6] + transport_bytes));
    }
    put16(ip + 2, ip_header + transport_bytes);
    put16(ip + 4, get16(ip + 4) + id_increment);
    put16(ip + 10, 0);
    put16(ip + 10, (uint16_t)~fold(sum16(ip, ip_header, 0)));
    return fold(sum16(ip + 12, 8, ip[9] + transport_bytes));
}

static void rewrite_vnet(struct packet *packet)
{
    struct virtio_net_hdr vnet = vnet_of(packet);
    if (packet->segments == 1) {
        vnet.gso_type = VIRTIO_NET_HDR_GSO_NONE;
        vnet.gso_size = 0;
    }
    memcpy(packet->data, &vnet, sizeof vnet);
}

/* Makes `packet`, which holds headers of the whole and the payload of `count` segments from `first` on, a packet of its own.
 * `last` tells whether the last segment of the whole is among them. */
static void rewrite(struct packet *packet, uint32_t first, uint32_t count, bool last)
{
    uint8_t *ip = packet->data + WAN_VNET_BYTES;
    bool tcp = ip[ip[0] >> 4 == 6 ? 6 : 9] == IPPROTO_TCP;
    uint32_t ip_header = ip[0] >> 4 == 6 ? IPV6_HEADER : (ip[0] & 15u) * 4;
    uint8_t *transport = ip + ip_header;
    uint32_t transport_bytes = packet->bytes - WAN_VNET_BYTES - ip_header;
    uint16_t pseudo = rewrite_ip(ip, ip_header, transport_bytes, first);
    if (tcp) {
        add32(transport + 4, first * packet->segment_bytes);
        if (first)
            transport[TCP_FLAGS_AT] &= (uint8_t)~TCP_CWR;
        if (!last)
            transport[TCP_FLAGS_AT] &= (uint8_t) ~(TCP_FIN | TCP_PSH);
        put16(transport + 16, pseudo);
    } else {
        put16(transport + 4, transport_bytes);
        put16(transport + 6, pseudo);
    }
    packet->segments = count;
    packet->wire_bytes = payload_of(packet) + count * packet->header_bytes;
    rewrite_vnet(packet);
}

struct packet *packet_slice(struct packet_memory *memory, const struct packet *packet, uint32_t first, uint32_t count)
{
    uint32_t headers = WAN_VNET_BYTES + (uint32_t)packet->header_bytes;
    uint32_t from = first * packet->segment_bytes, payload = count * packet->segment_bytes;
    bool last = first + count >= packet->segments;
    if (last)
        payload = payload_of(packet) - from;
    struct packet *piece = packet_new(memory, headers + payload);
    if (!piece)
        return NULL;
    piece->header_bytes = packet->header_bytes;
    piece->segment_bytes = packet->segment_bytes;
    piece->from = packet->from;
    piece->to = packet->to;
    piece->bytes = headers + payload;
    memcpy(piece->data, packet->data, headers);
    memcpy(piece->data + headers, packet->data + headers + from, payload);
    rewrite(piece, first, count, last);
    return piece;
}

void packet_trim(struct packet *packet, uint32_t count)
{
    if (count >= packet->segments)
        return;
    packet->bytes = WAN_VNET_BYTES + (uint32_t)packet->header_bytes + count * packet->segment_bytes;
    rewrite(packet, 0, count, false);
}

/* -- corrupting ---------------------------------------------------------------------------------------------------- */

bool packet_corrupt(struct packet *packet, uint64_t random)
{
    uint8_t protocol = 0;
    uint32_t ip_header = parse_ip(packet, &protocol);
    uint32_t transport = ip_header && protocol == IPPROTO_TCP ? transport_header(packet, ip_header, protocol) : 0;
    uint32_t headers = ip_header + transport, bytes = packet->bytes - WAN_VNET_BYTES;
    if (!transport || bytes <= headers)
        return false;
    uint8_t *tcp = packet->data + WAN_VNET_BYTES + ip_header;
    uint32_t at = transport + (uint32_t)((random >> 8) % (bytes - headers)), even = at & ~1u;
    uint16_t before = (uint16_t)(tcp[even] << 8 | (even + 1 < bytes - ip_header ? tcp[even + 1] : 0));
    tcp[at] ^= (uint8_t)(1u << (random & 7));
    uint16_t after = (uint16_t)(tcp[even] << 8 | (even + 1 < bytes - ip_header ? tcp[even + 1] : 0));
    if (!(vnet_of(packet).flags & VIRTIO_NET_HDR_F_NEEDS_CSUM)) /* else the receiver takes what is there for right */
        put16(tcp + 16, (uint16_t)~fold((uint16_t)~get16(tcp + 16) + (uint32_t)(uint16_t)~before + after));
    return true;
}
