/* err.c - error names and the last-error sentence of each thread. */
#include "err.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static _Thread_local char last_error[256];

void err_set(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(last_error, sizeof last_error, format, args);
    va_end(args);
}

void err_panic(const char *file, int line, const char *condition)
{
    fprintf(stderr, "pccl: internal error at %s:%d: %s does not hold\n", file, line, condition);
    abort();
}

const char *pccl_last_error(void)
{
    return last_error;
}

const char *pccl_err_name(int err)
{
    static const char *const names[] = {
        [PCCL_OK] = "ok",           [PCCL_EINVAL] = "invalid argument",    [PCCL_ENOMEM] = "out of memory",
        [PCCL_EAGAIN] = "try again", [PCCL_EIO] = "system error",           [PCCL_EPROTO] = "protocol violation",
        [PCCL_EAUTH] = "authentication failed", [PCCL_EMISMATCH] = "mismatched call", [PCCL_EPEER] = "peer lost",
        [PCCL_EFEW] = "too few peers", [PCCL_ETIMEOUT] = "deadline passed", [PCCL_ECLOSED] = "closed",
        [PCCL_EEVICTED] = "evicted", [PCCL_ELOST] = "coordinator lost",
        [PCCL_ECANCELLED] = "cancelled", [PCCL_EGONE] = "no longer offered",
    };
    if (err < 0 || (size_t)err >= sizeof names / sizeof names[0])
        return "unknown error";
    return names[err];
}
