/* Products of int8 codes with one vector of int16: what the scan of a subspace index spends its time on. Codes are read
   once, from memory that is mapped; they are widened in registers, never in memory. Sums of SPAN products fit into int32,
   whatever the numbers; beyond, they are added as float32. */
#include "covector.h"

#include <string.h>

#define SPAN 2048
#define VECTOR_MAX 32767.0f
#define PEAK_MIN 1e-33f /* of a vector that is not taken for zero: its steps have all bits */
#define STEP 32 /* codes that the wide loops take at once; the vector is padded to a multiple of it */

typedef void (*code_products_function)(const int8_t *codes, size_t row_count, size_t rank, size_t stride,
                                       const int16_t *vector, float step, float *products);

static inline size_t span_of(size_t rank, size_t start) { return rank - start < SPAN ? rank - start : SPAN; }

static void products_plain(const int8_t *codes, size_t row_count, size_t rank, size_t stride, const int16_t *vector,
                           float step, float *products)
{
    for (size_t row = 0; row < row_count; row++, codes += stride) {
        float total = 0.0f;
        for (size_t start = 0; start < rank; start += SPAN) {
            int64_t sum = 0;
            for (size_t at = start; at < start + span_of(rank, start); at++)
                sum += codes[at] * vector[at];
            total += (float)sum;
        }
        products[row] = step * total;
    }
}

#ifdef COVECTOR_X86
#include <immintrin.h>

#define ROWS 4 /* side by side: no sum waits for itself, and their lanes are summed up together */

/* The sums of the lanes of four vectors. */
__attribute__((target("avx2,fma"))) static inline __m128 sums_of(const __m256 lanes[ROWS])
{
    __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(lanes[0], lanes[1]), _mm256_hadd_ps(lanes[2], lanes[3]));
    return _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
}

/* Where some rows are: past the last of them, the last again. */
static inline size_t rows_at(const int8_t *codes, size_t row, size_t row_count, size_t stride, const int8_t *at[ROWS])
{
    size_t count = row_count - row < ROWS ? row_count - row : ROWS;
    for (size_t i = 0; i < ROWS; i++)
        at[i] = codes + (row + (i < count ? i : count - 1)) * stride;
    return count;
}

__attribute__((target("avx2,fma"))) static inline void put(float *products, __m128 sums, float step, size_t count)
{
    float found[ROWS];
    _mm_storeu_ps(found, _mm_mul_ps(sums, _mm_set1_ps(step)));
    memcpy(products, found, count * sizeof *found);
}

__attribute__((target("avx2,fma"))) static inline __m256i widened_16(const int8_t *at)
{
    return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)at));
}

__attribute__((target("avx2,fma"))) static inline __m256i with_step(__m256i sums, const int8_t *codes,
                                                                    const int16_t *vector)
{
    __m256i low = _mm256_madd_epi16(widened_16(codes), _mm256_loadu_si256((const __m256i *)vector));
    __m256i high = _mm256_madd_epi16(widened_16(codes + STEP / 2),
                                     _mm256_loadu_si256((const __m256i *)(vector + STEP / 2)));
    return _mm256_add_epi32(sums, _mm256_add_epi32(low, high));
}

__attribute__((target("avx2,fma"))) static void products_avx2(const int8_t *codes, size_t row_count, size_t rank,
                                                              size_t stride, const int16_t *vector, float step,
                                                              float *products)
{
    for (size_t row = 0; row < row_count; row += ROWS) {
        const int8_t *at[ROWS];
        size_t count = rows_at(codes, row, row_count, stride, at);
        __m256 lanes[ROWS] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
        for (size_t start = 0; start < rank; start += SPAN) {
            size_t stop = start + span_of(rank, start), whole = stop - (stop - start) % STEP;
            __m256i sums[ROWS] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(),
                                  _mm256_setzero_si256()};
            for (size_t code = start; code < whole; code += STEP)
                for (size_t i = 0; i < ROWS; i++)
                    sums[i] = with_step(sums[i], at[i] + code, vector + code);
            for (size_t i = 0; whole < stop && i < ROWS; i++) {
                int8_t rest[STEP] = {0};
                memcpy(rest, at[i] + whole, stop - whole);
                sums[i] = with_step(sums[i], rest, vector + whole);
            }
            for (size_t i = 0; i < ROWS; i++)
                lanes[i] = _mm256_add_ps(lanes[i], _mm256_cvtepi32_ps(sums[i]));
        }
        put(products + row, sums_of(lanes), step, count);
    }
}

