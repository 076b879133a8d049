/* tun.c - the TUN device of a site: whole GSO packets in and out.
 *
 * The device tells the kernel that it takes unfinished checksums and TCP (and, where the kernel can, UDP) packets of up to
 * 64 KiB: a read gives what the sending socket handed down, a write hands it to the receiving socket, neither cut nor joined. */
#define _GNU_SOURCE
#include "tun.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <sched.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "packet.h"

/* Not in the kernel headers of older systems; refused by kernels before 6.2. */
#ifndef TUN_F_USO4
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif

static int configure(int fd, const char *device, const char **step_p)
{
    struct ifreq request = {.ifr_flags = (short)(IFF_TUN | IFF_NO_PI | IFF_VNET_HDR)};
    int header_bytes = WAN_VNET_BYTES;
    unsigned long tcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6;
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", device);
    *step_p = "TUNSETIFF";
    if (ioctl(fd, TUNSETIFF, &request) < 0)
        return -1;
    *step_p = "TUNSETVNETHDRSZ";
    if (ioctl(fd, TUNSETVNETHDRSZ, &header_bytes) < 0)
        return -1;
    *step_p = "TUNSETOFFLOAD";
    if (ioctl(fd, TUNSETOFFLOAD, tcp | TUN_F_USO4 | TUN_F_USO6) == 0)
        return 0;
    return ioctl(fd, TUNSETOFFLOAD, tcp);
}

static int open_here(const char *device, const char **step_p)
{
    *step_p = "open /dev/net/tun";
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd >= 0 && configure(fd, device, step_p) < 0) {
        int error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

int tun_open(const char *netns, const char *device, const char **step_p)
{
    int fd = -1, home, there;
    *step_p = "open the namespace";
    home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    there = open(netns, O_RDONLY | O_CLOEXEC);
    if (home >= 0 && there >= 0) {
        *step_p = "setns";
        if (setns(there, CLONE_NEWNET) == 0) {
            fd = open_here(device, step_p);
            int error = errno;
            if (setns(home, CLONE_NEWNET) < 0 && fd >= 0) {
                close(fd);
                fd = -1;
                *step_p = "setns back";
            } else {
                errno = error;
            }
        }
    }
    int error = errno;
    if (home >= 0)
        close(home);
    if (there >= 0)
        close(there);
    errno = error;
    return fd;
}
