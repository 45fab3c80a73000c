/* tsm_edge.c: the public functions of models: opening, what they say of themselves, the stateless step. Streams: tsm_stream.c. */
#include "tsm_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif

/* A workspace: arena, scratch, context. */
static tsm_context *workspace_context(const tsm_model *model, const void *workspace) {
  return (tsm_context *)(void *)((unsigned char *)(uintptr_t)workspace + tsm_round_up(model->plan->arena_bytes) + model->scratch_bytes);
}

const char *tsm_status_message(tsm_status status) {
  switch (status) {
    case TSM_OK: return "no error";
    case TSM_ERROR_ARGUMENT: return "an argument is NULL or outside its range";
    case TSM_ERROR_SIZE: return "a struct's size field is not set, or a buffer has not the length that the model needs";
    case TSM_ERROR_IMAGE: return "the image's format, size, planes, strides or rotation cannot be used";
    case TSM_ERROR_MEMORY: return "out of memory";
    case TSM_ERROR_THREADS: return "worker threads could not be started";
    case TSM_ERROR_BUSY: return "another thread is using this stream; give each thread a stream of its own";
    case TSM_ERROR_PLAN: return "the library's own tables do not fit together; export the model again";
    case TSM_ERROR_CPU: return "this CPU lacks a feature that the library was compiled for; export the model for this target";
    case TSM_ERROR_KERNEL: return "a kernel refused its arguments; the stream's error has its words";
  }
  return "unknown status";
}

int32_t tsm_api_version(void) { return TSM_API_VERSION; }

/* --- structs of another version's size ------------------------------------------------------------------------------- */

tsm_status tsm_read_struct(void *ours, size_t our_size, const void *theirs, size_t least) {
  size_t size;
  memset(ours, 0, our_size);
  if (!theirs) return TSM_OK;
  memcpy(&size, theirs, sizeof size);
  if (size < least || size > 4096) return TSM_ERROR_SIZE;
  memcpy(ours, theirs, size < our_size ? size : our_size);
  return TSM_OK;
}

tsm_status tsm_write_struct(void *theirs, void *ours, size_t our_size, size_t least) {
  size_t size;
  memcpy(&size, theirs, sizeof size);
  if (size < least || size > 4096) return TSM_ERROR_SIZE;
  memcpy(ours, &size, sizeof size);
  memcpy(theirs, ours, size < our_size ? size : our_size);
  return TSM_OK;
}

int tsm_size_ok(const void *theirs, size_t least) {
  size_t size;
  memcpy(&size, theirs, sizeof size);
  return size >= least && size <= 4096;
}

/* --- model ------------------------------------------------------------------------------------------------------------- */

static int space_bits(const tsm_plan *plan, int space) {
  for (uint32_t i = 0; i < plan->num_operands; i++)
    if (plan->operands[i].space == space && plan->operands[i].dtype_code == 2) return plan->operands[i].dtype_bits;
  return 32;
}

/* One step on zeros that counts what the kernels take from the workspace allocator. */
static tsm_status measure_scratch(tsm_model *model, char *message, size_t message_bytes) {
  const tsm_plan *plan = model->plan;
  uint64_t frame = tsm_round_up(model->frame_bytes), caches = tsm_round_up(plan->cache_bytes);
  uint64_t logits = tsm_round_up(model->logits_bytes);
  unsigned char *block = tsm_aligned_alloc(frame + 2 * caches + logits + tsm_round_up(plan->arena_bytes));
  if (!block) return TSM_ERROR_MEMORY;
  tsm_blocks blocks = {block, block + frame, block + frame + caches, block + frame + 2 * caches,
                       block + frame + 2 * caches + logits};
  tsm_context context;
  memset(&context, 0, sizeof context);
  context.measuring = 1;
  tsm_status status = tsm_plan_run(plan, &blocks, &context, NULL);
  if (status != TSM_OK && message && message_bytes) snprintf(message, message_bytes, "%s", context.error);
  model->scratch_bytes = tsm_round_up(context.peak);
  tsm_aligned_free(block);
  return status;
}

