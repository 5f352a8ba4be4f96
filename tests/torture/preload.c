/* Preloaded into a process. Of all calls that change a file below the watched folder it can
     kill the process at the n-th one, before it or after half of a write    arm(n, half)
     kill it after so many seconds of its own time                          time_out(seconds)
     fail like a full disk from the n-th one on                              fill(n)
     write each down with its data, so that replay.py can cut the power      record(log)
   and it can fail the n-th large allocation and all after it                starve(n)
   Not seen: writes through mmap (SQLite's -shm) and those of C's stdio. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define LARGE (64 * 1024)
static char root[PATH_MAX] = "";
static long left = 0, calls = 0, full_at = 0, allocations = 0, starved_at = 0;
static int halves = 0, log_file = -1;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

void watch(const char *folder) { strncpy(root, folder, PATH_MAX - 1); calls = allocations = 0; }
void arm(long n, int half) { calls = 0; left = n; halves = half; }
void fill(long n) { calls = 0; full_at = n; }
void starve(long n) { allocations = 0; starved_at = n; }
long seen(void) { return calls; }
long allocated(void) { return allocations; }
void record(const char *path) {
    log_file = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
}

static void die(void) { kill(getpid(), SIGKILL); for (;;) pause(); }
static void on_time(int number) { (void)number; die(); }
void time_out(double seconds) {
    struct itimerval timer = {{0, 0}, {(long)seconds, (long)((seconds - (long)seconds) * 1e6) + 1}};
    signal(SIGPROF, on_time);
    setitimer(ITIMER_PROF, &timer, NULL);
}

/* --- which file a call is about */

static int of_handle(int handle, char *path) {
    char link[64];
    int before = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    ssize_t size = readlink(link, path, PATH_MAX - 1);
    errno = before;
    if (size <= 0) return 0;
    path[size] = 0;
    return 1;
}

static int of_path(int folder, const char *name, char *path) {
    if (name == NULL) return 0;
    if (name[0] == '/') { snprintf(path, PATH_MAX, "%s", name); return 1; }
    char at[PATH_MAX];
    if (folder == AT_FDCWD ? getcwd(at, sizeof at) == NULL : !of_handle(folder, at)) return 0;
    if (strlen(at) + strlen(name) + 2 > PATH_MAX) return 0;
    strcpy(path, at); strcat(path, "/"); strcat(path, name);
    return 1;
}

static int watched(const char *path) {
    size_t size = strlen(root);
    return !size || (strncmp(path, root, size) == 0 && (path[size] == '/' || !path[size]));
}

/* Whether the call is the one to die at; -1: the disk is full. */
static int due(int known, const char *path) {
    if (!known || !watched(path)) return 0;
    long number = __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
    if (left > 0 && number == left) return 1;
    return full_at > 0 && number >= full_at ? -1 : 0;
}

/* The number of a file: a library may rename one by a call that is not seen here, and it is known by this again. */
static unsigned long number_of(int handle, const char *path) {
    struct stat found;
    int before = errno, there = log_file >= 0 && (path ? lstat(path, &found) : fstat(handle, &found)) == 0;
    errno = before;
    return there ? found.st_ino : 0;
}

static void note(const char *kind, const char *path, const char *other, unsigned long file, long offset,
                 const void *data, size_t size) {
    if (log_file < 0 || !watched(path)) return;
    int before = errno;
    char head[2 * PATH_MAX + 100];
    int length = snprintf(head, sizeof head, "%s\t%s\t%s\t%lu\t%ld\t%zu\n", kind, path, other, file, offset, size);
    pthread_mutex_lock(&lock);
    syscall(SYS_write, log_file, head, length);
    for (size_t done = 0; done < size;) {
        long wrote = syscall(SYS_write, log_file, (const char *)data + done, size - done);
        if (wrote <= 0) break;
        done += wrote;
    }
    pthread_mutex_unlock(&lock);
    errno = before;
}

