/* test_sha256.c - SHA-256 against FIPS 180-4 / NIST vectors, HMAC against RFC 4231. */
#include "sha256.h"

#include "test.h"

static void to_hex(const uint8_t *bytes, size_t count, char *text)
{
    for (size_t i = 0; i < count; i++)
        snprintf(text + 2 * i, 3, "%02x", bytes[i]);
}

static void check_sha(const void *data, size_t bytes, const char *expected)
{
    uint8_t digest[32];
    char text[65];
    struct sha256 s;
    sha256_init(&s);
    sha256_update(&s, data, bytes);
    sha256_final(&s, digest);
    to_hex(digest, 32, text);
    CHECK_EQ_STR(text, expected);
}

static void check_hmac(const void *key, size_t key_bytes, const void *data, size_t bytes, const char *expected)
{
    uint8_t mac[32];
    char text[65];
    hmac_sha256(key, key_bytes, data, bytes, mac);
    to_hex(mac, 32, text);
    CHECK_EQ_STR(text, expected);
}

TEST(nist_vectors)
{
    check_sha(NULL, 0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    check_sha("abc", 3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    const char *two_blocks = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
    check_sha(two_blocks, strlen(two_blocks), "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    const char *four_blocks = "abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopq"
                              "klmnopqrlmnopqrsmnopqrstnopqrstu";
    check_sha(four_blocks, strlen(four_blocks), "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1");
    const uint8_t one_byte = 0xbd;
    check_sha(&one_byte, 1, "68325720aabd7c82f30f554b313d0570c95accbb7dc4b5aae11204c08ffe732b");
}

TEST(a_million_times_a)
{
    char *text = malloc(1000000);
    memset(text, 'a', 1000000);
    check_sha(text, 1000000, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    free(text);
}

TEST(padding_boundaries)
{
    const uint8_t zeros[128] = {0};
    check_sha(zeros, 55, "02779466cdec163811d078815c633f21901413081449002f24aa3e80f0b88ef7");
    check_sha(zeros, 56, "d4817aa5497628e7c77e6b606107042bbba3130888c5f47a375e6179be789fbb");
    check_sha(zeros, 57, "65a16cb7861335d5ace3c60718b5052e44660726da4cd13bb745381b235a1785");
    check_sha(zeros, 64, "f5a5fd42d16a20302798ef6ed309979b43003d2320d9f0e8ea9831a92759fb4b");
}

TEST(any_split_gives_the_same_digest)
{
    uint8_t data[200], whole[32], parts[32];
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(i * 7);
    struct sha256 s;
    sha256_init(&s);
    sha256_update(&s, data, sizeof data);
    sha256_final(&s, whole);
    for (size_t cut = 0; cut <= sizeof data; cut++) {
        sha256_init(&s);
        sha256_update(&s, data, cut);
        sha256_update(&s, data + cut, sizeof data - cut);
        sha256_final(&s, parts);
        CHECK_EQ_BYTES(parts, whole, 32);
    }
}

TEST(rfc4231_hmac)
{
    uint8_t key[131], data[50];
    memset(key, 0x0b, 20);
    check_hmac(key, 20, "Hi There", 8, "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
    check_hmac("Jefe", 4, "what do ya want for nothing?", 28,
               "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    memset(key, 0xaa, 20);
    memset(data, 0xdd, 50);
    check_hmac(key, 20, data, 50, "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe");
    for (uint8_t i = 0; i < 25; i++)
        key[i] = (uint8_t)(i + 1);
    memset(data, 0xcd, 50);
    check_hmac(key, 25, data, 50, "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b");
    memset(key, 0xaa, 131);
    const char *long_key = "Test Using Larger Than Block-Size Key - Hash Key First";
    check_hmac(key, 131, long_key, strlen(long_key),
               "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
    const char *long_both = "This is a test using a larger than block-size key and a larger than block-size data. "
                            "The key needs to be hashed before being used by the HMAC algorithm.";
    check_hmac(key, 131, long_both, strlen(long_both),
               "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2");
}

TEST(hmac_of_nothing)
{
    check_hmac(NULL, 0, NULL, 0, "b613679a0814d9ec772f95d778c35fc5ff1697c493715653c6c712144292c5ad");
}

TEST(bytes_equal_sees_every_bit)
{
    uint8_t a[33] = {0}, b[33] = {0};
    CHECK(bytes_equal(a, b, sizeof a));
    CHECK(bytes_equal(a, b, 0));
    for (size_t bit = 0; bit < 8 * sizeof a; bit++) {
        b[bit / 8] = (uint8_t)(1u << (bit % 8));
        CHECK(!bytes_equal(a, b, sizeof a));
        b[bit / 8] = 0;
    }
}

TEST_MAIN("sha256")
