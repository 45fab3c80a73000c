/* tsm_stream.c: the public functions of streams: state, clock, preprocessing and results of one camera. */
#include "tsm_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct tsm_stream {
  const tsm_model *model;
  tsm_pool *pool;
  tsm_resizer *resizer;
  void *caches[2];        /* the step reads [now] and writes [!now] */
  int now;
  void *frame;            /* native layout and width */
  float *pixels;          /* float32 (height, width, 3); the same memory as `frame` when that is float32 */
  void *logits_native;
  float *logits, *scores; /* [num_classes] */
  void *workspace;
  int64_t *call_ns, *total_ns; /* [num_calls], when profiled */
  uint64_t steps;
  int32_t threads, timings, label_index, has_result;
  int64_t max_gap_ns, period_ns; /* 0: none */
  int32_t has_clock;             /* a frame with a timestamp was seen */
  int64_t last_ns, due_ns;
  uint32_t busy;
  char error[320];
};

/* One use at a time: a second thread is turned away, it does not wait. */
static int take_stream(tsm_stream *stream) { return !__atomic_exchange_n(&stream->busy, 1, __ATOMIC_ACQUIRE); }
static tsm_status leave_stream(tsm_stream *stream, tsm_status status) {
  if (status == TSM_OK) stream->error[0] = 0;
  else if (status != TSM_ERROR_KERNEL) snprintf(stream->error, sizeof stream->error, "%s", tsm_status_message(status));
  __atomic_store_n(&stream->busy, 0, __ATOMIC_RELEASE);
  return status;
}

static void forget(tsm_stream *stream) {
  const tsm_plan *plan = stream->model->plan;
  memset(stream->caches[stream->now], 0, (size_t)plan->cache_bytes);
  memset(stream->logits, 0, (size_t)plan->num_classes * sizeof(float));
  memset(stream->scores, 0, (size_t)plan->num_classes * sizeof(float));
  stream->label_index = -1;
  stream->has_result = 0;
  stream->has_clock = 0;
}

tsm_status tsm_stream_create(const tsm_model *model, const tsm_stream_options *options, tsm_stream **out) {
  tsm_stream_options given;
  if (!model || !out) return TSM_ERROR_ARGUMENT;
  tsm_status status = tsm_read_struct(&given, sizeof given, options, sizeof given);
  if (status != TSM_OK) return status;
  const tsm_plan *plan = model->plan;
  if (given.threads < 0 || given.threads > TSM_MAX_THREADS || given.affinity < 0 || given.affinity > TSM_AFFINITY_NONE ||
      given.max_gap_seconds != given.max_gap_seconds || given.fps != given.fps)
    return TSM_ERROR_ARGUMENT;
  tsm_stream *stream = calloc(1, sizeof *stream);
  if (!stream) return TSM_ERROR_MEMORY;
  stream->model = model;
  int threads = given.threads;
  if (!threads) {
    int cpus = tsm_cpu_count(given.affinity != TSM_AFFINITY_NONE);
    threads = plan->default_threads > 0 ? plan->default_threads : 1;
    if (threads > cpus) threads = cpus;
    if (threads > TSM_MAX_THREADS) threads = TSM_MAX_THREADS;
  }
  double gap = given.max_gap_seconds == 0 ? plan->max_gap_seconds : given.max_gap_seconds;
  double fps = given.fps == 0 ? plan->fps : given.fps;
  stream->max_gap_ns = gap > 0 && gap < 1e9 ? (int64_t)(gap * 1e9) : 0;
  stream->period_ns = fps > 1e-6 && fps < 1e9 ? (int64_t)(1e9 / fps) : 0;
  stream->timings = given.timings != 0;
  uint64_t classes = (uint64_t)plan->num_classes * sizeof(float);
  uint64_t pixels = (uint64_t)plan->height * (uint64_t)plan->width * 3 * sizeof(float);
  stream->caches[0] = tsm_aligned_alloc(plan->cache_bytes);
  stream->caches[1] = tsm_aligned_alloc(plan->cache_bytes);
  stream->pixels = tsm_aligned_alloc(pixels);
  stream->frame = model->frame_bits == 32 ? (void *)stream->pixels : tsm_aligned_alloc(model->frame_bytes);
  stream->logits_native = tsm_aligned_alloc(model->logits_bytes);
  stream->logits = tsm_aligned_alloc(classes);
  stream->scores = tsm_aligned_alloc(classes);
  stream->workspace = tsm_aligned_alloc(model->workspace_bytes);
  int ok = stream->caches[0] && stream->caches[1] && stream->frame && stream->pixels && stream->logits_native &&
           stream->logits && stream->scores && stream->workspace;
  if (ok && given.profile) {
    stream->call_ns = calloc(plan->num_calls + 1, sizeof *stream->call_ns);
    stream->total_ns = calloc(plan->num_calls + 1, sizeof *stream->total_ns);
    ok = stream->call_ns && stream->total_ns;
  }
  if (!ok) {
    tsm_stream_destroy(stream);
    return TSM_ERROR_MEMORY;
  }
  /* Touch every page now: the first frame is not slower than the others. */
  memset(stream->workspace, 0, (size_t)model->workspace_bytes);
  memset(stream->caches[1], 0, (size_t)plan->cache_bytes);
  memset(stream->pixels, 0, (size_t)pixels);
  forget(stream);
  stream->threads = 1;
  if (threads > 1) {
    stream->pool = tsm_pool_create(threads, given.affinity != TSM_AFFINITY_NONE, model->scratch_bytes);
    if (!stream->pool) {
      tsm_stream_destroy(stream);
      return TSM_ERROR_THREADS;
    }
    stream->threads = threads;
  }
  *out = stream;
  return TSM_OK;
}

