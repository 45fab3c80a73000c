/* tsm_preprocess.c: camera pixels -> resize, rotate, crop, normalise -> float32 (height, width, 3).
 *
 * Works in the source's orientation, one output line at a time: the source rows under the filter are weighted and summed
 * (every source byte of the crop is read once or twice, all of it vectorisable), then the sum is filtered along the row and
 * the finished pixels are written where the rotation puts them. YUV rows are turned into planes of red, green and blue
 * first, in a small ring that holds just the rows under the filter. The tables depend on the geometry alone and are built once for it. */
#include "tsm_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("O3") /* gcc vectorises such loops only then */
#endif

#if defined(__GNUC__)
typedef float vec4 __attribute__((vector_size(16)));
static inline vec4 load4(const float *p) { vec4 v; memcpy(&v, p, sizeof v); return v; }
#endif

typedef struct {         /* how one axis is resized; indices count in the source's orientation */
  int32_t outputs, taps; /* `taps` weights for every output, padded with 0 */
  int32_t first;         /* source samples [first, first + used) are looked at */
  int32_t used;
  int32_t *start;        /* [outputs]: first source sample, counted from `first` */
  int32_t *count;        /* [outputs]: how many weights are not padding */
  float *weights;        /* [outputs, taps] */
} axis;

typedef struct {         /* channel = luma * y + offset + k[0] * (first - 128) + k[1] * (second - 128) */
  float luma, offset, red[2], green[2], blue[2];
} yuv_rule;

struct tsm_resizer {
  int32_t format, width, height, rotation; /* what it was built for */
  axis x, y;                               /* along the source's rows; across them */
  int32_t channels;                        /* 3 or 4: bytes of a pixel; YUV rows are three planes, one after the other */
  int32_t out_height, out_width;
  int64_t step_x, step_y, origin;          /* floats: where output (x, y) of the source's orientation lies */
  int32_t swap;                            /* 1: the source's first channel is the network's third */
  float scale[3], bias[3];                 /* network input = sum * scale + bias, by network channel */
  float *sum;                              /* [x.used * channels + slack]: source rows, weighted and added */
  float *planes;                           /* [3][x.used], YUV only: the same before its planes are interleaved */
  const uint8_t **rows;                    /* [y.taps]: the rows under the filter */
  uint8_t *ring;                           /* [ring_rows][ring_stride], YUV only */
  int32_t ring_rows;
  int64_t ring_stride;
  yuv_rule yuv;
};

static int is_yuv(int format) { return format >= TSM_FORMAT_NV12; }

tsm_status tsm_image_check(const tsm_image *image, int with_planes) {
  if (!image) return TSM_ERROR_ARGUMENT;
  if (image->format < TSM_FORMAT_RGB || image->format > TSM_FORMAT_I420) return TSM_ERROR_IMAGE;
  if (image->width < 1 || image->height < 1 || image->width > 16384 || image->height > 16384) return TSM_ERROR_IMAGE;
  if (image->rotation != 0 && image->rotation != 90 && image->rotation != 180 && image->rotation != 270) return TSM_ERROR_IMAGE;
  if (image->yuv_range < 0 || image->yuv_range > 1 || image->yuv_matrix < 0 || image->yuv_matrix > 1) return TSM_ERROR_IMAGE;
  if (image->pixel_stride < 0 || image->pixel_stride > 16) return TSM_ERROR_IMAGE;
  int planes = image->format == TSM_FORMAT_I420 ? 3 : is_yuv(image->format) ? 2 : 1;
  int64_t chroma = (image->width + 1) / 2, pixel_stride = image->pixel_stride ? image->pixel_stride : 1;
  int64_t row[3] = {image->width, 2 * chroma, 0};
  if (image->format == TSM_FORMAT_I420) row[1] = row[2] = (chroma - 1) * pixel_stride + 1;
  else if (!is_yuv(image->format)) row[0] *= image->format >= TSM_FORMAT_RGBA ? 4 : 3;
  for (int p = 0; p < planes; p++) {
    if (with_planes && !image->planes[p]) return TSM_ERROR_IMAGE;
    int64_t stride = image->strides[p], most = (int64_t)1 << 24;
    if (stride < -most || stride > most) return TSM_ERROR_IMAGE;
    if (stride != 0 && stride < row[p] && stride > -row[p]) return TSM_ERROR_IMAGE;
  }
  return TSM_OK;
}

