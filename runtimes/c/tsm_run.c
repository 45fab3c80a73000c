/* tsm_run.c: calls the kernels of a plan in order, and supplies the few symbols that TVM's object files ask for. */
#if !defined(_POSIX_C_SOURCE) && !defined(_GNU_SOURCE)
#define _POSIX_C_SOURCE 200809L /* clock_gettime */
#endif
#include "tsm_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#ifndef TSM_NO_THREADS
#include <pthread.h>
#endif

void *tsm_aligned_alloc(uint64_t bytes) {
  if (bytes > SIZE_MAX - 2 * TSM_ALIGN) return NULL;
  unsigned char *raw = calloc(1, (size_t)bytes + 2 * TSM_ALIGN);
  if (!raw) return NULL;
  unsigned char *block = (unsigned char *)(((uintptr_t)raw + 2 * TSM_ALIGN - 1) & ~(uintptr_t)(TSM_ALIGN - 1));
  memcpy(block - sizeof raw, &raw, sizeof raw);
  return block;
}

void tsm_aligned_free(void *block) {
  if (!block) return;
  void *raw;
  memcpy(&raw, (unsigned char *)block - sizeof raw, sizeof raw);
  free(raw);
}

int64_t tsm_now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* --- the calling thread's context --------------------------------------------------------------------------------------
 * A pthread key, not a __thread variable: libc allocates the latter lazily for a library that was dlopen'ed, which would be
 * an allocation in the first step of every thread, or it takes static TLS, of which a Jetson's glibc may have none left. */
#ifdef TSM_NO_THREADS
static tsm_context *current;
int tsm_context_ready(void) { return 1; }
static tsm_context *context_get(void) { return current; }
static void context_set(tsm_context *context) { current = context; }
#else
static pthread_key_t key;
static pthread_once_t key_once = PTHREAD_ONCE_INIT;
static int key_made;
static void make_key(void) { key_made = pthread_key_create(&key, NULL) == 0; }
int tsm_context_ready(void) { return pthread_once(&key_once, make_key) == 0 && key_made; }
static tsm_context *context_get(void) { return pthread_getspecific(key); }
static void context_set(tsm_context *context) { pthread_setspecific(key, context); }
#if defined(__GNUC__)
/* The key dies with the library, or the next dlopen of it would leak one. */
__attribute__((destructor)) static void drop_key(void) { if (key_made) pthread_key_delete(key); }
#endif
#endif

tsm_context *tsm_context_enter(tsm_context *context) {
  tsm_context *before = context_get();
  context_set(context);
  return before;
}

void tsm_context_leave(tsm_context *before) { context_set(before); }

/* --- what TVM's objects call ------------------------------------------------------------------------------------------- */

/* A block on the scratch stack is preceded by its header. Blocks are normally freed in reverse order; one that is freed
 * out of order is only marked, and goes with the block above it. */
typedef struct { uint64_t start, below; int32_t freed, pad; } scratch_header;
#define HEADER TSM_ALIGN

