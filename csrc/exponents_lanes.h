/* exponents_lanes.h - how codes, one per byte, come together in lanes of 64 bits, and lanes in pairs: what vectors of all widths say alike.
 *
 * Neighbours, then pairs, then fours are brought together, until a lane has its eight codes in its low bytes; then two lanes are. */
#ifndef PCCL_EXPONENTS_LANES_H
#define PCCL_EXPONENTS_LANES_H

#include <stdint.h>

/* Every second one, pair, four. */
#define CODES_1 0x00ff00ff00ff00ffull
#define CODES_2 0x0000ffff0000ffffull
#define CODES_4 0x00000000ffffffffull

enum { UNPACK_READS = 6 * EXPONENTS_WIDTH_MAX + 16 };

/* The low so many codes of every lane, pair of codes, four, as they are when these have come together. */
static inline uint64_t codes_below(unsigned count, unsigned width)
{
    uint64_t ones = ((uint64_t)1 << count * width) - 1;
    return count == 4 ? ones : count == 2 ? ones * 0x0000000100000001ull : ones * 0x0001000100010001ull;
}

enum { NO = 0x80 };

/* By width, in which order the bytes of two lanes are brought together, and back. */
static const uint8_t lanes_packed[EXPONENTS_WIDTH_MAX + 1][16] = {
    {0},
    {0, 8, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO},
    {0, 1, 8, 9, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO},
    {0, 1, 2, 8, 9, 10, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO},
    {0, 1, 2, 3, 8, 9, 10, 11, NO, NO, NO, NO, NO, NO, NO, NO},
    {0, 1, 2, 3, 4, 8, 9, 10, 11, 12, NO, NO, NO, NO, NO, NO},
};
static const uint8_t lanes_unpacked[EXPONENTS_WIDTH_MAX + 1][16] = {
    {0},
    {0, NO, NO, NO, NO, NO, NO, NO, 1, NO, NO, NO, NO, NO, NO, NO},
    {0, 1, NO, NO, NO, NO, NO, NO, 2, 3, NO, NO, NO, NO, NO, NO},
    {0, 1, 2, NO, NO, NO, NO, NO, 3, 4, 5, NO, NO, NO, NO, NO},
    {0, 1, 2, 3, NO, NO, NO, NO, 4, 5, 6, 7, NO, NO, NO, NO},
    {0, 1, 2, 3, 4, NO, NO, NO, 5, 6, 7, 8, 9, NO, NO, NO},
};

#endif