tsm_status tsm_model_create(const tsm_model_options *options, tsm_model **out) {
  tsm_model_options given;
  if (!out) return TSM_ERROR_ARGUMENT;
  tsm_status status = tsm_read_struct(&given, sizeof given, options, sizeof given);
  if (status != TSM_OK) return status;
  if (given.message && given.message_bytes) given.message[0] = 0;
  const tsm_plan *plan = &tsm_model_plan;
  status = tsm_plan_check(plan, given.message, given.message_bytes);
  if (status != TSM_OK) return status;
#if defined(__linux__)
  uint64_t hwcap = getauxval(AT_HWCAP);
  if (plan->hwcap & ~hwcap) {
    if (given.message && given.message_bytes)
      snprintf(given.message, given.message_bytes, "the library needs CPU features (AT_HWCAP %llx) of which this CPU has %llx",
               (unsigned long long)plan->hwcap, (unsigned long long)hwcap);
    return TSM_ERROR_CPU;
  }
#endif
  if (!tsm_context_ready()) return TSM_ERROR_THREADS;
  tsm_model *model = calloc(1, sizeof *model);
  if (!model) return TSM_ERROR_MEMORY;
  model->plan = plan;
  model->frame_bits = space_bits(plan, TSM_IN_FRAME);
  model->logits_bits = space_bits(plan, TSM_IN_LOGITS);
  model->frame_bytes = (uint64_t)plan->height * (uint64_t)plan->width * 3 * (uint64_t)(model->frame_bits / 8);
  model->logits_bytes = (uint64_t)plan->num_classes * (uint64_t)(model->logits_bits / 8);
  for (uint32_t i = 0; i < plan->num_calls; i++) model->macs += plan->calls[i].macs;
  status = measure_scratch(model, given.message, given.message_bytes);
  if (status != TSM_OK) {
    free(model);
    return status;
  }
  model->workspace_bytes = tsm_round_up(plan->arena_bytes) + model->scratch_bytes + tsm_round_up(sizeof(tsm_context));
  *out = model;
  return TSM_OK;
}

void tsm_model_destroy(tsm_model *model) { free(model); }

tsm_status tsm_model_get_info(const tsm_model *model, tsm_model_info *out) {
  if (!model || !out) return TSM_ERROR_ARGUMENT;
  const tsm_plan *plan = model->plan;
  tsm_model_info info;
  memset(&info, 0, sizeof info);
  info.name = plan->model_name ? plan->model_name : "";
  info.precision = plan->precision ? plan->precision : "";
  info.manifest = plan->manifest ? plan->manifest : "";
  info.trained = plan->trained;
  info.num_classes = plan->num_classes;
  info.width = plan->width, info.height = plan->height;
  info.resize = plan->resize, info.shorter_side = plan->shorter_side, info.antialias = plan->antialias;
  info.colour = plan->colour;
  memcpy(info.mean, plan->mean, sizeof info.mean);
  memcpy(info.std, plan->std, sizeof info.std);
  info.fps = plan->fps, info.max_gap_seconds = plan->max_gap_seconds;
  info.default_threads = plan->default_threads;
  info.num_caches = (int32_t)plan->num_caches, info.num_calls = (int32_t)plan->num_calls;
  info.frame_bits = model->frame_bits, info.logits_bits = model->logits_bits;
  info.frame_bytes = model->frame_bytes, info.cache_bytes = plan->cache_bytes, info.logits_bytes = model->logits_bytes;
  info.workspace_bytes = model->workspace_bytes;
  info.arena_bytes = plan->arena_bytes, info.scratch_bytes = model->scratch_bytes, info.weight_bytes = plan->weight_bytes;
  info.macs = model->macs;
  return tsm_write_struct(out, &info, sizeof info, sizeof info);
}

const char *tsm_model_class_name(const tsm_model *model, int32_t index) {
  return model && index >= 0 && index < model->plan->num_classes ? model->plan->classes[index] : NULL;
}

