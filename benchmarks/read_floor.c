/* How fast memory can be read: the words of a stretch, added up. Compiled by search_store.py when a benchmark runs. */
#include <stddef.h>
#include <stdint.h>

typedef uint64_t lane __attribute__((vector_size(32), aligned(1), may_alias));

#if defined(__x86_64__)
__attribute__((target("avx2")))
#endif
uint64_t
read_all(const uint8_t *at, size_t size_bytes)
{
    lane a = {0}, b = {0}, c = {0}, d = {0};
    for (size_t i = 0; i + 128 <= size_bytes; i += 128) {
        const lane *here = (const lane *)(at + i);
        a += here[0], b += here[1], c += here[2], d += here[3];
    }
    a += b + c + d;
    return a[0] + a[1] + a[2] + a[3];
}
