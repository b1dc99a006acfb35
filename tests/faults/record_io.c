/* Records what a process tells the kernel to do with files below a directory: for tests of power loss.
 *
 * Loaded with LD_PRELOAD. RECORD_ROOT names the directory, RECORD_LOG the log that records are appended to. A record is
 * written after its call has succeeded and before the caller goes on; a sync makes two, one before and one after, so
 * that only what was recorded before the first counts as synced at the second. Several processes may share a log: each
 * record is one write with O_APPEND and names its process. Files written through a shared mapping are not seen (the
 * server has one, LMDB's lock file, which is worth nothing after a power loss).
 *
 * A record: struct record, then path_bytes of path, then path2_bytes of a second path, then data_bytes of data.
 * tests/faults/power_loss.py reads it.
 */
#define _GNU_SOURCE
#undef _FORTIFY_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN = 1, WRITE, TRUNCATE, SYNC_BEGIN, SYNC_END, CLOSE, RENAME, LINK, UNLINK, MKDIR, RMDIR };
enum { FLAG_SYNCED = 1, FLAG_TRUNCATED = 2 };

struct record {
    uint32_t magic;
    uint32_t operation;
    uint32_t process;
    int32_t descriptor;
    uint32_t flags;
    uint32_t path_bytes;
    uint32_t path2_bytes;
    uint32_t data_bytes;
    uint64_t offset;
};

#define DESCRIPTORS 65536
static unsigned char tracked[DESCRIPTORS]; /* 1: below the root; 2: and every write is synced */
static char root[PATH_MAX];
static size_t root_bytes;
static int log_descriptor = -1;
static pthread_mutex_t appending = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) ((__typeof__(&name))real(#name))
static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

__attribute__((constructor)) static void begin(void)
{
    const char *directory = getenv("RECORD_ROOT"), *log = getenv("RECORD_LOG");
    if (directory == NULL || log == NULL || realpath(directory, root) == NULL)
        return;
    root_bytes = strlen(root);
    int opened = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    log_descriptor = (int)syscall(SYS_fcntl, opened, F_DUPFD_CLOEXEC, 1000); /* out of everybody's way */
    if (log_descriptor < 0)
        log_descriptor = opened;
    else
        syscall(SYS_close, opened);
}

static int is_tracked(int descriptor)
{
    return log_descriptor >= 0 && descriptor >= 0 && descriptor < DESCRIPTORS && tracked[descriptor];
}

static int is_below_root(const char *path)
{
    return log_descriptor >= 0 && strncmp(path, root, root_bytes) == 0 && (path[root_bytes] == '/' || !path[root_bytes]);
}

static void append(struct record record, const char *path, const char *path2, const void *data)
{
    int saved = errno;
    record.magic = 0x4f494352;
    record.process = (uint32_t)getpid();
    record.path_bytes = path ? (uint32_t)strlen(path) : 0;
    record.path2_bytes = path2 ? (uint32_t)strlen(path2) : 0;
    struct iovec pieces[4] = {
        {&record, sizeof record},
        {(void *)path, record.path_bytes},
        {(void *)path2, record.path2_bytes},
        {(void *)data, record.data_bytes},
    };
    size_t size = sizeof record + record.path_bytes + record.path2_bytes + record.data_bytes;
    pthread_mutex_lock(&appending);
    if (syscall(SYS_writev, log_descriptor, pieces, 4) != (long)size) {
        static const char message[] = "record_io: the log could not be written\n";
        syscall(SYS_write, 2, message, sizeof message - 1);
        _exit(99);
    }
    pthread_mutex_unlock(&appending);
    errno = saved;
}

/* The absolute path of a name, its directory resolved; the name itself may be a link or not be there. */
static const char *resolve(int directory, const char *name, char *resolved)
{
    char joined[2 * PATH_MAX], parent[PATH_MAX];
    if (name[0] == '/') {
        snprintf(joined, sizeof joined, "%s", name);
    } else {
        char where[PATH_MAX];
        if (directory == AT_FDCWD) {
            if (getcwd(where, sizeof where) == NULL)
                return NULL;
        } else {
            char link[64];
            snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
            ssize_t length = readlink(link, where, sizeof where - 1);
            if (length < 0)
                return NULL;
            where[length] = 0;
        }
        snprintf(joined, sizeof joined, "%s/%s", where, name);
    }
    size_t length = strlen(joined);
    while (length > 1 && joined[length - 1] == '/')
        joined[--length] = 0;
    char *slash = strrchr(joined, '/');
    const char *last = slash + 1;
    if (strcmp(last, ".") == 0 || strcmp(last, "..") == 0)
        return realpath(joined, resolved);
    *slash = 0;
    if (realpath(slash == joined ? "/" : joined, parent) == NULL)
        return NULL;
    if (snprintf(resolved, PATH_MAX, "%s/%s", strcmp(parent, "/") ? parent : "", last) >= PATH_MAX)
        return NULL;
    return resolved;
}

static int opened(int descriptor, int directory, const char *name, int flags)
{
    int saved = errno;
    if (descriptor >= 0 && descriptor < DESCRIPTORS && log_descriptor >= 0) {
        char path[PATH_MAX];
        tracked[descriptor] = 0;
        if (resolve(directory, name, path) && is_below_root(path)) {
            tracked[descriptor] = (flags & (O_SYNC | O_DSYNC)) ? 2 : 1;
            struct record record = {.operation = OPEN, .descriptor = descriptor};
            record.flags = (flags & O_TRUNC) && (flags & O_ACCMODE) != O_RDONLY ? FLAG_TRUNCATED : 0;
            append(record, path, NULL, NULL);
        }
    }
    errno = saved;
    return descriptor;
}

#define MODE(flags, mode)                                   \
    mode_t mode = 0;                                        \
    if ((flags) & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY))) { \
        va_list list;                                       \
        va_start(list, flags);                              \
        mode = va_arg(list, mode_t);                        \
        va_end(list);                                       \
    }

