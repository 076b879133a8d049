/* delta_group.h - changes as bits: sets of places in Golomb-Rice code, steps as signs and exceptions. Compiled once per instruction set
 * (ISA_TARGET), because what it does most is find, count and shift bits; docs/delta.md has the format. */

/* -- sets ---------------------------------------------------------------------------------------------------------- */

/* What is not in a sorted list of numbers below `universe`. */
ISA_TARGET static uint32_t complement(const uint32_t *list, uint32_t count, uint32_t universe, uint32_t *out)
{
    uint32_t found = 0, next = 0;
    for (uint32_t i = 0; i <= count; i++) {
        uint32_t end = i < count ? list[i] : universe;
        for (; next < end; next++)
            out[found++] = next;
        next = end + 1;
    }
    return found;
}

ISA_TARGET static uint64_t rice_bits(const uint32_t *list, uint32_t count, unsigned k)
{
    uint64_t quotients = count > 0 ? list[0] >> k : 0;
    for (uint32_t i = 1; i < count; i++)
        quotients += (list[i] - list[i - 1] - 1) >> k;
    return quotients + (uint64_t)count * (k + 1);
}

/* Where a descent from a first guess ends. */
ISA_TARGET static unsigned rice_order(const uint32_t *list, uint32_t count, uint32_t universe)
{
    if (count == 0)
        return 0;
    unsigned k = bits_log2(universe / count + 1);
    uint64_t best = rice_bits(list, count, k);
    for (int step = -1; step <= 1; step += 2)
        while (step > 0 || k > 0) {
            uint64_t bits = rice_bits(list, count, k + (unsigned)step);
            if (bits >= best)
                break;
            best = bits, k += (unsigned)step;
        }
    return k;
}

ISA_TARGET static void put_gaps(struct bit_writer *w, const uint32_t *list, uint32_t count, unsigned k)
{
    uint32_t next = 0;
    for (uint32_t i = 0; i < count; i++) {
        bits_put(w, (list[i] - next) & bits_mask(k), k);
        next = list[i] + 1;
    }
    next = 0;
    for (uint32_t i = 0; i < count; i++) {
        bits_put_unary(w, (list[i] - next) >> k);
        next = list[i] + 1;
    }
}

ISA_TARGET static void put_places(struct bit_writer *w, struct delta_group *g)
{
    const uint32_t *list = g->changes.place;
    uint32_t count = g->changes.count;
    int is_inverted = count > g->universe / 2;
    bits_put(w, (uint64_t)is_inverted, 1);
    if (is_inverted) {
        if (!g->is_told)
            bits_put_number(w, g->universe);
        count = complement(list, count, g->universe, g->spare);
        list = g->spare;
    }
    unsigned k = rice_order(list, count, g->universe);
    bits_put(w, k, 5);
    put_gaps(w, list, count, k);
}

/* `count` places from gaps; 0 if they are not below `universe`, or not there. */
ISA_TARGET static int get_gaps(struct bit_reader *r, uint32_t *out, uint32_t count, unsigned k, uint32_t universe)
{
    if (!bits_are_good(r) || (uint64_t)count * (k + 1) > r->end - r->at)
        return 0;
    uint64_t low = r->at, at = low + (uint64_t)count * k, begin = at, next = 0, mask = bits_mask(k);
    for (uint32_t i = 0; i < count; at += BITS_AT_ONCE) {
        if (at >= r->end)
            return 0;
        uint64_t window = bits_peek(r, at) & bits_mask(BITS_AT_ONCE);
        for (; window && i < count; window &= window - 1, low += k) {
            uint64_t one = at + (uint64_t)__builtin_ctzll(window);
            next += (one - begin) << k | (bits_peek(r, low) & mask);
            begin = one + 1;
            out[i++] = (uint32_t)next++;
        }
    }
    r->at = begin;
    return next <= universe && bits_are_good(r);
}

ISA_TARGET static int get_places(struct bit_reader *r, struct delta_group *g)
{
    uint32_t count = g->changes.count;
    int is_inverted = (int)bits_get(r, 1);
    if (is_inverted && !g->is_told) {
        uint32_t universe = bits_get_number(r);
        if (universe > g->universe)
            return 0;
        g->universe = universe;
    }
    unsigned k = (unsigned)bits_get(r, 5);
    if (count > g->universe)
        return 0;
    if (!is_inverted)
        return get_gaps(r, g->changes.place, count, k, g->universe);
    if (!get_gaps(r, g->spare, g->universe - count, k, g->universe))
        return 0;
    complement(g->spare, g->universe - count, g->universe, g->changes.place);
    return 1;
}

/* -- steps --------------------------------------------------------------------------------------------------------- */

/* The magnitude of a step; *is_down: it goes down. */
ISA_INLINE uint32_t magnitude(uint32_t step, unsigned bits, uint32_t *is_down)
{
    *is_down = step >> (bits - 1);
    return (*is_down ? 0u - step : step) & (uint32_t)bits_mask(bits);
}

/* Exceptions are magnitudes of 2 and more; theirs are written less 2. */
ISA_TARGET static uint64_t golomb_bits(const uint32_t *list, uint32_t count, unsigned order)
{
    uint64_t bits = (uint64_t)count * (order + 1);
    for (uint32_t i = 0; i < count; i++)
        bits += 2 * bits_log2(((uint64_t)list[i] >> order) + 1);
    return bits;
}

