/* tun.h - the TUN device of a site: whole GSO packets in and out. */
#ifndef WAN_TUN_H
#define WAN_TUN_H

/* Makes the device `device` in the namespace at the path `netns`. A non-blocking descriptor, or -1 with the failed call in
 * *step_p and errno. The device goes away with the descriptor. */
int tun_open(const char *netns, const char *device, const char **step_p);

#endif
