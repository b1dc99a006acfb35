/* Mapped files and the memory behind them. */
#define _DEFAULT_SOURCE /* mincore */
#include "covector.h"

#include <sys/mman.h>
#include <unistd.h>

COVECTOR_API int32_t covector_resident(const uint8_t *at, size_t size_bytes, size_t step_bytes)
{
    size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    uintptr_t first = (uintptr_t)at / page_bytes * page_bytes, stop = (uintptr_t)at + size_bytes;
    for (uintptr_t page = first; page < stop; page += step_bytes) {
        unsigned char present;
        if (mincore((void *)page, page_bytes, &present) == 0 && !(present & 1))
            return 0;
    }
    return 1;
}
