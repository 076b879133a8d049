/* control.c - the commands of the router: one JSON object per line in, one per line out. stress/wan/README.md lists them.
 *
 * Every command is checked as a whole before anything changes. Fields that a command does not name stay as they are. */
#include "control.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "tun.h"

struct request {
    struct network *network;
    const struct json_object *fields;
    uint64_t now_ns;
    struct text *answer;
    struct site **site_p;
};

typedef void command_function(struct request *request);

static void fail(struct request *request, const char *what, const char *detail)
{
    text_add(request->answer, "{\"ok\": false, \"error\": \"%s%s\"}\n", what, detail);
}

static void succeed(struct request *request)
{
    text_add(request->answer, "{\"ok\": true}\n");
}

/* -- fields -------------------------------------------------------------------------------------------------------- */

/* False, answered, when the field is there but not a number in [low, high]. */
static bool check_range(struct request *request, const char *name, double low, double high)
{
    const double *value = json_number(request->fields, name);
    if (!value && !json_string(request->fields, name))
        return true;
    if (value && *value >= low && *value <= high)
        return true;
    fail(request, name, ": out of range or not a number");
    return false;
}

static struct site *site_field(struct request *request, const char *name)
{
    const char *value = json_string(request->fields, name);
    struct site *site = value ? network_find(request->network, value) : NULL;
    if (!site)
        fail(request, name, ": no such site");
    return site;
}

static struct pair *pair_field(struct request *request)
{
    struct site *from = site_field(request, "from"), *to = from ? site_field(request, "to") : NULL;
    if (!from || !to)
        return NULL;
    if (from == to)
        fail(request, "from and to", ": the same site");
    return request->network->pairs[from->number][to->number];
}

static void set_ms(struct request *request, const char *name, uint64_t *ns)
{
    const double *value = json_number(request->fields, name);
    if (value)
        *ns = (uint64_t)llround(*value * 1e6);
}

static void set_stage(struct request *request, const char *rate, const char *limit, struct stage *stage)
{
    const double *mbit = json_number(request->fields, rate), *bytes = json_number(request->fields, limit);
    if (mbit)
        network_set_rate(request->network, stage, *mbit * 1e6, request->now_ns);
    if (bytes)
        stage->limit_bytes = (uint64_t)*bytes;
}

/* -- commands ------------------------------------------------------------------------------------------------------ */

static void command_site(struct request *request)
{
    const char *name = json_string(request->fields, "name"), *netns = json_string(request->fields, "netns");
    const char *device = json_string(request->fields, "device"), *step = "";
    const double *number = json_number(request->fields, "number");
    if (!name || !netns || !device || !number || *number < 1 || *number >= WAN_SITE_NUMBERS) {
        fail(request, "a site needs a name, a number, a netns and a device", "");
        return;
    }
    if (network_find(request->network, name)) {
        fail(request, "name: taken", "");
        return;
    }
    int fd = tun_open(netns, device, &step);
    if (fd < 0) {
        text_add(request->answer, "{\"ok\": false, \"error\": \"%s: %s\"}\n", step, strerror(errno));
        return;
    }
    *request->site_p = network_add_site(request->network, name, (uint8_t)*number, fd);
    if (*request->site_p) {
        succeed(request);
        return;
    }
    close(fd);
    fail(request, "number: taken, or too many sites", "");
}

static void command_pair(struct request *request)
{
    struct pair *pair = pair_field(request);
    if (!pair || !check_range(request, "delay_ms", 0, 60e3) || !check_range(request, "jitter_ms", 0, 60e3) ||
        !check_range(request, "rate_mbit", 0, 1e6) || !check_range(request, "queue_bytes", 0, 1e12) ||
        !check_range(request, "loss", 0, 1) || !check_range(request, "corrupt", 0, 1) || !check_range(request, "local", 0, 1))
        return;
    set_ms(request, "delay_ms", &pair->delay_ns);
    set_ms(request, "jitter_ms", &pair->jitter_ns);
    network_set_grain(request->network);
    set_stage(request, "rate_mbit", "queue_bytes", &pair->rate);
    const double *loss = json_number(request->fields, "loss"), *local = json_number(request->fields, "local");
    const double *corrupt = json_number(request->fields, "corrupt");
    if (loss)
        network_set_loss(pair, *loss);
    if (corrupt)
        network_set_corrupt(pair, *corrupt);
    if (local)
        pair->local = *local > 0;
    succeed(request);
}

static void command_caps(struct request *request)
{
    struct site *site = site_field(request, "site");
    if (!site || !check_range(request, "up_mbit", 0, 1e6) || !check_range(request, "down_mbit", 0, 1e6) ||
        !check_range(request, "up_queue_bytes", 0, 1e12) || !check_range(request, "down_queue_bytes", 0, 1e12))
        return;
    set_stage(request, "up_mbit", "up_queue_bytes", &site->up);
    set_stage(request, "down_mbit", "down_queue_bytes", &site->down);
    succeed(request);
}

