/* What the compiled kernels share. Every function that Python calls is declared here; all are free of state, and take
   contiguous arrays. kernels/library.py states their types a second time: COVECTOR_VERSION changes with any of them. */
#ifndef COVECTOR_H
#define COVECTOR_H

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(COVECTOR_PLAIN)
#define COVECTOR_X86
#endif

#define COVECTOR_API __attribute__((visibility("default")))
#define COVECTOR_VERSION 3

COVECTOR_API int32_t covector_version(void);

/* rows.c. crcs: one a row; sum: of little-endian 64-bit words modulo 2^64, the last padded with zeros. Returns whether
   every float16 is finite. */
COVECTOR_API int32_t covector_check_rows(const uint8_t *rows, size_t row_count, size_t row_bytes, uint32_t *crcs,
                                         uint64_t *sum);

/* table: uint32[1024], for pieces of size_bytes. */
COVECTOR_API void covector_crc_shift(size_t size_bytes, uint32_t *table);

/* CRC-32C of what crc stands for, followed by count pieces of one size, of which crcs and the table are given. */
COVECTOR_API uint32_t covector_crc_join(uint32_t crc, const uint32_t *crcs, size_t count, const uint32_t *table);

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

/* codes.c. products[i]: of the first rank codes of row i, which begin stride bytes apart, with vector. */
COVECTOR_API void covector_code_products(const int8_t *codes, size_t row_count, size_t rank, size_t stride,
                                         const float *vector, float *products);

#endif
