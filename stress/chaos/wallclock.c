/* wallclock.c - preloaded into a process, it moves its wall clock by as many nanoseconds as stand in the file that
 * WALL_CLOCK names, and follows when that changes. All other clocks are left alone. */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const int64_t still;
static const volatile int64_t *offset_ns = &still;
static int (*real_gettime)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void)
{
    *(void **)&real_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    const char *path = getenv("WALL_CLOCK");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *mapped = mmap(NULL, sizeof still, PROT_READ, MAP_SHARED, fd, 0);
    if (mapped != MAP_FAILED)
        offset_ns = mapped;
    close(fd);
}

int clock_gettime(clockid_t clock, struct timespec *t)
{
    if (!real_gettime)
        begin();
    int failed = real_gettime(clock, t);
    if (failed || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE))
        return failed;
    int64_t ns = (int64_t)t->tv_sec * 1000000000 + t->tv_nsec + *offset_ns;
    t->tv_sec = ns / 1000000000;
    t->tv_nsec = ns % 1000000000;
    return 0;
}

int gettimeofday(struct timeval *tv, void *zone)
{
    (void)zone;
    struct timespec t;
    int failed = clock_gettime(CLOCK_REALTIME, &t);
    tv->tv_sec = t.tv_sec;
    tv->tv_usec = t.tv_nsec / 1000;
    return failed;
}

time_t time(time_t *where)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    if (where)
        *where = t.tv_sec;
    return t.tv_sec;
}
