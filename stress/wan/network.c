/* network.c - the emulated network: what happens to a packet between the site that sends it and the site that gets it.
 *
 * Drop-tail counts wire packets, not what TCP handed over at once: of a 64 KiB packet as many segments are queued as fit. A
 * packet whose transmission would take longer than PIECE_NS is queued in pieces, so that a slow link does not arrive in
 * 64 KiB bursts. Losses are drawn as distances between lost wire packets, one stream of random numbers per directed pair: the
 * n-th wire packet of a pair is lost or not whatever the others do. */
#include "network.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PIECE_NS = 2000000, GRAIN_NS_MAX = 200000, GRAINS_PER_DELAY = 64 };

static void stage_push(struct network *network, struct stage *stage, struct packet *packet, uint64_t t);

/* -- heap of busy stages ------------------------------------------------------------------------------------------- */

static void heap_put(struct network *network, uint32_t index, struct stage *stage)
{
    network->heap[index] = stage;
    stage->heap_index = index;
}

static void heap_up(struct network *network, uint32_t index)
{
    struct stage *stage = network->heap[index];
    for (; index > 1 && network->heap[index / 2]->due_ns > stage->due_ns; index /= 2)
        heap_put(network, index, network->heap[index / 2]);
    heap_put(network, index, stage);
}

static void heap_down(struct network *network, uint32_t index)
{
    struct stage *stage = network->heap[index];
    for (;;) {
        uint32_t child = index * 2;
        if (child > network->heap_count)
            break;
        if (child < network->heap_count && network->heap[child + 1]->due_ns < network->heap[child]->due_ns)
            child++;
        if (network->heap[child]->due_ns >= stage->due_ns)
            break;
        heap_put(network, index, network->heap[child]);
        index = child;
    }
    heap_put(network, index, stage);
}

static void heap_remove(struct network *network, struct stage *stage)
{
    uint32_t index = stage->heap_index;
    if (!index)
        return;
    struct stage *last = network->heap[network->heap_count--];
    stage->heap_index = 0;
    if (last == stage)
        return;
    heap_put(network, index, last);
    heap_up(network, index);
    heap_down(network, last->heap_index);
}

/* The head's time is new, or the stage has become busy. */
static void heap_update(struct network *network, struct stage *stage)
{
    if (!stage->heap_index)
        heap_put(network, ++network->heap_count, stage);
    heap_up(network, stage->heap_index);
    heap_down(network, stage->heap_index);
}

static bool heap_reserve(struct network *network, uint32_t more)
{
    uint32_t capacity = network->heap_capacity + more;
    struct stage **heap = realloc(network->heap, (capacity + 1) * sizeof *heap);
    if (!heap)
        return false;
    network->heap = heap;
    network->heap_capacity = capacity;
    return true;
}

/* -- random numbers ------------------------------------------------------------------------------------------------ */

