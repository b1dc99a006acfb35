/* A strip of a scan from rows to candidates: products, norms, factors and the offer to the pools, piece by piece, so that
   what is made of a piece stays in the first caches. Threads that work on one strip take its pieces from a counter. */
#define _DEFAULT_SOURCE /* sched_yield */
#include "covector.h"

#include <math.h>
#include <sched.h>

#define PIECE_ROWS 256
#define PIECE_BYTES (1u << 20) /* of float16 rows */
#define SPINS 256

enum gate { OPEN, TAKEN, CLOSED };

static int32_t enter(int32_t *gate)
{
    for (unsigned spins = 1;; spins++) {
        int32_t found = OPEN;
        if (__atomic_compare_exchange_n(gate, &found, TAKEN, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
            return 1;
        if (found == CLOSED)
            return 0;
        if (spins % SPINS == 0)
            sched_yield();
    }
}

/* Whether a row may enter a pool. Thresholds only rise, so an old one is as good. */
static int any_passes(const struct covector_pools *pools, const struct covector_scores *scores)
{
    for (size_t number = 0; number < 2 * scores->result_count; number++) {
        const double *products = scores->products + number / 2 * scores->row_count;
        double coefficient = (number % 2 ? -1.0 : 1.0) * scores->coefficients[number / 2];
        double reach = scores->reaches[number / 2], threshold;
        int any = 0;
        __atomic_load(pools->thresholds + number, &threshold, __ATOMIC_RELAXED);
        for (size_t i = 0; i < scores->row_count; i++)
            any |= products[i] * coefficient * scores->factors[i] + reach * scores->row_reaches[i] >= threshold;
        if (any)
            return 1;
    }
    return 0;
}

/* Returns 0 if the pools are closed, or have no room for the rows and so close. */
static int offer(const struct covector_pools *pools, const struct covector_scores *scores)
{
    if (!any_passes(pools, scores))
        return 1;
    if (!enter(pools->gate))
        return 0;
    int has_room = covector_make_room(pools, scores->result_count, scores->row_count);
    if (has_room) {
        for (size_t number = 0; number < 2 * scores->result_count; number++)
            pools->progress[number] = 0;
        covector_offer(pools, scores);
    }
    __atomic_store_n(pools->gate, has_room ? OPEN : CLOSED, __ATOMIC_RELEASE);
    return has_room;
}

/* w * scale of rows whose norms are given, and the reach of their errors for each unit of a result's. */
static void weigh(const struct covector_question *question, const float *scales, size_t count, const double *squares,
                  double *factors, double *row_reaches)
{
    for (size_t i = 0; i < count; i++) {
        double norm = sqrt(squares[i]);
        double inverse = norm > 0 ? 1.0 / norm : 0.0;
        factors[i] = question->over_norm ? (scales[i] > 0 ? inverse : 0.0) : (double)scales[i];
        row_reaches[i] = fabs(factors[i]) * norm;
    }
}

COVECTOR_API void covector_scan_strip(const struct covector_question *question, const struct covector_strip *strip,
                                      const struct covector_pools *pools, int64_t *left)
{
    double products[COVECTOR_STRIP_VECTORS * PIECE_ROWS], squares[PIECE_ROWS], factors[PIECE_ROWS], reaches[PIECE_ROWS];
    const struct covector_rows *rows = &strip->rows;
    size_t fitting = PIECE_BYTES / (2 * rows->dim), step = fitting < 1 ? 1 : fitting < PIECE_ROWS ? fitting : PIECE_ROWS;
    int64_t end = (int64_t)rows->row_count;
    left[0] = left[1] = 0;
    while (__atomic_load_n(pools->gate, __ATOMIC_RELAXED) != CLOSED) {
        int64_t first = __atomic_fetch_add(strip->next, (int64_t)step, __ATOMIC_RELAXED);
        if (first >= end)
            return;
        struct covector_rows piece = *rows;
        piece.row_count = (size_t)(end - first) < step ? (size_t)(end - first) : step;
        piece.first += (size_t)first;
        piece.places = rows->places ? rows->places + first : NULL;
        covector_products(question->path, &piece, question->vectors, question->vector_count, question->vector_stride,
                          products, squares);
        weigh(question, strip->scales + first, piece.row_count, squares, factors, reaches);
        struct covector_scores scores = {products, question->coefficients, factors, question->reaches, reaches, NULL,
                                         strip->row_ids + first, question->vector_count, piece.row_count,
                                         strip->origin < 0 ? -1 : strip->origin + first};
        if (!offer(pools, &scores)) {
            left[0] = first, left[1] = first + (int64_t)piece.row_count;
            return;
        }
    }
    int64_t first = __atomic_exchange_n(strip->next, end, __ATOMIC_RELAXED);
    if (first < end)
        left[0] = first, left[1] = end;
}
