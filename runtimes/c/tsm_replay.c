/* tsm_replay: steps a model library through recorded frames, chained from zero caches, and writes what it computes.
 *
 *   tsm_replay LIBRARY inputs.bin FRAMES outputs.bin [THREADS]
 *
 * inputs.bin:  FRAMES x float32 [3, height, width], normalised; nothing before, between or after.
 * outputs.bin: for every frame: float32 [classes] logits, then every cache after that frame, in the model's order, as
 *              float32 [channels, height, width]; nothing before, between or after.
 * All values in the machine's byte order (little-endian on every target). THREADS: 1 unless given; 0: the model's default.
 * Prints one line, `PASSED model=... frames=... threads=... mean_ms=... first_ms=...`, or `FAILED why`; exits 0, 1 (the
 * model failed) or 2 (wrong usage or files).
 *
 * Build: cc -O2 tsm_replay.c -o tsm_replay -ldl, or with -DTSM_REPLAY_STATIC and the library itself: LIBRARY is then not
 * looked at (give `-`). */
#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* clock_gettime, dlopen */
#endif
#include "tsm_edge.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#ifndef TSM_REPLAY_STATIC
#include <dlfcn.h>
#endif

#define FUNCTIONS(X) \
  X(tsm_api_version) X(tsm_status_message) X(tsm_model_create) X(tsm_model_destroy) X(tsm_model_get_info) \
  X(tsm_model_get_cache_info) X(tsm_stream_create) X(tsm_stream_destroy) X(tsm_stream_step_tensor) \
  X(tsm_stream_get_cache) X(tsm_stream_error) X(tsm_stream_threads)

static struct {
#define X(name) __typeof__(&name) name;
  FUNCTIONS(X)
#undef X
} api;

static int fail(int code, const char *what, const char *detail) {
  printf("FAILED %s%s%s\n", what, detail && *detail ? ": " : "", detail ? detail : "");
  return code;
}

static int open_library(const char *path) {
#ifdef TSM_REPLAY_STATIC
  (void)path;
#define X(name) api.name = name;
  FUNCTIONS(X)
#undef X
#else
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) return fail(2, "cannot open the library", dlerror());
  void *symbol;
#define X(name) \
  if (!(symbol = dlsym(library, #name))) return fail(2, "not a model library: it lacks", #name); \
  memcpy(&api.name, &symbol, sizeof symbol);
  FUNCTIONS(X)
#undef X
#endif
  if (api.tsm_api_version() != TSM_API_VERSION) return fail(2, "the library has another version of the interface", NULL);
  return 0;
}

static double now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
}

int main(int argc, char **argv) {
  if (argc < 5 || argc > 6) {
    fprintf(stderr, "usage: tsm_replay LIBRARY inputs.bin FRAMES outputs.bin [THREADS]\n");
    return 2;
  }
  long frames = strtol(argv[3], NULL, 10), threads = argc > 5 ? strtol(argv[5], NULL, 10) : 1;
  if (frames < 1 || frames > 1000000) return fail(2, "FRAMES must be 1..1000000, found", argv[3]);
  int code = open_library(argv[1]);
  if (code) return code;

  char message[400] = "";
  tsm_model_options options = {.size = sizeof options, .message = message, .message_bytes = sizeof message};
  tsm_model *model = NULL;
  tsm_status status = api.tsm_model_create(&options, &model);
  if (status != TSM_OK) return fail(1, message[0] ? message : api.tsm_status_message(status), NULL);
  tsm_model_info info = {.size = sizeof info};
  if ((status = api.tsm_model_get_info(model, &info)) != TSM_OK) return fail(1, api.tsm_status_message(status), NULL);
  tsm_stream_options stream_options = {.size = sizeof stream_options};
  stream_options.threads = (int32_t)threads;
  tsm_stream *stream = NULL;
  status = api.tsm_stream_create(model, &stream_options, &stream);
  if (status != TSM_OK) return fail(1, api.tsm_status_message(status), NULL);

  size_t frame_values = (size_t)3 * (size_t)info.height * (size_t)info.width, most = 1;
  for (int32_t i = 0; i < info.num_caches; i++) {
    tsm_cache_info cache = {.size = sizeof cache};
    if ((status = api.tsm_model_get_cache_info(model, i, &cache)) != TSM_OK) return fail(1, api.tsm_status_message(status), NULL);
    size_t values = (size_t)cache.channels * (size_t)cache.height * (size_t)cache.width;
    if (values > most) most = values;
  }
  float *frame = malloc(frame_values * sizeof *frame), *values = malloc(most * sizeof *values);
  if (!frame || !values) return fail(1, "out of memory", NULL);
  FILE *in = fopen(argv[2], "rb");
  if (!in) return fail(2, "cannot read", argv[2]);
  FILE *out = fopen(argv[4], "wb");
  if (!out) return fail(2, "cannot write", argv[4]);

  double total = 0, first = 0;
  for (long t = 0; t < frames; t++) {
    if (fread(frame, sizeof *frame, frame_values, in) != frame_values) return fail(2, "too short for FRAMES of this model", argv[2]);
    tsm_result result = {.size = sizeof result};
    double start = now_ms();
    status = api.tsm_stream_step_tensor(stream, frame, &result);
    double took = now_ms() - start;
    if (status != TSM_OK) return fail(1, api.tsm_status_message(status), api.tsm_stream_error(stream));
    if (t == 0) first = took;
    total += took;
    int ok = fwrite(result.logits, sizeof(float), (size_t)info.num_classes, out) == (size_t)info.num_classes;
    for (int32_t i = 0; ok && i < info.num_caches; i++) {
      tsm_cache_info cache = {.size = sizeof cache};
      api.tsm_model_get_cache_info(model, i, &cache);
      size_t count = (size_t)cache.channels * (size_t)cache.height * (size_t)cache.width;
      if ((status = api.tsm_stream_get_cache(stream, i, values, count)) != TSM_OK)
        return fail(1, api.tsm_status_message(status), NULL);
      ok = fwrite(values, sizeof *values, count, out) == count;
    }
    if (!ok) return fail(2, "cannot write", argv[4]);
  }
  if (fgetc(in) != EOF) return fail(2, "longer than FRAMES of this model", argv[2]);
  fclose(in);
  if (fclose(out) != 0) return fail(2, "cannot write", argv[4]);
  printf("PASSED model=%s frames=%ld threads=%d mean_ms=%.3f first_ms=%.3f\n", info.name, frames,
         (int)api.tsm_stream_threads(stream), total / (double)frames, first);
  api.tsm_stream_destroy(stream);
  api.tsm_model_destroy(model);
  free(frame);
  free(values);
  return 0;
}
