/* Keys and texts of a batch: are they well-formed, what are the keys' hashes, which of them are known.

   A column is byte strings run together, and where each ends; the ends were checked to grow up to the data's length.
*/
#include "covector.h"

#include <stdlib.h>
#include <string.h>

#define GOLDEN 0x9e3779b97f4a7c15u
#define INTEGER_TAG 1
#define STRING_TAG 2
#define INTEGER_KEY_BYTES 9
#define NO_ROW (-1)

/* How many octets the character at ``at`` has, 0 if none stands there (RFC 3629, section 4). */
static size_t character_octets(const uint8_t *at, const uint8_t *end)
{
    uint8_t first = at[0], low = 0x80, high = 0xbf;
    size_t octets;
    if (first < 0x80)
        return 1;
    if (first < 0xc2 || first > 0xf4)
        return 0;
    octets = first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
    if ((size_t)(end - at) < octets)
        return 0;
    if (first == 0xe0)
        low = 0xa0; /* shorter forms exist */
    else if (first == 0xed)
        high = 0x9f; /* surrogates */
    else if (first == 0xf0)
        low = 0x90;
    else if (first == 0xf4)
        high = 0x8f; /* past U+10FFFF */
    if (at[1] < low || at[1] > high)
        return 0;
    for (size_t i = 2; i < octets; i++)
        if ((at[i] & 0xc0) != 0x80)
            return 0;
    return octets;
}

static int is_utf8(const uint8_t *at, const uint8_t *end)
{
    while (at < end) {
        uint64_t word;
        while (end - at >= 8 && (memcpy(&word, at, 8), !(word & 0x8080808080808080u)))
            at += 8;
        if (at < end) {
            size_t octets = character_octets(at, end);
            if (!octets)
                return 0;
            at += octets;
        }
    }
    return 1;
}

static uint64_t mixed(uint64_t hash)
{
    hash = (hash ^ hash >> 30) * 0xbf58476d1ce4e5b9u;
    hash = (hash ^ hash >> 27) * 0x94d049bb133111ebu;
    return hash ^ hash >> 31;
}

/* The least significant octet first, whatever the processor's order. */
static uint64_t word_of(const uint8_t *at, size_t octets)
{
    uint64_t word = 0;
    for (size_t i = 0; i < octets; i++)
        word |= (uint64_t)at[i] << (8 * i);
    return word;
}

static uint64_t key_hash(const uint8_t *at, size_t size_bytes)
{
    uint64_t hash = GOLDEN * size_bytes;
    for (; size_bytes >= 8; at += 8, size_bytes -= 8)
        hash = mixed(hash ^ word_of(at, 8)) + GOLDEN;
    return size_bytes ? mixed(hash ^ word_of(at, size_bytes)) + GOLDEN : hash;
}

COVECTOR_API void covector_hash_keys(const uint8_t *data, const uint32_t *ends, size_t count, uint64_t *hashes)
{
    for (size_t i = 0; i < count; i++) {
        size_t start = i ? ends[i - 1] : 0;
        hashes[i] = key_hash(data + start, ends[i] - start);
    }
}

COVECTOR_API int32_t covector_are_keys(const uint8_t *data, const uint32_t *ends, size_t count, size_t key_bytes_max)
{
    for (size_t i = 0; i < count; i++) {
        const uint8_t *start = data + (i ? ends[i - 1] : 0), *end = data + ends[i];
        size_t size_bytes = (size_t)(end - start);
        if (!size_bytes || size_bytes - 1 > key_bytes_max)
            return 0;
        if (*start == INTEGER_TAG ? size_bytes != INTEGER_KEY_BYTES : *start != STRING_TAG || !is_utf8(start + 1, end))
            return 0;
    }
    return 1;
}

COVECTOR_API int32_t covector_are_texts(const uint8_t *data, const uint32_t *ends, size_t count, size_t text_bytes_max)
{
    for (size_t i = 0; i < count; i++) {
        size_t start = i ? ends[i - 1] : 0;
        if (ends[i] - start > text_bytes_max || !is_utf8(data + start, data + ends[i]))
            return 0;
    }
    return 1;
}

COVECTOR_API int32_t covector_are_distinct(const uint64_t *hashes, size_t count)
{
    size_t slots = 16;
    while (slots < 2 * count)
        slots *= 2;
    uint32_t *places = calloc(slots, sizeof *places); /* 1 + the place of a hash, 0 for none */
    if (!places)
        return 0; /* the caller looks closer */
    int distinct = 1;
    for (size_t i = 0; i < count && distinct; i++) {
        size_t slot = hashes[i] & (slots - 1);
        for (; places[slot] && distinct; slot = (slot + 1) & (slots - 1))
            distinct = hashes[places[slot] - 1] != hashes[i];
        places[slot] = (uint32_t)(i + 1);
    }
    free(places);
    return distinct;
}

/* Filters: a word is chosen by the upper half of a hash, four of its bits by the lower half. */

static uint64_t filter_bits(uint64_t hash)
{
    return (uint64_t)1 << (hash & 63) | (uint64_t)1 << (hash >> 6 & 63) | (uint64_t)1 << (hash >> 12 & 63) |
           (uint64_t)1 << (hash >> 18 & 63);
}

static size_t filter_place(uint64_t hash, size_t word_count) { return (size_t)((hash >> 32) * word_count >> 32); }

COVECTOR_API size_t covector_filter_passed(const uint64_t *filter, size_t word_count, const uint64_t *hashes,
                                           size_t count, int64_t *places)
{
    size_t passed = 0;
    for (size_t i = 0; i < count; i++) {
        uint64_t bits = filter_bits(hashes[i]);
        places[passed] = (int64_t)i;
        passed += (filter[filter_place(hashes[i], word_count)] & bits) == bits;
    }
    return passed;
}

/* Tables of open addressing: slot_count is a power of two, an empty slot has row id -1. */

COVECTOR_API void covector_slots_put(uint64_t *slot_hashes, int64_t *slot_rows, size_t slot_count, uint64_t *filter,
                                     size_t word_count, const uint64_t *hashes, const int64_t *row_ids, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        size_t slot = hashes[i] & (slot_count - 1);
        while (slot_rows[slot] != NO_ROW)
            slot = (slot + 1) & (slot_count - 1);
        slot_hashes[slot] = hashes[i];
        __atomic_store_n(&slot_rows[slot], row_ids[i], __ATOMIC_RELEASE); /* a reader that sees it sees the hash */
        /* last: whoever passes the filter finds the row */
        __atomic_fetch_or(&filter[filter_place(hashes[i], word_count)], filter_bits(hashes[i]), __ATOMIC_RELEASE);
    }
}

COVECTOR_API size_t covector_slots_find(const uint64_t *slot_hashes, const int64_t *slot_rows, size_t slot_count,
                                        const uint64_t *hashes, size_t count, int64_t *places, int64_t *row_ids,
                                        size_t found_max)
{
    size_t found = 0;
    for (size_t i = 0; i < count; i++) {
        size_t slot = hashes[i] & (slot_count - 1);
        int64_t row;
        for (; (row = __atomic_load_n(&slot_rows[slot], __ATOMIC_ACQUIRE)) != NO_ROW; slot = (slot + 1) & (slot_count - 1)) {
            if (slot_hashes[slot] != hashes[i])
                continue;
            if (found < found_max) {
                places[found] = (int64_t)i;
                row_ids[found] = row;
            }
            found++;
        }
    }
    return found;
}