void tsm_stream_destroy(tsm_stream *stream) {
  if (!stream) return;
  tsm_pool_destroy(stream->pool);
  tsm_resizer_destroy(stream->resizer);
  tsm_aligned_free(stream->caches[0]);
  tsm_aligned_free(stream->caches[1]);
  if (stream->frame != (void *)stream->pixels) tsm_aligned_free(stream->frame);
  tsm_aligned_free(stream->pixels);
  tsm_aligned_free(stream->logits_native);
  tsm_aligned_free(stream->logits);
  tsm_aligned_free(stream->scores);
  tsm_aligned_free(stream->workspace);
  free(stream->call_ns);
  free(stream->total_ns);
  free(stream);
}

/* Run the network on stream->frame, whose pixels are in place; with a pool, between its begin and its end. */
static tsm_status step_frame(tsm_stream *stream) {
  const tsm_model *model = stream->model;
  const tsm_plan *plan = model->plan;
  tsm_blocks blocks = {stream->frame, stream->caches[stream->now], stream->caches[!stream->now], stream->logits_native,
                       stream->workspace};
  tsm_status status = tsm_step_blocks(model, &blocks, stream->pool, stream->call_ns);
  if (status != TSM_OK) {
    snprintf(stream->error, sizeof stream->error, "%s", tsm_model_step_error(model, stream->workspace));
    return status; /* the caches of before are untouched */
  }
  stream->now = !stream->now;
  tsm_to_nchw(stream->logits_native, stream->logits, 1, plan->num_classes, model->logits_bits);
  tsm_softmax(stream->logits, stream->scores, plan->num_classes);
  int32_t best = 0;
  for (int32_t i = 1; i < plan->num_classes; i++)
    if (stream->scores[i] > stream->scores[best]) best = i;
  stream->label_index = best;
  stream->has_result = 1;
  stream->steps++;
  if (stream->call_ns)
    for (uint32_t i = 0; i < plan->num_calls; i++) stream->total_ns[i] += stream->call_ns[i];
  return TSM_OK;
}

static void fill_result(const tsm_stream *stream, tsm_result *out, int reset, int skipped, int64_t preprocess_ns, int64_t step_ns) {
  if (!out) return;
  const tsm_plan *plan = stream->model->plan;
  tsm_result result;
  memset(&result, 0, sizeof result);
  result.label_index = stream->label_index;
  if (stream->label_index >= 0) {
    result.score = stream->scores[stream->label_index];
    result.label = plan->classes[stream->label_index];
  }
  result.scores = stream->scores;
  result.logits = stream->logits;
  result.num_classes = plan->num_classes;
  result.reset = reset;
  result.skipped = skipped;
  result.preprocess_ns = preprocess_ns;
  result.step_ns = step_ns;
  tsm_write_struct(out, &result, sizeof result, sizeof result);
}

/* The image in full, checked. */
static tsm_status read_image(tsm_image *image, const tsm_image *given, int with_planes) {
  if (!given) return TSM_ERROR_ARGUMENT;
  tsm_status status = tsm_read_struct(image, sizeof *image, given, sizeof *image);
  return status == TSM_OK ? tsm_image_check(image, with_planes) : status;
}

