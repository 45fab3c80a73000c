/* A model small enough to be written by hand, as the exporter's plan and TVM's objects are: packed-call kernels, weak function
 * pointers for workspace and parallel launch, the error call.
 *
 *   mix    act[y,x,8]  = frame[y,x,3] . w0[3,8] + b0[8]
 *   splice out[y,x,8]  = act[y,x,8] with channels 0..1 from cache.a and 2..4 from cache.b, relu, . w1[8,8]; act's own channels
 *                        become the next caches. A parallel loop over the rows, each task with workspace; asks for a megabyte more than on
 *                        a frame of zeros when act[0,0,0] is above 1e5
 *   head   logits[n]   = mean over y,x of out . w2[8,n]; raises an error when frame[0,0,0] is above 1000
 *
 * TOY_WEIGHTS: header with `toy_values[]`. TOY_MUTE: nothing is said of errors. TOY_BITS: 32, or 16 for frame, caches and logits. TOY_*: fields of the plan. */
#include "tsm_plan.h"
#include TOY_WEIGHTS

#include <string.h>

#ifndef TOY_BITS
#define TOY_BITS 32
#endif
#ifndef TOY_SQUASH
#define TOY_SQUASH 0
#endif
#ifndef TOY_ANTIALIAS
#define TOY_ANTIALIAS 1
#endif
#ifndef TOY_COLOUR
#define TOY_COLOUR 0
#endif
#ifndef TOY_VERSION
#define TOY_VERSION TSM_PLAN_VERSION
#endif
#ifndef TOY_HWCAP
#define TOY_HWCAP 0
#endif
#ifndef TOY_BAD_OFFSET
#define TOY_BAD_OFFSET 0
#endif
#ifndef TOY_THREADS
#define TOY_THREADS 1
#endif
enum { H = TOY_H, W = TOY_W, N = 5, SHORTER = TOY_SHORTER };

typedef struct { void *sync_handle; int32_t num_task; } group_env;
typedef int (*lambda)(int, group_env *, void *);
__attribute__((weak)) void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int);
__attribute__((weak)) int (*__TVMBackendFreeWorkspace)(int, int, void *);
__attribute__((weak)) int (*__TVMBackendParallelLaunch)(lambda, void *, int);
void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t n);

#if TOY_BITS == 16 /* independent of the runtime's own conversion: values of the test are exact in both */
typedef uint16_t real;
static float get(real h) {
  int e = (h >> 10) & 31;
  float m = e ? 1024.0f + (h & 1023) : (float)(h & 1023);
  for (e = e ? e : 1; e > 25; e--) m *= 2;
  for (; e < 25; e++) m *= 0.5f;
  return h & 0x8000 ? -m : m;
}
static real put(float v) {
  real sign = 0;
  if (v < 0) sign = 0x8000, v = -v;
  int e = 25;
  if (v == 0) return sign;
  while (v >= 2048) v *= 0.5f, e++;
  while (v < 1024 && e > 1) v *= 2, e--;
  int whole = (int)v;
  float left = v - (float)whole;
  if (left > 0.5f || (left == 0.5f && (whole & 1))) whole++;
  if (whole == 2048) whole = 1024, e++;
  return (real)(sign | (whole < 1024 ? whole : (e << 10) + (whole - 1024)));
}
#else
typedef float real;
static float get(real v) { return v; }
static real put(float v) { return v; }
#endif

static tsm_dltensor *tensor(const tsm_ffi_any *args, int i) { return args[i].v.p; }