/* --- writes */

#define GUARD_WRITE(half) \
    char path[PATH_MAX]; \
    int known = of_handle(f, path); \
    switch (due(known, path)) { \
        case 1: if (halves) (void)!half; die(); break; \
        case -1: errno = ENOSPC; return -1; \
    }
#define NOTED_WRITE(at) \
    if (done > 0 && known) note("write", path, "", number_of(f, NULL), at, b, done); \
    return done;

ssize_t write(int f, const void *b, size_t n) {
    GUARD_WRITE(REAL(write)(f, b, n / 2))
    ssize_t done = REAL(write)(f, b, n);
    NOTED_WRITE(lseek(f, 0, SEEK_CUR) - done)
}
ssize_t pwrite(int f, const void *b, size_t n, off_t o) {
    GUARD_WRITE(REAL(pwrite)(f, b, n / 2, o))
    ssize_t done = REAL(pwrite)(f, b, n, o);
    NOTED_WRITE(o)
}
ssize_t pwrite64(int f, const void *b, size_t n, off64_t o) {
    GUARD_WRITE(REAL(pwrite64)(f, b, n / 2, o))
    ssize_t done = REAL(pwrite64)(f, b, n, o);
    NOTED_WRITE(o)
}
/* A vector is written part by part; who copies with these two calls then copies with read and write. */
ssize_t writev(int f, const struct iovec *parts, int count) {
    ssize_t total = 0;
    for (int i = 0; i < count; i++) {
        if (!parts[i].iov_len) continue;
        ssize_t done = write(f, parts[i].iov_base, parts[i].iov_len);
        if (done < 0) return total ? total : -1;
        total += done;
        if ((size_t)done < parts[i].iov_len) break;
    }
    return total;
}
ssize_t sendfile(int out, int in, off_t *o, size_t n) { (void)out, (void)in, (void)o, (void)n; errno = EINVAL; return -1; }
ssize_t sendfile64(int out, int in, off64_t *o, size_t n) { (void)out, (void)in, (void)o, (void)n; errno = EINVAL; return -1; }
ssize_t copy_file_range(int in, off64_t *a, int out, off64_t *b, size_t n, unsigned f) {
    (void)in, (void)a, (void)out, (void)b, (void)n, (void)f; errno = ENOSYS; return -1;
}

/* --- all other changes: of a handle, of a path, of two paths */

#define OF_HANDLE(name, parameters, arguments, kind, size) \
    int name parameters { \
        char path[PATH_MAX]; \
        int known = of_handle(f, path); \
        if (due(known, path) == 1) die(); \
        int done = REAL(name) arguments; \
        if (!done && known) note(kind, path, "", number_of(f, NULL), size, "", 0); \
        return done; \
    }
OF_HANDLE(fsync, (int f), (f), "fsync", 0)
OF_HANDLE(fdatasync, (int f), (f), "fsync", 0)
OF_HANDLE(ftruncate, (int f, off_t n), (f, n), "truncate", n)
OF_HANDLE(ftruncate64, (int f, off64_t n), (f, n), "truncate", n)
OF_HANDLE(fchmod, (int f, mode_t m), (f, m), "chmod", m)

#define OF_PATH(name, parameters, arguments, at, path_name, kind, size, grows) \
    int name parameters { \
        char path[PATH_MAX]; \
        int known = of_path(at, path_name, path), fate = due(known, path); \
        if (fate == 1) die(); \
        if (fate == -1 && grows) { errno = ENOSPC; return -1; } \
        unsigned long file = known ? number_of(0, path) : 0; \
        int done = REAL(name) arguments; \
        if (!done && known) note(kind, path, "", file, size, "", 0); \
        return done; \
    }