static tsm_status fit_resizer(tsm_stream *stream, const tsm_image *image) {
  if (tsm_resizer_fits(stream->resizer, image)) return TSM_OK;
  tsm_resizer *resizer = tsm_resizer_create(stream->model->plan, image);
  if (!resizer) return TSM_ERROR_MEMORY;
  tsm_resizer_destroy(stream->resizer);
  stream->resizer = resizer;
  return TSM_OK;
}

/* a - b, held at the ends of the range: timestamps are the caller's, any value. */
static int64_t difference(int64_t a, int64_t b) {
  if (b < 0 && a > INT64_MAX + b) return INT64_MAX;
  if (b > 0 && a < INT64_MIN + b) return INT64_MIN;
  return a - b;
}

/* What the clock says about a frame at `now`: reset first? skip it? Changes the clock. */
static void watch_clock(tsm_stream *stream, int64_t now, int *reset, int *skip) {
  *reset = *skip = 0;
  if (stream->has_clock) {
    int64_t gap = difference(now, stream->last_ns);
    if (gap < 0 || (stream->max_gap_ns && gap > stream->max_gap_ns)) *reset = 1;
  }
  if (*reset || !stream->has_clock) {
    stream->due_ns = now;
  } else if (stream->period_ns && stream->has_result && difference(stream->due_ns, now) > stream->period_ns / 4) {
    *skip = 1;
  }
  stream->last_ns = now;
  stream->has_clock = 1;
  if (!*skip) {
    if (difference(now, stream->due_ns) > 0 && difference(now, stream->due_ns) >= stream->period_ns) stream->due_ns = now;
    if (stream->due_ns <= INT64_MAX - stream->period_ns) stream->due_ns += stream->period_ns;
  }
}

static tsm_status step_image(tsm_stream *stream, const tsm_image *given, tsm_result *out) {
  tsm_image image;
  tsm_status status = read_image(&image, given, 1);
  if (status != TSM_OK) return status;
  if ((status = fit_resizer(stream, &image)) != TSM_OK) return status;
  int reset = 0, skip = 0;
  if (image.has_timestamp) watch_clock(stream, image.timestamp_ns, &reset, &skip);
  if (skip) {
    fill_result(stream, out, 0, 1, 0, 0);
    return TSM_OK;
  }
  if (reset) {
    int64_t last = stream->last_ns, due = stream->due_ns;
    forget(stream);
    stream->has_clock = 1, stream->last_ns = last, stream->due_ns = due;
  }
  int64_t begin = stream->timings ? tsm_now_ns() : 0;
  tsm_resizer_run(stream->resizer, &image, stream->pixels);
  if (stream->frame != (void *)stream->pixels)
    tsm_from_nchw(stream->pixels, stream->frame, 1, (int64_t)stream->model->plan->height * stream->model->plan->width * 3, 16);
  int64_t middle = stream->timings ? tsm_now_ns() : 0;
  if (stream->pool) tsm_pool_begin(stream->pool);
  status = step_frame(stream);
  if (stream->pool) tsm_pool_end(stream->pool);
  if (status != TSM_OK) return status;
  int64_t end = stream->timings ? tsm_now_ns() : 0;
  fill_result(stream, out, reset, 0, middle - begin, end - middle);
  return TSM_OK;
}

tsm_status tsm_stream_step(tsm_stream *stream, const tsm_image *image, tsm_result *result) {
  if (!stream) return TSM_ERROR_ARGUMENT;
  if (!take_stream(stream)) return TSM_ERROR_BUSY;
  if (result && !tsm_size_ok(result, sizeof *result)) return leave_stream(stream, TSM_ERROR_SIZE);
  return leave_stream(stream, step_image(stream, image, result));
}

tsm_status tsm_stream_step_tensor(tsm_stream *stream, const float *frame, tsm_result *result) {
  if (!stream) return TSM_ERROR_ARGUMENT;
  if (!take_stream(stream)) return TSM_ERROR_BUSY;
  if (!frame) return leave_stream(stream, TSM_ERROR_ARGUMENT);
  if (result && !tsm_size_ok(result, sizeof *result)) return leave_stream(stream, TSM_ERROR_SIZE);
  int64_t begin = stream->timings ? tsm_now_ns() : 0;
  if (stream->pool) tsm_pool_begin(stream->pool); /* workers wake up while this thread converts */
  tsm_model_frame_from_nchw(stream->model, frame, stream->frame);
  int64_t middle = stream->timings ? tsm_now_ns() : 0;
  tsm_status status = step_frame(stream);
  if (stream->pool) tsm_pool_end(stream->pool);
  int64_t end = stream->timings ? tsm_now_ns() : 0;
  if (status == TSM_OK) fill_result(stream, result, 0, 0, middle - begin, end - middle);
  return leave_stream(stream, status);
}