/* The best order for a list and so many zeros besides, among those that two worse ones in a row do not hide. In no case does a number of
 * so many bits take more than two above them: the last order sees to that. */
ISA_TARGET static unsigned golomb_order(const uint32_t *list, uint32_t count, uint32_t zeros, unsigned bits)
{
    unsigned found = 0;
    uint64_t best = UINT64_MAX;
    for (unsigned order = 0; order < bits && order <= found + 2; order++) {
        uint64_t next = golomb_bits(list, count, order) + (uint64_t)zeros * (order + 1);
        if (next < best)
            best = next, found = order;
    }
    return best < golomb_bits(list, count, bits - 1) + (uint64_t)zeros * bits ? found : bits - 1;
}

ISA_TARGET static void put_golombs(struct bit_writer *w, const uint32_t *list, uint32_t count, unsigned bits)
{
    unsigned order = golomb_order(list, count, 0, bits);
    bits_put(w, order, 5);
    for (uint32_t i = 0; i < count; i++)
        bits_put_golomb(w, list[i], order);
}

/* The group without its steps, about which places of exceptions are written: their universe is the list of changes. */
ISA_INLINE struct delta_group exceptions_of(const struct delta_group *g, uint32_t count)
{
    return (struct delta_group){.changes = {g->spare_too, NULL, count}, .universe = g->changes.count, .is_told = 1, .spare = g->spare};
}

ISA_TARGET static void put_group(struct bit_writer *w, struct delta_group *g)
{
    put_places(w, g);
    uint32_t exceptions = 0, is_down;
    for (uint32_t i = 0; i < g->changes.count; i++) {
        g->spare_too[exceptions] = i;
        exceptions += magnitude(g->changes.step[i], g->bits, &is_down) != 1;
        bits_put(w, is_down, 1);
    }
    bits_put_number(w, exceptions);
    struct delta_group odd = exceptions_of(g, exceptions);
    put_places(w, &odd);
    for (uint32_t i = 0; i < exceptions; i++)
        g->spare_too[i] = magnitude(g->changes.step[g->spare_too[i]], g->bits, &is_down) - 2;
    put_golombs(w, g->spare_too, exceptions, g->bits);
}

ISA_TARGET static int get_signs(struct bit_reader *r, uint32_t *step, uint32_t count)
{
    if (!bits_are_good(r) || count > r->end - r->at)
        return 0;
    for (uint32_t i = 0; i < count; i += BITS_AT_ONCE) {
        uint64_t window = bits_peek(r, r->at + i);
        uint32_t here = count - i < BITS_AT_ONCE ? count - i : BITS_AT_ONCE;
        for (uint32_t j = 0; j < here; j++, window >>= 1)
            step[i + j] = 1u - 2u * (uint32_t)(window & 1);
    }
    r->at += count;
    return 1;
}

ISA_TARGET static int get_group(struct bit_reader *r, struct delta_group *g)
{
    uint32_t *step = g->changes.step, mask = (uint32_t)bits_mask(g->bits);
    if (!get_places(r, g) || !get_signs(r, step, g->changes.count))
        return 0;
    struct delta_group odd = exceptions_of(g, bits_get_number(r));
    if (!get_places(r, &odd))
        return 0;
    unsigned order = (unsigned)bits_get(r, 5);
    for (uint32_t i = 0; i < odd.changes.count; i++) {
        uint64_t above = bits_get_golomb(r, order);
        if (above > (mask >> 1) - 1)
            return 0;
        step[odd.changes.place[i]] *= (uint32_t)above + 2;
    }
    for (uint32_t i = 0; i < g->changes.count; i++)
        step[i] &= mask;
    return bits_are_good(r);
}

/* -- every element ------------------------------------------------------------------------------------------------- */

/* Steps as unsigned numbers: 0, -1, 1, -2, ... */
ISA_INLINE uint32_t zigzag(uint32_t step, unsigned bits)
{
    return (step << 1 ^ (0u - (step >> (bits - 1)))) & (uint32_t)bits_mask(bits);
}

ISA_TARGET static void put_dense(struct bit_writer *w, struct delta_group *g)
{
    const struct delta_changes *c = &g->changes;
    for (uint32_t i = 0; i < c->count; i++)
        g->spare[i] = zigzag(c->step[i], g->bits);
    unsigned order = golomb_order(g->spare, c->count, g->universe - c->count, g->bits);
    bits_put(w, order, 5);
    for (uint32_t i = 0, next = 0; next < g->universe; next++) {
        int is_changed = i < c->count && c->place[i] == next;
        bits_put_golomb(w, is_changed ? g->spare[i] : 0, order);
        i += (uint32_t)is_changed;
    }
}

/* As many changes as are known to be. */
ISA_TARGET static int get_dense(struct bit_reader *r, struct delta_group *g)
{
    const struct delta_changes *c = &g->changes;
    unsigned order = (unsigned)bits_get(r, 5);
    uint32_t found = 0, mask = (uint32_t)bits_mask(g->bits);
    for (uint32_t i = 0; i < g->universe; i++) {
        uint64_t x = bits_get_golomb(r, order);
        if (x > mask || !bits_are_good(r) || (x > 0 && found == c->count))
            return 0;
        if (x == 0)
            continue;
        c->place[found] = i;
        c->step[found++] = ((uint32_t)x >> 1 ^ (0u - ((uint32_t)x & 1))) & mask;
    }
    return found == c->count;
}
