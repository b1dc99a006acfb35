/* The products of stored rows with query vectors. One pass over float16 rows where they lie, in the chunks of a mapped
   shard: few vectors at the speed of memory, many at the speed of arithmetic.

   A processor gets the loops of scan_tiles.h for the best instructions that it has. All round float32 sums at most
   BLOCK_STEPS + 5 times on the way from a product to the float64 total: a sum's step is one fused operation or two
   rounded ones, of which the first meets each product once. kernels/scan.py makes the error bound of that. */
#include "covector.h"

#include <stdlib.h>
#include <string.h>

#define BLOCK_STEPS 128
#define TILE_MAX 6
#define TILE_VECTORS 4
#define STREAM_DIM 256     /* of rows that are worth a stream, at the least */
#define STREAM_FLOATS 4096 /* of the vectors, at the most: half of a small first cache */
#define LONG_DIM 2048     /* of rows that are worth prefetching, against one vector, and widening again for others */
#define LINE_BYTES 64
#define AHEAD_BYTES 256    /* of prefetching; with other distances, or fewer steps at once, it costs more than it gives */
#define PANEL_ROWS 48
#define LANES_MAX 16
#define EXACT_LANES 16
#define EXACT_ROWS 2

/* Rows of some chunks, each chunk_rows rows in a row, stride_bytes from the next. places: of the rows that are meant, in
   order; NULL for row_count from first on. Vectors are padded with zeros to vector_stride, a multiple of LANES_MAX.
   products: [vector_count][row_count]; squares: [row_count]. */
struct scan {
    const uint8_t *chunks;
    const int64_t *places;
    const float *vectors;
    double *products, *squares;
    size_t chunk_rows, stride_bytes, first, row_count, dim, vector_count, vector_stride;
};

struct exact_scan {
    struct scan rows;
    const double *vectors;
};

static inline const uint8_t *row_at(const struct scan *scan, size_t i)
{
    size_t place = scan->places ? (size_t)scan->places[i] : scan->first + i;
    return scan->chunks + place / scan->chunk_rows * scan->stride_bytes + place % scan->chunk_rows * 2 * scan->dim;
}

/* Plain C, for any processor. */
typedef float four __attribute__((vector_size(16)));
typedef double eight __attribute__((vector_size(64)));

static inline float half_at(const uint8_t *at)
{
    uint16_t half;
    memcpy(&half, at, sizeof half);
    uint32_t magnitude = half & 0x7fffu, bits = (magnitude << 13) + 0x38000000u;
    float value;
    memcpy(&value, &bits, sizeof value);
    if (magnitude < 0x400u)
        value = (float)magnitude * 0x1p-24f;
    return half & 0x8000u ? -value : value;
}

static inline four widen_four(const uint8_t *at) { return (four){half_at(at), half_at(at + 2), half_at(at + 4), half_at(at + 6)}; }

static inline four load_four(const float *at)
{
    four value;
    memcpy(&value, at, sizeof value);
    return value;
}

#define NAME(function) function##_plain
#define TARGET
#define vector four
#define LANES 4
#define ZERO ((four){0})
#define LOAD(at) load_four(at)
#define WIDEN(at) widen_four(at)
#define WIDEN_EIGHT(at)                                                                                               \
    ((eight){half_at(at), half_at((at) + 2), half_at((at) + 4), half_at((at) + 6), half_at((at) + 8), half_at((at) + 10), \
             half_at((at) + 12), half_at((at) + 14)})
#define MULTIPLY_ADD_EIGHT(a, b, c) ((a) * (b) + (c))
#define MULTIPLY_ADD(a, b, c) ((a) * (b) + (c))
#define SUM(a) (((a)[0] + (a)[1]) + ((a)[2] + (a)[3]))
#define STRANDS 2
#define STREAM_STEPS 2
#define WIDE_ROWS 3
#include "scan_tiles.h"

#ifdef COVECTOR_X86
#include <immintrin.h>