int open(const char *name, int flags, ...)
{
    MODE(flags, mode)
    return opened(REAL(open)(name, flags, mode), AT_FDCWD, name, flags);
}

int open64(const char *name, int flags, ...)
{
    MODE(flags, mode)
    return opened(REAL(open64)(name, flags, mode), AT_FDCWD, name, flags);
}

int openat(int directory, const char *name, int flags, ...)
{
    MODE(flags, mode)
    return opened(REAL(openat)(directory, name, flags, mode), directory, name, flags);
}

int openat64(int directory, const char *name, int flags, ...)
{
    MODE(flags, mode)
    return opened(REAL(openat64)(directory, name, flags, mode), directory, name, flags);
}

int __open_2(const char *name, int flags) { return open(name, flags); }
int __open64_2(const char *name, int flags) { return open64(name, flags); }
int __openat_2(int directory, const char *name, int flags) { return openat(directory, name, flags); }
int __openat64_2(int directory, const char *name, int flags) { return openat64(directory, name, flags); }
int creat(const char *name, mode_t mode) { return open(name, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *name, mode_t mode) { return open64(name, O_CREAT | O_WRONLY | O_TRUNC, mode); }

int close(int descriptor)
{
    if (descriptor == log_descriptor && descriptor >= 0) {
        errno = EBADF; /* whoever closes every descriptor leaves ours */
        return -1;
    }
    if (is_tracked(descriptor)) {
        tracked[descriptor] = 0; /* before the number can be given out again */
        append((struct record){.operation = CLOSE, .descriptor = descriptor}, NULL, NULL, NULL);
    }
    return REAL(close)(descriptor);
}

static void wrote(int descriptor, const void *data, size_t size, uint64_t offset)
{
    struct record record = {.operation = WRITE, .descriptor = descriptor, .offset = offset};
    record.data_bytes = (uint32_t)size;
    record.flags = tracked[descriptor] == 2 ? FLAG_SYNCED : 0;
    append(record, NULL, NULL, data);
}

static void wrote_pieces(int descriptor, const struct iovec *pieces, size_t size, uint64_t offset)
{
    char *joined = malloc(size ? size : 1), *end = joined;
    for (size_t left = size; left; pieces++) {
        size_t length = pieces->iov_len < left ? pieces->iov_len : left;
        memcpy(end, pieces->iov_base, length);
        end += length;
        left -= length;
    }
    wrote(descriptor, joined, size, offset);
    free(joined);
}

/* What a call that moves bytes inside the kernel has put into a file. */
static void wrote_elsewhere(int descriptor, size_t size, uint64_t offset)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    int reading = (int)syscall(SYS_openat, AT_FDCWD, link, O_RDONLY | O_CLOEXEC, 0);
    char *data = malloc(size ? size : 1);
    if (reading >= 0 && REAL(pread)(reading, data, size, (off_t)offset) == (ssize_t)size)
        wrote(descriptor, data, size, offset);
    free(data);
    if (reading >= 0)
        syscall(SYS_close, reading);
}

