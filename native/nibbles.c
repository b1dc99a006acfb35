/* Products of codes of 4 bits with one vector of int8: what the scan of an index spends its time on where rows need many
   coordinates. Codes come in blocks of 64, 32 bytes each, whose low halves are the first 32 codes; a half holds the code
   plus 8. A block of the vector has a step, what its integers are worth. */
#include "covector.h"

#define BLOCK_BYTES 32
#define BIAS 8

typedef void (*nibble_products_function)(const uint8_t *codes, size_t row_count, size_t block_count, size_t stride,
                                         const int8_t *vector, const float *steps, float *products);

/* What the bias adds to every product. */
static float biased(size_t block_count, const int8_t *vector, const float *steps)
{
    float sum = 0.0f;
    for (size_t block = 0; block < block_count; block++) {
        int32_t whole = 0;
        for (size_t at = 0; at < 2 * BLOCK_BYTES; at++)
            whole += vector[2 * BLOCK_BYTES * block + at];
        sum += steps[block] * (float)(BIAS * whole);
    }
    return sum;
}

static void products_plain(const uint8_t *codes, size_t row_count, size_t block_count, size_t stride,
                           const int8_t *vector, const float *steps, float *products)
{
    float bias = biased(block_count, vector, steps);
    for (size_t row = 0; row < row_count; row++, codes += stride) {
        float sum = 0.0f;
        for (size_t block = 0; block < block_count; block++) {
            const uint8_t *pairs = codes + BLOCK_BYTES * block;
            const int8_t *low = vector + 2 * BLOCK_BYTES * block, *high = low + BLOCK_BYTES;
            int32_t whole = 0;
            for (size_t at = 0; at < BLOCK_BYTES; at++)
                whole += (pairs[at] & 15) * low[at] + (pairs[at] >> 4) * high[at];
            sum += steps[block] * (float)whole;
        }
        products[row] = sum - bias;
    }
}

#ifdef COVECTOR_X86
#include <immintrin.h>

/* One block, as eight sums of int32: products of unsigned and signed bytes are added in pairs, which at 15 * 127 * 4 stay
   far inside int16. */
__attribute__((target("avx2,fma"))) static inline __m256i block_sums(const uint8_t *pairs, const int8_t *vector)
{
    const __m256i half = _mm256_set1_epi8(15);
    __m256i both = _mm256_loadu_si256((const __m256i *)pairs);
    __m256i low = _mm256_and_si256(both, half);
    __m256i high = _mm256_and_si256(_mm256_srli_epi16(both, 4), half);
    low = _mm256_maddubs_epi16(low, _mm256_loadu_si256((const __m256i *)vector));
    high = _mm256_maddubs_epi16(high, _mm256_loadu_si256((const __m256i *)(vector + BLOCK_BYTES)));
    return _mm256_madd_epi16(_mm256_add_epi16(low, high), _mm256_set1_epi16(1));
}

__attribute__((target("avx2,fma"))) static inline float total(__m256 sums)
{
    __m128 part = _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
    part = _mm_add_ps(part, _mm_movehl_ps(part, part));
    return _mm_cvtss_f32(_mm_add_ss(part, _mm_movehdup_ps(part)));
}

__attribute__((target("avx2,fma"))) static void products_avx2(const uint8_t *codes, size_t row_count,
                                                              size_t block_count, size_t stride, const int8_t *vector,
                                                              const float *steps, float *products)
{
    float bias = biased(block_count, vector, steps);
    for (size_t row = 0; row < row_count; row++, codes += stride) {
        __m256 sums[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()}; /* two, so that additions need not wait */
        for (size_t block = 0; block < block_count; block++) {
            __m256i whole = block_sums(codes + BLOCK_BYTES * block, vector + 2 * BLOCK_BYTES * block);
            sums[block & 1] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), _mm256_set1_ps(steps[block]), sums[block & 1]);
        }
        products[row] = total(_mm256_add_ps(sums[0], sums[1])) - bias;
    }
}

#ifndef COVECTOR_NARROW
#define PAIRS_MAX 64 /* of blocks, whose part of the vector is laid out for a pass over the rows */

struct pair {
    __m512i low, high; /* the vector, for the low and the high halves of two blocks */
    __m512 steps;
};

/* Two blocks side by side, 64 bytes: products of bytes are added in fours. */
__attribute__((target("avx512f,avx512bw,avx512vnni"))) static inline __m512 pair_sums(const uint8_t *codes,
                                                                                      const struct pair *pair,
                                                                                      __m512 sums)
{
    const __m512i half = _mm512_set1_epi8(15);
    __m512i both = _mm512_loadu_si512(codes);
    __m512i whole = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_and_si512(both, half), pair->low);
    whole = _mm512_dpbusd_epi32(whole, _mm512_and_si512(_mm512_srli_epi16(both, 4), half), pair->high);
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), pair->steps, sums);
}

__attribute__((target("avx512f,avx512bw,avx512vnni"))) static inline __m512i halves(const int8_t *first,
                                                                                   const int8_t *second)
{
    __m512i low = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)first));
    return _mm512_inserti64x4(low, _mm256_loadu_si256((const __m256i *)second), 1);
}

__attribute__((target("avx2,fma,avx512f,avx512bw,avx512vnni"))) static void
products_avx512(const uint8_t *codes, size_t row_count, size_t block_count, size_t stride, const int8_t *vector,
                const float *steps, float *products)
{
    size_t pair_count = block_count / 2;
    if (pair_count > PAIRS_MAX) {
        products_avx2(codes, row_count, block_count, stride, vector, steps, products);
        return;
    }
    struct pair pairs[PAIRS_MAX];
    for (size_t pair = 0; pair < pair_count; pair++) {
        const int8_t *first = vector + 4 * BLOCK_BYTES * pair, *second = first + 2 * BLOCK_BYTES;
        pairs[pair].low = halves(first, second);
        pairs[pair].high = halves(first + BLOCK_BYTES, second + BLOCK_BYTES);
        pairs[pair].steps = _mm512_mask_blend_ps(0xff00, _mm512_set1_ps(steps[2 * pair]),
                                                 _mm512_set1_ps(steps[2 * pair + 1]));
    }
    float bias = biased(block_count, vector, steps);
    for (size_t row = 0; row < row_count; row++, codes += stride) {
        __m512 sums[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
        for (size_t pair = 0; pair < pair_count; pair++)
            sums[pair & 1] = pair_sums(codes + 2 * BLOCK_BYTES * pair, pairs + pair, sums[pair & 1]);
        float product = _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1])) - bias;
        for (size_t block = 2 * pair_count; block < block_count; block++) {
            __m256i whole = block_sums(codes + BLOCK_BYTES * block, vector + 2 * BLOCK_BYTES * block);
            product += steps[block] * total(_mm256_cvtepi32_ps(whole));
        }
        products[row] = product;
    }
}
#endif
#endif

static nibble_products_function chosen(void)
{
#ifdef COVECTOR_X86
    __builtin_cpu_init();
#ifndef COVECTOR_NARROW
    if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw"))
        return products_avx512;
#endif
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return products_avx2;
#endif
    return products_plain;
}

COVECTOR_API void covector_nibble_products(const uint8_t *codes, size_t row_count, size_t block_count, size_t stride,
                                           const int8_t *vector, const float *steps, float *products)
{
    chosen()(codes, row_count, block_count, stride, vector, steps, products);
}
