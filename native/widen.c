/* float16 to float32, which is exact. */
#include "covector.h"

#include <string.h>

static inline float widened(uint16_t half)
{
    uint32_t magnitude = half & 0x7fffu, bits = (magnitude << 13) + 0x38000000u;
    float value;
    if (magnitude >= 0x7c00u)
        bits += 0x38000000u; /* infinity, or no number */
    memcpy(&value, &bits, sizeof value);
    if (magnitude < 0x400u)
        value = (float)magnitude * 0x1p-24f;
    return half & 0x8000u ? -value : value;
}

static void widen_plain(const uint16_t *halves, size_t count, float *wide)
{
    for (size_t at = 0; at < count; at++)
        wide[at] = widened(halves[at]);
}

#ifdef COVECTOR_X86
#include <immintrin.h>

__attribute__((target("avx2,f16c"))) static void widen_f16c(const uint16_t *halves, size_t count, float *wide)
{
    size_t at = 0;
    for (; at + 8 <= count; at += 8)
        _mm256_storeu_ps(wide + at, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(halves + at))));
    widen_plain(halves + at, count - at, wide + at);
}
#endif

COVECTOR_API void covector_widen(const uint16_t *halves, size_t count, float *wide)
{
#ifdef COVECTOR_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c")) {
        widen_f16c(halves, count, wide);
        return;
    }
#endif
    widen_plain(halves, count, wide);
}
