/* Preloaded into a process: kills it at the n-th call that changes a file, before the call, or after half of a write. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static long left = 0, calls = 0;
static int halves = 0;

void arm(long n, int half) { left = n; halves = half; calls = 0; }
long seen(void) { return calls; }

static int due(void) { calls++; return left > 0 && --left == 0; }
static void die(void) { kill(getpid(), SIGKILL); for (;;) pause(); }

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define WRITES(name, parameters, whole, half) \
    ssize_t name parameters { if (due()) { if (halves) (void)!REAL(name) half; die(); } return REAL(name) whole; }
#define CHANGES(name, parameters, arguments) \
    int name parameters { if (due()) die(); return REAL(name) arguments; }

WRITES(write, (int f, const void *b, size_t n), (f, b, n), (f, b, n / 2))
WRITES(pwrite, (int f, const void *b, size_t n, off_t o), (f, b, n, o), (f, b, n / 2, o))
WRITES(pwrite64, (int f, const void *b, size_t n, off64_t o), (f, b, n, o), (f, b, n / 2, o))
CHANGES(fsync, (int f), (f))
CHANGES(fdatasync, (int f), (f))
CHANGES(ftruncate, (int f, off_t n), (f, n))
CHANGES(ftruncate64, (int f, off64_t n), (f, n))
CHANGES(rename, (const char *a, const char *b), (a, b))
CHANGES(unlink, (const char *a), (a))
CHANGES(unlinkat, (int d, const char *a, int f), (d, a, f))
CHANGES(rmdir, (const char *a), (a))
CHANGES(mkdir, (const char *a, mode_t m), (a, m))
CHANGES(chmod, (const char *a, mode_t m), (a, m))
CHANGES(fchmod, (int f, mode_t m), (f, m))
