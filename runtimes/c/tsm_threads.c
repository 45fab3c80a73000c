/* tsm_threads.c: the worker threads of one stream.
 *
 * A launch splits a kernel's loop into tasks. Tasks are taken one by one off a single 32-bit word, (launch:16, tasks:8,
 * next:8), by compare-and-swap; the thread that launches takes tasks too, so that a worker that is late or asleep costs
 * nothing but its help. Whoever has taken a task of a launch knows that the launch is not over before he has finished: the
 * other fields hold still until then. Workers spin for a moment between the launches of a step and sleep otherwise. */
#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* sched_setaffinity */
#endif
#include "tsm_internal.h"

#ifdef TSM_NO_THREADS
int tsm_cpu_count(int big_only) { (void)big_only; return 1; }
tsm_pool *tsm_pool_create(int threads, int big_only, uint64_t scratch_bytes) {
  (void)threads, (void)big_only, (void)scratch_bytes;
  return NULL;
}
void tsm_pool_destroy(tsm_pool *pool) { (void)pool; }
void tsm_pool_begin(tsm_pool *pool) { (void)pool; }
void tsm_pool_end(tsm_pool *pool) { (void)pool; }
int tsm_pool_run(tsm_pool *pool, tsm_task_fn fn, void *data, tsm_context *caller) {
  (void)pool, (void)fn, (void)data, (void)caller;
  return -1;
}
#else

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define SPINS 4000 /* looks at the word before a worker sleeps: some 20 to 50 microseconds */
#define SPINS_BEFORE_YIELD 1000

typedef struct {
  tsm_pool *pool;
  pthread_t thread;
  tsm_context context;
  int started;
} worker;

struct tsm_pool {
  /* written at every launch: a cache line of its own */
  uint32_t word __attribute__((aligned(64))); /* launch << 16 | tasks << 8 | next */
  uint32_t done;
  int32_t failed; /* first non-zero result */
  tsm_task_fn fn;
  void *data;
  tsm_context *failed_context;
  tsm_parallel_group group;
  /* sleeping */
  uint32_t sleepers __attribute__((aligned(64)));
  uint32_t step;   /* odd while a step runs */
  uint32_t quit;
  pthread_mutex_t lock;
  pthread_cond_t wake;
  int threads, big_only;
  pid_t owner; /* the process whose threads they are: a fork has only the memory */
  worker workers[TSM_MAX_THREADS];
};

/* --- which CPUs ---------------------------------------------------------------------------------------------------------- */
#ifdef __linux__
static long read_number(const char *format, int cpu) {
  char path[96];
  long value = -1;
  snprintf(path, sizeof path, format, cpu);
  FILE *file = fopen(path, "r");
  if (!file) return -1;
  if (fscanf(file, "%ld", &value) != 1) value = -1;
  fclose(file);
  return value;
}

/* The CPUs that this process may use; only those of at least 3/4 of the best capacity (else of the highest clock) when
 * big_only. Where the system does not tell, all are alike. */
static int usable_cpus(int big_only, cpu_set_t *set) {
  CPU_ZERO(set);
  if (sched_getaffinity(0, sizeof *set, set) != 0) return 0;
  int count = 0;
  long speed[CPU_SETSIZE], best = -1;
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
    speed[cpu] = -1;
    if (!CPU_ISSET(cpu, set)) continue;
    count++;
    if (!big_only) continue;
    speed[cpu] = read_number("/sys/devices/system/cpu/cpu%d/cpu_capacity", cpu);
    if (speed[cpu] < 0) speed[cpu] = read_number("/sys/devices/system/cpu/cpu%d/cpufreq/cpuinfo_max_freq", cpu);
    if (speed[cpu] > best) best = speed[cpu];
  }
  if (!big_only || best <= 0) return count;
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
    if (CPU_ISSET(cpu, set) && speed[cpu] >= 0 && speed[cpu] < best / 4 * 3) {
      CPU_CLR(cpu, set);
      count--;
    }
  return count;
}