static void set_cut(struct request *request, bool cut)
{
    struct pair *pair = pair_field(request);
    if (!pair)
        return;
    network_cut(request->network, pair, cut);
    succeed(request);
}

static void command_cut(struct request *request)
{
    set_cut(request, true);
}

static void command_heal(struct request *request)
{
    set_cut(request, false);
}

/* -- statistics ---------------------------------------------------------------------------------------------------- */

static void add_pair_stats(struct text *out, const struct network *network, const struct pair *pair, bool first)
{
    const struct pair_counters *c = &pair->counters;
    text_add(out, "%s{\"from\": \"%s\", \"to\": \"%s\", ", first ? "" : ", ", network->sites[pair->rate.from]->name,
             network->sites[pair->rate.to]->name);
    text_add(out, "\"packets\": %llu, \"wire_bytes\": %llu, ", (unsigned long long)c->packets, (unsigned long long)c->wire_bytes);
    text_add(out, "\"delivered_packets\": %llu, \"delivered_bytes\": %llu, ", (unsigned long long)c->delivered_packets,
             (unsigned long long)c->delivered_bytes);
    text_add(out, "\"corruptions\": %llu, ", (unsigned long long)c->corruptions);
    text_add(out, "\"queue_drops\": %llu, \"losses\": %llu, \"cut_drops\": %llu, ", (unsigned long long)pair->rate.drops,
             (unsigned long long)c->losses, (unsigned long long)c->cut_drops);
    text_add(out, "\"queue_bytes\": %llu, \"flight_bytes\": %llu, \"cut\": %s}", (unsigned long long)pair->rate.queued_bytes,
             (unsigned long long)pair->delay.queued_bytes, pair->cut ? "true" : "false");
}

static void add_site_stats(struct text *out, const struct site *site, bool first)
{
    text_add(out, "%s{\"site\": \"%s\", \"up_drops\": %llu, \"up_queue_bytes\": %llu, ", first ? "" : ", ", site->name,
             (unsigned long long)site->up.drops, (unsigned long long)site->up.queued_bytes);
    text_add(out, "\"down_drops\": %llu, \"down_queue_bytes\": %llu, ", (unsigned long long)site->down.drops,
             (unsigned long long)site->down.queued_bytes);
    text_add(out, "\"overflow\": %llu, \"unroutable\": %llu, \"write_errors\": %llu}", (unsigned long long)site->overflow,
             (unsigned long long)site->unroutable, (unsigned long long)site->write_errors);
}

static void add_router_stats(struct text *out, struct network *network)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    double cpu_s = (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                   (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
    double mean = network->late_count ? (double)network->late_ns_sum / (double)network->late_count : 0;
    text_add(out, "\"memory_bytes\": %llu, \"memory_peak_bytes\": %llu, ", (unsigned long long)network->memory.used_bytes,
             (unsigned long long)network->memory.peak_bytes);
    text_add(out, "\"cpu_s\": %.3f, \"late_us_mean\": %.1f, \"late_us_max\": %.1f", cpu_s, mean / 1e3,
             (double)network->late_ns_max / 1e3);
    network->late_ns_max = network->late_ns_sum = network->late_count = 0;
}

/* Lateness is that since the last time it was asked for. */
static void command_stats(struct request *request)
{
    struct network *network = request->network;
    struct text *out = request->answer;
    bool first = true;
    text_add(out, "{\"ok\": true, \"pairs\": [");
    for (uint32_t from = 1; from < WAN_SITE_NUMBERS; from++)
        for (uint32_t to = 1; network->sites[from] && to < WAN_SITE_NUMBERS; to++)
            if (network->pairs[from][to]) {
                add_pair_stats(out, network, network->pairs[from][to], first);
                first = false;
            }
    first = true;
    text_add(out, "], \"sites\": [");
    for (uint32_t number = 1; number < WAN_SITE_NUMBERS; number++)
        if (network->sites[number]) {
            add_site_stats(out, network->sites[number], first);
            first = false;
        }
    text_add(out, "], ");
    add_router_stats(out, network);
    text_add(out, "}\n");
}

static const struct {
    const char *name;
    command_function *function;
} commands[] = {
    {"site", command_site}, {"pair", command_pair}, {"caps", command_caps},
    {"cut", command_cut},   {"heal", command_heal}, {"stats", command_stats},
};

void control_execute(struct network *network, const char *line, uint64_t now_ns, struct text *answer, struct site **site_p)
{
    struct json_object object;
    struct request request = {network, &object, now_ns, answer, site_p};
    if (!json_parse(line, &object)) {
        fail(&request, "not a flat JSON object", "");
        return;
    }
    const char *op = json_string(&object, "op");
    for (size_t i = 0; op && i < sizeof commands / sizeof *commands; i++)
        if (strcmp(op, commands[i].name) == 0) {
            commands[i].function(&request);
            return;
        }
    fail(&request, "op: one of site, pair, caps, cut, heal, stats", "");
}
