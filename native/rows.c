/* One pass over the gradients of a batch as they came: are they finite, what is their sum, what is each row's CRC-32C.

   Rows are visited a few at a time: their CRC brings them into the first cache, from where they are summed and compared.
   CRC-32C (Castagnoli, RFC 3720, appendix B.4) of neighbouring rows is computed side by side, since the processor's
   instruction for it takes three cycles but can begin one in each.
*/
#include "covector.h"

#include <string.h>

#define POLYNOMIAL 0x82f63b78u /* reflected */
#define LANES 3

/* Of lane_count rows, stride_bytes from one to the next. */
typedef void (*crc_lanes_function)(const uint8_t *rows, size_t row_bytes, size_t stride_bytes, size_t lane_count,
                                   uint32_t *crcs);

static uint32_t crc_table[256];

static uint32_t crc_octets(uint32_t crc, const uint8_t *at, size_t size_bytes)
{
    while (size_bytes--)
        crc = crc_table[(crc ^ *at++) & 0xff] ^ (crc >> 8);
    return crc;
}

static void crc_lanes_table(const uint8_t *rows, size_t row_bytes, size_t stride_bytes, size_t lane_count,
                            uint32_t *crcs)
{
    for (size_t lane = 0; lane < lane_count; lane++)
        crcs[lane] = ~crc_octets(~0u, rows + lane * stride_bytes, row_bytes);
}

#ifdef COVECTOR_X86
#include <immintrin.h>

static inline uint64_t word_at(const uint8_t *at)
{
    uint64_t word;
    memcpy(&word, at, sizeof word);
    return word;
}

__attribute__((target("sse4.2"))) static uint32_t crc_rest(uint64_t crc, const uint8_t *at, size_t size_bytes)
{
    while (size_bytes >= 8) {
        crc = _mm_crc32_u64(crc, word_at(at));
        at += 8, size_bytes -= 8;
    }
    uint32_t last = (uint32_t)crc;
    while (size_bytes--)
        last = _mm_crc32_u8(last, *at++);
    return ~last;
}

__attribute__((target("sse4.2"))) static void crc_lanes_sse42(const uint8_t *rows, size_t row_bytes,
                                                              size_t stride_bytes, size_t lane_count, uint32_t *crcs)
{
    if (lane_count < LANES) {
        for (size_t lane = 0; lane < lane_count; lane++)
            crcs[lane] = crc_rest(~0u, rows + lane * stride_bytes, row_bytes);
        return;
    }
    const uint8_t *first = rows, *second = rows + stride_bytes, *third = rows + 2 * stride_bytes;
    uint64_t a = ~0u, b = ~0u, c = ~0u;
    size_t at = 0;
    for (; at + 8 <= row_bytes; at += 8) {
        a = _mm_crc32_u64(a, word_at(first + at));
        b = _mm_crc32_u64(b, word_at(second + at));
        c = _mm_crc32_u64(c, word_at(third + at));
    }
    crcs[0] = crc_rest(a, first + at, row_bytes - at);
    crcs[1] = crc_rest(b, second + at, row_bytes - at);
    crcs[2] = crc_rest(c, third + at, row_bytes - at);
}
#endif

/* Adds words to a sum, and returns whether all their float16 numbers are finite: the exponent is not all ones. */
#define SUM_BODY                                                                                                        \
    uint64_t total = 0;                                                                                                 \
    uint16_t largest = 0;                                                                                               \
    for (size_t i = 0; i < word_count; i++)                                                                             \
        total += words[i];                                                                                              \
    const uint16_t *numbers = (const uint16_t *)words;                                                                  \
    for (size_t i = 0; i < 4 * word_count; i++) {                                                                       \
        uint16_t magnitude = numbers[i] & 0x7fff;                                                                       \
        largest = magnitude > largest ? magnitude : largest;                                                            \
    }                                                                                                                   \
    *sum += total;                                                                                                      \
    return largest < 0x7c00;

