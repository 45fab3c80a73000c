/* tsm_system.c: what the other files take from the C library and the system: memory, the clock, one pointer for every thread. */
#if !defined(_POSIX_C_SOURCE) && !defined(_GNU_SOURCE)
#define _POSIX_C_SOURCE 200809L /* clock_gettime */
#endif
#include "tsm_internal.h"

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
tsm_context *tsm_context_now(void) { return current; }
static void context_set(tsm_context *context) { current = context; }
#else
static pthread_key_t key;
static pthread_once_t key_once = PTHREAD_ONCE_INIT;
static int key_made;
static void make_key(void) { key_made = pthread_key_create(&key, NULL) == 0; }
int tsm_context_ready(void) { return pthread_once(&key_once, make_key) == 0 && key_made; }
tsm_context *tsm_context_now(void) { return pthread_getspecific(key); }
static void context_set(tsm_context *context) { pthread_setspecific(key, context); }
#if defined(__GNUC__)
/* The key dies with the library, or the next dlopen of it would leak one. */
__attribute__((destructor)) static void drop_key(void) { if (key_made) pthread_key_delete(key); }
#endif
#endif

tsm_context *tsm_context_enter(tsm_context *context) {
  tsm_context *before = tsm_context_now();
  context_set(context);
  return before;
}

void tsm_context_leave(tsm_context *before) { context_set(before); }