tsm_status tsm_stream_preprocess(tsm_stream *stream, const tsm_image *given, float *frame) {
  tsm_image image;
  if (!stream) return TSM_ERROR_ARGUMENT;
  if (!take_stream(stream)) return TSM_ERROR_BUSY;
  if (!frame) return leave_stream(stream, TSM_ERROR_ARGUMENT);
  tsm_status status = read_image(&image, given, 1);
  if (status == TSM_OK) status = fit_resizer(stream, &image);
  if (status == TSM_OK) {
    tsm_resizer_run(stream->resizer, &image, stream->pixels);
    tsm_to_nchw(stream->pixels, frame, 3, (int64_t)stream->model->plan->height * stream->model->plan->width, 32);
  }
  return leave_stream(stream, status);
}

tsm_status tsm_stream_prepare(tsm_stream *stream, const tsm_image *given) {
  tsm_image image;
  if (!stream) return TSM_ERROR_ARGUMENT;
  if (!take_stream(stream)) return TSM_ERROR_BUSY;
  tsm_status status = read_image(&image, given, 0);
  if (status == TSM_OK) status = fit_resizer(stream, &image);
  return leave_stream(stream, status);
}

tsm_status tsm_stream_reset(tsm_stream *stream) {
  if (!stream) return TSM_ERROR_ARGUMENT;
  if (!take_stream(stream)) return TSM_ERROR_BUSY;
  forget(stream);
  stream->steps = 0;
  if (stream->total_ns) memset(stream->total_ns, 0, stream->model->plan->num_calls * sizeof *stream->total_ns);
  return leave_stream(stream, TSM_OK);
}

static tsm_status check_cache(const tsm_stream *stream, int32_t index, const void *values, size_t count) {
  if (!values) return TSM_ERROR_ARGUMENT;
  const tsm_plan_cache *cache = tsm_cache_at(stream->model, index);
  if (!cache) return TSM_ERROR_ARGUMENT;
  return count == (size_t)cache->channels * (size_t)cache->height * (size_t)cache->width ? TSM_OK : TSM_ERROR_SIZE;
}

tsm_status tsm_stream_get_cache(tsm_stream *stream, int32_t index, float *values, size_t count) {
  if (!stream) return TSM_ERROR_ARGUMENT;
  if (!take_stream(stream)) return TSM_ERROR_BUSY;
  tsm_status status = check_cache(stream, index, values, count);
  if (status != TSM_OK) return leave_stream(stream, status);
  return leave_stream(stream, tsm_model_cache_to_nchw(stream->model, index, stream->caches[stream->now], values));
}

tsm_status tsm_stream_set_cache(tsm_stream *stream, int32_t index, const float *values, size_t count) {
  if (!stream) return TSM_ERROR_ARGUMENT;
  if (!take_stream(stream)) return TSM_ERROR_BUSY;
  tsm_status status = check_cache(stream, index, values, count);
  if (status != TSM_OK) return leave_stream(stream, status);
  return leave_stream(stream, tsm_model_cache_from_nchw(stream->model, index, values, stream->caches[stream->now]));
}

const char *tsm_stream_error(const tsm_stream *stream) { return stream ? stream->error : ""; }
int32_t tsm_stream_threads(const tsm_stream *stream) { return stream ? stream->threads : 0; }

tsm_status tsm_stream_get_profile(const tsm_stream *stream, int32_t index, tsm_profile *out) {
  if (!stream || !out || !stream->call_ns || index < 0 || (uint32_t)index >= stream->model->plan->num_calls)
    return TSM_ERROR_ARGUMENT;
  const tsm_plan_call *call = &stream->model->plan->calls[index];
  tsm_profile profile = {0, call->name, call->kind, call->macs, call->bytes, stream->call_ns[index], stream->total_ns[index],
                         stream->steps};
  return tsm_write_struct(out, &profile, sizeof profile, sizeof profile);
}
