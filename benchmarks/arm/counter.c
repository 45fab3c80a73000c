/* counter.c: a QEMU user-mode plugin (interface version 1, QEMU >= 7.2) that counts how often each translated block of a
 * marked region runs, and simulates a data cache hierarchy. Everything else (classes, symbols, cycles) is worked out later
 * from the instruction words it writes.
 *
 * Within a region every clock_gettime system call begins a new segment (0 is before the first): the model library's profile
 * reads the clock between kernel calls, and user-mode QEMU has no vDSO, so segments are kernels.
 *
 * Arguments: out=FILE  l1=BYTES:WAYS  l2=BYTES:WAYS  (either cache given switches the simulation on; lines of 64 bytes, LRU,
 * no prefetcher, instruction fetches left out). The guest marks its region with prctl(0x54534d, 1) and prctl(0x54534d, 2).
 *
 * Output, text: (accesses as QEMU makes them: 16 bytes are two) "cache SEGMENT L1_ACCESSES L1_MISSES L2_ACCESSES L2_MISSES" a segment, then one line for each block and
 * segment it ran in: COUNT SEGMENT FILE OFFSET WORD WORD ...
 * Single-threaded guests only: the counters are not atomic. */
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The part of QEMU's plugin interface that is used here; distributions ship QEMU without its header. */
#define EXPORT __attribute__((visibility("default")))
typedef uint64_t plugin_id;
typedef struct plugin_tb plugin_tb;
typedef struct plugin_insn plugin_insn;
enum { INLINE_ADD_U64 = 0, NO_REGISTERS = 0, MEMORY_READ_WRITE = 3 };
size_t qemu_plugin_tb_n_insns(const plugin_tb *);
plugin_insn *qemu_plugin_tb_get_insn(const plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const plugin_insn *);
void *qemu_plugin_insn_haddr(const plugin_insn *);
unsigned qemu_plugin_mem_size_shift(uint32_t);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_inline(plugin_tb *, int, void *, uint64_t);
void qemu_plugin_register_vcpu_mem_cb(plugin_insn *, void (*)(unsigned, uint32_t, uint64_t, void *), int, int, void *);
void qemu_plugin_register_vcpu_syscall_cb(plugin_id, void (*)(plugin_id, unsigned, int64_t, uint64_t, uint64_t, uint64_t,
                                                              uint64_t, uint64_t, uint64_t, uint64_t, uint64_t));
void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void *), void *);
EXPORT int qemu_plugin_version = 1;

enum { MARK = 0x54534d, MAX_MAPS = 256, MAX_SEGMENTS = 1024, SYS_PRCTL = 167, SYS_CLOCK_GETTIME = 113 /* AArch64 */ };

typedef struct block {
  struct block *next;
  uint64_t runs, seen;             /* runs since translation; of these, booked to a segment or outside regions */
  uint64_t *marked;                /* [MAX_SEGMENTS], runs inside regions; NULL until the first */
  uint64_t host;                   /* where QEMU keeps the guest's code: tells file and offset */
  uint32_t n, words[];
} block;

typedef struct {
  uint32_t sets, ways;
  uint64_t *lines; /* [sets][ways], most recent first; 0 is empty */
  uint64_t accesses[MAX_SEGMENTS], misses[MAX_SEGMENTS];
} cache;

static block *blocks;
static cache l1, l2;
static bool counting;
static int segment;
static const char *out_path;

static bool cache_parse(cache *c, const char *text) {
  char *end;
  uint64_t bytes = strtoull(text, &end, 0);
  if (*end != ':') return false;
  c->ways = (uint32_t)strtoul(end + 1, NULL, 0);
  if (!c->ways || bytes % (64 * c->ways)) return false;
  c->sets = (uint32_t)(bytes / 64 / c->ways);
  c->lines = calloc((size_t)c->sets * c->ways, sizeof *c->lines);
  return c->lines != NULL;
}

/* Bring a line to the front of its set; true when it was there. Contents are kept outside regions too (warm caches). */
static bool cache_touch(cache *c, uint64_t line) {
  uint64_t *set = c->lines + (size_t)(line % c->sets) * c->ways, key = line + 1;
  uint32_t i = 0;
  while (i < c->ways && set[i] != key) i++;
  bool hit = i < c->ways;
  if (counting) c->accesses[segment]++, c->misses[segment] += !hit;
  if (!hit) i = c->ways - 1;
  memmove(set + 1, set, i * sizeof *set);
  set[0] = key;
  return hit;
}