static int mix(void *self, const tsm_ffi_any *args, int32_t n, tsm_ffi_any *result) {
  (void)self, (void)result;
  if (n != 4 || args[0].type_index != TSM_FFI_DLTENSOR || tensor(args, 0)->ndim != 3 || tensor(args, 0)->shape[1] != W ||
      tensor(args, 0)->dtype.bits != TOY_BITS || tensor(args, 0)->strides || (uintptr_t)tensor(args, 1)->data % 64)
    return -1;
  const real *frame = tensor(args, 0)->data;
  const float *w = tensor(args, 1)->data, *b = tensor(args, 2)->data;
  float *act = tensor(args, 3)->data;
  for (int p = 0; p < H * W; p++)
    for (int c = 0; c < 8; c++) {
      float sum = b[c];
      for (int k = 0; k < 3; k++) sum += get(frame[p * 3 + k]) * w[k * 8 + c];
      act[p * 8 + c] = sum;
    }
  return 0;
}

typedef struct { const real *a, *b; real *next_a, *next_b; const float *act, *w; float *out; } splice_data;

static int splice_rows(int task, group_env *env, void *data) {
  splice_data *d = data;
  int share = (H + env->num_task - 1) / env->num_task, begin = task * share, end = begin + share < H ? begin + share : H;
  for (int y = begin; y < end; y++) {
    float *first = __TVMBackendAllocWorkspace(1, 0, 100, 2, 32);
    float *row = __TVMBackendAllocWorkspace(1, 0, W * 8 * sizeof(float), 2, 32);
    if (!first || !row || (uintptr_t)row % 64) return -1;
    memset(first, 0x7f, 100);
    memcpy(row, d->act + (size_t)y * W * 8, W * 8 * sizeof(float));
    for (int x = 0; x < W; x++) {
      int p = y * W + x;
      for (int c = 0; c < 2; c++) d->next_a[p * 2 + c] = put(row[x * 8 + c]), row[x * 8 + c] = get(d->a[p * 2 + c]);
      for (int c = 0; c < 3; c++) d->next_b[p * 3 + c] = put(row[x * 8 + 2 + c]), row[x * 8 + 2 + c] = get(d->b[p * 3 + c]);
      for (int c = 0; c < 8; c++) {
        float sum = 0;
        for (int k = 0; k < 8; k++) sum += (row[x * 8 + k] > 0 ? row[x * 8 + k] : 0) * d->w[k * 8 + c];
        d->out[p * 8 + c] = sum;
      }
    }
    __TVMBackendFreeWorkspace(1, 0, first); /* out of order on purpose */
    __TVMBackendFreeWorkspace(1, 0, row);
  }
  return 0;
}

static int splice(void *self, const tsm_ffi_any *args, int32_t n, tsm_ffi_any *result) {
  (void)self, (void)n, (void)result;
  splice_data d = {tensor(args, 1)->data, tensor(args, 2)->data, tensor(args, 3)->data, tensor(args, 4)->data,
                   tensor(args, 0)->data, tensor(args, 5)->data, tensor(args, 6)->data};
  float *held = __TVMBackendAllocWorkspace(1, 0, d.act[0] > 1e5f ? 1 << 20 : 4096, 2, 32);
  if (!held) return -1;
  memset(held, 0x55, 4096);
  int failed = __TVMBackendParallelLaunch(splice_rows, &d, 0);
  for (int i = 0; i < 4096; i++)
    if (((unsigned char *)held)[i] != 0x55) return -1; /* a task was given this task's memory */
  return __TVMBackendFreeWorkspace(1, 0, held) ? -1 : failed;
}

static int head(void *self, const tsm_ffi_any *args, int32_t n, tsm_ffi_any *result) {
  (void)self, (void)n, (void)result;
  const real *frame = tensor(args, 0)->data;
  const float *out = tensor(args, 1)->data, *w = tensor(args, 2)->data;
  real *logits = tensor(args, 3)->data;
#ifndef TOY_MUTE
  if (get(frame[0]) > 1000) {
    const char *parts[] = {"the frame is ", "too bright", NULL, " for a toy"};
    TVMFFIErrorSetRaisedFromCStrParts("ValueError", parts, 4);
    return -1;
  }
#endif
  for (int i = 0; i < N; i++) {
    double sum = 0;
    for (int p = 0; p < H * W; p++)
      for (int c = 0; c < 8; c++) sum += (double)out[p * 8 + c] * w[c * N + i];
    logits[i] = put((float)(sum / (H * W)));
  }
  return 0;
}

