/*
 * Loaded into sqlite3 by LD_PRELOAD: the process ends or stops itself at an exact point of a transaction,
 * which no timing can reach reliably.
 *   STOP_AT      commit-frame   after the write of a commit frame to a -wal: before the wal-index knows it
 *                wal-frame      before the first write of a frame to a -wal
 *                unlink         before a file is removed
 *                truncate       before a file is cut to nothing
 *                zero-header    before the header of a journal is overwritten with zeros
 *   STOP_FILE    how the name of that file ends; for super-journals, what it holds
 *   STOP_SIGNAL  KILL or STOP
 *   STOP_HOLD    a child keeps all descriptors open after that, until descriptor 3 is closed at its other end
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int at(const char *point, const char *path) {
  const char *wanted = getenv("STOP_AT"), *file = getenv("STOP_FILE");
  return wanted && file && !strcmp(wanted, point) && strstr(path, file);
}

static void stop(void) {
  const char *signal = getenv("STOP_SIGNAL");
  unsetenv("STOP_AT"); /* once */
  if (getenv("STOP_HOLD") && fork() == 0) {
    char end;
    for (int fd = 0; fd < 3; fd++) close(fd);
    while (read(3, &end, 1) > 0) continue;
    _exit(0);
  }
  raise(signal && !strcmp(signal, "STOP") ? SIGSTOP : SIGKILL);
}

static void name_of(int fd, char *path, size_t size) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, size - 1);
  path[length < 0 ? 0 : length] = 0;
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t offset) {
  static ssize_t (*next)(int, const void *, size_t, off64_t);
  static int commits = 0;
  const unsigned char *b = bytes;
  char path[4096];
  if (!next) next = dlsym(RTLD_NEXT, "pwrite64");
  if (!getenv("STOP_AT")) return next(fd, bytes, length, offset);
  name_of(fd, path, sizeof path);
  if (at("wal-frame", path) && length == 24) stop();
  if (at("zero-header", path) && offset == 0 && length >= 8 && !memcmp(b, "\0\0\0\0\0\0\0\0", 8)) stop();
  ssize_t written = next(fd, bytes, length, offset);
  if (at("commit-frame", path)) {
    /* A frame is its header of 24 bytes, where bytes 4 to 7 are not zero in a commit frame, and its page. */
    if (length == 24) commits = b[4] || b[5] || b[6] || b[7];
    else if (commits && offset > 0) stop();
  }
  return written;
}

int unlink(const char *path) {
  static int (*next)(const char *);
  if (!next) next = dlsym(RTLD_NEXT, "unlink");
  if (at("unlink", path)) stop();
  return next(path);
}

int ftruncate64(int fd, off64_t length) {
  static int (*next)(int, off64_t);
  char path[4096];
  if (!next) next = dlsym(RTLD_NEXT, "ftruncate64");
  name_of(fd, path, sizeof path);
  if (length == 0 && at("truncate", path)) stop();
  return next(fd, length);
}
