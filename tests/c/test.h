/* test.h - the harness of the C tests: one program per file, or of several; tests in the order of the files.
 *
 *     TEST(adds) { CHECK(1 + 1 == 2); CHECK_EQ_INT(1 + 1, 2); }
 *     TEST_MAIN("sums")
 *
 * A failed check says where and goes on with the test; a test with a failed check has failed. The program prints
 * "sums: N passed, N failed" and exits 1 if any failed. An argument runs only the tests whose name contains it. */
#ifndef PCCL_TEST_H
#define PCCL_TEST_H

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TEST_COUNT_MAX = 256, TEST_LINES_MAX = 20 };

struct test_case {
    const char *name;
    void (*run)(void);
};

/* Weak: the files of a program share them. */
__attribute__((weak)) struct test_case test_cases[TEST_COUNT_MAX];
__attribute__((weak)) int test_count;
__attribute__((weak)) int test_failed_checks; /* of the test that is running */
__attribute__((weak)) const char *test_running;

static inline void test_register(const char *name, void (*run)(void))
{
    if (test_count == TEST_COUNT_MAX) {
        fprintf(stderr, "more than %d tests in one program\n", TEST_COUNT_MAX);
        abort();
    }
    test_cases[test_count++] = (struct test_case){name, run};
}

/* Counts a failed check; 1 if it should still be printed. */
static inline int test_note_failure(const char *file, int line)
{
    test_failed_checks++;
    if (test_failed_checks > TEST_LINES_MAX)
        return 0;
    fprintf(stderr, "%s:%d: %s: ", file, line, test_running);
    return 1;
}

static inline void test_check(int ok, const char *text, const char *file, int line)
{
    if (!ok && test_note_failure(file, line))
        fprintf(stderr, "%s\n", text);
}

static inline void test_check_eq(int64_t a, int64_t b, const char *text, const char *file, int line)
{
    if (a != b && test_note_failure(file, line))
        fprintf(stderr, "%s: %" PRId64 " != %" PRId64 "\n", text, a, b);
}

static inline void test_check_str(const char *a, const char *b, const char *text, const char *file, int line)
{
    if ((a == NULL || b == NULL || strcmp(a, b) != 0) && test_note_failure(file, line))
        fprintf(stderr, "%s: \"%s\" != \"%s\"\n", text, a ? a : "(null)", b ? b : "(null)");
}

static inline void test_check_bytes(const void *a, const void *b, size_t bytes, const char *text, const char *file,
                                    int line)
{
    const uint8_t *x = a, *y = b;
    for (size_t i = 0; i < bytes; i++) {
        if (x[i] == y[i])
            continue;
        if (test_note_failure(file, line))
            fprintf(stderr, "%s: byte %zu of %zu: 0x%02x != 0x%02x\n", text, i, bytes, x[i], y[i]);
        return;
    }
}

#define CHECK(condition) test_check((condition) ? 1 : 0, #condition, __FILE__, __LINE__)
#define CHECK_EQ_INT(a, b) test_check_eq((int64_t)(a), (int64_t)(b), #a " == " #b, __FILE__, __LINE__)
#define CHECK_EQ_STR(a, b) test_check_str((a), (b), #a " == " #b, __FILE__, __LINE__)
#define CHECK_EQ_BYTES(a, b, bytes) test_check_bytes((a), (b), (bytes), #a " == " #b, __FILE__, __LINE__)

#define TEST(name)                                                                                      \
    static void test_##name(void);                                                                      \
    __attribute__((constructor)) static void test_register_##name(void) { test_register(#name, test_##name); } \
    static void test_##name(void)

static inline int test_run_all(const char *program, const char *filter)
{
    int passed = 0, failed = 0;
    for (int i = 0; i < test_count; i++) {
        if (filter != NULL && strstr(test_cases[i].name, filter) == NULL)
            continue;
        test_failed_checks = 0;
        test_running = test_cases[i].name;
        test_cases[i].run();
        if (test_failed_checks == 0) {
            passed++;
            continue;
        }
        failed++;
        fprintf(stderr, "%s: FAILED, %d checks\n", test_running, test_failed_checks);
    }
    printf("%s: %d passed, %d failed\n", program, passed, failed);
    return failed != 0 || passed == 0;
}

#define TEST_MAIN(program) \
    int main(int argc, char **argv) { return test_run_all(program, argc > 1 ? argv[1] : NULL); }

/* A deterministic stream of random bits (splitmix64), for tests that need many values. */
static inline uint64_t test_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

#endif