/* Fill an axis: `scaled` samples of which outputs [offset, offset + outputs) are kept, from `size` source samples.
 * Half-pixel centres; a triangle of half-width max(1, scale) (antialias) or 1, normalised over the samples that exist. */
static int make_axis(axis *a, int32_t size, int32_t scaled, int32_t offset, int32_t outputs, int antialias) {
  double scale = (double)size / scaled, half = antialias && scale > 1 ? scale : 1;
  int32_t most = (int32_t)ceil(half * 2) + 2;
  a->outputs = outputs;
  a->start = calloc((size_t)outputs, sizeof *a->start);
  double *weights = calloc((size_t)outputs * (size_t)most, sizeof *weights);
  a->count = calloc((size_t)outputs, sizeof *a->count);
  int ok = a->start && a->count && weights;
  int32_t lowest = size, highest = 0, taps = 1;
  for (int32_t i = 0; ok && i < outputs; i++) {
    double centre = (offset + i + 0.5) * scale - 0.5, sum = 0;
    int32_t from = (int32_t)ceil(centre - half), to = (int32_t)floor(centre + half), n = 0;
    double *w = weights + (size_t)i * (size_t)most;
    if (!antialias) { /* two taps; beyond the border the border sample counts */
      from = (int32_t)floor(centre);
      double right = centre - from;
      if (from < 0) { from = 0; w[0] = 1; n = 1; }
      else if (from + 1 >= size) { from = size - 1; w[0] = 1; n = 1; }
      else { w[0] = 1 - right; w[1] = right; n = 2; }
      sum = 1;
    } else {
      if (from < 0) from = 0;
      if (to > size - 1) to = size - 1;
      while (from < to && 1 - fabs(from - centre) / half <= 0) from++;
      for (int32_t s = from; s <= to; s++) {
        double value = 1 - fabs(s - centre) / half;
        if (value <= 0 && n) break;
        w[n++] = value > 0 ? value : 0;
        sum += w[n - 1];
      }
    }
    if (n == 0 || sum <= 0) { w[0] = 1; n = 1; sum = 1; }
    for (int32_t k = 0; k < n; k++) w[k] /= sum;
    a->start[i] = from;
    a->count[i] = n;
    if (from < lowest) lowest = from;
    if (from + n > highest) highest = from + n;
    if (n > taps) taps = n;
  }
  if (ok) a->weights = calloc((size_t)outputs * (size_t)taps, sizeof *a->weights);
  ok = ok && a->weights;
  a->taps = taps;
  a->first = lowest;
  a->used = highest - lowest;
  for (int32_t i = 0; ok && i < outputs; i++) {
    a->start[i] -= lowest;
    for (int32_t k = 0; k < a->count[i]; k++)
      a->weights[(size_t)i * (size_t)taps + (size_t)k] = (float)weights[(size_t)i * (size_t)most + (size_t)k];
  }
  free(weights);
  return ok;
}

int tsm_resizer_fits(const tsm_resizer *resizer, const tsm_image *image) {
  return resizer && resizer->format == image->format && resizer->width == image->width && resizer->height == image->height &&
         resizer->rotation == image->rotation;
}

void tsm_resizer_destroy(tsm_resizer *resizer) {
  if (!resizer) return;
  free(resizer->x.start), free(resizer->x.count), free(resizer->x.weights);
  free(resizer->y.start), free(resizer->y.count), free(resizer->y.weights);
  free(resizer->rows);
  tsm_aligned_free(resizer->sum);
  tsm_aligned_free(resizer->planes);
  tsm_aligned_free(resizer->ring);
  free(resizer);
}

