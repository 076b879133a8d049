/* openssl.c - finds OpenSSL 3 on the machine, or says what is missing. Nothing is unloaded: it stays until the process ends. */
#include "openssl.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "../csrc/include/pccl.h"

static struct openssl loaded;
static int is_loaded;
static char missing[400];
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* ISO C has no cast from an object pointer to a function pointer; POSIX promises that the bytes are the same. */
static int find(void *library, const char *name, void *function_p)
{
    void *symbol = dlsym(library, name);
    memcpy(function_p, &symbol, sizeof symbol);
    return symbol != NULL;
}

/* The first of the functions that a library lacks; NULL: none. */
static const char *find_all(void *ssl, void *crypto, struct openssl *functions)
{
#define OSSL_FIND(library, result, name, arguments) \
    if (!find(library, #name, &functions->name))    \
        return #name;
    OSSL_FUNCTIONS(OSSL_FIND)
#undef OSSL_FIND
    return NULL;
}

int openssl_load(const char *ssl_name, const char *crypto_name, struct openssl *functions, char *why, size_t why_bytes)
{
    static const char WHAT[] = "TLS needs OpenSSL 3 (libssl.so.3 and libcrypto.so.3), which cannot be used here: %s. Install "
                               "it (Debian, Ubuntu: libssl3; Fedora: openssl-libs; Alpine: libssl3)";
    void *crypto = dlopen(crypto_name, RTLD_NOW | RTLD_LOCAL);
    void *ssl = crypto ? dlopen(ssl_name, RTLD_NOW | RTLD_LOCAL) : NULL;
    char lacks[80];
    if (!ssl) {
        const char *error = dlerror();
        snprintf(why, why_bytes, WHAT, error ? error : "it cannot be loaded");
        return 0;
    }
    const char *name = find_all(ssl, crypto, functions);
    if (name) {
        snprintf(lacks, sizeof lacks, "it has no %s", name);
        snprintf(why, why_bytes, WHAT, lacks);
        return 0;
    }
    /* engine threads may still run when the process ends: nothing is torn down under them */
    if (functions->OPENSSL_init_ssl(OSSL_INIT_NO_ATEXIT, NULL) != 1) {
        snprintf(why, why_bytes, WHAT, "it does not start");
        return 0;
    }
    return 1;
}

static void load_once(void)
{
    is_loaded = openssl_load("libssl.so.3", "libcrypto.so.3", &loaded, missing, sizeof missing);
}

const struct openssl *openssl(void)
{
    (void)pthread_once(&once, load_once);
    return is_loaded ? &loaded : NULL;
}

const char *openssl_missing(void)
{
    (void)openssl();
    return missing;
}

const char *pccl_tls_missing(void)
{
    return openssl_missing();
}

const char *pccl_tls_library(void)
{
    const struct openssl *o = openssl();
    return o ? o->OpenSSL_version(0) : "";
}
