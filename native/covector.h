/* What the compiled kernels share. Every function that Python calls is declared here; all but those of faults.c are free
   of state, and take contiguous arrays. kernels/library.py states their types a second time: COVECTOR_VERSION changes
   with any of them. */
#ifndef COVECTOR_H
#define COVECTOR_H

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(COVECTOR_PLAIN)
#define COVECTOR_X86
#endif

#define COVECTOR_API __attribute__((visibility("default")))
#define COVECTOR_VERSION 9

COVECTOR_API int32_t covector_version(void);

/* rows.c. crcs: one a row; sum: of little-endian 64-bit words modulo 2^64, the last padded with zeros. Returns whether
   every float16 is finite. */
COVECTOR_API int32_t covector_check_rows(const uint8_t *rows, size_t row_count, size_t row_bytes, uint32_t *crcs,
                                         uint64_t *sum);

/* CRC-32C of count pieces of size_bytes, stride_bytes apart. */
COVECTOR_API void covector_checksums(const uint8_t *pieces, size_t count, size_t size_bytes, size_t stride_bytes,
                                     uint32_t *crcs);

/* table: uint32[1024], for pieces of size_bytes. */
COVECTOR_API void covector_crc_shift(size_t size_bytes, uint32_t *table);

/* CRC-32C of what crc stands for, followed by count pieces of one size, of which crcs and the table are given. */
COVECTOR_API uint32_t covector_crc_join(uint32_t crc, const uint32_t *crcs, size_t count, const uint32_t *table);

/* scan.c. Rows of float16 in chunks of chunk_rows rows, each chunk stride_bytes from the next. places: of the row_count
   rows that are meant, counted through the chunks; NULL for those from first on. */
struct covector_rows {
    const uint8_t *chunks;
    const int64_t *places;
    size_t chunk_rows, stride_bytes, first, row_count, dim;
};

/* How many ways to multiply this processor has; the last is the fastest. */
COVECTOR_API int32_t covector_scan_paths(void);

/* <vector, row> for all pairs, and <row, row>, in float32 blocks that are added in float64: products[vectors][rows],
   squares[rows]. Vectors are padded with zeros to vector_stride, a multiple of 16. Returns 0 if there is no memory. */
COVECTOR_API int32_t covector_products(int32_t path, const struct covector_rows *rows, const float *vectors,
                                       size_t vector_count, size_t vector_stride, double *products, double *squares);

/* The same in float64, of at least one vector. The order of each sum depends on dim alone. */
COVECTOR_API int32_t covector_exact_products(int32_t path, const struct covector_rows *rows, const double *vectors,
                                             size_t vector_count, size_t vector_stride, double *products,
                                             double *squares);

/* symmetric.c. A symmetric matrix, [dim][dim], times a vector; nothing below its diagonal is read. */
COVECTOR_API void covector_symmetric_product(const double *matrix, size_t dim, const double *vector, double *product);

/* widen.c. count float16 as float32. */
COVECTOR_API void covector_widen(const uint16_t *halves, size_t count, float *wide);

/* topk.c. Approximate scores of some rows for each result: products[r][i] * coefficients[r] * factors[i], off by at most
   reaches[r] * row_reaches[i], or by errors[r][i] where errors is not NULL. origin: of row 0, see pools; -1 for none. */
struct covector_scores {
    const double *products, *coefficients, *factors, *reaches, *row_reaches, *errors;
    const int64_t *row_ids;
    size_t result_count, row_count;
    int64_t origin;
};

/* What is kept of both ends of each result, the pool of result r's top at 2 r, of its bottom, with its scores' sign
   turned, at 2 r + 1: at most capacity rows, each with its score, its error and where it comes from: the origin of the
   scores plus its place among them, -1 where they have none. capacity: at least 2 k. heap: k numbers. progress: how many
   of the rows on offer each pool has seen. gate: whether covector_scan_strip may offer, 0 at first. */
struct covector_pools {
    double *scores, *errors, *thresholds, *heap;
    int64_t *row_ids, *origins, *counts, *progress;
    int32_t *gate;
    size_t capacity, k;
};

/* Offers rows from each pool's progress on. Returns how many pools are too full to go on: more than three quarters of
   their rows cannot be told from the k-th. To be called again once these have been settled with exact scores. */
COVECTOR_API int64_t covector_offer(const struct covector_pools *pools, const struct covector_scores *scores);

/* Lets go of the rows of all pools that surely are not among the k best. */
COVECTOR_API void covector_settle(const struct covector_pools *pools, size_t result_count);

/* Makes room for so many rows in all pools, and returns whether they have it: not where most rows cannot be told from the
   k-th. */
COVECTOR_API int32_t covector_make_room(const struct covector_pools *pools, size_t result_count, size_t row_count);

/* Adds scores to totals[r][places[i]] and the bounds of their errors to errors[r][places[i]], width numbers a result. */
COVECTOR_API void covector_accumulate(const struct covector_scores *scores, const int64_t *places, size_t width,
                                      double *totals, double *errors);

/* strip.c. What rows are scored with: as in covector_products, on a path of covector_scan_paths, and covector_scores.
   over_norm: whether a row's factor is 1 / |row|, and 0 where its scale is; else it is its scale. */
#define COVECTOR_STRIP_VECTORS 4
struct covector_question {
    const float *vectors;
    const double *coefficients, *reaches;
    size_t vector_count, vector_stride;
    int32_t path, over_norm;
};