/* A side times up / down, rounded half up. */
static int32_t scaled_side(int32_t side, int32_t up, int32_t down) {
  int64_t value = ((int64_t)side * up * 2 + down) / ((int64_t)down * 2);
  return value < 1 ? 1 : (int32_t)value;
}

tsm_resizer *tsm_resizer_create(const tsm_plan *plan, const tsm_image *image) {
  tsm_resizer *r = calloc(1, sizeof *r);
  if (!r) return NULL;
  r->format = image->format, r->width = image->width, r->height = image->height, r->rotation = image->rotation;
  r->out_width = plan->width, r->out_height = plan->height;
  int turned = image->rotation == 90 || image->rotation == 270;
  int32_t upright_w = turned ? image->height : image->width, upright_h = turned ? image->width : image->height;
  int32_t scaled_w = plan->width, scaled_h = plan->height;
  if (!plan->resize) {
    int32_t up = plan->shorter_side, down = upright_w < upright_h ? upright_w : upright_h; /* the scale is up / down */
    /* A crop that would not fit: larger, but never out of proportion. */
    if ((int64_t)plan->height * down > (int64_t)up * upright_h) up = plan->height, down = upright_h;
    if ((int64_t)plan->width * down > (int64_t)up * upright_w) up = plan->width, down = upright_w;
    scaled_w = scaled_side(upright_w, up, down);
    scaled_h = scaled_side(upright_h, up, down);
  }
  int32_t left = (scaled_w - plan->width) / 2, top = (scaled_h - plan->height) / 2;
  /* Upright column u and row v as functions of the source's x and y:
   * 0: u = x, v = y.  90: u = -y, v = x.  180: u = -x, v = -y.  270: u = y, v = -x.  (minus: counted from the other end) */
  int x_back = image->rotation == 180 || image->rotation == 270, y_back = image->rotation == 90 || image->rotation == 180;
  int32_t x_out = turned ? plan->height : plan->width, x_scaled = turned ? scaled_h : scaled_w, x_off = turned ? top : left;
  int32_t y_out = turned ? plan->width : plan->height, y_scaled = turned ? scaled_w : scaled_h, y_off = turned ? left : top;
  if (x_back) x_off = x_scaled - x_out - x_off;
  if (y_back) y_off = y_scaled - y_out - y_off;
  int64_t line = (int64_t)plan->width * 3;
  r->step_x = turned ? line : 3;
  r->step_y = turned ? 3 : line;
  r->origin = 0;
  if (x_back) { r->origin += r->step_x * (x_out - 1); r->step_x = -r->step_x; }
  if (y_back) { r->origin += r->step_y * (y_out - 1); r->step_y = -r->step_y; }
  int ok = make_axis(&r->x, image->width, x_scaled, x_off, x_out, plan->antialias) &&
           make_axis(&r->y, image->height, y_scaled, y_off, y_out, plan->antialias);
  int yuv = is_yuv(image->format);
  r->channels = image->format == TSM_FORMAT_RGBA || image->format == TSM_FORMAT_BGRA || yuv ? 4 : 3;
  int source_bgr = image->format == TSM_FORMAT_BGR || image->format == TSM_FORMAT_BGRA;
  r->swap = source_bgr != (plan->colour == 1);
  for (int c = 0; c < 3; c++) {
    r->scale[c] = (float)(1.0 / (255.0 * plan->std[c]));
    r->bias[c] = (float)(-(double)plan->mean[c] / plan->std[c]);
  }
  if (ok) {
    /* Weights of 0 reach beyond the row: the slack keeps them inside, and on zeros. */
    r->sum = tsm_aligned_alloc(((uint64_t)(r->x.used + r->x.taps) * (uint64_t)r->channels + 4) * sizeof(float));
    r->rows = calloc((size_t)r->y.taps, sizeof *r->rows);
    ok = r->sum && r->rows;
  }
  if (ok && yuv) {
    r->ring_rows = r->y.taps;
    r->ring_stride = (int64_t)tsm_round_up((uint64_t)r->x.used * 3);
    r->ring = tsm_aligned_alloc((uint64_t)r->ring_rows * (uint64_t)r->ring_stride);
    r->planes = tsm_aligned_alloc((uint64_t)r->x.used * 3 * sizeof(float));
    ok = r->ring && r->planes;
  }
  if (!ok) {
    tsm_resizer_destroy(r);
    return NULL;
  }
  return r;
}

