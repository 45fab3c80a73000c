/* tsm_edge.h: run one compiled TSM network, frame by frame, on a CPU.
 *
 * A *model* is the network: weights and code, never changed once created, shared by any number of threads.
 * A *stream* is one camera: the caches that carry the past, the last result, its worker threads.
 * A library holds one model. For two in one process, dlopen each with RTLD_LOCAL and take the functions by dlsym.
 *
 *   tsm_model *model = NULL;
 *   tsm_stream *stream = NULL;
 *   if (tsm_model_create(NULL, &model) != TSM_OK) return 1;
 *   if (tsm_stream_create(model, NULL, &stream) != TSM_OK) return 1;
 *
 *   tsm_image image = {.size = sizeof image};             // the rest is zero: sensible defaults
 *   image.format = TSM_FORMAT_NV21;
 *   image.width = 640, image.height = 480;
 *   image.planes[0] = y, image.planes[1] = vu;    // stride 0: rows without gaps
 *   image.rotation = 90;
 *   image.has_timestamp = 1, image.timestamp_ns = t;
 *
 *   tsm_result result = {.size = sizeof result};
 *   tsm_status status = tsm_stream_step(stream, &image, &result);
 *   if (status != TSM_OK) puts(tsm_status_message(status));
 *   else if (!result.skipped) printf("%s %.2f\n", result.label, result.score);
 *
 *   tsm_stream_destroy(stream);                   // streams before their model
 *   tsm_model_destroy(model);
 *
 * Ownership. Who creates destroys; destroying NULL does nothing. Streams are destroyed before their model. Pointers that
 *   come out of a model (names, info) live as long as the model; those in a tsm_result live until the stream's next
 *   step, reset or destruction. What you pass in is read (or written) during the call only and stays yours.
 * Threads. Every function on a tsm_model may be called from any thread at any time. A stream is used by one thread at a
 *   time (any thread; a second one at the same moment gets TSM_ERROR_BUSY). Different streams run at the same time.
 *   After fork() a child makes its own streams: worker threads stay with the parent, whose streams the child only destroys.
 * Memory. Everything is allocated by the _create functions. A step allocates nothing, waits for no lock and makes no
 *   system call (with threads = 1; with more, sleeping workers are woken), with one exception: the first image of a new
 *   geometry (format, size, strides' signs, rotation) builds the tables of the resize; tsm_stream_prepare does it ahead.
 * Structs. Zero them, set `size` to sizeof, then set what you need: zero always means the default. A library of another
 *   version reads and writes no more than `size` bytes.
 * Errors. Functions return a status, never exit, never print. On an error the outputs are as they were.
 */
#ifndef TSM_EDGE_H
#define TSM_EDGE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define TSM_API __attribute__((visibility("default")))
#else
#define TSM_API
#endif

#define TSM_API_VERSION 1 /* of this header; tsm_api_version() says the library's */

typedef enum tsm_status {
  TSM_OK = 0,
  TSM_ERROR_ARGUMENT = 1, /* a pointer is NULL or a value is outside its range */
  TSM_ERROR_SIZE = 2,     /* a struct's `size` is not set, or a buffer has another length than the model needs */
  TSM_ERROR_IMAGE = 3,    /* the image's format, size, planes, strides or rotation cannot be used */
  TSM_ERROR_MEMORY = 4,   /* out of memory */
  TSM_ERROR_THREADS = 5,  /* worker threads could not be started */
  TSM_ERROR_BUSY = 6,     /* another thread is inside a call on this stream */
  TSM_ERROR_PLAN = 7,     /* the library's own tables do not fit together: export it again */
  TSM_ERROR_CPU = 8,      /* this CPU lacks a feature that the library was compiled for */
  TSM_ERROR_KERNEL = 9    /* a kernel refused its arguments: tsm_stream_error has its words */
} tsm_status;

TSM_API const char *tsm_status_message(tsm_status status); /* one plain sentence; never NULL */
TSM_API int32_t tsm_api_version(void);

typedef struct tsm_model tsm_model;
typedef struct tsm_stream tsm_stream;

/* --- the model -------------------------------------------------------------------------------------------------------- */

typedef struct tsm_model_options {
  size_t size;
  char *message;         /* NULL, or where to write what went wrong in words */
  size_t message_bytes;  /* room at `message`, with the closing zero */
} tsm_model_options;

/* Create the model that is compiled into this library. options may be NULL. */
TSM_API tsm_status tsm_model_create(const tsm_model_options *options, tsm_model **model);
TSM_API void tsm_model_destroy(tsm_model *model);

enum { TSM_RESIZE_CROP = 0, TSM_RESIZE_SQUASH = 1 };

