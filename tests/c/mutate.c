/* mutate.c - a fuzzer for where there is only gcc: mutates corpus inputs, so many or for so many seconds, keeps those that
 * reach new code.
 *
 *     mutate_<name> [--inputs <count>] <name> <seconds> <seed> <corpus directory> [<directory to keep new inputs in>]
 *
 * With a count the seconds do not matter. Every million is told, and at the end, also by Ctrl-C, how many there were and how fast.
 * The target is compiled with -fsanitize-coverage=trace-pc, whose callback below marks pairs of places (this file is compiled
 * without). Seed 0 takes one from the clock and prints it. An input that aborts or hangs is written to crash-<name>. */
#include <dirent.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

enum { INPUT_BYTES_MAX = 4096, MAP_BYTES = 1 << 15, INPUTS_MAX = 1 << 15, HANG_S = 20 };

struct input {
    uint8_t *data;
    size_t bytes;
};

static struct input inputs[INPUTS_MAX];
static size_t input_count;
static uint8_t hits[MAP_BYTES], known[MAP_BYTES];
static uintptr_t place_before;
static uint64_t random_state;
static uint8_t *current;
static size_t current_bytes;
static char crash_path[256];
static volatile sig_atomic_t told_to_end;

void __sanitizer_cov_trace_pc(void);
void __sanitizer_cov_trace_pc(void)
{
    uintptr_t place = (uintptr_t)__builtin_return_address(0);
    place = (place ^ place >> 16) * 0x9e3779b1u;
    uint8_t *hit = &hits[(place ^ place_before) % MAP_BYTES];
    *hit = (uint8_t)(*hit + (*hit < 255));
    place_before = place >> 1;
}

const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "abort_on_error=1:allocator_may_return_null=1:detect_leaks=1:malloc_context_size=1:quarantine_size_mb=16";
}