/* --- YUV ------------------------------------------------------------------------------------------------------------------ */

/* Chroma bytes `first` and `second` lie in memory in this order; for NV21 the first is V. */
static void set_yuv(tsm_resizer *r, const tsm_image *image) {
  float kr = image->yuv_matrix == TSM_YUV_BT709 ? 0.2126f : 0.299f, kb = image->yuv_matrix == TSM_YUV_BT709 ? 0.0722f : 0.114f;
  float kg = 1 - kr - kb, full = image->yuv_range == TSM_YUV_FULL, luma = full ? 1 : 255.0f / 219, chroma = full ? 1 : 255.0f / 224;
  int u = image->format == TSM_FORMAT_NV21, v = !u;
  yuv_rule *rule = &r->yuv;
  memset(rule, 0, sizeof *rule);
  rule->luma = luma;
  rule->red[v] = 2 * (1 - kr) * chroma;
  rule->green[u] = -2 * (1 - kb) * kb / kg * chroma;
  rule->green[v] = -2 * (1 - kr) * kr / kg * chroma;
  rule->blue[u] = 2 * (1 - kb) * chroma;
  rule->offset = 0.5f - (full ? 0 : 16 * luma); /* the half is for the rounding */
}

static inline uint32_t to_byte(float value) {
  value = value > 0 ? value : 0;
  return (uint32_t)(int32_t)(value < 255.0f ? value : 255.0f);
}

/* n pairs of pixels, each pair with one chroma sample: y[2 n]; first and second [n], `step` bytes apart, or (step 0) taking
 * turns from `first` on -> bytes r, g, b [2 n].
 * Written for the compiler's vectoriser: a pair is loaded and stored as one 16-bit word, so that no lanes change places. */
static inline __attribute__((always_inline)) void convert_pairs(const yuv_rule *rule, const uint8_t *restrict y, const uint8_t *restrict first,
                                 const uint8_t *restrict second, int64_t step, uint8_t *restrict r, uint8_t *restrict g,
                                 uint8_t *restrict b, int32_t n) {
  float luma = rule->luma, offset = rule->offset, r0 = rule->red[0], r1 = rule->red[1];
  float g0 = rule->green[0], g1 = rule->green[1], b0 = rule->blue[0], b1 = rule->blue[1];
  for (int32_t i = 0; i < n; i++) {
    uint16_t pair;
    uint32_t one, two;
    if (step == 0) {
      memcpy(&pair, first + 2 * i, 2);
      one = pair & 255u, two = pair >> 8;
    } else {
      one = first[i * step], two = second[i * step];
    }
    float c0 = (float)(int32_t)one - 128, c1 = (float)(int32_t)two - 128;
    memcpy(&pair, y + 2 * i, 2);
    float left = (float)(int32_t)(pair & 255u) * luma + offset, right = (float)(int32_t)(pair >> 8) * luma + offset;
    float red = r0 * c0 + r1 * c1, green = g0 * c0 + g1 * c1, blue = b0 * c0 + b1 * c1;
    pair = (uint16_t)(to_byte(left + red) | to_byte(right + red) << 8);
    memcpy(r + 2 * i, &pair, 2);
    pair = (uint16_t)(to_byte(left + green) | to_byte(right + green) << 8);
    memcpy(g + 2 * i, &pair, 2);
    pair = (uint16_t)(to_byte(left + blue) | to_byte(right + blue) << 8);
    memcpy(b + 2 * i, &pair, 2);
  }
}

