/* registry.c - which transports there are: the only place that lists them. */
#include <string.h>

#include "../csrc/transport.h"

extern const struct transport_ops tcp_ops;
extern const struct transport_ops auto_ops;
extern const struct transport_ops tls_ops;
extern const struct transport_ops sim_ops;
extern const struct transport_ops faulty_ops;

static const struct transport_ops *const TRANSPORTS[] = {&tcp_ops, &auto_ops, &tls_ops, &sim_ops};

static const char FAULTY_PREFIX[] = "faulty+";

static const struct transport_ops *find_plain(const char *scheme)
{
    for (size_t i = 0; i < sizeof TRANSPORTS / sizeof TRANSPORTS[0]; i++)
        if (strcmp(TRANSPORTS[i]->scheme, scheme) == 0)
            return TRANSPORTS[i];
    return NULL;
}

const struct transport_ops *transport_find(const char *scheme)
{
    size_t prefix_bytes = sizeof FAULTY_PREFIX - 1;
    if (strcmp(scheme, "tls+faulty+tcp") == 0)
        return &tls_ops;
    if (strncmp(scheme, FAULTY_PREFIX, prefix_bytes) != 0)
        return find_plain(scheme);
    return find_plain(scheme + prefix_bytes) ? &faulty_ops : NULL;
}
