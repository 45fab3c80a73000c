/* tsm_plan.h: what a compiled model (generated plan.c + kernels.o + weights) gives to the runtime.
 * Internal to the library; not installed. All tables are constant data. */
#ifndef TSM_PLAN_H
#define TSM_PLAN_H
#include <stddef.h>
#include <stdint.h>

/* --- TVM's packed-call ABI (apache-tvm 0.27: tvm-ffi) -------------------------------------------------------------- */
typedef struct { int32_t type_index; uint32_t padding; union { int64_t i; double d; void *p; } v; } tsm_ffi_any;
enum { TSM_FFI_DLTENSOR = 7 };
typedef struct {
  void *data;
  struct { int32_t type, id; } device;                  /* {1, 0}: CPU */
  int32_t ndim;
  struct { uint8_t code, bits; uint16_t lanes; } dtype; /* float: code 2; int: 0; uint: 1 */
  int64_t *shape;
  int64_t *strides;                                     /* NULL: compact */
  uint64_t byte_offset;
} tsm_dltensor;
typedef int (*tsm_kernel_fn)(void *self, const tsm_ffi_any *args, int32_t n, tsm_ffi_any *result);

/* --- the plan ------------------------------------------------------------------------------------------------------- */
#define TSM_PLAN_VERSION 1
#define TSM_MAX_NDIM 6
enum { TSM_IN_FRAME, TSM_IN_LOGITS, TSM_IN_CACHE, TSM_IN_NEXT_CACHE, TSM_IN_ARENA, TSM_IN_WEIGHTS };

typedef struct {            /* one argument of one kernel call */
  uint8_t space;            /* TSM_IN_*: which block of memory */
  uint8_t dtype_code, dtype_bits, ndim;
  uint64_t offset;          /* bytes into that block; multiple of 64 */
  int64_t shape[TSM_MAX_NDIM];
} tsm_plan_operand;

typedef struct {            /* one kernel call; called in table order */
  const char *name;         /* layers it computes, for profiles */
  const char *kind;         /* "pointwise", "inverted_residual", ... */
  tsm_kernel_fn fn;
  uint32_t first_operand, num_operands;
  uint64_t macs, bytes;     /* useful multiply-accumulates; weights + activations read and written */
} tsm_plan_call;

typedef struct {            /* one cache, stored channels last: (height, width, channels) */
  const char *name;         /* "cache.<layer>" */
  int32_t channels, height, width;
  uint8_t dtype_code, dtype_bits;
  uint64_t offset;          /* bytes into the cache block; multiple of 64 */
} tsm_plan_cache;

typedef struct {
  uint32_t version;         /* TSM_PLAN_VERSION */
  const char *model_name;
  const char *precision;    /* "fp32", "fp16" */
  int32_t trained;          /* 0: random weights */
  int32_t num_classes;
  const char *const *classes;
  /* input: frame is (height, width, 3) float32 channels last, colour order as `colour`, (pixel / 255 - mean) / std */
  int32_t height, width;
  int32_t resize;           /* 0: shorter side to `shorter_side`, then centre crop; 1: squash to width x height */
  int32_t shorter_side;     /* pixels; 0 when resize is 1 */
  int32_t antialias;        /* 1: triangle filter widened by the scale (as PIL's BILINEAR); 0: two taps */
  int32_t colour;           /* 0: RGB, 1: BGR */
  float mean[3], std[3];
  double fps;               /* the model's frame rate; frames that come faster are skipped by their timestamps. 0: none skipped */
  double max_gap_seconds;   /* a longer gap between timestamps resets the stream. 0: never */
  int32_t default_threads;
  uint64_t cache_bytes, arena_bytes, weight_bytes;
  const unsigned char *weights;
  uint32_t num_caches, num_calls, num_operands;
  const tsm_plan_cache *caches;
  const tsm_plan_call *calls;
  const tsm_plan_operand *operands;
  /* may be left out (zero) */
  const char *manifest;     /* the embedded manifest, JSON */
  uint64_t hwcap;           /* AT_HWCAP bits (Linux, Android) that the kernels need; 0: not checked */
} tsm_plan;

extern const tsm_plan tsm_model_plan; /* defined by the generated plan.c */
#endif