static uint64_t random_next(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* In (0, 1]. */
static double random_unit(uint64_t *state)
{
    return (double)((random_next(state) >> 11) + 1) * 0x1p-53;
}

/* Wire packets until the next one that is hit: geometric, as if every one were drawn by itself. */
static uint64_t draw_distance(double probability, uint64_t *random)
{
    if (probability >= 1)
        return 0;
    double distance = log(random_unit(random)) / log1p(-probability);
    return distance < 1e18 ? (uint64_t)distance : (uint64_t)1e18;
}

void network_set_loss(struct pair *pair, double loss)
{
    if (loss == pair->loss)
        return;
    pair->loss = loss;
    pair->until_loss = loss > 0 ? draw_distance(loss, &pair->loss_random) : 0;
}

void network_set_corrupt(struct pair *pair, double corrupt)
{
    if (corrupt == pair->corrupt)
        return;
    pair->corrupt = corrupt;
    pair->until_corrupt = corrupt > 0 ? draw_distance(corrupt, &pair->corrupt_random) : 0;
}

/* -- stages -------------------------------------------------------------------------------------------------------- */

static uint64_t transmission_ns(const struct stage *stage, const struct packet *packet)
{
    return (uint64_t)((double)packet->wire_bytes * stage->ns_per_byte + 0.5);
}

static void stage_append(struct network *network, struct stage *stage, struct packet *packet, uint64_t head_due_ns)
{
    packet->next = NULL;
    *stage->tail = packet;
    stage->tail = &packet->next;
    stage->queued_bytes += packet->wire_bytes;
    if (stage->head == packet) {
        stage->due_ns = head_due_ns;
        heap_update(network, stage);
    }
}

static struct packet *stage_pop(struct network *network, struct stage *stage)
{
    struct packet *packet = stage->head;
    stage->head = packet->next;
    stage->queued_bytes -= packet->wire_bytes;
    if (!stage->head) {
        stage->tail = &stage->head;
        heap_remove(network, stage);
        return packet;
    }
    if (stage->kind == STAGE_DELAY)
        stage->due_ns = stage->head->due_ns;
    else
        stage->due_ns += transmission_ns(stage, stage->head);
    heap_update(network, stage);
    return packet;
}

static void overflow(struct network *network, struct packet *packet)
{
    network->sites[packet->from]->overflow += packet->segments;
}

/* Segments of it that still fit; an idle stage always takes one. */
static uint32_t stage_room(const struct stage *stage, const struct packet *packet)
{
    uint64_t room = stage->limit_bytes > stage->queued_bytes ? stage->limit_bytes - stage->queued_bytes : 0;
    if (packet->wire_bytes <= room)
        return packet->segments;
    uint32_t fits = (uint32_t)(room / packet_wire_bytes(packet, 1));
    if (!fits && !stage->head)
        fits = 1;
    return fits < packet->segments ? fits : packet->segments;
}

/* Takes the packet, in pieces when it would occupy a slow line for long. */
static void stage_append_pieces(struct network *network, struct stage *stage, struct packet *packet, uint64_t t)
{
    double segment_ns = (double)packet_wire_bytes(packet, 1) * stage->ns_per_byte;
    uint32_t each = packet->segments;
    if (segment_ns * each > PIECE_NS)
        each = segment_ns < PIECE_NS ? (uint32_t)(PIECE_NS / segment_ns) : 1;
    if (packet->segments <= each) {
        stage_append(network, stage, packet, t + transmission_ns(stage, packet));
        return;
    }
    for (uint32_t first = 0; first < packet->segments; first += each) {
        uint32_t count = packet->segments - first < each ? packet->segments - first : each;
        struct packet *piece = packet_slice(&network->memory, packet, first, count);
        if (piece)
            stage_append(network, stage, piece, t + transmission_ns(stage, piece));
        else
            overflow(network, packet);
    }
    packet_free(&network->memory, packet);
}

/* -- the way of a packet ------------------------------------------------------------------------------------------- */

/* Of a large packet one byte at most. */
static void corrupt_some(struct pair *pair, struct packet *packet)
{
    if (pair->until_corrupt >= packet->segments) {
        pair->until_corrupt -= packet->segments;
        return;
    }
    pair->until_corrupt = draw_distance(pair->corrupt, &pair->corrupt_random);
    if (packet_corrupt(packet, random_next(&pair->corrupt_random)))
        pair->counters.corruptions++;
}

static void delay_push(struct network *network, struct pair *pair, struct packet *packet, uint64_t t)
{
    if (pair->corrupt > 0)
        corrupt_some(pair, packet);
    uint64_t due = t + pair->delay_ns;
    if (pair->jitter_ns)
        due += (uint64_t)(random_unit(&pair->jitter_random) * (double)pair->jitter_ns);
    if (due < pair->last_due_ns)
        due = pair->last_due_ns;
    pair->last_due_ns = due;
    packet->due_ns = due;
    stage_append(network, &pair->delay, packet, due);
}

/* Takes the packet; the runs of segments between the lost ones go on. */
static void lose_some(struct network *network, struct pair *pair, struct packet *packet, uint64_t t)
{
    uint32_t at = 0, total = packet->segments;
    while (at < total) {
        uint32_t run = pair->until_loss < total - at ? (uint32_t)pair->until_loss : total - at;
        struct packet *piece = run ? packet_slice(&network->memory, packet, at, run) : NULL;
        if (piece)
            delay_push(network, pair, piece, t);
        else if (run)
            overflow(network, packet);
        at += run;
        pair->until_loss -= run;
        if (at < total) {
            at++;
            pair->counters.losses++;
            pair->until_loss = draw_distance(pair->loss, &pair->loss_random);
        }
    }
    packet_free(&network->memory, packet);
}

static void leave_rate(struct network *network, struct pair *pair, struct packet *packet, uint64_t t)
{
    if (pair->loss > 0 && pair->until_loss < packet->segments) {
        lose_some(network, pair, packet, t);
        return;
    }
    if (pair->loss > 0)
        pair->until_loss -= packet->segments;
    delay_push(network, pair, packet, t);
}

static void enter_pair(struct network *network, struct packet *packet, uint64_t t)
{
    struct pair *pair = network->pairs[packet->from][packet->to];
    pair->counters.packets += packet->segments;
    pair->counters.wire_bytes += packet->wire_bytes;
    if (pair->cut) {
        pair->counters.cut_drops += packet->segments;
        packet_free(&network->memory, packet);
        return;
    }
    stage_push(network, &pair->rate, packet, t);
}

static void deliver(struct network *network, struct packet *packet)
{
    struct pair_counters *counters = &network->pairs[packet->from][packet->to]->counters;
    counters->delivered_packets += packet->segments;
    counters->delivered_bytes += packet->wire_bytes;
    network->deliver(network, network->sites[packet->to], packet);
}

/* The packet has left the stage at time t. */
static void stage_leave(struct network *network, struct stage *stage, struct packet *packet, uint64_t t)
{
    switch (stage->kind) {
    case STAGE_UPLINK:
        enter_pair(network, packet, t);
        break;
    case STAGE_RATE:
        leave_rate(network, network->pairs[stage->from][stage->to], packet, t);
        break;
    case STAGE_DELAY:
        if (network->pairs[stage->from][stage->to]->local)
            deliver(network, packet);
        else
            stage_push(network, &network->sites[stage->to]->down, packet, t);
        break;
    case STAGE_DOWNLINK:
        deliver(network, packet);
        break;
    }
}

/* Takes a packet that reaches a stage with a rate at time t. */
static void stage_push(struct network *network, struct stage *stage, struct packet *packet, uint64_t t)
{
    if (stage->ns_per_byte <= 0 && !stage->head) {
        stage_leave(network, stage, packet, t);
        return;
    }
    uint32_t fits = stage_room(stage, packet);
    stage->drops += packet->segments - fits;
    if (!fits) {
        packet_free(&network->memory, packet);
        return;
    }
    packet_trim(packet, fits);
    stage_append_pieces(network, stage, packet, t);
}

void network_enter(struct network *network, struct packet *packet, uint64_t now_ns)
{
    struct site *from = network->sites[packet->from];
    if (!network->sites[packet->to] || packet->to == packet->from) {
        from->unroutable++;
        packet_free(&network->memory, packet);
        return;
    }
    if (network->pairs[packet->from][packet->to]->local)
        enter_pair(network, packet, now_ns);
    else
        stage_push(network, &from->up, packet, now_ns);
}

void network_run(struct network *network, uint64_t now_ns, uint32_t moves)
{
    for (; moves && network->heap_count && network->heap[1]->due_ns <= now_ns; moves--) {
        struct stage *stage = network->heap[1];
        uint64_t t = stage->due_ns;
        if (now_ns - t > network->late_ns_max)
            network->late_ns_max = now_ns - t;
        network->late_ns_sum += now_ns - t;
        network->late_count++;
        struct packet *packet = stage_pop(network, stage);
        stage_leave(network, stage, packet, t);
    }
}

uint64_t network_due_ns(const struct network *network)
{
    return network->heap_count ? network->heap[1]->due_ns : UINT64_MAX;
}

/* -- settings ------------------------------------------------------------------------------------------------------ */

void network_set_rate(struct network *network, struct stage *stage, double bits_per_s, uint64_t now_ns)
{
    double before = stage->ns_per_byte;
    stage->ns_per_byte = bits_per_s > 0 ? 8e9 / bits_per_s : 0;
    if (!stage->head || before <= 0 || stage->due_ns <= now_ns)
        return;
    stage->due_ns = now_ns + (uint64_t)((double)(stage->due_ns - now_ns) * stage->ns_per_byte / before);
    heap_update(network, stage);
}

void network_set_grain(struct network *network)
{
    uint64_t shortest = GRAIN_NS_MAX * GRAINS_PER_DELAY;
    for (uint32_t from = 1; from < WAN_SITE_NUMBERS; from++)
        for (uint32_t to = 1; network->sites[from] && to < WAN_SITE_NUMBERS; to++) {
            const struct pair *pair = network->pairs[from][to];
            if (pair && pair->delay_ns < shortest)
                shortest = pair->delay_ns;
        }
    network->grain_ns = shortest / GRAINS_PER_DELAY;
}

static void stage_clear(struct network *network, struct stage *stage, uint64_t *lost)
{
    while (stage->head) {
        struct packet *packet = stage_pop(network, stage);
        *lost += packet->segments;
        packet_free(&network->memory, packet);
    }
}

void network_cut(struct network *network, struct pair *pair, bool cut)
{
    pair->cut = cut;
    if (!cut)
        return;
    stage_clear(network, &pair->rate, &pair->counters.cut_drops);
    stage_clear(network, &pair->delay, &pair->counters.cut_drops);
    pair->last_due_ns = 0;
}

/* -- sites --------------------------------------------------------------------------------------------------------- */

static void stage_init(struct stage *stage, enum stage_kind kind, uint8_t from, uint8_t to)
{
    *stage = (struct stage){.kind = kind, .from = from, .to = to, .limit_bytes = UINT64_MAX};
    stage->tail = &stage->head;
}

static bool add_pair(struct network *network, uint8_t from, uint8_t to)
{
    struct pair *pair = calloc(1, sizeof *pair);
    if (!pair)
        return false;
    stage_init(&pair->rate, STAGE_RATE, from, to);
    stage_init(&pair->delay, STAGE_DELAY, from, to);
    uint64_t random = network->seed ^ (uint64_t)from << 56 ^ (uint64_t)to << 48;
    pair->loss_random = random_next(&random);
    pair->jitter_random = random_next(&random);
    pair->corrupt_random = random_next(&random);
    network->pairs[from][to] = pair;
    return true;
}

struct site *network_add_site(struct network *network, const char *name, uint8_t number, int tun_fd)
{
    if (!number || network->sites[number] || network->site_count == WAN_SITES_MAX || strlen(name) >= WAN_NAME_BYTES)
        return NULL;
    struct site *site = calloc(1, sizeof *site);
    if (!site || !heap_reserve(network, 2 + 4 * network->site_count)) {
        free(site);
        return NULL;
    }
    memcpy(site->name, name, strlen(name) + 1);
    site->number = number;
    site->tun_fd = tun_fd;
    stage_init(&site->up, STAGE_UPLINK, number, 0);
    stage_init(&site->down, STAGE_DOWNLINK, 0, number);
    for (uint32_t other = 1; other < WAN_SITE_NUMBERS; other++) {
        uint8_t there = (uint8_t)other;
        if (network->sites[other] && (!add_pair(network, number, there) || !add_pair(network, there, number)))
            return NULL; /* out of memory: the router ends, network_free frees */
    }
    network->sites[number] = site;
    network->site_count++;
    return site;
}

struct site *network_find(struct network *network, const char *name)
{
    for (uint32_t number = 1; number < WAN_SITE_NUMBERS; number++)
        if (network->sites[number] && strcmp(network->sites[number]->name, name) == 0)
            return network->sites[number];
    return NULL;
}

void network_free(struct network *network)
{
    uint64_t lost = 0;
    for (uint32_t from = 1; from < WAN_SITE_NUMBERS; from++) {
        for (uint32_t to = 1; to < WAN_SITE_NUMBERS; to++) {
            if (!network->pairs[from][to])
                continue;
            network_cut(network, network->pairs[from][to], true);
            free(network->pairs[from][to]);
        }
        if (network->sites[from]) {
            stage_clear(network, &network->sites[from]->up, &lost);
            stage_clear(network, &network->sites[from]->down, &lost);
            free(network->sites[from]);
        }
    }
    free(network->heap);
}
