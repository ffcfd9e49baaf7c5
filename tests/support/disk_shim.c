/* A disk that can be made to fail: preloaded into a process, it stands before the system calls that
 * write, read and sync, for files below one folder only.
 *
 * DISK_FOLDER names the folder, DISK_SWITCH a file of `struct fault` that a test writes while the
 * process runs (disk_faults.py knows the same layout). What is switched off costs one comparison.
 * Nothing here is part of the product.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

enum { WRITE, GROW, SYNC, READ, KINDS };

struct fault {
    int32_t error;    /* errno that the call fails with; 0: it is let through */
    int32_t delay_ms; /* before that */
    int32_t hits;     /* calls that were made to fail or to wait */
    int32_t unused;
};

static volatile struct fault *faults;
static const char *folder;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("DISK_SWITCH");
    folder = getenv("DISK_FOLDER");
    int file = path && folder ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *mapped = mmap(NULL, KINDS * sizeof *faults, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (mapped != MAP_FAILED) faults = mapped;
}

static int below_folder(int fd) {
    char link[64] = "/proc/self/fd/", path[PATH_MAX], digits[16];
    int at = sizeof digits - 1, rest = fd;
    digits[at] = 0;
    do digits[--at] = (char)('0' + rest % 10); while (rest /= 10);
    strcat(link, digits + at);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strncmp(path, folder, strlen(folder)) == 0;
}

/* 0, or -1 with errno set. */
static int refused(int kind, int fd) {
    if (!faults || fd < 0) return 0;
    int32_t error = faults[kind].error, delay_ms = faults[kind].delay_ms;
    if ((!error && !delay_ms) || !below_folder(fd)) return 0;
    __sync_fetch_and_add(&faults[kind].hits, 1);
    if (delay_ms) {
        struct timespec pause = {delay_ms / 1000, delay_ms % 1000 * 1000000L};
        nanosleep(&pause, NULL);
    }
    errno = error;
    return error ? -1 : 0;
}

/* A write up to `end`: on a full disk what lies there already may be written over. */
static int write_refused(int fd, off_t end) {
    struct stat now;
    if (refused(WRITE, fd)) return -1;
    if (!faults || !faults[GROW].error || fstat(fd, &now) || end <= now.st_size) return 0;
    return refused(GROW, fd);
}

static off_t end_of_write(int fd, size_t count) {
    off_t at = faults && faults[GROW].error ? lseek(fd, 0, SEEK_CUR) : 0;
    return at + (off_t)count;
}

#define USUAL(name) __typeof__(&name) usual = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *data, size_t count) {
    USUAL(write);
    return write_refused(fd, end_of_write(fd, count)) ? -1 : usual(fd, data, count);
}
ssize_t pwrite(int fd, const void *data, size_t count, off_t at) {
    USUAL(pwrite);
    return write_refused(fd, at + (off_t)count) ? -1 : usual(fd, data, count, at);
}
ssize_t pwrite64(int fd, const void *data, size_t count, off64_t at) {
    USUAL(pwrite64);
    return write_refused(fd, at + (off_t)count) ? -1 : usual(fd, data, count, at);
}
int ftruncate(int fd, off_t size) {
    USUAL(ftruncate);
    return write_refused(fd, size) ? -1 : usual(fd, size);
}
int ftruncate64(int fd, off64_t size) {
    USUAL(ftruncate64);
    return write_refused(fd, size) ? -1 : usual(fd, size);
}
int posix_fallocate(int fd, off_t at, off_t count) {
    USUAL(posix_fallocate);
    return write_refused(fd, at + count) ? errno : usual(fd, at, count);
}
int fsync(int fd) {
    USUAL(fsync);
    return refused(SYNC, fd) ? -1 : usual(fd);
}
int fdatasync(int fd) {
    USUAL(fdatasync);
    return refused(SYNC, fd) ? -1 : usual(fd);
}
ssize_t read(int fd, void *data, size_t count) {
    USUAL(read);
    return refused(READ, fd) ? -1 : usual(fd, data, count);
}
ssize_t pread(int fd, void *data, size_t count, off_t at) {
    USUAL(pread);
    return refused(READ, fd) ? -1 : usual(fd, data, count, at);
}
ssize_t pread64(int fd, void *data, size_t count, off64_t at) {
    USUAL(pread64);
    return refused(READ, fd) ? -1 : usual(fd, data, count, at);
}
