/* A symmetric matrix times a vector, in float64, from the upper half of the matrix: what takes the time is memory, and this
   reads half as much of it. Eight rows are taken at once, from their diagonal on: each element counts for its row, and for
   the one that its column is. */
#include "covector.h"

#include <string.h>

#define ROWS 8
#define LANES 8

typedef double eight __attribute__((vector_size(64)));

static inline __attribute__((always_inline)) void some_rows(const double *matrix, size_t dim, size_t first,
                                                            const double *vector, double *product)
{
    const double *rows[ROWS], *own = vector + first;
    double sums[ROWS] = {0};
    eight lanes[ROWS] = {{0}};
    size_t at = first + ROWS;
    for (size_t r = 0; r < ROWS; r++)
        rows[r] = matrix + (first + r) * dim;
    for (; at + LANES <= dim; at += LANES) {
        eight other, total;
        memcpy(&other, vector + at, sizeof other);
        memcpy(&total, product + at, sizeof total);
        for (size_t r = 0; r < ROWS; r++) {
            eight part;
            memcpy(&part, rows[r] + at, sizeof part);
            lanes[r] += part * other;
            total += part * own[r];
        }
        memcpy(product + at, &total, sizeof total);
    }
    for (; at < dim; at++)
        for (size_t r = 0; r < ROWS; r++) {
            sums[r] += rows[r][at] * vector[at];
            product[at] += rows[r][at] * own[r];
        }
    for (size_t r = 0; r < ROWS; r++) {
        for (size_t lane = 0; lane < LANES; lane++)
            sums[r] += lanes[r][lane];
        sums[r] += rows[r][first + r] * own[r];
        for (size_t other = r + 1; other < ROWS; other++) {
            sums[r] += rows[r][first + other] * own[other];
            product[first + other] += rows[r][first + other] * own[r];
        }
        product[first + r] += sums[r];
    }
}

static inline __attribute__((always_inline)) void product_of(const double *matrix, size_t dim, const double *vector,
                                                             double *product)
{
    size_t whole = dim - dim % ROWS;
    memset(product, 0, dim * sizeof *product);
    for (size_t first = 0; first < whole; first += ROWS)
        some_rows(matrix, dim, first, vector, product);
    for (size_t row = whole; row < dim; row++)
        for (size_t at = row; at < dim; at++) {
            product[row] += matrix[row * dim + at] * vector[at];
            if (at > row)
                product[at] += matrix[row * dim + at] * vector[row];
        }
}

static void product_plain(const double *matrix, size_t dim, const double *vector, double *product)
{
    product_of(matrix, dim, vector, product);
}

#ifdef COVECTOR_X86
__attribute__((target("avx2,fma"))) static void product_avx2(const double *matrix, size_t dim, const double *vector,
                                                             double *product)
{
    product_of(matrix, dim, vector, product);
}

__attribute__((target("avx512f,avx2,fma"))) static void product_avx512(const double *matrix, size_t dim,
                                                                       const double *vector, double *product)
{
    product_of(matrix, dim, vector, product);
}
#endif

COVECTOR_API void covector_symmetric_product(const double *matrix, size_t dim, const double *vector, double *product)
{
#ifdef COVECTOR_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) {
        product_avx512(matrix, dim, vector, product);
        return;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        product_avx2(matrix, dim, vector, product);
        return;
    }
#endif
    product_plain(matrix, dim, vector, product);
}
