/*
 * Loaded into a daemon and its children by LD_PRELOAD: their clocks, and nobody else's, run beside the machine's by offsets
 * that a test may change at any time. The file CLOCK_OFFSETS holds two 64-bit numbers, nanoseconds: of the wall clock and
 * of the monotonic clock. libfaketime can move the wall clock; a guest that was suspended finds its monotonic clock where
 * it was while the wall clock went on, and that takes both.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t none[2];
static const volatile int64_t *offsets = none;

__attribute__((constructor)) static void start(void) {
  const char *path = getenv("CLOCK_OFFSETS");
  int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (fd < 0) return;
  void *mapped = mmap(0, sizeof none, PROT_READ, MAP_SHARED, fd, 0);
  if (mapped != MAP_FAILED) offsets = mapped;
  close(fd);
}

static void move(struct timespec *at, int64_t by) {
  int64_t ns = at->tv_sec * 1000000000LL + at->tv_nsec + by;
  at->tv_sec = ns / 1000000000LL;
  at->tv_nsec = ns % 1000000000LL;
}

int clock_gettime(clockid_t clock, struct timespec *at) {
  static int (*next)(clockid_t, struct timespec *);
  if (!next) next = dlsym(RTLD_NEXT, "clock_gettime");
  int failed = next(clock, at);
  if (failed) return failed;
  if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) move(at, offsets[0]);
  if (clock == CLOCK_MONOTONIC || clock == CLOCK_MONOTONIC_COARSE) move(at, offsets[1]);
  return 0;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
  struct timespec now;
  (void)zone;
  clock_gettime(CLOCK_REALTIME, &now);
  at->tv_sec = now.tv_sec;
  at->tv_usec = now.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *at) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (at) *at = now.tv_sec;
  return now.tv_sec;
}

/* Node waits by the monotonic clock: until a moment of the clock above, which the kernel does not know. */
int pthread_cond_timedwait(pthread_cond_t *restrict cond, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until) {
  static int (*next)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
  if (!next) next = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
  if (!next) next = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
  struct timespec at = *until;
  move(&at, -offsets[1]);
  return next(cond, mutex, &at);
}