/* Source row `row`, columns [x.first, x.first + x.used), into the ring. */
static void convert_row(tsm_resizer *r, const tsm_image *image, int32_t row) {
  int64_t chroma = (image->width + 1) / 2;
  int planar = image->format == TSM_FORMAT_I420;
  int32_t step = planar ? (image->pixel_stride ? image->pixel_stride : 1) : 2;
  int64_t stride_y = image->strides[0] ? image->strides[0] : image->width;
  int64_t packed = planar ? (chroma - 1) * step + 1 : 2 * chroma;
  int64_t stride_u = image->strides[1] ? image->strides[1] : packed;
  int64_t stride_v = planar ? (image->strides[2] ? image->strides[2] : packed) : stride_u;
  const uint8_t *y = image->planes[0] + row * stride_y, *first = image->planes[1] + (row / 2) * stride_u;
  const uint8_t *second = planar ? image->planes[2] + (row / 2) * stride_v : first + 1;
  int32_t x = r->x.first, end = r->x.first + r->x.used;
  uint8_t *red = r->ring + (row % r->ring_rows) * r->ring_stride, *green = red + r->x.used, *blue = green + r->x.used;
  /* A pair cut by the edge of the crop or of an odd image: beside the row, then its one pixel is taken over. */
  uint8_t both[2], cut[6], chroma_pair[2];
  for (int side = 0; side < 2; side++) {
    if (side == 1) {
      int32_t n = (end - x) / 2;
      int64_t at = (int64_t)(x / 2) * step, to = x - r->x.first;
      if (step == 1) convert_pairs(&r->yuv, y + x, first + at, second + at, 1, red + to, green + to, blue + to, n);
      else if (!planar) convert_pairs(&r->yuv, y + x, first + at, second + at, 0, red + to, green + to, blue + to, n);
      else convert_pairs(&r->yuv, y + x, first + at, second + at, step, red + to, green + to, blue + to, n);
      x += 2 * n;
    }
    if (side == 0 ? x & 1 : x < end) {
      int64_t at = (int64_t)(x / 2) * step, to = x - r->x.first;
      both[0] = both[1] = y[x];
      chroma_pair[0] = first[at], chroma_pair[1] = second[at];
      convert_pairs(&r->yuv, both, chroma_pair, chroma_pair + 1, 1, cut, cut + 2, cut + 4, 1);
      red[to] = cut[0], green[to] = cut[2], blue[to] = cut[4];
      x++;
    }
  }
}

/* --- the two filters ------------------------------------------------------------------------------------------------------ */

/* sum = w[0] * rows[0] + ... over `n` bytes; four rows at a time, so that `sum` is read and written seldom. */
static void filter_rows(float *restrict sum, const uint8_t *const *rows, const float *w, int32_t taps, int32_t n) {
  const uint8_t *restrict a = rows[0], *restrict b, *restrict c, *restrict d;
  int32_t k = 0;
  switch (taps & 3) { /* the odd ones first: they start the sum */
    case 1: {
      float wa = w[0];
      for (int32_t i = 0; i < n; i++) sum[i] = wa * (float)a[i];
      k = 1;
      break;
    }
    case 2: {
      float wa = w[0], wb = w[1];
      b = rows[1];
      for (int32_t i = 0; i < n; i++) sum[i] = wa * (float)a[i] + wb * (float)b[i];
      k = 2;
      break;
    }
    case 3: {
      float wa = w[0], wb = w[1], wc = w[2];
      b = rows[1], c = rows[2];
      for (int32_t i = 0; i < n; i++) sum[i] = wa * (float)a[i] + wb * (float)b[i] + wc * (float)c[i];
      k = 3;
      break;
    }
    default: {
      float wa = w[0], wb = w[1], wc = w[2], wd = w[3];
      b = rows[1], c = rows[2], d = rows[3];
      for (int32_t i = 0; i < n; i++) sum[i] = wa * (float)a[i] + wb * (float)b[i] + wc * (float)c[i] + wd * (float)d[i];
      k = 4;
      break;
    }
  }
  for (; k < taps; k += 4) {
    float wa = w[k], wb = w[k + 1], wc = w[k + 2], wd = w[k + 3];
    a = rows[k], b = rows[k + 1], c = rows[k + 2], d = rows[k + 3];
    for (int32_t i = 0; i < n; i++) sum[i] += wa * (float)a[i] + wb * (float)b[i] + wc * (float)c[i] + wd * (float)d[i];
  }
}

