/* control.h - the commands of the router: one JSON object per line in, one per line out. stress/wan/README.md lists them. */
#ifndef WAN_CONTROL_H
#define WAN_CONTROL_H

#include <stdint.h>

#include "json.h"
#include "network.h"

/* Carries out one line and appends the answer, with its newline. A new site is in *site_p, for the caller to watch its tun_fd. */
void control_execute(struct network *network, const char *line, uint64_t now_ns, struct text *answer, struct site **site_p);

#endif
