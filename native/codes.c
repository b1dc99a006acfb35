/* Products of int8 codes with one vector of float32: what the scan of a subspace index spends its time on. Codes are read
   once, from memory that is mapped; they are widened in registers, never in memory. */
#include "covector.h"

typedef void (*code_products_function)(const int8_t *codes, size_t row_count, size_t rank, size_t stride,
                                       const float *vector, float *products);

static void products_plain(const int8_t *codes, size_t row_count, size_t rank, size_t stride, const float *vector,
                           float *products)
{
    for (size_t row = 0; row < row_count; row++, codes += stride) {
        float sum = 0.0f;
        for (size_t at = 0; at < rank; at++)
            sum += (float)codes[at] * vector[at];
        products[row] = sum;
    }
}

#ifdef COVECTOR_X86
#include <immintrin.h>

#define LANES 8

__attribute__((target("avx2,fma"))) static inline __m256 widened(const int8_t *at)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)at)));
}

__attribute__((target("avx2,fma"))) static void products_avx2(const int8_t *codes, size_t row_count, size_t rank,
                                                              size_t stride, const float *vector, float *products)
{
    for (size_t row = 0; row < row_count; row++, codes += stride) {
        __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
        size_t at = 0;
        for (; at + 4 * LANES <= rank; at += 4 * LANES)
            for (size_t lane = 0; lane < 4; lane++)
                sums[lane] = _mm256_fmadd_ps(widened(codes + at + lane * LANES),
                                             _mm256_loadu_ps(vector + at + lane * LANES), sums[lane]);
        for (; at + LANES <= rank; at += LANES)
            sums[0] = _mm256_fmadd_ps(widened(codes + at), _mm256_loadu_ps(vector + at), sums[0]);
        __m256 all = _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]));
        __m128 half = _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
        half = _mm_add_ps(half, _mm_movehl_ps(half, half));
        float sum = _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
        for (; at < rank; at++)
            sum += (float)codes[at] * vector[at];
        products[row] = sum;
    }
}
#endif

static code_products_function chosen(void)
{
#ifdef COVECTOR_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return products_avx2;
#endif
    return products_plain;
}

COVECTOR_API void covector_code_products(const int8_t *codes, size_t row_count, size_t rank, size_t stride,
                                         const float *vector, float *products)
{
    chosen()(codes, row_count, rank, stride, vector, products);
}