const tsm_plan_cache *tsm_cache_at(const tsm_model *model, int32_t index) {
  return model && index >= 0 && (uint32_t)index < model->plan->num_caches ? &model->plan->caches[index] : NULL;
}

tsm_status tsm_model_get_cache_info(const tsm_model *model, int32_t index, tsm_cache_info *out) {
  const tsm_plan_cache *cache = tsm_cache_at(model, index);
  if (!cache || !out) return TSM_ERROR_ARGUMENT;
  tsm_cache_info info = {0, cache->name, cache->channels, cache->height, cache->width, cache->dtype_bits, cache->offset};
  return tsm_write_struct(out, &info, sizeof info, sizeof info);
}

/* --- the stateless step -------------------------------------------------------------------------------------------------- */

static int misaligned(const void *block) { return (uintptr_t)block % TSM_ALIGN != 0; }

tsm_status tsm_step_blocks(const tsm_model *model, const tsm_blocks *blocks, tsm_pool *pool, int64_t *call_ns) {
  tsm_context *context = workspace_context(model, blocks->arena);
  context->pool = pool;
  context->scratch = (unsigned char *)blocks->arena + tsm_round_up(model->plan->arena_bytes);
  context->scratch_bytes = model->scratch_bytes;
  context->measuring = context->in_task = 0;
  return tsm_plan_run(model->plan, blocks, context, call_ns);
}

tsm_status tsm_model_profile(const tsm_model *model, const void *frame, const void *caches_in, void *caches_out, void *logits,
                             void *workspace, int64_t *call_ns) {
  if (!model || !frame || !caches_in || !caches_out || !logits || !workspace || caches_in == caches_out)
    return TSM_ERROR_ARGUMENT;
  if (misaligned(frame) || misaligned(caches_in) || misaligned(caches_out) || misaligned(logits) || misaligned(workspace))
    return TSM_ERROR_ARGUMENT;
  tsm_blocks blocks = {frame, caches_in, caches_out, logits, workspace};
  return tsm_step_blocks(model, &blocks, NULL, call_ns);
}

tsm_status tsm_model_step(const tsm_model *model, const void *frame, const void *caches_in, void *caches_out, void *logits,
                          void *workspace) {
  return tsm_model_profile(model, frame, caches_in, caches_out, logits, workspace, NULL);
}

const char *tsm_model_step_error(const tsm_model *model, const void *workspace) {
  return model && workspace && !misaligned(workspace) ? workspace_context(model, workspace)->error : "";
}

tsm_status tsm_model_frame_from_nchw(const tsm_model *model, const float *nchw, void *frame) {
  if (!model || !nchw || !frame) return TSM_ERROR_ARGUMENT;
  tsm_from_nchw(nchw, frame, 3, (int64_t)model->plan->height * model->plan->width, model->frame_bits);
  return TSM_OK;
}

tsm_status tsm_model_cache_from_nchw(const tsm_model *model, int32_t index, const float *nchw, void *caches) {
  const tsm_plan_cache *cache = tsm_cache_at(model, index);
  if (!cache || !nchw || !caches) return TSM_ERROR_ARGUMENT;
  tsm_from_nchw(nchw, (unsigned char *)caches + cache->offset, cache->channels, (int64_t)cache->height * cache->width, cache->dtype_bits);
  return TSM_OK;
}

tsm_status tsm_model_cache_to_nchw(const tsm_model *model, int32_t index, const void *caches, float *nchw) {
  const tsm_plan_cache *cache = tsm_cache_at(model, index);
  if (!cache || !nchw || !caches) return TSM_ERROR_ARGUMENT;
  tsm_to_nchw((const unsigned char *)caches + cache->offset, nchw, cache->channels, (int64_t)cache->height * cache->width,
              cache->dtype_bits);
  return TSM_OK;
}

tsm_status tsm_model_logits_to_float(const tsm_model *model, const void *logits, float *values) {
  if (!model || !logits || !values) return TSM_ERROR_ARGUMENT;
  tsm_to_nchw(logits, values, 1, model->plan->num_classes, model->logits_bits);
  return TSM_OK;
}
