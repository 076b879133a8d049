/* codec_scalar.c - the codecs for every machine: nothing beyond what the compiler assumes of all of them. */
#define ISA_TARGET
#define ISA_VECTOR_BYTES 16
#define ISA_TABLE codec_table_scalar

#include "codec_template.h"
