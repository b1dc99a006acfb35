/* The best rows of a scan so far, both ends of each result: which scores are worth keeping is decided here, in one pass
   over them, so that Python sees the few that are.

   A pool keeps the rows whose score, moved up by its error, reaches a threshold: one that k rows surely reach. A full
   pool finds the k-th best of its surest scores, which is the next threshold, and lets go of what stays below. A pool in
   which most rows are too close to call is left full, for the caller to settle with exact scores. */
#include "covector.h"

#define STRETCH 256 /* rows that are looked at before any is taken in hand */

static void sift_down(double *heap, size_t count, size_t at)
{
    double value = heap[at];
    for (size_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && heap[child + 1] < heap[child])
            child++;
        if (heap[child] >= value)
            break;
        heap[at] = heap[child];
    }
    heap[at] = value;
}

/* The k-th largest of scores less their errors; the heap takes k numbers. */
static double surest(const double *scores, const double *errors, size_t count, double *heap, size_t k)
{
    for (size_t i = 0; i < k; i++)
        heap[i] = scores[i] - errors[i];
    for (size_t at = k / 2; at-- > 0;)
        sift_down(heap, k, at);
    for (size_t i = k; i < count; i++) {
        double low = scores[i] - errors[i];
        if (low > heap[0]) {
            heap[0] = low;
            sift_down(heap, k, 0);
        }
    }
    return heap[0];
}

struct pool {
    double *scores, *errors, *threshold;
    int64_t *row_ids, *origins, *count;
};

static struct pool pool_at(const struct covector_pools *pools, size_t number)
{
    size_t at = number * pools->capacity;
    return (struct pool){pools->scores + at, pools->errors + at, pools->thresholds + number, pools->row_ids + at,
                         pools->origins + at, pools->counts + number};
}

static void compact(const struct pool *pool, double *heap, size_t k)
{
    size_t count = (size_t)*pool->count, kept = 0;
    if (count < k)
        return;
    double sure = surest(pool->scores, pool->errors, count, heap, k);
    if (sure > *pool->threshold)
        __atomic_store(pool->threshold, &sure, __ATOMIC_RELAXED); /* strip.c looks at it from other threads */
    for (size_t i = 0; i < count; i++)
        if (pool->scores[i] + pool->errors[i] >= *pool->threshold) {
            pool->scores[kept] = pool->scores[i];
            pool->errors[kept] = pool->errors[i];
            pool->origins[kept] = pool->origins[i];
            pool->row_ids[kept++] = pool->row_ids[i];
        }
    *pool->count = (int64_t)kept;
}

/* Offers the rows from *progress on to one end, sign turned; returns whether they all went through. */
static int offer(const struct covector_pools *pools, const struct covector_scores *scores, size_t result, double turn,
                 size_t number)
{
    struct pool pool = pool_at(pools, number);
    const double *products = scores->products + result * scores->row_count;
    const double *errors = scores->errors ? scores->errors + result * scores->row_count : scores->row_reaches;
    double coefficient = turn * scores->coefficients[result], reach = scores->errors ? 1.0 : scores->reaches[result];
    for (size_t start = (size_t)pools->progress[number]; start < scores->row_count; start += STRETCH) {
        size_t stop = scores->row_count - start < STRETCH ? scores->row_count : start + STRETCH;
        double threshold = *pool.threshold;
        int any = 0;
        for (size_t i = start; i < stop; i++)
            any |= products[i] * coefficient * scores->factors[i] + reach * errors[i] >= threshold;
        if (!any)
            continue;
        for (size_t i = start; i < stop; i++) {
            double score = products[i] * coefficient * scores->factors[i], error = reach * errors[i];
            if (!(score + error >= *pool.threshold))
                continue;
            if ((size_t)*pool.count == pools->capacity) {
                compact(&pool, pools->heap, pools->k);
                if ((size_t)*pool.count > pools->capacity - pools->capacity / 4) {
                    pools->progress[number] = (int64_t)i;
                    return 0;
                }
            }
            if (score + error >= *pool.threshold) {
                size_t at = (size_t)(*pool.count)++;
                pool.scores[at] = score;
                pool.errors[at] = error;
                pool.row_ids[at] = scores->row_ids[i];
                pool.origins[at] = scores->origin < 0 ? -1 : scores->origin + (int64_t)i;
            }
        }
    }
    pools->progress[number] = (int64_t)scores->row_count;
    return 1;
}

COVECTOR_API int64_t covector_offer(const struct covector_pools *pools, const struct covector_scores *scores)
{
    int64_t waiting = 0;
    for (size_t result = 0; result < scores->result_count; result++) {
        waiting += !offer(pools, scores, result, 1.0, 2 * result);
        waiting += !offer(pools, scores, result, -1.0, 2 * result + 1);
    }
    return waiting;
}

COVECTOR_API void covector_settle(const struct covector_pools *pools, size_t result_count)
{
    for (size_t number = 0; number < 2 * result_count; number++) {
        struct pool pool = pool_at(pools, number);
        compact(&pool, pools->heap, pools->k);
    }
}

COVECTOR_API int32_t covector_make_room(const struct covector_pools *pools, size_t result_count, size_t row_count)
{
    for (size_t number = 0; number < 2 * result_count; number++) {
        struct pool pool = pool_at(pools, number);
        if ((size_t)*pool.count + row_count > pools->capacity)
            compact(&pool, pools->heap, pools->k);
        if ((size_t)*pool.count + row_count > pools->capacity)
            return 0;
    }
    return 1;
}

COVECTOR_API void covector_accumulate(const struct covector_scores *scores, const int64_t *places, size_t width,
                                      double *totals, double *errors)
{
    for (size_t result = 0; result < scores->result_count; result++) {
        const double *products = scores->products + result * scores->row_count;
        double *total = totals + result * width, *error = errors + result * width;
        for (size_t i = 0; i < scores->row_count; i++) {
            total[places[i]] += products[i] * scores->coefficients[result] * scores->factors[i];
            error[places[i]] += scores->reaches[result] * scores->row_reaches[i];
        }
    }
}