/* Any of them: which one is the scheduler's business. Not allowed: no harm. */
static void stay_on_big_cores(void) {
  cpu_set_t set, all;
  int count = usable_cpus(1, &set);
  if (count > 0 && count < usable_cpus(0, &all)) sched_setaffinity(0, sizeof set, &set);
}

int tsm_cpu_count(int big_only) {
  cpu_set_t set;
  int count = usable_cpus(big_only, &set);
  return count > 0 ? count : 1;
}
#else
static void stay_on_big_cores(void) {}

int tsm_cpu_count(int big_only) {
  (void)big_only;
  long count = sysconf(_SC_NPROCESSORS_ONLN);
  return count > 0 ? (int)count : 1;
}
#endif

/* --- work -------------------------------------------------------------------------------------------------------------- */

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("isb" ::: "memory"); /* `yield` does nothing on most cores; this waits some tens of cycles */
#else
  __asm__ __volatile__("" ::: "memory");
#endif
}

static int open_task(uint32_t word) { return (word & 255u) < ((word >> 8) & 255u); }

/* Take and run one task; 0 when there was none. */
static int take(tsm_pool *pool, tsm_context *context) {
  uint32_t word = __atomic_load_n(&pool->word, __ATOMIC_ACQUIRE);
  do {
    if (!open_task(word)) return 0;
  } while (!__atomic_compare_exchange_n(&pool->word, &word, word + 1, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));
  context->used = context->top = 0;
  context->in_task = 1;
  int failed = pool->fn((int)(word & 255u), &pool->group, pool->data);
  context->in_task = 0;
  if (failed) {
    int32_t none = 0;
    if (__atomic_compare_exchange_n(&pool->failed, &none, failed, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
      pool->failed_context = context;
  }
  __atomic_fetch_add(&pool->done, 1, __ATOMIC_RELEASE);
  return 1;
}

static void *work(void *argument) {
  worker *self = argument;
  tsm_pool *pool = self->pool;
  tsm_context_enter(&self->context);
  if (pool->big_only) stay_on_big_cores();
  int spins = 0;
  while (!__atomic_load_n(&pool->quit, __ATOMIC_ACQUIRE)) {
    if (take(pool, &self->context)) { spins = 0; continue; }
    uint32_t step = __atomic_load_n(&pool->step, __ATOMIC_ACQUIRE);
    if ((step & 1u) && ++spins < SPINS) { relax(); continue; }
    /* Sleep until a launch, or the next step. The launcher looks at `sleepers` after it has set the word, we look at the
     * word after we have counted ourselves: one of us sees the other. */
    pthread_mutex_lock(&pool->lock);
    __atomic_fetch_add(&pool->sleepers, 1, __ATOMIC_SEQ_CST);
    while (!__atomic_load_n(&pool->quit, __ATOMIC_SEQ_CST) && !open_task(__atomic_load_n(&pool->word, __ATOMIC_SEQ_CST))) {
      uint32_t now = __atomic_load_n(&pool->step, __ATOMIC_SEQ_CST);
      if (now != step && (now & 1u)) break;
      pthread_cond_wait(&pool->wake, &pool->lock);
    }
    __atomic_fetch_sub(&pool->sleepers, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&pool->lock);
    spins = 0;
  }
  return NULL;
}

static void wake_all(tsm_pool *pool) {
  if (!__atomic_load_n(&pool->sleepers, __ATOMIC_SEQ_CST)) return;
  pthread_mutex_lock(&pool->lock);
  pthread_cond_broadcast(&pool->wake);
  pthread_mutex_unlock(&pool->lock);
}

int tsm_pool_run(tsm_pool *pool, tsm_task_fn fn, void *data, tsm_context *caller) {
  tsm_parallel_group alone = {NULL, 1};
  if (caller->in_task) return fn(0, &alone, data); /* a loop inside a task of another loop */
  uint64_t used = caller->used, top = caller->top;
  unsigned char *scratch = caller->scratch;
  uint64_t scratch_bytes = caller->scratch_bytes;
  caller->scratch += used; /* what the kernel holds outside the loop stays below */
  caller->scratch_bytes -= used;
  uint32_t tasks = (uint32_t)pool->threads;
  pool->fn = fn;
  pool->data = data;
  pool->group.sync_handle = NULL;
  pool->group.num_task = (int32_t)tasks;
  pool->failed_context = NULL;
  __atomic_store_n(&pool->failed, 0, __ATOMIC_RELAXED);
  __atomic_store_n(&pool->done, 0, __ATOMIC_RELAXED);
  uint32_t launch = ((__atomic_load_n(&pool->word, __ATOMIC_RELAXED) >> 16) + 1u) & 0xffffu;
  __atomic_store_n(&pool->word, launch << 16 | tasks << 8, __ATOMIC_SEQ_CST);
  wake_all(pool);
  while (take(pool, caller)) {}
  for (int spins = 0; __atomic_load_n(&pool->done, __ATOMIC_ACQUIRE) != tasks; spins++) {
    if (spins < SPINS_BEFORE_YIELD) relax();
    else sched_yield(); /* a worker was put aside in the middle of its task: let it have the CPU */
  }
  caller->scratch = scratch;
  caller->scratch_bytes = scratch_bytes;
  caller->used = used;
  caller->top = top;
  int failed = __atomic_load_n(&pool->failed, __ATOMIC_ACQUIRE);
  if (failed && pool->failed_context && pool->failed_context != caller)
    memcpy(caller->error, pool->failed_context->error, sizeof caller->error);
  return failed;
}

void tsm_pool_begin(tsm_pool *pool) {
  __atomic_fetch_add(&pool->step, 1, __ATOMIC_SEQ_CST);
  wake_all(pool);
}

void tsm_pool_end(tsm_pool *pool) { __atomic_fetch_add(&pool->step, 1, __ATOMIC_SEQ_CST); }

/* --- life ----------------------------------------------------------------------------------------------------------------- */

tsm_pool *tsm_pool_create(int threads, int big_only, uint64_t scratch_bytes) {
  tsm_pool *pool = tsm_aligned_alloc(sizeof *pool);
  if (!pool) return NULL;
  pool->threads = threads;
  pool->big_only = big_only;
  pool->owner = getpid();
  if (pthread_mutex_init(&pool->lock, NULL) != 0) {
    tsm_aligned_free(pool);
    return NULL;
  }
  if (pthread_cond_init(&pool->wake, NULL) != 0) {
    pthread_mutex_destroy(&pool->lock);
    tsm_aligned_free(pool);
    return NULL;
  }
  /* Signals are the application's: its handlers must not run on our threads. */
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int started = 1;
  for (int i = 0; i < threads - 1 && started; i++) {
    worker *w = &pool->workers[i];
    w->pool = pool;
    w->context.scratch = tsm_aligned_alloc(scratch_bytes);
    w->context.scratch_bytes = scratch_bytes;
    started = w->context.scratch && pthread_create(&w->thread, NULL, work, w) == 0;
    w->started = started;
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (!started) {
    tsm_pool_destroy(pool);
    return NULL;
  }
  return pool;
}

void tsm_pool_destroy(tsm_pool *pool) {
  if (!pool) return;
  int ours = pool->owner == getpid(); /* in a forked child nobody is there to be joined, and the lock may be held for ever */
  if (ours) {
    pthread_mutex_lock(&pool->lock);
    __atomic_store_n(&pool->quit, 1, __ATOMIC_SEQ_CST);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
  }
  for (int i = 0; i < TSM_MAX_THREADS; i++) {
    worker *w = &pool->workers[i];
    if (ours && w->started) pthread_join(w->thread, NULL);
    tsm_aligned_free(w->context.scratch);
  }
  if (ours) {
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
  }
  tsm_aligned_free(pool);
}
#endif
