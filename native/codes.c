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
#define FEW_CODES 64

__attribute__((target("avx2,fma"))) static inline __m256 widened(const int8_t *at)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)at)));
}

/* The sums of the lanes of four vectors. */
__attribute__((target("avx2,fma"))) static inline __m128 sums_of(const __m256 lanes[4])
{
    __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(lanes[0], lanes[1]), _mm256_hadd_ps(lanes[2], lanes[3]));
    return _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
}

/* Four rows side by side: in a row of few codes, summing up its lanes would take longer than the codes. */
__attribute__((target("avx2,fma"))) static void four_rows(const int8_t *codes, size_t rank, size_t stride,
                                                          const float *vector, float *products)
{
    __m256 lanes[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    size_t at = 0;
    for (; at + LANES <= rank; at += LANES) {
        __m256 part = _mm256_loadu_ps(vector + at);
        for (size_t row = 0; row < 4; row++)
            lanes[row] = _mm256_fmadd_ps(widened(codes + row * stride + at), part, lanes[row]);
    }
    _mm_storeu_ps(products, sums_of(lanes));
    for (; at < rank; at++)
        for (size_t row = 0; row < 4; row++)
            products[row] += (float)codes[row * stride + at] * vector[at];
}

__attribute__((target("avx2,fma"))) static float one_row(const int8_t *codes, size_t rank, const float *vector)
{
    __m256 lanes[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    size_t at = 0;
    for (; at + 4 * LANES <= rank; at += 4 * LANES)
        for (size_t part = 0; part < 4; part++)
            lanes[part] = _mm256_fmadd_ps(widened(codes + at + part * LANES),
                                          _mm256_loadu_ps(vector + at + part * LANES), lanes[part]);
    for (; at + LANES <= rank; at += LANES)
        lanes[0] = _mm256_fmadd_ps(widened(codes + at), _mm256_loadu_ps(vector + at), lanes[0]);
    __m128 sums = sums_of(lanes);
    sums = _mm_add_ps(sums, _mm_movehl_ps(sums, sums));
    float sum = _mm_cvtss_f32(_mm_add_ss(sums, _mm_movehdup_ps(sums)));
    for (; at < rank; at++)
        sum += (float)codes[at] * vector[at];
    return sum;
}

__attribute__((target("avx2,fma"))) static void products_avx2(const int8_t *codes, size_t row_count, size_t rank,
                                                              size_t stride, const float *vector, float *products)
{
    size_t row = 0;
    for (; rank <= FEW_CODES && row + 4 <= row_count; row += 4)
        four_rows(codes + row * stride, rank, stride, vector, products + row);
    for (; row < row_count; row++)
        products[row] = one_row(codes + row * stride, rank, vector);
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