#define ALIGNED(bytes) (((bytes) + 63) / 64 * 64)
#define A_BYTES ALIGNED(H * W * 2 * TOY_BITS / 8)
#define B_BYTES ALIGNED(H * W * 3 * TOY_BITS / 8)
#define ACT_BYTES ALIGNED(H * W * 8 * 4)

static const tsm_plan_operand operands[] = {
    {TSM_IN_FRAME, 2, TOY_BITS, 3, 0, {H, W, 3}},
    {TSM_IN_WEIGHTS, 2, 32, 2, 0, {3, 8}},
    {TSM_IN_WEIGHTS, 2, 32, 1, 128, {8}},
    {TSM_IN_ARENA, 2, 32, 3, TOY_BAD_OFFSET, {H, W, 8}},
    /* splice */
    {TSM_IN_ARENA, 2, 32, 3, 0, {H, W, 8}},
    {TSM_IN_CACHE, 2, TOY_BITS, 3, 0, {H, W, 2}},
    {TSM_IN_CACHE, 2, TOY_BITS, 3, A_BYTES, {H, W, 3}},
    {TSM_IN_NEXT_CACHE, 2, TOY_BITS, 3, 0, {H, W, 2}},
    {TSM_IN_NEXT_CACHE, 2, TOY_BITS, 3, A_BYTES, {H, W, 3}},
    {TSM_IN_WEIGHTS, 2, 32, 2, 192, {8, 8}},
    {TSM_IN_ARENA, 2, 32, 3, ACT_BYTES, {H, W, 8}},
    /* head */
    {TSM_IN_FRAME, 2, TOY_BITS, 3, 0, {H, W, 3}},
    {TSM_IN_ARENA, 2, 32, 3, ACT_BYTES, {H, W, 8}},
    {TSM_IN_WEIGHTS, 2, 32, 2, 448, {8, N}},
    {TSM_IN_LOGITS, 2, TOY_BITS, 1, 0, {N}},
};
static const tsm_plan_call calls[] = {
    {"stem", "pointwise", mix, 0, 4, H * W * 24, H * W * 44},
    {"block", "splice", splice, 4, 7, H * W * 64, H * W * 100},
    {"head", "dense", head, 11, 4, 40, H * W * 32},
};
static const tsm_plan_cache caches[] = {
    {"cache.a", 2, H, W, 2, TOY_BITS, 0},
    {"cache.b", 3, H, W, 2, TOY_BITS, A_BYTES},
};
static const char *const classes[] = {"zero", "one", "two", "three", "four"};
const tsm_plan tsm_model_plan = {
    .version = TOY_VERSION, .model_name = "toy", .precision = TOY_BITS == 16 ? "fp16" : "fp32", .trained = 0,
    .num_classes = N, .classes = classes, .height = H, .width = W, .resize = TOY_SQUASH, .shorter_side = SHORTER,
    .antialias = TOY_ANTIALIAS, .colour = TOY_COLOUR, .mean = {0.485f, 0.456f, 0.406f}, .std = {0.229f, 0.224f, 0.225f},
    .fps = 15, .max_gap_seconds = 1.0, .default_threads = TOY_THREADS, .cache_bytes = A_BYTES + B_BYTES,
    .arena_bytes = 2 * ACT_BYTES, .weight_bytes = sizeof toy_values, .weights = (const unsigned char *)toy_values,
    .num_caches = 2, .num_calls = 3, .num_operands = sizeof operands / sizeof *operands, .caches = caches, .calls = calls,
    .operands = operands, .manifest = "{\"schema\": 1}", .hwcap = TOY_HWCAP,
};
