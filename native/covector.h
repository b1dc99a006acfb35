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
#define COVECTOR_VERSION 1

COVECTOR_API int32_t covector_version(void);

/* rows.c. crcs: one a row; sum: of little-endian 64-bit words modulo 2^64, the last padded with zeros. Returns whether
   every float16 is finite. */
COVECTOR_API int32_t covector_check_rows(const uint8_t *rows, size_t row_count, size_t row_bytes, uint32_t *crcs,
                                         uint64_t *sum);

/* table: uint32[1024], for pieces of size_bytes. */
COVECTOR_API void covector_crc_shift(size_t size_bytes, uint32_t *table);

/* CRC-32C of what crc stands for, followed by count pieces of one size, of which crcs and the table are given. */
COVECTOR_API uint32_t covector_crc_join(uint32_t crc, const uint32_t *crcs, size_t count, const uint32_t *table);

#endif