typedef struct tsm_model_info {
  size_t size;
  const char *name;         /* "mobilenet_v2-jester" */
  const char *precision;    /* "fp32", "fp16" */
  const char *manifest;     /* JSON; "" where the library carries none */
  int32_t trained;          /* 0: random weights, the labels mean nothing */
  int32_t num_classes;
  int32_t width, height;    /* of the network's input, pixels */
  int32_t resize;           /* TSM_RESIZE_* */
  int32_t shorter_side;     /* pixels, before the crop; 0 when squashed */
  int32_t antialias;        /* 1: triangle filter widened by the scale, 0: two taps */
  int32_t colour;           /* 0: RGB, 1: BGR order of the network's input channels */
  float mean[3], std[3];    /* input = (pixel / 255 - mean) / std */
  double fps;               /* the model's frame rate; 0: any */
  double max_gap_seconds;   /* a longer gap between timestamps resets a stream; 0: never */
  int32_t default_threads;
  int32_t num_caches;
  int32_t num_calls;        /* kernel calls of a step */
  int32_t frame_bits, logits_bits; /* 32 or 16: floating point width in the stateless step */
  uint64_t frame_bytes;     /* the four blocks of the stateless step */
  uint64_t cache_bytes;
  uint64_t logits_bytes;
  uint64_t workspace_bytes; /* arena_bytes + scratch_bytes + a little */
  uint64_t arena_bytes, scratch_bytes, weight_bytes;
  uint64_t macs;            /* multiply-accumulates of a step */
} tsm_model_info;

typedef struct tsm_cache_info {
  size_t size;
  const char *name;         /* "cache.<layer>" */
  int32_t channels, height, width;
  int32_t bits;             /* 32 or 16 in the cache block */
  uint64_t offset;          /* bytes into the cache block */
} tsm_cache_info;

TSM_API tsm_status tsm_model_get_info(const tsm_model *model, tsm_model_info *info);
TSM_API const char *tsm_model_class_name(const tsm_model *model, int32_t index); /* NULL: no such class */
TSM_API tsm_status tsm_model_get_cache_info(const tsm_model *model, int32_t index, tsm_cache_info *info);

/* --- a stream --------------------------------------------------------------------------------------------------------- */

enum {
  TSM_AFFINITY_DEFAULT = 0, /* as BIG */
  TSM_AFFINITY_BIG = 1,     /* where cores differ in speed, worker threads keep to the fast ones, if the system lets them */
  TSM_AFFINITY_NONE = 2     /* anywhere */
};

typedef struct tsm_stream_options {
  size_t size;
  int32_t threads;          /* 0: the model's default, at most the CPUs of `affinity`; 1: no worker threads; at most 64 */
  int32_t affinity;         /* TSM_AFFINITY_*; your own thread stays yours to place */
  double max_gap_seconds;   /* 0: the model's; negative: never reset by itself */
  double fps;               /* 0: the model's; negative: never skip a frame */
  int32_t timings;          /* 1: fill the result's *_ns (reads the clock three times a step) */
  int32_t profile;          /* 1: time every kernel call, see tsm_stream_get_profile */
} tsm_stream_options;

TSM_API tsm_status tsm_stream_create(const tsm_model *model, const tsm_stream_options *options, tsm_stream **stream);
TSM_API void tsm_stream_destroy(tsm_stream *stream);

enum {                      /* planes; bytes of a pixel in memory order */
  TSM_FORMAT_RGB = 0,       /* [0]: R G B */
  TSM_FORMAT_BGR = 1,       /* [0]: B G R */
  TSM_FORMAT_RGBA = 2,      /* [0]: R G B x; the fourth byte is not looked at */
  TSM_FORMAT_BGRA = 3,      /* [0]: B G R x */
  TSM_FORMAT_NV12 = 4,      /* [0]: Y, [1]: U V in turn, one pair for 2x2 pixels */
  TSM_FORMAT_NV21 = 5,      /* [0]: Y, [1]: V U in turn */
  TSM_FORMAT_I420 = 6       /* [0]: Y, [1]: U, [2]: V; with pixel_stride 2 Android's YUV_420_888 as it comes */
};
enum { TSM_YUV_LIMITED = 0, TSM_YUV_FULL = 1 };   /* Y 16..235 as in video, or 0..255 as in JPEG and Android's camera */
enum { TSM_YUV_BT601 = 0, TSM_YUV_BT709 = 1 };

typedef struct tsm_image {
  size_t size;
  int32_t format;           /* TSM_FORMAT_* */
  int32_t width, height;    /* as stored, before the rotation; 1..16384; odd sizes of YUV have (n + 1) / 2 chroma samples */
  int32_t rotation;         /* 0, 90, 180, 270: clockwise degrees that turn the stored image upright */
  const uint8_t *planes[3];
  int64_t strides[3];       /* bytes from a row to the next; 0: no gaps; negative: bottom-up, planes point at the top row */
  int32_t pixel_stride;     /* I420: bytes between chroma samples; 0 means 1 */
  int32_t yuv_range;        /* TSM_YUV_LIMITED, TSM_YUV_FULL */
  int32_t yuv_matrix;       /* TSM_YUV_BT601, TSM_YUV_BT709 */
  int32_t has_timestamp;    /* 0: never skipped, never taken for a gap */
  int64_t timestamp_ns;     /* any origin */
} tsm_image;