static void *scratch_alloc(int device_type, int device_id, uint64_t bytes, int code_hint, int bits_hint) {
  (void)device_type, (void)device_id, (void)code_hint, (void)bits_hint;
  tsm_context *context = context_get();
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
  tsm_context *context = context_get();
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

typedef struct { void *sync_handle; int32_t num_task; } parallel_group;

static int parallel_launch(tsm_task_fn fn, void *data, int num_task) {
  tsm_context *context = context_get();
  if (context && context->pool) return tsm_pool_run(context->pool, fn, data, context);
  /* The generated loop takes its share from group->num_task, so that one task may do them all. */
  parallel_group group = {NULL, num_task > 0 ? num_task : 1};
  for (int task = 0; task < group.num_task; task++) {
    int failed = fn(task, &group, data);
    if (failed) return failed;
  }
  return 0;
}

/* The tasks of a launch may run one after another on one thread, so a barrier between them cannot be kept. */
static int parallel_barrier(int task, void *group) {
  (void)task;
  return ((const parallel_group *)group)->num_task == 1 ? 0 : -1;
}

/* TVM's objects define these pointers too, weak and NULL; ours are strong and win when the library is linked. The function
 * is in this file so that the file is always taken out of a static archive, and these with it. */
void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = scratch_alloc;
int (*__TVMBackendFreeWorkspace)(int, int, void *) = scratch_free;
int (*__TVMBackendParallelLaunch)(tsm_task_fn, void *, int) = parallel_launch;
int (*__TVMBackendParallelBarrier)(int, void *) = parallel_barrier;

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t num_parts) {
  tsm_context *context = context_get();
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

/* --- the plan ----------------------------------------------------------------------------------------------------------- */

static tsm_status bad(char *message, size_t bytes, const char *what, uint32_t index) {
  if (message && bytes) snprintf(message, bytes, "the library's tables do not fit together: %s %u; export it again", what, index);
  return TSM_ERROR_PLAN;
}

static uint64_t block_bytes(const tsm_plan *plan, int space) {
  switch (space) {
    case TSM_IN_CACHE: case TSM_IN_NEXT_CACHE: return plan->cache_bytes;
    case TSM_IN_ARENA: return plan->arena_bytes;
    case TSM_IN_WEIGHTS: return plan->weight_bytes;
    case TSM_IN_FRAME: return (uint64_t)plan->height * plan->width * 3 * 4;
    default: return tsm_round_up((uint64_t)plan->num_classes * 4);
  }
}

tsm_status tsm_plan_check(const tsm_plan *plan, char *message, size_t bytes) {
  if (plan->version != TSM_PLAN_VERSION) return bad(message, bytes, "plan version", plan->version);
  if (plan->height < 1 || plan->width < 1 || plan->height > 16384 || plan->width > 16384)
    return bad(message, bytes, "input height", (uint32_t)plan->height);
  if (plan->num_classes < 1 || !plan->classes) return bad(message, bytes, "number of classes", (uint32_t)plan->num_classes);
  if (!plan->resize && plan->shorter_side < 1) return bad(message, bytes, "shorter side", (uint32_t)plan->shorter_side);
  for (uint32_t i = 0; i < plan->num_caches; i++) {
    const tsm_plan_cache *cache = &plan->caches[i];
    if (cache->channels < 1 || cache->height < 1 || cache->width < 1 || (cache->dtype_bits != 32 && cache->dtype_bits != 16) ||
        cache->offset % (cache->dtype_bits / 8) || cache->offset > plan->cache_bytes ||
        (uint64_t)cache->channels * (uint64_t)cache->height * (uint64_t)cache->width * (cache->dtype_bits / 8) >
            plan->cache_bytes - cache->offset)
      return bad(message, bytes, "cache", i);
  }
  for (uint32_t i = 0; i < plan->num_calls; i++) {
    const tsm_plan_call *call = &plan->calls[i];
    if (!call->fn || call->num_operands > TSM_MAX_OPERANDS || call->first_operand > plan->num_operands ||
        call->num_operands > plan->num_operands - call->first_operand)
      return bad(message, bytes, "kernel call", i);
  }
  for (uint32_t i = 0; i < plan->num_operands; i++) {
    const tsm_plan_operand *operand = &plan->operands[i];
    if (operand->space > TSM_IN_WEIGHTS || operand->ndim > TSM_MAX_NDIM) return bad(message, bytes, "operand", i);
    uint64_t size = (operand->dtype_bits + 7u) / 8u, room = block_bytes(plan, operand->space);
    for (int d = 0; d < operand->ndim; d++) {
      if (operand->shape[d] < 1 || operand->shape[d] > (int64_t)1 << 31) return bad(message, bytes, "operand", i);
      size *= (uint64_t)operand->shape[d];
      if (size > (uint64_t)1 << 40) return bad(message, bytes, "operand", i);
    }
    if (operand->offset > room || size > room - operand->offset) return bad(message, bytes, "operand", i);
  }
  return TSM_OK;
}

tsm_status tsm_plan_run(const tsm_plan *plan, const tsm_blocks *blocks, tsm_context *context, int64_t *call_ns) {
  /* The kernels write through DLTensors, which know no const; what they only read they do not write. */
  unsigned char *const spaces[] = {
      [TSM_IN_FRAME] = (unsigned char *)(uintptr_t)blocks->frame,
      [TSM_IN_LOGITS] = blocks->logits,
      [TSM_IN_CACHE] = (unsigned char *)(uintptr_t)blocks->caches_in,
      [TSM_IN_NEXT_CACHE] = blocks->caches_out,
      [TSM_IN_ARENA] = blocks->arena,
      [TSM_IN_WEIGHTS] = (unsigned char *)(uintptr_t)plan->weights,
  };
  tsm_dltensor tensors[TSM_MAX_OPERANDS];
  tsm_ffi_any args[TSM_MAX_OPERANDS];
  tsm_status status = TSM_OK;
  context->error[0] = 0;
  tsm_context *before = tsm_context_enter(context);
  int64_t start = call_ns ? tsm_now_ns() : 0;
  for (uint32_t i = 0; i < plan->num_calls; i++) {
    const tsm_plan_call *call = &plan->calls[i];
    const tsm_plan_operand *operand = &plan->operands[call->first_operand];
    for (uint32_t a = 0; a < call->num_operands; a++, operand++) {
      tsm_dltensor *tensor = &tensors[a];
      tensor->data = spaces[operand->space] + operand->offset;
      tensor->device.type = 1;
      tensor->device.id = 0;
      tensor->ndim = operand->ndim;
      tensor->dtype.code = operand->dtype_code;
      tensor->dtype.bits = operand->dtype_bits;
      tensor->dtype.lanes = 1;
      tensor->shape = (int64_t *)(uintptr_t)operand->shape;
      tensor->strides = NULL;
      tensor->byte_offset = 0;
      args[a].type_index = TSM_FFI_DLTENSOR;
      args[a].padding = 0;
      args[a].v.i = 0;
      args[a].v.p = tensor;
    }
    tsm_ffi_any result = {0, 0, {0}};
    context->used = context->top = 0;
    if (call->fn(NULL, args, (int32_t)call->num_operands, &result) != 0) {
      if (!context->error[0]) snprintf(context->error, sizeof context->error, "kernel %s failed", call->name ? call->name : "?");
      status = TSM_ERROR_KERNEL;
      break;
    }
    if (call_ns) {
      int64_t now = tsm_now_ns();
      call_ns[i] = now - start;
      start = now;
    }
  }
  tsm_context_leave(before);
  return status;
}