/* Rows with their scales, row ids and origins, from origin on. next: the first row that no thread has taken yet. */
struct covector_strip {
    struct covector_rows rows;
    const float *scales;
    const int64_t *row_ids;
    int64_t *next;
    int64_t origin;
};

/* Scores rows of a strip until none is left to take, and offers them. Any number of threads may do so at a time, on one
   strip or several. Where a pool cannot be relieved of rows that are too close to call, the pools' gate closes for good:
   rows [left[0], left[1]) are then the caller's to offer, and it calls again; else both are 0. At most
   COVECTOR_STRIP_VECTORS vectors. */
COVECTOR_API void covector_scan_strip(const struct covector_question *question, const struct covector_strip *strip,
                                      const struct covector_pools *pools, int64_t *left);

/* chunks.c. Whether the pages of [at, at + size_bytes) are in memory, as far as a page in each step_bytes tells. */
COVECTOR_API int32_t covector_resident(const uint8_t *at, size_t size_bytes, size_t step_bytes);

/* faults.c. Watches a mapped file: pages of it that cannot be read become zeros, and are counted, where reading them
   would end the process. Returns what covector_unwatch wants, before the file is unmapped; -1 if it is not watched. To
   be called under the interpreter's lock. */
COVECTOR_API int64_t covector_watch(const uint8_t *at, size_t size_bytes);
COVECTOR_API void covector_unwatch(int64_t place);

/* Whether pages of a map, which begins at at, have become zeros; between which of its bytes they lie. */
COVECTOR_API int32_t covector_lost_part(const uint8_t *at, size_t *first, size_t *stop);

/* How many pages have become zeros since the process began. */
COVECTOR_API uint64_t covector_lost_pages(void);

/* keys.c. A column is data and ends, checked to grow up to the data's length. */
COVECTOR_API void covector_hash_keys(const uint8_t *data, const uint32_t *ends, size_t count, uint64_t *hashes);

/* Whether all values are encoded keys, none longer than its tag and key_bytes_max. */
COVECTOR_API int32_t covector_are_keys(const uint8_t *data, const uint32_t *ends, size_t count, size_t key_bytes_max);

/* Whether all values are UTF-8, none longer than text_bytes_max. */
COVECTOR_API int32_t covector_are_texts(const uint8_t *data, const uint32_t *ends, size_t count,
                                        size_t text_bytes_max);

/* Whether no two hashes are equal; also 0 where memory is short. */
COVECTOR_API int32_t covector_are_distinct(const uint64_t *hashes, size_t count);

/* The places of the hashes that a filter lets pass, ascending; returns how many. */
COVECTOR_API size_t covector_filter_passed(const uint64_t *filter, size_t word_count, const uint64_t *hashes,
                                           size_t count, int64_t *places);

/* Adds rows to a table, which has room, and to its filter. Others may look up meanwhile. */
COVECTOR_API void covector_slots_put(uint64_t *slot_hashes, int64_t *slot_rows, size_t slot_count, uint64_t *filter,
                                     size_t word_count, const uint64_t *hashes, const int64_t *row_ids, size_t count);

/* Rows with these hashes: (place of the hash, row id), at most found_max of them; returns how many there are. */
COVECTOR_API size_t covector_slots_find(const uint64_t *slot_hashes, const int64_t *slot_rows, size_t slot_count,
                                        const uint64_t *hashes, size_t count, int64_t *places, int64_t *row_ids,
                                        size_t found_max);

/* codes.c. products[i]: of the first rank codes of row i, which begin stride bytes apart, with vector, int16 padded with
   zeros to a multiple of 32, whose integers are worth step. */
COVECTOR_API void covector_code_products(const int8_t *codes, size_t row_count, size_t rank, size_t stride,
                                         const int16_t *vector, float step, float *products);

/* Rounds a vector of finite numbers for it, zeros included, in steps of a 32767th of the largest. Returns the step. */
COVECTOR_API float covector_round_vector(const float *vector, size_t rank, int16_t *rounded);

/* nibbles.c. products[i]: of the codes of row i, block_count blocks of 64 that begin stride bytes apart, with vector,
   int8[block_count * 64], a block's integers worth steps[block]. No integer of the vector is -128. */
COVECTOR_API void covector_nibble_products(const uint8_t *codes, size_t row_count, size_t block_count, size_t stride,
                                           const int8_t *vector, const float *steps, float *products);

/* ends.c. Both ends of the scores of some vectors: the best of vector v at 2 v, its smallest, with their sign turned, at
   2 v + 1; each at most count_max scores with their positions, of which counts[] are there. thresholds: a score that is not
   larger cannot enter; -infinity to begin with. */
struct covector_ends {
    float *scores, *thresholds;
    int64_t *positions, *counts;
    size_t count_max;
};

/* Scores of the positions from first on: products[v][i] * factors[i] * weights[i], of those that are chosen; NULL for
   factors and weights of 1, and for all. NaN stands for none. */
struct covector_offered {
    const float *products, *factors;
    const double *weights;
    const uint8_t *chosen;
    size_t vector_count, row_count;
    int64_t first;
};

/* Positions are offered in ascending order. */
COVECTOR_API void covector_offer_ends(const struct covector_ends *ends, const struct covector_offered *offered);

/* Puts the best first, equal ones in order of position; after that, nothing more is to be offered. */
COVECTOR_API void covector_sort_ends(const struct covector_ends *ends, size_t vector_count);

#endif
