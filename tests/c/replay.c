/* replay.c - the plain driver of the fuzz targets: feeds each file of the given directories to LLVMFuzzerTestOneInput.
 *
 * A target is one file fuzz_<name>.c that defines LLVMFuzzerTestOneInput; a fuzzer links it as it is, this driver
 * replays its corpus in every test run. The empty input is always fed first. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

enum { INPUT_BYTES_MAX = 1 << 20 };

/* Feeds one file; 0 if it cannot be read. */
static int replay_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        return 0;
    uint8_t *data = malloc(INPUT_BYTES_MAX);
    if (data == NULL)
        abort();
    size_t bytes = fread(data, 1, INPUT_BYTES_MAX, file);
    fclose(file);
    /* A block of the exact size, so that the address sanitizer sees a read behind its end. */
    uint8_t *exact = malloc(bytes > 0 ? bytes : 1);
    if (exact == NULL)
        abort();
    memcpy(exact, data, bytes);
    free(data);
    LLVMFuzzerTestOneInput(exact, bytes);
    free(exact);
    return 1;
}

static int replay_directory(const char *directory)
{
    struct dirent **entries;
    int count = scandir(directory, &entries, NULL, alphasort);
    int fed = 0;
    for (int i = 0; i < count; i++) {
        char path[4096];
        int length = snprintf(path, sizeof path, "%s/%s", directory, entries[i]->d_name);
        if (entries[i]->d_name[0] != '.' && length > 0 && (size_t)length < sizeof path)
            fed += replay_file(path);
        free(entries[i]);
    }
    if (count >= 0)
        free(entries);
    return fed;
}

int main(int argc, char **argv)
{
    int fed = 1;
    LLVMFuzzerTestOneInput((const uint8_t *)"", 0);
    for (int i = 2; i < argc; i++)
        fed += replay_directory(argv[i]);
    printf("%s: %d inputs replayed\n", argc > 1 ? argv[1] : argv[0], fed);
    return 0;
}
