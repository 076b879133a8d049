/* pccl.h - include guard and standard headers around pccl_api.h, for C code. */
#ifndef PCCL_H
#define PCCL_H

#include <stddef.h>
#include <stdint.h>

#include "pccl_api.h"

#endif