static void interleave(const float *restrict planes, float *restrict pixels, int32_t n) {
  const float *restrict r = planes, *restrict g = planes + n, *restrict b = planes + 2 * n;
  for (int32_t i = 0; i < n; i++) pixels[4 * i] = r[i], pixels[4 * i + 1] = g[i], pixels[4 * i + 2] = b[i], pixels[4 * i + 3] = 0;
}

/* One finished line of the source's orientation. */
static inline __attribute__((always_inline)) void filter_pixels(const tsm_resizer *r, float *out, int channels, int32_t taps) {
  const float *sum = r->sum, *w = r->x.weights;
  int32_t first = r->swap ? 2 : 0, third = 2 - first;
  float s0 = r->scale[0], s1 = r->scale[1], s2 = r->scale[2], b0 = r->bias[0], b1 = r->bias[1], b2 = r->bias[2];
  for (int32_t i = 0; i < r->x.outputs; i++, w += taps, out += r->step_x) {
    const float *p = sum + (int64_t)r->x.start[i] * channels;
#if defined(__GNUC__)
    vec4 pixel = load4(p) * w[0];
    for (int32_t k = 1; k < taps; k++) pixel += load4(p + k * channels) * w[k];
#else
    float pixel[3] = {0, 0, 0};
    for (int32_t k = 0; k < taps; k++)
      for (int c = 0; c < 3; c++) pixel[c] += p[k * channels + c] * w[k];
#endif
    out[0] = pixel[first] * s0 + b0;
    out[1] = pixel[1] * s1 + b1;
    out[2] = pixel[third] * s2 + b2;
  }
}

/* The usual numbers of taps as constants, so that their loop is unrolled. */
static inline __attribute__((always_inline)) void filter_line(const tsm_resizer *r, float *out, int channels) {
  switch (r->x.taps) {
    case 2: filter_pixels(r, out, channels, 2); break;
    case 3: filter_pixels(r, out, channels, 3); break;
    case 4: filter_pixels(r, out, channels, 4); break;
    case 5: filter_pixels(r, out, channels, 5); break;
    case 6: filter_pixels(r, out, channels, 6); break;
    default: filter_pixels(r, out, channels, r->x.taps);
  }
}

void tsm_resizer_run(tsm_resizer *r, const tsm_image *image, float *out) {
  int yuv = is_yuv(image->format), channels = r->channels;
  int64_t stride = image->strides[0] ? image->strides[0] : (int64_t)image->width * channels;
  if (yuv) set_yuv(r, image);
  int32_t converted = r->y.first;
  for (int32_t i = 0; i < r->y.outputs; i++) {
    int32_t start = r->y.first + r->y.start[i], taps = r->y.count[i];
    if (yuv) {
      if (converted < start) converted = start;
      for (; converted < start + taps; converted++) convert_row(r, image, converted);
      for (int32_t k = 0; k < taps; k++) r->rows[k] = r->ring + ((start + k) % r->ring_rows) * r->ring_stride;
    } else {
      for (int32_t k = 0; k < taps; k++)
        r->rows[k] = image->planes[0] + (start + k) * stride + (int64_t)r->x.first * channels;
    }
    const float *weights = r->y.weights + (int64_t)i * r->y.taps;
    if (yuv) {
      filter_rows(r->planes, r->rows, weights, taps, r->x.used * 3);
      interleave(r->planes, r->sum, r->x.used);
    } else {
      filter_rows(r->sum, r->rows, weights, taps, r->x.used * channels);
    }
    float *line = out + r->origin + i * r->step_y;
    if (channels == 4) filter_line(r, line, 4);
    else filter_line(r, line, 3);
  }
}
