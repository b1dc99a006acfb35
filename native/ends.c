/* The largest and the smallest of a stream of scores, with their positions: what an index proposes.

   An end is a heap whose root is the worst that is kept: of the lowest score, and among equal ones at the last position.
   Positions come in ascending order, so one that comes later with the score of the root never enters. */
#include "covector.h"

#define STRETCH 64 /* rows whose scores are made before any is looked at */

struct heap {
    float *scores;
    int64_t *positions;
};

static inline int is_worse(float score, int64_t position, float other_score, int64_t other_position)
{
    return score < other_score || (score == other_score && position > other_position);
}

static inline void put(struct heap heap, size_t at, float score, int64_t position)
{
    heap.scores[at] = score;
    heap.positions[at] = position;
}

static void sift_down(struct heap heap, size_t count, size_t at, float score, int64_t position)
{
    for (size_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && is_worse(heap.scores[child + 1], heap.positions[child + 1], heap.scores[child],
                                          heap.positions[child]))
            child++;
        if (!is_worse(heap.scores[child], heap.positions[child], score, position))
            break;
        put(heap, at, heap.scores[child], heap.positions[child]);
    }
    put(heap, at, score, position);
}

static void sift_up(struct heap heap, size_t at, float score, int64_t position)
{
    for (size_t parent; at > 0; at = parent) {
        parent = (at - 1) / 2;
        if (!is_worse(score, position, heap.scores[parent], heap.positions[parent]))
            break;
        put(heap, at, heap.scores[parent], heap.positions[parent]);
    }
    put(heap, at, score, position);
}

static struct heap heap_at(const struct covector_ends *ends, size_t number)
{
    return (struct heap){ends->scores + number * ends->count_max, ends->positions + number * ends->count_max};
}

static inline void offer_one(const struct covector_ends *ends, size_t number, float score, int64_t position)
{
    struct heap heap = heap_at(ends, number);
    size_t held = (size_t)ends->counts[number];
    if (held < ends->count_max) {
        sift_up(heap, held, score, position);
        ends->counts[number]++;
    } else if (score > heap.scores[0]) {
        sift_down(heap, held, 0, score, position);
    }
    if ((size_t)ends->counts[number] == ends->count_max)
        ends->thresholds[number] = heap.scores[0];
}

/* Products of the rows from start on, times factors and weights. */
static inline void scale(const struct covector_offered *offered, const float *products, size_t start, size_t count,
                         float *scores)
{
    const float *factors = offered->factors ? offered->factors + start : NULL;
    const double *weights = offered->weights ? offered->weights + start : NULL;
    if (factors && weights)
        for (size_t i = 0; i < count; i++)
            scores[i] = products[i] * (float)(factors[i] * weights[i]);
    else
        for (size_t i = 0; i < count; i++)
            scores[i] = products[i] * (factors ? factors[i] : 1.0f) * (weights ? (float)weights[i] : 1.0f);
}

static void offer_vector(const struct covector_ends *ends, const struct covector_offered *offered, size_t vector)
{
    const float *products = offered->products + vector * offered->row_count;
    const float *top = ends->thresholds + 2 * vector, *bottom = top + 1;
    for (size_t start = 0; start < offered->row_count; start += STRETCH) {
        size_t count = offered->row_count - start < STRETCH ? offered->row_count - start : STRETCH;
        float scores[STRETCH], high = *top, low = -*bottom;
        int any = 0;
        scale(offered, products + start, start, count, scores);
        for (size_t i = 0; i < count; i++)
            any |= (scores[i] > high) | (scores[i] < low);
        for (size_t i = 0; any && i < count; i++) {
            if (offered->chosen && !offered->chosen[start + i])
                continue;
            int64_t position = offered->first + (int64_t)(start + i);
            if (scores[i] > *top)
                offer_one(ends, 2 * vector, scores[i], position);
            if (-scores[i] > *bottom)
                offer_one(ends, 2 * vector + 1, -scores[i], position);
        }
    }
}

COVECTOR_API void covector_offer_ends(const struct covector_ends *ends, const struct covector_offered *offered)
{
    if (!ends->count_max)
        return;
    for (size_t vector = 0; vector < offered->vector_count; vector++)
        offer_vector(ends, offered, vector);
}

COVECTOR_API void covector_sort_ends(const struct covector_ends *ends, size_t vector_count)
{
    for (size_t number = 0; number < 2 * vector_count; number++) {
        struct heap heap = heap_at(ends, number);
        for (size_t count = (size_t)ends->counts[number]; count > 1; count--) {
            float score = heap.scores[count - 1];
            int64_t position = heap.positions[count - 1];
            put(heap, count - 1, heap.scores[0], heap.positions[0]);
            sift_down(heap, count - 1, 0, score, position);
        }
    }
}
