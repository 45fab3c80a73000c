/* Exercises the runtime from C, where sanitizers, allocation counters and emulators can watch it.
 *
 *   toy_program everything STEPS   every format, rotation and option, on blocks of exactly the size that may be read;
 *                                  streams made and destroyed, failing kernels, two threads; prints "bytes in use" twice
 *   toy_program quiet              after a warm-up: allocations and lock calls of 200 steps, then 200 steps more under a
 *                                  filter that kills at the first system call but read, write and exit
 *   toy_program idle THREADS       CPU time of this process over half a second without a step
 *   toy_program camera FORMAT W H ROTATION PIXELS OUT    preprocess one packed picture from a file */
#define _GNU_SOURCE
#include "tsm_edge.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#endif

#define CHECK(condition) do { if (!(condition)) { printf("FAILED line %d: %s\n", __LINE__, #condition); exit(1); } } while (0)

#ifdef TOY_COUNT /* glibc: our definitions come before the library's, for the library's own calls too */
#include <dlfcn.h>
static long allocations, locks;
void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t), *__libc_memalign(size_t, size_t);
void *malloc(size_t n) { allocations++; return __libc_malloc(n); }
void *calloc(size_t n, size_t m) { allocations++; return __libc_calloc(n, m); }
void *realloc(void *p, size_t n) { allocations++; return __libc_realloc(p, n); }
void *memalign(size_t a, size_t n) { allocations++; return __libc_memalign(a, n); }
void *aligned_alloc(size_t a, size_t n) { return memalign(a, n); }
int posix_memalign(void **p, size_t a, size_t n) { return (*p = memalign(a, n)) ? 0 : 12; }
int pthread_mutex_lock(pthread_mutex_t *m) {
  static int (*next)(pthread_mutex_t *);
  if (!next) *(void **)&next = dlsym(RTLD_NEXT, "pthread_mutex_lock");
  locks++;
  return next(m);
}
#else
static long allocations, locks;
#endif

static tsm_model *model;
static tsm_model_info info = {.size = sizeof info};

static tsm_stream *stream_with(int threads) {
  tsm_stream_options options = {.size = sizeof options, .threads = threads, .timings = 1, .profile = threads & 1};
  tsm_stream *stream = NULL;
  CHECK(tsm_stream_create(model, &options, &stream) == TSM_OK);
  return stream;
}

/* A picture whose planes are heap blocks that end with the last byte that may be read. */
typedef struct { tsm_image image; uint8_t *blocks[3]; } picture;

static picture make(int format, int width, int height, int pad, int pixel_stride) {
  picture p = {.image = {.size = sizeof p.image, .format = format, .width = width, .height = height}};
  int cw = (width + 1) / 2, ch = (height + 1) / 2;
  int rows[3] = {height, ch, ch}, bytes[3] = {width, 2 * cw, 0};
  if (format <= TSM_FORMAT_BGRA) bytes[0] = width * (format >= TSM_FORMAT_RGBA ? 4 : 3), rows[1] = rows[2] = 0;
  else if (format == TSM_FORMAT_I420) bytes[1] = bytes[2] = (cw - 1) * pixel_stride + 1, p.image.pixel_stride = pixel_stride;
  else rows[2] = 0;
  for (int i = 0; i < 3 && rows[i]; i++) {
    size_t size = (size_t)(rows[i] - 1) * (size_t)(bytes[i] + pad) + (size_t)bytes[i];
    p.blocks[i] = malloc(size);
    for (size_t k = 0; k < size; k++) p.blocks[i][k] = (uint8_t)(k * 37 + k / 97 + (size_t)format);
    p.image.planes[i] = p.blocks[i];
    p.image.strides[i] = pad ? bytes[i] + pad : 0;
  }
  return p;
}

static void drop(picture *p) { for (int i = 0; i < 3; i++) free(p->blocks[i]); }

static void *step_many(void *argument) {
  tsm_stream *stream = stream_with(2);
  float *frame = calloc((size_t)info.frame_bytes / (size_t)(info.frame_bits / 8), sizeof *frame);
  for (long i = 0; i < *(long *)argument; i++) CHECK(tsm_stream_step_tensor(stream, frame, NULL) == TSM_OK);
  free(frame);
  tsm_stream_destroy(stream);
  return NULL;
}

static long bytes_in_use(void) { /* resident pages */
  long total = 0, resident = 0;
  FILE *file = fopen("/proc/self/statm", "r");
  if (!file) return 0;
  if (fscanf(file, "%ld %ld", &total, &resident) != 2) resident = 0;
  fclose(file);
  return resident * sysconf(_SC_PAGESIZE);
}