static uint64_t draw(void)
{
    uint64_t z = (random_state += 0x9e3779b97f4a7c15u);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static void on_death(int number)
{
    FILE *file = fopen(crash_path, "wb");
    if (file) {
        (void)fwrite(current, 1, current_bytes, file);
        fclose(file);
    }
    fprintf(stderr, "%s: the input is in %s\n", number == SIGPROF ? "hangs" : "dies", crash_path);
    signal(number, SIG_DFL);
    raise(number);
    _exit(1);
}

static void on_end(int number)
{
    (void)number;
    told_to_end = 1;
}

/* How often, in powers of two: a loop that runs once more is not new, one that runs twice as often is. */
static uint8_t bucket(uint8_t count)
{
    return (uint8_t)(count < 4 ? count : 1 << (31 - __builtin_clz(count)));
}

/* 1 if something in this word of the map, which begins there, is new. */
static int learn_word(uint64_t word, size_t begin)
{
    int news = 0;
    while (word) {
        size_t i = begin + (size_t)__builtin_ctzll(word) / 8;
        uint8_t seen = bucket(hits[i]);
        if (seen > known[i]) {
            known[i] = seen;
            news = 1;
        }
        word &= ~(0xFFull << (i - begin) * 8);
    }
    return news;
}

/* 1 if something is new. Most of the map is empty, so it is looked through by cache lines, and those by words. */
static int learn(void)
{
    enum { WORDS = 8 };
    int news = 0;
    for (size_t at = 0; at < MAP_BYTES; at += WORDS * sizeof(uint64_t)) {
        uint64_t words[WORDS], any = 0;
        memcpy(words, hits + at, sizeof words);
        for (size_t i = 0; i < WORDS; i++)
            any |= words[i];
        for (size_t i = 0; any && i < WORDS; i++)
            news |= learn_word(words[i], at + i * sizeof any);
    }
    return news;
}

/* By the time that the processor gives us: the machine may be busy, or we stopped. */
static void watch_for_hang(time_t seconds_left)
{
    struct itimerval timer = {.it_value = {.tv_sec = seconds_left}};
    (void)setitimer(ITIMER_PROF, &timer, NULL);
}

/* Runs the input; 1 if it reached something new. */
static int run(const uint8_t *data, size_t bytes)
{
    free(current);
    current = malloc(bytes ? bytes : 1); /* of the exact size: the address sanitizer sees a read behind its end */
    if (!current)
        abort();
    memcpy(current, data, bytes);
    current_bytes = bytes;
    memset(hits, 0, sizeof hits);
    watch_for_hang(HANG_S);
    LLVMFuzzerTestOneInput(current, bytes);
    watch_for_hang(0);
    return learn();
}

static void keep(const uint8_t *data, size_t bytes, const char *directory)
{
    if (input_count == INPUTS_MAX)
        return;
    struct input *input = &inputs[input_count++];
    input->data = malloc(bytes ? bytes : 1);
    if (!input->data)
        abort();
    memcpy(input->data, data, bytes);
    input->bytes = bytes;
    if (!directory)
        return;
    char path[4096];
    snprintf(path, sizeof path, "%s/new-%06zu", directory, input_count);
    FILE *file = fopen(path, "wb");
    if (file) {
        (void)fwrite(data, 1, bytes, file);
        fclose(file);
    }
}

static void load(const char *directory)
{
    struct dirent **entries;
    int count = scandir(directory, &entries, NULL, alphasort);
    for (int i = 0; i < count; i++) {
        char path[4096];
        uint8_t data[INPUT_BYTES_MAX];
        snprintf(path, sizeof path, "%s/%s", directory, entries[i]->d_name);
        FILE *file = entries[i]->d_name[0] == '.' ? NULL : fopen(path, "rb");
        free(entries[i]);
        if (!file)
            continue;
        size_t bytes = fread(data, 1, sizeof data, file);
        fclose(file);
        (void)run(data, bytes);
        keep(data, bytes, NULL);
    }
    if (count >= 0)
        free(entries);
}

static size_t insert(uint8_t *data, size_t bytes, const uint8_t *from, size_t count)
{
    size_t at = bytes ? draw() % (bytes + 1) : 0;
    if (bytes + count > INPUT_BYTES_MAX)
        return bytes;
    memmove(data + at + count, data + at, bytes - at);
    memcpy(data + at, from, count);
    return bytes + count;
}

static size_t mutate_once(uint8_t *data, size_t bytes)
{
    static const uint8_t interesting[] = {0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 63, 64, 127, 128, 129, 254, 255};
    const struct input *other = &inputs[draw() % input_count];
    uint8_t noise[8];
    for (size_t i = 0; i < sizeof noise; i++)
        noise[i] = (uint8_t)draw();
    size_t at = bytes ? draw() % bytes : 0, count = 1 + draw() % 16;
    switch (bytes ? draw() % 8 : 7) {
    case 0: data[at] ^= (uint8_t)(1 << draw() % 8); return bytes;
    case 1: data[at] = interesting[draw() % sizeof interesting]; return bytes;
    case 2: data[at] = noise[0]; return bytes;
    case 3: /* takes some out */
        count = count < bytes - at ? count : bytes - at;
        memmove(data + at, data + at + count, bytes - at - count);
        return bytes - count;
    case 4: { /* the same once more */
        uint8_t copy[16];
        count = count < bytes - at ? count : bytes - at;
        memcpy(copy, data + at, count);
        return insert(data, bytes, copy, count);
    }
    case 5: /* a piece of another input */
    case 6: {
        if (!other->bytes)
            return bytes;
        size_t from = draw() % other->bytes, most = other->bytes - from;
        count = 1 + draw() % 64;
        return insert(data, bytes, other->data + from, count < most ? count : most);
    }
    default: return insert(data, bytes, noise, 1 + draw() % sizeof noise);
    }
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* One more input, out of one that is known. */
static void run_mutant(const char *keep_in)
{
    uint8_t data[INPUT_BYTES_MAX];
    const struct input *input = &inputs[draw() % input_count];
    size_t bytes = input->bytes;
    memcpy(data, input->data, bytes);
    for (uint64_t i = 1 + draw() % 6; i > 0; i--)
        bytes = mutate_once(data, bytes);
    if (run(data, bytes))
        keep(data, bytes, keep_in);
}

static void report(const char *name, uint64_t runs, double duration_s)
{
    size_t places = 0;
    for (size_t i = 0; i < MAP_BYTES; i++)
        places += known[i] != 0;
    printf("%s: %llu inputs in %.0f s, %.0f/s, %zu pairs of places reached\n", name, (unsigned long long)runs, duration_s,
           duration_s > 0 ? (double)runs / duration_s : 0.0, places);
    fflush(stdout);
}

static void watch_for_death(const char *name)
{
    snprintf(crash_path, sizeof crash_path, "crash-%s", name);
    signal(SIGABRT, on_death);
    signal(SIGSEGV, on_death);
    signal(SIGPROF, on_death);
    signal(SIGTERM, on_end);
    signal(SIGINT, on_end);
}

int main(int argc, char **argv)
{
    uint64_t wanted = 0;
    if (argc > 2 && strcmp(argv[1], "--inputs") == 0) {
        wanted = strtoull(argv[2], NULL, 0);
        argc -= 2;
        argv += 2;
    }
    if (argc < 5) {
        fprintf(stderr, "usage: [--inputs COUNT] NAME SECONDS SEED CORPUS [KEEP]\n");
        return 2;
    }
    uint64_t seed = strtoull(argv[3], NULL, 0);
    if (!seed)
        seed = (uint64_t)time(NULL);
    random_state = seed;
    watch_for_death(argv[1]);
    printf("%s: seed %llu\n", argv[1], (unsigned long long)seed);
    fflush(stdout);
    (void)run((const uint8_t *)"", 0);
    keep((const uint8_t *)"", 0, NULL);
    load(argv[4]);
    size_t loaded = input_count;
    uint64_t runs = 0;
    double begin = seconds(), end = begin + atof(argv[2]);
    while (!told_to_end && (wanted ? runs < wanted : seconds() < end)) {
        run_mutant(argc > 5 ? argv[5] : NULL);
        if (++runs % 1000000 == 0)
            report(argv[1], runs, seconds() - begin);
    }
    report(argv[1], runs, seconds() - begin);
    printf("%s: %zu of %zu kept inputs are new\n", argv[1], input_count - loaded, input_count);
    for (size_t i = 0; i < input_count; i++)
        free(inputs[i].data);
    free(current);
    return 0;
}