typedef uint64_t __attribute__((aligned(1), may_alias)) any_word;
typedef int (*sum_function)(const any_word *words, size_t word_count, uint64_t *sum);

static int sum_any(const any_word *words, size_t word_count, uint64_t *sum) { SUM_BODY }

#ifdef COVECTOR_X86
__attribute__((target("avx2"))) static int sum_avx2(const any_word *words, size_t word_count, uint64_t *sum) { SUM_BODY }
#endif

static crc_lanes_function crc_lanes = crc_lanes_table;
static sum_function sum_words = sum_any;

__attribute__((constructor)) static void choose(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? (crc >> 1) ^ POLYNOMIAL : crc >> 1;
        crc_table[i] = crc;
    }
#ifdef COVECTOR_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("sse4.2"))
        crc_lanes = crc_lanes_sse42;
    if (__builtin_cpu_supports("avx2"))
        sum_words = sum_avx2;
#endif
}

COVECTOR_API int32_t covector_check_rows(const uint8_t *rows, size_t row_count, size_t row_bytes, uint32_t *crcs,
                                         uint64_t *sum)
{
    size_t size_bytes = row_count * row_bytes, summed_bytes = 0;
    uint64_t total = 0;
    int finite = 1;
    for (size_t row = 0; row < row_count;) {
        size_t lanes = row_count - row < LANES ? row_count - row : LANES;
        crc_lanes(rows + row * row_bytes, row_bytes, row_bytes, lanes, crcs + row);
        row += lanes;
        size_t word_count = (row * row_bytes - summed_bytes) / 8;
        finite &= sum_words((const any_word *)(rows + summed_bytes), word_count, &total);
        summed_bytes += 8 * word_count;
    }
    if (summed_bytes < size_bytes) {
        uint64_t last = 0;
        memcpy(&last, rows + summed_bytes, size_bytes - summed_bytes);
        finite &= sum_words((const any_word *)&last, 1, &total);
    }
    *sum = total;
    return finite;
}

COVECTOR_API void covector_checksums(const uint8_t *pieces, size_t count, size_t size_bytes, size_t stride_bytes,
                                     uint32_t *crcs)
{
    for (size_t i = 0; i < count; i += LANES)
        crc_lanes(pieces + i * stride_bytes, size_bytes, stride_bytes, count - i < LANES ? count - i : LANES, crcs + i);
}

/* CRCs of pieces laid end to end. Appending n bytes to a message multiplies its CRC by x^(8n) modulo the polynomial and
   adds the CRC of those bytes; the product is linear in the bits of the CRC, so four tables of 256 hold it for one n. */

static uint32_t product(uint32_t a, uint32_t b)
{
    uint32_t result = 0;
    for (uint32_t bit = 1u << 31; bit; bit >>= 1) {
        if (a & bit)
            result ^= b;
        b = b & 1 ? (b >> 1) ^ POLYNOMIAL : b >> 1;
    }
    return result;
}

COVECTOR_API void covector_crc_shift(size_t size_bytes, uint32_t *table)
{
    uint32_t power = 1u << 31, square = 1u << 23; /* x^0, x^8 */
    for (size_t left = size_bytes; left; left >>= 1) {
        if (left & 1)
            power = product(power, square);
        square = product(square, square);
    }
    for (uint32_t octet = 0; octet < 4; octet++)
        for (uint32_t value = 0; value < 256; value++)
            table[256 * octet + value] = product(power, value << (8 * octet));
}

COVECTOR_API uint32_t covector_crc_join(uint32_t crc, const uint32_t *crcs, size_t count, const uint32_t *table)
{
    for (size_t i = 0; i < count; i++)
        crc = table[crc & 0xff] ^ table[256 + (crc >> 8 & 0xff)] ^ table[512 + (crc >> 16 & 0xff)] ^
              table[768 + (crc >> 24)] ^ crcs[i];
    return crc;
}