static void on_memory(unsigned cpu, uint32_t info, uint64_t address, void *unused) {
  (void)cpu, (void)unused;
  uint64_t last = (address + (1u << qemu_plugin_mem_size_shift(info)) - 1) >> 6;
  for (uint64_t line = address >> 6; line <= last; line++)
    if (!cache_touch(&l1, line) && l2.lines) cache_touch(&l2, line);
}

static void on_translate(plugin_id id, plugin_tb *tb) {
  (void)id;
  size_t n = qemu_plugin_tb_n_insns(tb);
  block *b = calloc(1, sizeof *b + n * sizeof b->words[0]);
  if (!b) abort();
  b->n = (uint32_t)n;
  b->host = (uint64_t)(uintptr_t)qemu_plugin_insn_haddr(qemu_plugin_tb_get_insn(tb, 0));
  for (size_t i = 0; i < n; i++) {
    plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
    memcpy(&b->words[i], qemu_plugin_insn_data(insn), sizeof b->words[i]);
    if (l1.lines) qemu_plugin_register_vcpu_mem_cb(insn, on_memory, NO_REGISTERS, MEMORY_READ_WRITE, NULL);
  }
  b->next = blocks, blocks = b;
  qemu_plugin_register_vcpu_tb_exec_inline(tb, INLINE_ADD_U64, &b->runs, 1);
}

/* Book the runs since the last call to the current segment, or to nothing outside a region. */
static void book(void) {
  for (block *b = blocks; b; b = b->next) {
    uint64_t runs = b->runs - b->seen;
    b->seen = b->runs;
    if (!runs || !counting) continue;
    if (!b->marked) b->marked = calloc(MAX_SEGMENTS, sizeof *b->marked);
    if (!b->marked) abort();
    b->marked[segment] += runs;
  }
}

static void on_syscall(plugin_id id, unsigned cpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4,
                       uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
  (void)id, (void)cpu, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
  if (number == SYS_PRCTL && a1 == MARK) {
    book();
    counting = a2 == 1;
    segment = 0;
  } else if (number == SYS_CLOCK_GETTIME && counting) {
    book();
    if (segment + 1 < MAX_SEGMENTS) segment++;
  }
}

typedef struct { uint64_t low, high, offset; char path[512]; } map;

static void on_exit_write(plugin_id id, void *unused) {
  (void)id, (void)unused;
  static map maps[MAX_MAPS];
  int num_maps = 0;
  char line[1024];
  FILE *f = fopen("/proc/self/maps", "r");
  while (f && num_maps < MAX_MAPS && fgets(line, sizeof line, f)) {
    map *m = &maps[num_maps];
    m->path[0] = 0;
    num_maps += sscanf(line, "%" SCNx64 "-%" SCNx64 " %*s %" SCNx64 " %*s %*s %511s", &m->low, &m->high, &m->offset, m->path) == 4;
  }
  if (f) fclose(f);
  FILE *out = fopen(out_path, "w");
  if (!out) { fprintf(stderr, "counter: cannot write %s\n", out_path); return; }
  for (int i = 0; i < MAX_SEGMENTS; i++)
    if (l1.accesses[i])
      fprintf(out, "cache %d %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", i, l1.accesses[i], l1.misses[i], l2.accesses[i],
              l2.misses[i]);
  for (block *b = blocks; b; b = b->next) {
    if (!b->marked) continue;
    const map *in = NULL;
    for (int i = 0; i < num_maps; i++)
      if (b->host >= maps[i].low && b->host < maps[i].high) in = &maps[i];
    for (int s = 0; s < MAX_SEGMENTS; s++) {
      if (!b->marked[s]) continue;
      fprintf(out, "%" PRIu64 " %d %s 0x%" PRIx64, b->marked[s], s, in ? in->path : "?", in ? b->host - in->low + in->offset : 0);
      for (uint32_t i = 0; i < b->n; i++) fprintf(out, " %08x", b->words[i]);
      fputc('\n', out);
    }
  }
  fclose(out);
}

EXPORT int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv) {
  (void)info;
  for (int i = 0; i < argc; i++) {
    if (!strncmp(argv[i], "out=", 4)) out_path = strdup(argv[i] + 4);
    else if (!strncmp(argv[i], "l1=", 3) && cache_parse(&l1, argv[i] + 3)) continue;
    else if (!strncmp(argv[i], "l2=", 3) && cache_parse(&l2, argv[i] + 3)) continue;
    else { fprintf(stderr, "counter: argument '%s' not understood\n", argv[i]); return -1; }
  }
  if (!out_path) { fprintf(stderr, "counter: out=FILE is missing\n"); return -1; }
  qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate);
  qemu_plugin_register_vcpu_syscall_cb(id, on_syscall);
  qemu_plugin_register_atexit_cb(id, on_exit_write, NULL);
  return 0;
}
