/* tsm_tvm.c: the few symbols that TVM's object files ask for: workspace, parallel loops, the words of an error. */
#include "tsm_internal.h"

#include <stdio.h>
#include <string.h>

/* A block on the scratch stack is preceded by its header. Blocks are normally freed in reverse order; one that is freed
 * out of order is only marked, and goes with the block above it. */
typedef struct { uint64_t start, below; int32_t freed, pad; } scratch_header;
#define HEADER TSM_ALIGN

static void *scratch_alloc(int device_type, int device_id, uint64_t bytes, int code_hint, int bits_hint) {
  (void)device_type, (void)device_id, (void)code_hint, (void)bits_hint;
  tsm_context *context = tsm_context_now();
  if (!context || bytes > (uint64_t)1 << 40) return NULL;
  uint64_t need = HEADER + tsm_round_up(bytes ? bytes : 1);
  unsigned char *block;
  if (context->measuring) {
    block = tsm_aligned_alloc(need);
    if (!block) return NULL;
    block += HEADER;
    ((scratch_header *)(void *)(block - HEADER))->start = need;
    context->used += need;
    if (context->used > context->peak) context->peak = context->used;
    return block;
  }
  if (need > context->scratch_bytes - context->used) {
    snprintf(context->error, sizeof context->error, "a kernel asked for %llu bytes of scratch; %llu of %llu are left",
             (unsigned long long)bytes, (unsigned long long)(context->scratch_bytes - context->used),
             (unsigned long long)context->scratch_bytes);
    return NULL;
  }
  block = context->scratch + context->used;
  scratch_header *header = (scratch_header *)(void *)block;
  header->start = context->used;
  header->below = context->top;
  header->freed = 0;
  context->top = context->used;
  context->used += need;
  return block + HEADER;
}

static int scratch_free(int device_type, int device_id, void *block) {
  (void)device_type, (void)device_id;
  tsm_context *context = tsm_context_now();
  if (!context || !block) return -1;
  scratch_header *header = (scratch_header *)(void *)((unsigned char *)block - HEADER);
  if (context->measuring) {
    context->used -= header->start;
    tsm_aligned_free(header);
    return 0;
  }
  header->freed = 1;
  while (context->used) {
    header = (scratch_header *)(void *)(context->scratch + context->top);
    if (!header->freed) break;
    context->used = header->start;
    context->top = header->below;
  }
  return 0;
}

static int parallel_launch(tsm_task_fn fn, void *data, int num_task) {
  tsm_context *context = tsm_context_now();
  if (context && context->pool) return tsm_pool_run(context->pool, fn, data, context);
  /* The generated loop takes its share from group->num_task, so that one task may do them all. */
  tsm_parallel_group group = {NULL, num_task > 0 ? num_task : 1};
  for (int task = 0; task < group.num_task; task++) {
    int failed = fn(task, &group, data);
    if (failed) return failed;
  }
  return 0;
}

/* The tasks of a launch may run one after another on one thread, so a barrier between them cannot be kept. */
static int parallel_barrier(int task, tsm_parallel_group *group) {
  (void)task;
  return group->num_task == 1 ? 0 : -1;
}

/* TVM's objects define these pointers too, weak and NULL; ours are strong and win when the library is linked. A weak symbol
 * takes nothing out of a static archive: this file comes because tsm_run.c calls tsm_kernel_failed, and these with it. */
void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = scratch_alloc;
int (*__TVMBackendFreeWorkspace)(int, int, void *) = scratch_free;
int (*__TVMBackendParallelLaunch)(tsm_task_fn, void *, int) = parallel_launch;
int (*__TVMBackendParallelBarrier)(int, tsm_parallel_group *) = parallel_barrier;

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t num_parts) {
  tsm_context *context = tsm_context_now();
  if (!context) return;
  size_t used = 0, room = sizeof context->error;
  int n = snprintf(context->error, room, "%s: ", kind ? kind : "Error");
  if (n > 0) used = (size_t)n < room ? (size_t)n : room - 1;
  for (int32_t i = 0; i < num_parts && used + 1 < room; i++) {
    if (!parts[i]) continue;
    size_t length = strlen(parts[i]);
    if (length > room - 1 - used) length = room - 1 - used;
    memcpy(context->error + used, parts[i], length);
    used += length;
    context->error[used] = 0;
  }
}

void tsm_kernel_failed(tsm_context *context, const char *name) {
  if (!context->error[0]) snprintf(context->error, sizeof context->error, "kernel %s failed", name ? name : "?");
}
