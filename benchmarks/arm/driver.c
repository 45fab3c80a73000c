/* driver.c: runs a model library's stateless step N times between the counter's marks, caches carried.
 * Usage: driver LIBRARY N. Prints a line for each kernel call: MACS BYTES KIND NAME. Exit 0, or 1 with one line on stderr. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

#include "tsm_edge.h"

#define MARK(what) prctl(0x54534d, what, 0, 0, 0)
#define FIND(name) ((__typeof__(&name))find(library, #name))

static void *find(void *library, const char *name) {
  void *symbol = dlsym(library, name);
  if (!symbol) fprintf(stderr, "driver: %s\n", dlerror()), exit(1);
  return symbol;
}

static void *block(uint64_t bytes) {
  void *memory = NULL;
  if (posix_memalign(&memory, 64, bytes + 64)) exit(1);
  return memset(memory, 0, bytes + 64);
}

int main(int argc, char **argv) {
  if (argc != 3) return fprintf(stderr, "usage: driver LIBRARY N\n"), 1;
  void *library = dlopen(argv[1], RTLD_NOW);
  if (!library) return fprintf(stderr, "driver: %s\n", dlerror()), 1;
  __typeof__(&tsm_model_create) create = FIND(tsm_model_create);
  __typeof__(&tsm_model_get_info) get_info = FIND(tsm_model_get_info);
  __typeof__(&tsm_model_frame_from_nchw) frame_from_nchw = FIND(tsm_model_frame_from_nchw);
  __typeof__(&tsm_model_profile) step = FIND(tsm_model_profile);
  __typeof__(&tsm_stream_create) create_stream = FIND(tsm_stream_create);
  __typeof__(&tsm_stream_get_profile) get_profile = FIND(tsm_stream_get_profile);

  tsm_model *model = NULL;
  tsm_model_info info = {sizeof info};
  if (create(NULL, &model) != TSM_OK || get_info(model, &info) != TSM_OK) 
    return fprintf(stderr, "the library does not run on this CPU: it may need float16 or dot products\n"), 1;
  void *frame = block(info.frame_bytes), *logits = block(info.logits_bytes), *workspace = block(info.workspace_bytes);
  void *caches[2] = {block(info.cache_bytes), block(info.cache_bytes)};
  int pixels = info.width * info.height;
  int64_t *call_ns = block((uint64_t)info.num_calls * sizeof *call_ns);
  float *image = block((uint64_t)pixels * 3 * sizeof *image);

  for (int i = -2, n = atoi(argv[2]); i < n; i++) { /* two steps ahead of the marks warm the caches */
    for (int p = 0; p < 3 * pixels; p++) image[p] = (float)((p / 7 + p / info.width * 3 + 11 * i) % 255) / 64 - 2;
    if (frame_from_nchw(model, image, frame) != TSM_OK) return 1;
    if (i >= 0) MARK(1);
    tsm_status status = step(model, frame, caches[i & 1], caches[~i & 1], logits, workspace, call_ns);
    if (i >= 0) MARK(2);
    if (status != TSM_OK) return fprintf(stderr, "driver: step failed with status %d\n", status), 1;
  }

  tsm_stream *stream = NULL;
  tsm_stream_options options = {sizeof options};
  options.threads = options.profile = 1;
  if (create_stream(model, &options, &stream) != TSM_OK) return fprintf(stderr, "driver: no stream\n"), 1;
  for (int i = 0; i < info.num_calls; i++) {
    tsm_profile call = {sizeof call};
    if (get_profile(stream, i, &call) != TSM_OK) return fprintf(stderr, "driver: no profile\n"), 1;
    printf("%llu %llu %s %s\n", (unsigned long long)call.macs, (unsigned long long)call.bytes, call.kind, call.name);
  }
  return 0;
}