#define NAME(function) function##_avx2
#define TARGET __attribute__((target("avx2,fma,f16c")))
#define vector __m256
#define LANES 8
static inline TARGET float sum_eight(__m256 a)
{
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
#define ZERO _mm256_setzero_ps()
#define LOAD(at) _mm256_loadu_ps(at)
#define WIDEN(at) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(at)))
#define WIDEN_EIGHT(at)                                                                                               \
    __extension__({                                                                                                   \
        __m256 narrow = WIDEN(at);                                                                                    \
        __m256d halves[2] = {_mm256_cvtps_pd(_mm256_castps256_ps128(narrow)),                                         \
                             _mm256_cvtps_pd(_mm256_extractf128_ps(narrow, 1))};                                      \
        eight wide;                                                                                                   \
        memcpy(&wide, halves, sizeof wide);                                                                           \
        wide;                                                                                                         \
    })
#define MULTIPLY_ADD_EIGHT(a, b, c) ((a) * (b) + (c))
#define MULTIPLY_ADD(a, b, c) _mm256_fmadd_ps(a, b, c)
#define SUM(a) sum_eight(a)
#define STRANDS 4
#define STREAM_STEPS 32
#define WIDE_ROWS 3
#include "scan_tiles.h"

#define NAME(function) function##_avx512
#define TARGET __attribute__((target("avx512f,avx2,fma,f16c")))
#define vector __m512
#define LANES 16
#define ZERO _mm512_setzero_ps()
#define LOAD(at) _mm512_loadu_ps(at)
#define WIDEN(at) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(at)))
#define WIDEN_EIGHT(at) ((eight)_mm512_cvtps_pd(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(at)))))
#define MULTIPLY_ADD_EIGHT(a, b, c) ((eight)_mm512_fmadd_pd((__m512d)(a), (__m512d)(b), (__m512d)(c)))
#define MULTIPLY_ADD(a, b, c) _mm512_fmadd_ps(a, b, c)
#define SUM(a) _mm512_reduce_add_ps(a)
#define STRANDS 8
#define STREAM_STEPS 16
#define WIDE_ROWS 4
#include "scan_tiles.h"
#endif

/* direct_vectors: at most, for which rows are widened in registers, anew for each four vectors; long_vectors: the same
   for rows of LONG_DIM and more. */
struct paths {
    size_t block_dim, direct_vectors, long_vectors;
    void (*direct)(const struct scan *scan);
    void (*wide)(const struct scan *scan, float *wide);
    void (*exact)(const struct exact_scan *scan);
};

static const struct paths all_paths[] = {
    {BLOCK_STEPS * 4, TILE_VECTORS, TILE_VECTORS, direct_plain, wide_plain, exact_plain},
#ifdef COVECTOR_X86
    {BLOCK_STEPS * 8, TILE_VECTORS, TILE_VECTORS, direct_avx2, wide_avx2, exact_avx2},
    {BLOCK_STEPS * 16, 3 * TILE_VECTORS, 6 * TILE_VECTORS, direct_avx512, wide_avx512, exact_avx512},
#endif
};

COVECTOR_API int32_t covector_scan_paths(void)
{
#ifdef COVECTOR_X86
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    return avx2 ? (__builtin_cpu_supports("avx512f") ? 3 : 2) : 1;
#else
    return 1;
#endif
}

COVECTOR_API int32_t covector_products(int32_t path, const struct covector_rows *rows, const float *vectors,
                                       size_t vector_count, size_t vector_stride, double *products, double *squares)
{
    const struct paths *chosen = &all_paths[path];
    struct scan scan = {rows->chunks, rows->places,     vectors,         products,  squares,      rows->chunk_rows,
                        rows->stride_bytes, rows->first, rows->row_count, rows->dim, vector_count, vector_stride};
    if (!scan.row_count)
        return 1;
    if (vector_count <= (scan.dim < LONG_DIM ? chosen->direct_vectors : chosen->long_vectors)) {
        chosen->direct(&scan);
        return 1;
    }
    size_t panel_bytes = sizeof(float) * PANEL_ROWS * chosen->block_dim;
    float *wide = aligned_alloc(64, panel_bytes);
    if (!wide)
        return 0;
    memset(wide, 0, panel_bytes); /* rows past the last of a panel are multiplied too, for nothing */
    chosen->wide(&scan, wide);
    free(wide);
    return 1;
}

COVECTOR_API int32_t covector_exact_products(int32_t path, const struct covector_rows *rows, const double *vectors,
                                             size_t vector_count, size_t vector_stride, double *products,
                                             double *squares)
{
    struct exact_scan scan = {{rows->chunks, rows->places, NULL, products, squares, rows->chunk_rows, rows->stride_bytes,
                               rows->first, rows->row_count, rows->dim, vector_count, vector_stride},
                              vectors};
    if (vector_count)
        all_paths[path].exact(&scan);
    return 1;
}