OF_PATH(unlink, (const char *a), (a), AT_FDCWD, a, "unlink", 0, 0)
OF_PATH(unlinkat, (int d, const char *a, int f), (d, a, f), d, a, "unlink", 0, 0)
OF_PATH(rmdir, (const char *a), (a), AT_FDCWD, a, "unlink", 0, 0)
OF_PATH(mkdir, (const char *a, mode_t m), (a, m), AT_FDCWD, a, "mkdir", 0, 1)
OF_PATH(mkdirat, (int d, const char *a, mode_t m), (d, a, m), d, a, "mkdir", 0, 1)
OF_PATH(truncate, (const char *a, off_t n), (a, n), AT_FDCWD, a, "truncate", n, 0)
OF_PATH(chmod, (const char *a, mode_t m), (a, m), AT_FDCWD, a, "chmod", m, 0)

#define OF_TWO(name, parameters, arguments, from_at, from, to_at, to, kind) \
    int name parameters { \
        char path[PATH_MAX], other[PATH_MAX]; \
        int known = of_path(from_at, from, path) && of_path(to_at, to, other); \
        if (due(known, other) == 1) die(); \
        unsigned long file = known ? number_of(0, path) : 0; \
        int done = REAL(name) arguments; \
        if (!done && known) note(kind, path, other, file, 0, "", 0); \
        return done; \
    }
OF_TWO(rename, (const char *a, const char *b), (a, b), AT_FDCWD, a, AT_FDCWD, b, "rename")
OF_TWO(renameat, (int d, const char *a, int e, const char *b), (d, a, e, b), d, a, e, b, "rename")
OF_TWO(link, (const char *a, const char *b), (a, b), AT_FDCWD, a, AT_FDCWD, b, "link")
OF_TWO(linkat, (int d, const char *a, int e, const char *b, int f), (d, a, e, b, f), d, a, e, b, "link")

/* --- opening creates files and empties them */

#define OPENS(name, parameters, at, call, fixed) \
    int name parameters { \
        mode_t mode = 0; \
        if (flags & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); } \
        if (!(flags & (O_CREAT | O_TRUNC)) || (flags & O_TMPFILE) == O_TMPFILE) return REAL(name) call; \
        char path[PATH_MAX]; \
        struct stat before; \
        int known = of_path(at, a, path), error = errno, there = known && stat(path, &before) == 0; \
        errno = error; \
        int fate = there && !(flags & O_TRUNC) ? 0 : due(known, path); \
        if (fate == 1) die(); \
        if (fate == -1 && !there) { errno = ENOSPC; return -1; } \
        int done = REAL(name) call; \
        if (done >= 0 && known && !there) note("create", path, "", number_of(done, NULL), 0, "", 0); \
        if (done >= 0 && known && there && (flags & O_TRUNC)) note("truncate", path, "", number_of(done, NULL), 0, "", 0); \
        return done; \
    }
OPENS(open, (const char *a, int flags, ...), AT_FDCWD, (a, flags, mode), 0)
OPENS(open64, (const char *a, int flags, ...), AT_FDCWD, (a, flags, mode), 0)
OPENS(openat, (int d, const char *a, int flags, ...), d, (d, a, flags, mode), 0)
OPENS(openat64, (int d, const char *a, int flags, ...), d, (d, a, flags, mode), 0)

/* A full disk also says so when it is asked. */
#define ASKED(name, type) \
    int name(const char *a, struct type *found) { \
        int done = REAL(name)(a, found); \
        if (full_at > 0 && calls >= full_at) found->f_bfree = found->f_bavail = 0; \
        return done; \
    }
ASKED(statvfs, statvfs)
ASKED(statvfs64, statvfs64)

/* --- memory: what torch allocates for tensors */

int posix_memalign(void **place, size_t alignment, size_t size) {
    if (size >= LARGE) {
        long number = __atomic_add_fetch(&allocations, 1, __ATOMIC_SEQ_CST);
        if (starved_at > 0 && number >= starved_at) return ENOMEM;
    }
    return REAL(posix_memalign)(place, alignment, size);
}
