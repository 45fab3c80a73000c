/* peak.c: multiply-adds a second of one core, with the widest float vectors the compiler was told of.
 * Prints GFLOP/s, best of several short runs: independent accumulators, no memory. */
#include <stdio.h>
#include <time.h>
#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
enum { CHAINS = 12, LOOPS = 1000000, LANES = BYTES / 4 };
typedef float vec __attribute__((vector_size(BYTES)));

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

int main(void) {
  double best = 0;
  vec sum = {0};
  for (int run = 0; run < 100; run++) {
    vec a[CHAINS], b = sum + 0.999f, c = sum + 0.001f;
    for (int i = 0; i < CHAINS; i++) a[i] = c + (float)i;
    double start = now();
    for (int n = 0; n < LOOPS; n++) {
#pragma GCC unroll 12
      for (int i = 0; i < CHAINS; i++) a[i] = a[i] * b + c;
    }
    double rate = 2.0 * CHAINS * LOOPS * LANES / (now() - start) / 1e9;
    if (rate > best) best = rate;
    for (int i = 0; i < CHAINS; i++) sum += a[i] * 0;
  }
  printf("%.2f %g\n", best, (double)sum[0]);
  return 0;
}