#ifndef COVECTOR_NARROW
__attribute__((target("avx2,fma,avx512f,avx512bw,avx512vnni"))) static inline __m512i
with_wide_step(__m512i sums, __m256i codes, const int16_t *vector)
{
    return _mm512_dpwssd_epi32(sums, _mm512_cvtepi8_epi16(codes), _mm512_loadu_si512(vector));
}

__attribute__((target("avx2,fma,avx512f,avx512bw,avx512vnni"))) static inline __m256 folded(__m512i sums)
{
    __m512 lanes = _mm512_cvtepi32_ps(sums);
    return _mm256_add_ps(_mm512_castps512_ps256(lanes),
                         _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(lanes), 1)));
}

__attribute__((target("avx2,fma,avx512f,avx512bw,avx512vnni"))) static void
products_avx512(const int8_t *codes, size_t row_count, size_t rank, size_t stride, const int16_t *vector, float step,
                float *products)
{
    for (size_t row = 0; row < row_count; row += ROWS) {
        const int8_t *at[ROWS];
        size_t count = rows_at(codes, row, row_count, stride, at);
        __m256 lanes[ROWS] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
        for (size_t start = 0; start < rank; start += SPAN) {
            size_t stop = start + span_of(rank, start), whole = stop - (stop - start) % STEP;
            __m512i sums[ROWS] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(),
                                  _mm512_setzero_si512()};
            for (size_t code = start; code < whole; code += STEP)
                for (size_t i = 0; i < ROWS; i++)
                    sums[i] = with_wide_step(sums[i], _mm256_loadu_si256((const __m256i *)(at[i] + code)), vector + code);
            for (size_t i = 0; whole < stop && i < ROWS; i++) {
                __m512i rest = _mm512_maskz_loadu_epi8(((__mmask64)1 << (stop - whole)) - 1, at[i] + whole);
                sums[i] = with_wide_step(sums[i], _mm512_castsi512_si256(rest), vector + whole);
            }
            for (size_t i = 0; i < ROWS; i++)
                lanes[i] = _mm256_add_ps(lanes[i], folded(sums[i]));
        }
        put(products + row, sums_of(lanes), step, count);
    }
}
#endif
#endif

static code_products_function chosen(void)
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

COVECTOR_API void covector_code_products(const int8_t *codes, size_t row_count, size_t rank, size_t stride,
                                         const int16_t *vector, float step, float *products)
{
    chosen()(codes, row_count, rank, stride, vector, step, products);
}

COVECTOR_API float covector_round_vector(const float *vector, size_t rank, int16_t *rounded)
{
    float peak = 0.0f;
    for (size_t at = 0; at < rank; at++) {
        float size = vector[at] < 0 ? -vector[at] : vector[at];
        peak = size > peak ? size : peak;
    }
    int is_there = peak >= PEAK_MIN;
    float inverse = is_there ? VECTOR_MAX / peak : 0.0f;
    for (size_t at = 0; at < rank; at++) {
        float scaled = vector[at] * inverse;
        rounded[at] = (int16_t)(int32_t)(scaled + (scaled < 0 ? -0.5f : 0.5f));
    }
    memset(rounded + rank, 0, sizeof *rounded * (STEP - 1 - (rank + STEP - 1) % STEP));
    return is_there ? peak / VECTOR_MAX : 0.0f;
}
