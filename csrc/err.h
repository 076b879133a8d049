/* err.h - errors of the caller's making and assertions of ours.
 *
 * World errors travel as pccl_err values; err_set leaves a sentence for people in the calling thread
 * (pccl_last_error). ASSERT is for our own bugs only and stays on in release builds: bytes from the network are
 * never asserted, they are validated. */
#ifndef PCCL_ERR_H
#define PCCL_ERR_H

#include "include/pccl.h"

void err_set(const char *format, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void err_panic(const char *file, int line, const char *condition);

#define ASSERT(condition) ((condition) ? (void)0 : err_panic(__FILE__, __LINE__, #condition))

#endif