typedef struct tsm_result {
  size_t size;
  int32_t label_index;      /* the greatest score; -1 before the first step */
  float score;              /* 0..1 */
  const char *label;
  const float *scores;      /* softmax of the logits, num_classes values */
  const float *logits;      /* num_classes values */
  int32_t num_classes;
  int32_t reset;            /* 1: the stream started anew before this frame (gap, or time ran backwards) */
  int32_t skipped;          /* 1: the frame came before its time; the values are the last step's */
  int32_t reserved;
  int64_t preprocess_ns;    /* 0 unless options.timings */
  int64_t step_ns;          /* the network */
} tsm_result;

/* Take one frame: resize, crop, normalise, step, softmax. result may be NULL.
 * With timestamps: a frame more than max_gap after the one before it, or before it in time, resets the stream first; a
 * frame that comes more than a quarter of a period (1 / fps) before its due time is skipped. The due time advances by one
 * period per frame taken and never lags more than one behind: a jittering 30 fps camera gives a 15 fps model every second frame. */
TSM_API tsm_status tsm_stream_step(tsm_stream *stream, const tsm_image *image, tsm_result *result);

/* Take one frame that is already the network's input: float32 [3, height, width], normalised. No clock, never skipped. */
TSM_API tsm_status tsm_stream_step_tensor(tsm_stream *stream, const float *frame, tsm_result *result);

/* Only resize, crop and normalise: float32 [3, height, width] into `frame`. The state stays as it is. */
TSM_API tsm_status tsm_stream_preprocess(tsm_stream *stream, const tsm_image *image, float *frame);

/* Allocate for images of this geometry ahead of time (planes may be NULL). */
TSM_API tsm_status tsm_stream_prepare(tsm_stream *stream, const tsm_image *image);

/* Forget the past: zero caches, no result, no clock. */
TSM_API tsm_status tsm_stream_reset(tsm_stream *stream);

/* One cache as float32 [channels, height, width]; count must be channels * height * width. */
TSM_API tsm_status tsm_stream_get_cache(tsm_stream *stream, int32_t index, float *values, size_t count);
TSM_API tsm_status tsm_stream_set_cache(tsm_stream *stream, int32_t index, const float *values, size_t count);

/* What went wrong in the last call that failed, in words; "" when nothing did. */
TSM_API const char *tsm_stream_error(const tsm_stream *stream);
TSM_API int32_t tsm_stream_threads(const tsm_stream *stream);

typedef struct tsm_profile {
  size_t size;
  const char *name, *kind;  /* layers of the kernel call; "pointwise", "inverted_residual", ... */
  uint64_t macs, bytes;     /* useful work; weights and activations read and written */
  int64_t last_ns;          /* in the last step */
  int64_t total_ns;         /* over all steps since creation or reset */
  uint64_t steps;
} tsm_profile;

/* Kernel call `index` of 0..num_calls-1; needs options.profile. */
TSM_API tsm_status tsm_stream_get_profile(const tsm_stream *stream, int32_t index, tsm_profile *profile);

/* --- the stateless step ------------------------------------------------------------------------------------------------
 * One step as a pure function: reads frame and caches_in, writes caches_out and logits. Re-entrant: any number at a time on
 * one model, each with its own blocks. Runs on the calling thread. Blocks are aligned to 64 bytes, of the sizes in
 * tsm_model_info, and do not overlap. The workspace is zeroed before its first use and then left alone between steps.
 * Layout is the kernels': frame (height, width, 3), caches (height, width, channels) each at its offset in the cache block.
 * A stream begins with caches of zeros. */
TSM_API tsm_status tsm_model_step(const tsm_model *model, const void *frame, const void *caches_in, void *caches_out,
                                  void *logits, void *workspace);

/* The same with nanoseconds of every kernel call into call_ns[num_calls]. */
TSM_API tsm_status tsm_model_profile(const tsm_model *model, const void *frame, const void *caches_in, void *caches_out,
                                     void *logits, void *workspace, int64_t *call_ns);

/* Words for the last TSM_ERROR_KERNEL of a step with this workspace. */
TSM_API const char *tsm_model_step_error(const tsm_model *model, const void *workspace);

/* Between float32 [channels, height, width] and the kernels' layout and width. */
TSM_API tsm_status tsm_model_frame_from_nchw(const tsm_model *model, const float *nchw, void *frame);
TSM_API tsm_status tsm_model_cache_from_nchw(const tsm_model *model, int32_t index, const float *nchw, void *caches);
TSM_API tsm_status tsm_model_cache_to_nchw(const tsm_model *model, int32_t index, const void *caches, float *nchw);
TSM_API tsm_status tsm_model_logits_to_float(const tsm_model *model, const void *logits, float *values);

#ifdef __cplusplus
}
#endif
#endif
