/* registry.c - which transports there are: the only place that lists them. */
#include <string.h>

#include "../csrc/transport.h"

extern const struct transport_ops tcp_ops;

static const struct transport_ops *const TRANSPORTS[] = { &tcp_ops };

const struct transport_ops *transport_find(const char *scheme)
{
    for (size_t i = 0; i < sizeof TRANSPORTS / sizeof TRANSPORTS[0]; i++)
        if (strcmp(TRANSPORTS[i]->scheme, scheme) == 0)
            return TRANSPORTS[i];
    return NULL;
}
