/* Pages of mapped files that cannot be read: the disk fails, or the file was cut short. The system answers a read of one
   with SIGBUS, which ends the process and all that it serves. Here the page is replaced by one of zeros and counted, so
   that the reader goes on and hears of it afterwards; whatever it read must be looked at again. */
#define _GNU_SOURCE
#include "covector.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAPS_MAX 16384

/* A free place has stop 0. Places are taken and given back under the interpreter's lock; the handler only widens what is
   lost: the first byte of the pages that are, and the one behind the last; lost_stop is 0 if none is. */
static struct map {
    _Atomic uintptr_t first, stop, lost_first, lost_stop;
} maps[MAPS_MAX];
static _Atomic size_t used; /* places below which all that are taken lie */
static _Atomic uint64_t lost_pages;
static struct sigaction before;
static uintptr_t page_bytes;

static struct map *map_of(uintptr_t at)
{
    size_t count = atomic_load(&used);
    for (size_t place = 0; place < count; place++)
        if (at < atomic_load(&maps[place].stop) && at >= atomic_load(&maps[place].first))
            return &maps[place];
    return NULL;
}

static void lose(struct map *map, uintptr_t page)
{
    uintptr_t first = atomic_load(&map->lost_first), stop = atomic_load(&map->lost_stop);
    while (page < first && !atomic_compare_exchange_weak(&map->lost_first, &first, page))
        ;
    while (page + page_bytes > stop && !atomic_compare_exchange_weak(&map->lost_stop, &stop, page + page_bytes))
        ;
    atomic_fetch_add(&lost_pages, 1);
}

static void on_bus_error(int number, siginfo_t *info, void *context)
{
    (void)number, (void)context;
    int saved = errno;
    uintptr_t at = (uintptr_t)info->si_addr, page = at / page_bytes * page_bytes;
    struct map *map = info->si_code == BUS_ADRERR ? map_of(at) : NULL;
    if (map && mmap((void *)page, page_bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED) {
        lose(map, page);
        errno = saved;
        return;
    }
    sigaction(SIGBUS, &before, NULL); /* the read is tried again, and ends as it would have without this */
}

static int is_handled(void)
{
    if (page_bytes)
        return 1;
    struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO};
    sigemptyset(&action.sa_mask);
    page_bytes = (uintptr_t)sysconf(_SC_PAGESIZE);
    if (sigaction(SIGBUS, &action, &before) == 0)
        return 1;
    page_bytes = 0;
    return 0;
}

COVECTOR_API int64_t covector_watch(const uint8_t *at, size_t size_bytes)
{
    if (!is_handled())
        return -1;
    for (size_t place = 0; place < MAPS_MAX; place++)
        if (!atomic_load(&maps[place].stop)) {
            atomic_store(&maps[place].lost_first, UINTPTR_MAX);
            atomic_store(&maps[place].lost_stop, 0);
            atomic_store(&maps[place].first, (uintptr_t)at);
            atomic_store(&maps[place].stop, (uintptr_t)at + size_bytes);
            if (place >= atomic_load(&used))
                atomic_store(&used, place + 1);
            return (int64_t)place;
        }
    return -1;
}

COVECTOR_API void covector_unwatch(int64_t place)
{
    if (place >= 0)
        atomic_store(&maps[place].stop, 0);
}

COVECTOR_API int32_t covector_lost_part(const uint8_t *at, size_t *first, size_t *stop)
{
    struct map *map = map_of((uintptr_t)at);
    if (!map || !atomic_load(&map->lost_stop))
        return 0;
    *first = atomic_load(&map->lost_first) - (uintptr_t)at;
    *stop = atomic_load(&map->lost_stop) - (uintptr_t)at;
    return 1;
}

COVECTOR_API uint64_t covector_lost_pages(void) { return atomic_load(&lost_pages); }
