/* Chains a library for TVM's runtime over frames, by the C interface of TVM's own runtime: no Python, no compiler.
 *
 *   tvm_replay LIBRARY INPUTS OUTPUTS FRAMES HEIGHT WIDTH CLASSES [CHANNELS HEIGHT WIDTH]...
 *
 * INPUTS: float32 [FRAMES, 3, HEIGHT, WIDTH]. OUTPUTS: for every frame its logits, then every cache, float32 [channels, h, w].
 * The three numbers of each cache follow, in order. Linked with libtvm_ffi.so and libtvm_runtime.so. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What is used of TVM's C interface (tvm/ffi/c_api.h, dlpack.h). */
typedef struct { int32_t type_index; uint32_t zero; union { int64_t i; void *p; } v; } any;
typedef struct { const char *data; size_t size; } byte_array;
typedef struct { void *data; struct { int32_t type, id; } device; int32_t ndim; struct { uint8_t code, bits; uint16_t lanes; } dtype;
                 int64_t *shape, *strides; uint64_t byte_offset; } dltensor;
typedef struct managed { dltensor t; void *context; void (*deleter)(struct managed *); } managed;
enum { INT = 1, BOOL = 2, RAW_STRING = 8, FIRST_OBJECT = 64, TENSOR = 70, OBJECT_HEADER = 24, CPU = 1, POOLED = 2 };
int TVMFFIFunctionGetGlobal(const byte_array *name, void **out);
int TVMFFIFunctionCall(void *function, const any *args, int32_t count, any *result);
int TVMFFITensorFromDLPack(managed *from, int32_t alignment, int32_t contiguous, void **out);
int TVMFFIObjectDecRef(void *object);
void TVMFFIErrorMoveFromRaised(void **error);

#define MOST_CACHES 256

static void die(const char *what) {
  void *error = NULL;
  TVMFFIErrorMoveFromRaised(&error);
  /* the error's cell follows the object's header: kind, message */
  const byte_array *cell = error ? (const byte_array *)((char *)error + OBJECT_HEADER) : NULL;
  fprintf(stderr, "%s: %.*s\n", what, cell ? (int)cell[1].size : 0, cell ? cell[1].data : "");
  exit(1);
}

static any call(void *function, const char *what, const any *args, int count) {
  any result = {0, 0, {0}};
  if (TVMFFIFunctionCall(function, args, count, &result)) die(what);
  return result;
}

static void *global(const char *name) {
  byte_array text = {name, strlen(name)};
  void *function = NULL;
  if (TVMFFIFunctionGetGlobal(&text, &function) || !function) die(name);
  return function;
}

static any object(void *p, int type) { any a = {type, 0, {0}}; a.v.p = p; return a; }
static any number(int64_t i) { any a = {INT, 0, {0}}; a.v.i = i; return a; }
static any text(const char *s) { any a = {RAW_STRING, 0, {0}}; a.v.p = (void *)s; return a; }

static void *method(any module, const char *name) {
  any args[3] = {module, text(name), {BOOL, 0, {1}}};
  any found = call(global("ffi.ModuleGetFunction"), name, args, 3);
  if (found.type_index < FIRST_OBJECT) { fprintf(stderr, "no function %s\n", name); exit(1); }
  return found.v.p;
}

static dltensor *inside(any tensor) { return (dltensor *)((char *)tensor.v.p + OBJECT_HEADER); }
static void keep(managed *self) { (void)self; }

static any tensor(int64_t channels, int64_t height, int64_t width) {
  managed *m = calloc(1, sizeof *m);
  int64_t *shape = malloc(4 * sizeof *shape), values = channels * height * width;
  void *data = NULL, *made = NULL;
  if (!m || !shape || posix_memalign(&data, 64, (size_t)(values * 4 + 63) / 64 * 64)) exit(1);
  memset(data, 0, (size_t)values * 4);
  shape[0] = 1, shape[1] = channels, shape[2] = height, shape[3] = width;
  m->t.data = data, m->t.device.type = CPU, m->t.ndim = 4, m->t.dtype.code = 2, m->t.dtype.bits = 32, m->t.dtype.lanes = 1;
  m->t.shape = shape, m->deleter = keep;
  if (TVMFFITensorFromDLPack(m, 64, 1, &made)) die("TVMFFITensorFromDLPack");
  return object(made, TENSOR);
}

int main(int argc, char **argv) {
  if (argc < 8 || (argc - 8) % 3 || (argc - 8) / 3 >= MOST_CACHES) return 2;
  long frames = atol(argv[4]), height = atol(argv[5]), width = atol(argv[6]), classes = atol(argv[7]), caches = (argc - 8) / 3;
  FILE *in = fopen(argv[2], "rb"), *out = fopen(argv[3], "wb");
  if (!in || !out) { perror("files"); return 1; }

  any path = text(argv[1]);
  any library = call(global("ffi.ModuleLoadFromFile"), "load", &path, 1);
  any machine = call(method(library, "vm_load_executable"), "vm_load_executable", NULL, 0);
  any setup[3] = {number(CPU), number(0), number(POOLED)};
  call(method(machine, "vm_initialization"), "vm_initialization", setup, 3);
  void *step = method(machine, "main");
  void *item = global("ffi.ArrayGetItem");

  any state[MOST_CACHES + 1];
  state[0] = tensor(3, height, width);
  for (long i = 0; i < caches; i++) state[1 + i] = tensor(atol(argv[8 + 3 * i]), atol(argv[9 + 3 * i]), atol(argv[10 + 3 * i]));
  for (long t = 0; t < frames; t++) {
    size_t pixels = (size_t)(3 * height * width);
    if (fread(inside(state[0])->data, 4, pixels, in) != pixels) { fprintf(stderr, "too few frames\n"); return 1; }
    any results = call(step, "step", state, (int)caches + 1);
    for (long i = 0; i <= caches; i++) {
      any args[2] = {results, number(i)};
      any value = call(item, "result", args, 2);
      dltensor *v = inside(value);
      size_t values = 1;
      for (int d = 0; d < v->ndim; d++) values *= (size_t)v->shape[d];
      if (i == 0 && values != (size_t)classes) { fprintf(stderr, "%zu logits\n", values); return 1; }
      fwrite((char *)v->data + v->byte_offset, 4, values, out);
      if (i == 0) { TVMFFIObjectDecRef(value.v.p); continue; }
      TVMFFIObjectDecRef(state[i].v.p);
      state[i] = value;
    }
    TVMFFIObjectDecRef(results.v.p);
  }
  if (fclose(out)) { perror("outputs"); return 1; }
  return 0;
}
