/* tsm_run.c: checks a plan and calls its kernels in order. */
#include "tsm_internal.h"

#include <stdio.h>
#include <string.h>

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

/* What is the same in every call: a compact tensor on the CPU. */
static void begin_argument(tsm_ffi_any *arg, tsm_dltensor *tensor) {
  memset(arg, 0, sizeof *arg);
  arg->type_index = TSM_FFI_DLTENSOR;
  arg->v.p = tensor;
  memset(tensor, 0, sizeof *tensor);
  tensor->device.type = 1;
  tensor->dtype.lanes = 1;
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
  uint32_t made = 0; /* of them are begun */
  tsm_status status = TSM_OK;
  context->error[0] = 0;
  tsm_context *before = tsm_context_enter(context);
  int64_t start = call_ns ? tsm_now_ns() : 0;
  for (uint32_t i = 0; i < plan->num_calls; i++) {
    const tsm_plan_call *call = &plan->calls[i];
    const tsm_plan_operand *operand = &plan->operands[call->first_operand];
    for (uint32_t a = 0; a < call->num_operands; a++, operand++) {
      tsm_dltensor *tensor = &tensors[a];
      if (a == made) begin_argument(&args[made++], tensor);
      tensor->data = spaces[operand->space] + operand->offset;
      tensor->ndim = operand->ndim;
      tensor->dtype.code = operand->dtype_code;
      tensor->dtype.bits = operand->dtype_bits;
      tensor->shape = (int64_t *)(uintptr_t)operand->shape;
    }
    tsm_ffi_any result = {0, 0, {0}};
    context->used = context->top = 0;
    if (call->fn(NULL, args, (int32_t)call->num_operands, &result) != 0) {
      tsm_kernel_failed(context, call->name);
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
