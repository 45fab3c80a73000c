/* tsm_internal.h: what the runtime's source files share. Not installed.
 *
 * A model library is: every .c file here but tsm_replay.c, the generated plan.c and its weights, and TVM's kernels.o; linked
 * with -lm -lpthread (neither on Android) and the version script tsm_edge.map. The sources need C99, a POSIX libc and the
 * compiler's __atomic functions. -DTSM_NO_THREADS leaves out threads and POSIX but for clock_gettime. */
#ifndef TSM_INTERNAL_H
#define TSM_INTERNAL_H
#include "tsm_edge.h"
#include "tsm_plan.h"

#define TSM_ALIGN 64
#define TSM_MAX_OPERANDS 64 /* of one kernel call */
#define TSM_MAX_THREADS 64

static inline uint64_t tsm_round_up(uint64_t n) { return (n + (TSM_ALIGN - 1)) & ~(uint64_t)(TSM_ALIGN - 1); }

typedef struct tsm_pool tsm_pool;

typedef struct tsm_context { /* of one thread inside a step; the kernels reach it through a thread-specific pointer */
  tsm_pool *pool;            /* NULL: parallel loops run on this thread */
  unsigned char *scratch;    /* served to the kernels as a stack */
  uint64_t scratch_bytes, used, top;
  uint64_t peak;             /* most ever in use; counted while measuring */
  int measuring;             /* serve from malloc instead and count */
  int in_task;               /* inside a task of a parallel loop */
  char error[256];
} tsm_context;

/* --- tsm_system.c ------------------------------------------------------------------------------------------------------- */
void *tsm_aligned_alloc(uint64_t bytes); /* zeroed, aligned to TSM_ALIGN; NULL when there is no memory */
void tsm_aligned_free(void *block);
int64_t tsm_now_ns(void);            /* monotonic */
int tsm_context_ready(void);         /* 0: the thread-specific pointer could not be made */
tsm_context *tsm_context_now(void);  /* the calling thread's; NULL outside a step */
tsm_context *tsm_context_enter(tsm_context *context); /* returns the one before, for tsm_context_leave */
void tsm_context_leave(tsm_context *before);

/* --- tsm_threads.c ------------------------------------------------------------------------------------------------------ */
typedef struct { void *sync_handle; int32_t num_task; } tsm_parallel_group; /* TVM's: what a task is told of its loop */
typedef int (*tsm_task_fn)(int task, tsm_parallel_group *group, void *data);

int tsm_cpu_count(int big_only); /* CPUs this process may use */
tsm_pool *tsm_pool_create(int threads, int big_only, uint64_t scratch_bytes); /* threads >= 2, the caller's included */
void tsm_pool_destroy(tsm_pool *pool);
void tsm_pool_begin(tsm_pool *pool); /* a step begins: wake the workers */
void tsm_pool_end(tsm_pool *pool);   /* it is over: let them sleep */
/* fn(task, group, data) for task in 0..n-1, group->num_task == n, on all threads; returns the first non-zero result. */
int tsm_pool_run(tsm_pool *pool, tsm_task_fn fn, void *data, tsm_context *caller);

/* --- tsm_tvm.c: also defines the symbols that TVM's objects ask for ---------------------------------------------------- */
/* A kernel failed: context->error holds its own words, else they are made of its name (may be NULL). */
void tsm_kernel_failed(tsm_context *context, const char *name);

/* --- tsm_run.c ---------------------------------------------------------------------------------------------------------- */
typedef struct tsm_blocks { /* the memory of one step */
  const void *frame, *caches_in;
  void *caches_out, *logits, *arena;
} tsm_blocks;

tsm_status tsm_plan_check(const tsm_plan *plan, char *message, size_t message_bytes);
tsm_status tsm_plan_run(const tsm_plan *plan, const tsm_blocks *blocks, tsm_context *context, int64_t *call_ns);

/* --- tsm_edge.c: what streams take from models -------------------------------------------------------------------------- */
struct tsm_model {
  const tsm_plan *plan;
  uint64_t scratch_bytes, workspace_bytes, frame_bytes, logits_bytes, macs;
  int32_t frame_bits, logits_bits;
};

/* The caller's struct, of his size, as ours: what he does not know is zero. `least` is the size of the first version. */
tsm_status tsm_read_struct(void *ours, size_t our_size, const void *theirs, size_t least);
/* Ours, with the size that theirs states, into the caller's struct. */
tsm_status tsm_write_struct(void *theirs, void *ours, size_t our_size, size_t least);
int tsm_size_ok(const void *theirs, size_t least);
const tsm_plan_cache *tsm_cache_at(const tsm_model *model, int32_t index); /* NULL: there is none */
/* One step; blocks->arena is a whole workspace. pool, call_ns: may be NULL. */
tsm_status tsm_step_blocks(const tsm_model *model, const tsm_blocks *blocks, tsm_pool *pool, int64_t *call_ns);

/* --- tsm_convert.c ------------------------------------------------------------------------------------------------------ */
uint16_t tsm_float_to_half(float value); /* nearest, ties to even */
float tsm_half_to_float(uint16_t half);
/* float32 [channels, pixels] <-> (pixels, channels) of 32 or 16 bits */
void tsm_from_nchw(const float *nchw, void *native, int64_t channels, int64_t pixels, int bits);
void tsm_to_nchw(const void *native, float *nchw, int64_t channels, int64_t pixels, int bits);
void tsm_softmax(const float *logits, float *scores, int32_t n);

/* --- tsm_preprocess.c --------------------------------------------------------------------------------------------------- */
typedef struct tsm_resizer tsm_resizer;

tsm_status tsm_image_check(const tsm_image *image, int with_planes);
/* Whether `resizer` (may be NULL) was built for images like this one. */
int tsm_resizer_fits(const tsm_resizer *resizer, const tsm_image *image);
tsm_resizer *tsm_resizer_create(const tsm_plan *plan, const tsm_image *image); /* NULL: no memory */
void tsm_resizer_destroy(tsm_resizer *resizer);
/* out: float32 (plan->height, plan->width, 3), normalised, colour order of the plan */
void tsm_resizer_run(tsm_resizer *resizer, const tsm_image *image, float *out);
#endif