static uint64_t place_before(int descriptor, ssize_t size)
{
    return (uint64_t)(lseek(descriptor, 0, SEEK_CUR) - size);
}

ssize_t write(int descriptor, const void *data, size_t size)
{
    ssize_t written = REAL(write)(descriptor, data, size);
    if (written > 0 && is_tracked(descriptor))
        wrote(descriptor, data, (size_t)written, place_before(descriptor, written));
    return written;
}

ssize_t writev(int descriptor, const struct iovec *pieces, int count)
{
    ssize_t written = REAL(writev)(descriptor, pieces, count);
    if (written > 0 && is_tracked(descriptor))
        wrote_pieces(descriptor, pieces, (size_t)written, place_before(descriptor, written));
    return written;
}

#define PWRITE(name, offset_type)                                                         \
    ssize_t name(int descriptor, const void *data, size_t size, offset_type offset)       \
    {                                                                                     \
        ssize_t written = REAL(name)(descriptor, data, size, offset);                     \
        if (written > 0 && is_tracked(descriptor))                                        \
            wrote(descriptor, data, (size_t)written, (uint64_t)offset);                   \
        return written;                                                                   \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define PWRITEV(name, offset_type)                                                           \
    ssize_t name(int descriptor, const struct iovec *pieces, int count, offset_type offset)  \
    {                                                                                        \
        ssize_t written = REAL(name)(descriptor, pieces, count, offset);                     \
        if (written > 0 && is_tracked(descriptor))                                           \
            wrote_pieces(descriptor, pieces, (size_t)written, (uint64_t)offset);             \
        return written;                                                                      \
    }
PWRITEV(pwritev, off_t)
PWRITEV(pwritev64, off64_t)

#define PWRITEV2(name, offset_type)                                                                     \
    ssize_t name(int descriptor, const struct iovec *pieces, int count, offset_type offset, int flags)  \
    {                                                                                                   \
        ssize_t written = REAL(name)(descriptor, pieces, count, offset, flags);                         \
        if (written > 0 && is_tracked(descriptor))                                                      \
            wrote_pieces(descriptor, pieces, (size_t)written, (uint64_t)offset);                        \
        return written;                                                                                 \
    }
PWRITEV2(pwritev2, off_t)
PWRITEV2(pwritev64v2, off64_t)

ssize_t sendfile(int out, int in, off_t *offset, size_t size)
{
    ssize_t sent = REAL(sendfile)(out, in, offset, size);
    if (sent > 0 && is_tracked(out))
        wrote_elsewhere(out, (size_t)sent, place_before(out, sent));
    return sent;
}

ssize_t sendfile64(int out, int in, off64_t *offset, size_t size)
{
    ssize_t sent = REAL(sendfile64)(out, in, offset, size);
    if (sent > 0 && is_tracked(out))
        wrote_elsewhere(out, (size_t)sent, place_before(out, sent));
    return sent;
}

ssize_t copy_file_range(int in, off64_t *in_offset, int out, off64_t *out_offset, size_t size, unsigned flags)
{
    ssize_t copied = REAL(copy_file_range)(in, in_offset, out, out_offset, size, flags);
    if (copied > 0 && is_tracked(out))
        wrote_elsewhere(out, (size_t)copied, out_offset ? (uint64_t)(*out_offset - copied) : place_before(out, copied));
    return copied;
}

int ioctl(int descriptor, unsigned long request, ...)
{
    va_list list;
    va_start(list, request);
    void *argument = va_arg(list, void *);
    va_end(list);
    if (is_tracked(descriptor) && (request & 0xff00) == 0x9400) { /* FICLONE and its kin: what they share is not seen */
        errno = EOPNOTSUPP;
        return -1;
    }
    return REAL(ioctl)(descriptor, request, argument);
}

static int truncated(int result, int descriptor, uint64_t size)
{
    if (result == 0 && is_tracked(descriptor))
        append((struct record){.operation = TRUNCATE, .descriptor = descriptor, .offset = size}, NULL, NULL, NULL);
    return result;
}

int ftruncate(int descriptor, off_t size) { return truncated(REAL(ftruncate)(descriptor, size), descriptor, (uint64_t)size); }
int ftruncate64(int descriptor, off64_t size) { return truncated(REAL(ftruncate64)(descriptor, size), descriptor, (uint64_t)size); }

/* Allocating may move the end of the file and changes nothing else, unless asked to. */
static int allocated(int result, int descriptor, int mode)
{
    struct stat state;
    if (result != 0 || !is_tracked(descriptor))
        return result;
    if (mode & ~1) {
        static const char message[] = "record_io: fallocate with this mode is not recorded\n";
        syscall(SYS_write, 2, message, sizeof message - 1);
        _exit(99);
    }
    if (fstat(descriptor, &state) == 0)
        truncated(0, descriptor, (uint64_t)state.st_size);
    return result;
}

int fallocate(int descriptor, int mode, off_t offset, off_t size) { return allocated(REAL(fallocate)(descriptor, mode, offset, size), descriptor, mode); }
int fallocate64(int descriptor, int mode, off64_t offset, off64_t size) { return allocated(REAL(fallocate64)(descriptor, mode, offset, size), descriptor, mode); }
int posix_fallocate(int descriptor, off_t offset, off_t size) { return allocated(REAL(posix_fallocate)(descriptor, offset, size), descriptor, 0); }
int posix_fallocate64(int descriptor, off64_t offset, off64_t size) { return allocated(REAL(posix_fallocate64)(descriptor, offset, size), descriptor, 0); }

#define SYNC(name)                                                                                     \
    int name(int descriptor)                                                                           \
    {                                                                                                  \
        int seen = is_tracked(descriptor);                                                             \
        if (seen)                                                                                      \
            append((struct record){.operation = SYNC_BEGIN, .descriptor = descriptor}, NULL, NULL, NULL); \
        int result = REAL(name)(descriptor);                                                           \
        if (seen && result == 0)                                                                       \
            append((struct record){.operation = SYNC_END, .descriptor = descriptor}, NULL, NULL, NULL); \
        return result;                                                                                 \
    }
SYNC(fsync)
SYNC(fdatasync)

static int named(int result, uint32_t operation, int directory, const char *name)
{
    char path[PATH_MAX];
    if (result == 0 && log_descriptor >= 0 && resolve(directory, name, path) && is_below_root(path))
        append((struct record){.operation = operation}, path, NULL, NULL);
    return result;
}

static int named_twice(int result, uint32_t operation, int directory, const char *name, int directory2, const char *name2)
{
    char path[PATH_MAX], path2[PATH_MAX];
    if (result == 0 && log_descriptor >= 0 && resolve(directory, name, path) && resolve(directory2, name2, path2) &&
        (is_below_root(path) || is_below_root(path2)))
        append((struct record){.operation = operation}, path, path2, NULL);
    return result;
}

int rename(const char *old, const char *new) { return named_twice(REAL(rename)(old, new), RENAME, AT_FDCWD, old, AT_FDCWD, new); }
int renameat(int from, const char *old, int to, const char *new) { return named_twice(REAL(renameat)(from, old, to, new), RENAME, from, old, to, new); }
int renameat2(int from, const char *old, int to, const char *new, unsigned flags) { return named_twice(REAL(renameat2)(from, old, to, new, flags), RENAME, from, old, to, new); }
int link(const char *old, const char *new) { return named_twice(REAL(link)(old, new), LINK, AT_FDCWD, old, AT_FDCWD, new); }
int linkat(int from, const char *old, int to, const char *new, int flags) { return named_twice(REAL(linkat)(from, old, to, new, flags), LINK, from, old, to, new); }
int unlink(const char *name) { return named(REAL(unlink)(name), UNLINK, AT_FDCWD, name); }
int unlinkat(int directory, const char *name, int flags) { return named(REAL(unlinkat)(directory, name, flags), flags & AT_REMOVEDIR ? RMDIR : UNLINK, directory, name); }
int rmdir(const char *name) { return named(REAL(rmdir)(name), RMDIR, AT_FDCWD, name); }
int mkdir(const char *name, mode_t mode) { return named(REAL(mkdir)(name, mode), MKDIR, AT_FDCWD, name); }
int mkdirat(int directory, const char *name, mode_t mode) { return named(REAL(mkdirat)(directory, name, mode), MKDIR, directory, name); }