static void everything(long steps) {
  static const int sizes[][2] = {{1, 1}, {2, 3}, {5, 1}, {31, 17}, {40, 64}, {97, 41}};
  size_t values = (size_t)3 * (size_t)info.width * (size_t)info.height;
  float *frame = calloc(values, sizeof *frame), *out = malloc(values * sizeof *out);
  for (int format = 0; format <= TSM_FORMAT_I420; format++) {
    tsm_stream *stream = stream_with(format % 3 + 1);
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
      for (int variant = 0; variant < 8; variant++) {
        picture p = make(format, sizes[s][0], sizes[s][1], variant & 1 ? 11 : 0, variant % 4 + 1);
        p.image.rotation = variant / 2 * 90;
        p.image.yuv_range = variant & 1;
        tsm_result result = {.size = sizeof result};
        CHECK(tsm_stream_step(stream, &p.image, &result) == TSM_OK);
        CHECK(result.label && result.score > 0);
        CHECK(tsm_stream_preprocess(stream, &p.image, out) == TSM_OK);
        p.image.width = -1;
        CHECK(tsm_stream_step(stream, &p.image, &result) == TSM_ERROR_IMAGE);
        drop(&p);
      }
    tsm_stream_destroy(stream);
  }
  pthread_t threads[2];
  long share = steps / 10;
  for (int i = 0; i < 2; i++) CHECK(pthread_create(&threads[i], NULL, step_many, &share) == 0);
  for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
  for (int round = 0; round < 2; round++) {
    tsm_stream *stream = stream_with(round + 1);
    for (long i = 0; i < steps; i++) {
      frame[0] = i % 50 == 7 ? 2000 : 0;
      CHECK(tsm_stream_step_tensor(stream, frame, NULL) == (i % 50 == 7 ? TSM_ERROR_KERNEL : TSM_OK));
      if (i % 100 == 99) {
        CHECK(tsm_stream_reset(stream) == TSM_OK);
        tsm_stream *other = stream_with(3);
        tsm_stream_destroy(other);
      }
      if (i == steps / 4) printf("early %ld\n", bytes_in_use());
    }
    printf("late %ld\n", bytes_in_use());
    tsm_stream_destroy(stream);
  }
  free(frame), free(out);
}

static void quiet(void) {
  tsm_stream_options options = {.size = sizeof options, .threads = 1, .timings = 0};
  tsm_stream *stream = NULL;
  CHECK(tsm_stream_create(model, &options, &stream) == TSM_OK);
  picture pictures[] = {make(TSM_FORMAT_NV21, 90, 60, 0, 1)};
  float *frame = calloc((size_t)3 * (size_t)info.width * (size_t)info.height, sizeof *frame);
  CHECK(tsm_stream_prepare(stream, &pictures[0].image) == TSM_OK);
  long before = allocations, locks_before = locks;
  for (int i = 0; i < 200; i++) {
    tsm_result result = {.size = sizeof result};
    pictures[0].image.has_timestamp = 1;
    pictures[0].image.timestamp_ns = (int64_t)i * 80000000;
    CHECK(tsm_stream_step(stream, &pictures[0].image, &result) == TSM_OK && !result.skipped);
    CHECK(tsm_stream_step_tensor(stream, frame, &result) == TSM_OK);
  }
  printf("allocations %ld of %ld, locks %ld of %ld\n", allocations - before, before, locks - locks_before, locks_before);
  fflush(stdout);
#ifdef __linux__
  CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) == 0);
  int ok = 1;
  for (int i = 0; i < 200; i++) {
    pictures[0].image.timestamp_ns = (int64_t)(i + 200) * 80000000;
    ok &= tsm_stream_step(stream, &pictures[0].image, NULL) == TSM_OK;
    ok &= tsm_stream_step_tensor(stream, frame, NULL) == TSM_OK;
  }
  if (ok && write(1, "no system calls\n", 16) != 16) ok = 0;
  syscall(SYS_exit, !ok);
#endif
}

static void idle(int threads) {
  tsm_stream *stream = stream_with(threads);
  float *frame = calloc((size_t)3 * (size_t)info.width * (size_t)info.height, sizeof *frame);
  for (int i = 0; i < 20; i++) CHECK(tsm_stream_step_tensor(stream, frame, NULL) == TSM_OK);
  usleep(50000);
  struct timespec a, b;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &a);
  usleep(500000);
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &b);
  printf("%.3f\n", (double)(b.tv_sec - a.tv_sec) * 1e3 + (double)(b.tv_nsec - a.tv_nsec) * 1e-6);
  tsm_stream_destroy(stream);
  free(frame);
}

static void camera(char **argv) {
  picture p = make(atoi(argv[0]), atoi(argv[1]), atoi(argv[2]), 0, 1);
  p.image.rotation = atoi(argv[3]);
  FILE *in = fopen(argv[4], "rb"), *out = fopen(argv[5], "wb");
  CHECK(in && out);
  int cw = (p.image.width + 1) / 2, ch = (p.image.height + 1) / 2, yuv = p.image.format >= TSM_FORMAT_NV12;
  size_t first = (size_t)p.image.width * (size_t)p.image.height * (yuv ? 1 : p.image.format >= TSM_FORMAT_RGBA ? 4 : 3);
  size_t chroma = (size_t)cw * (size_t)ch * (p.image.format == TSM_FORMAT_I420 ? 1 : 2);
  CHECK(fread(p.blocks[0], 1, first, in) == first);
  for (int i = 1; i < 3 && p.blocks[i]; i++) CHECK(fread(p.blocks[i], 1, chroma, in) == chroma);
  size_t values = (size_t)3 * (size_t)info.width * (size_t)info.height;
  float *frame = malloc(values * sizeof *frame);
  tsm_stream *stream = stream_with(1);
  CHECK(tsm_stream_preprocess(stream, &p.image, frame) == TSM_OK);
  CHECK(fwrite(frame, sizeof *frame, values, out) == values);
  tsm_stream_destroy(stream);
  free(frame);
  fclose(in), fclose(out), drop(&p);
}

int main(int argc, char **argv) {
  CHECK(argc > 1 && tsm_model_create(NULL, &model) == TSM_OK && tsm_model_get_info(model, &info) == TSM_OK);
  if (!strcmp(argv[1], "everything") && argc > 2) everything(atol(argv[2]));
  else if (!strcmp(argv[1], "quiet")) quiet();
  else if (!strcmp(argv[1], "idle") && argc > 2) idle(atoi(argv[2]));
  else if (!strcmp(argv[1], "camera") && argc > 7) camera(argv + 2);
  else return 2;
  tsm_model_destroy(model);
  printf("PASSED\n");
  return 0;
}
