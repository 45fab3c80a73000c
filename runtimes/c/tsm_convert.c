/* tsm_convert.c: float16 in software, and the way between float32 [channels, height, width] and the kernels' layout. */
#include "tsm_internal.h"

#include <math.h>
#include <string.h>

uint16_t tsm_float_to_half(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  uint32_t sign = (bits >> 16) & 0x8000u, rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);  /* not a number */
  if (rest >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* rounds to 65536 or more: infinite */
  if (rest >= 0x38800000u) {                                  /* normal: drop 13 bits of the fraction, move the exponent */
    rest += 0xfffu + ((rest >> 13) & 1u);
    return (uint16_t)(sign | ((rest - 0x38000000u) >> 13));
  }
  if (rest < 0x33000000u) return (uint16_t)sign;              /* below half of the smallest */
  uint32_t shift = 126u - (rest >> 23), fraction = (rest & 0x7fffffu) | 0x800000u;
  uint32_t half = fraction >> shift, left = fraction & ((1u << shift) - 1u), middle = 1u << (shift - 1);
  if (left > middle || (left == middle && (half & 1u))) half++;
  return (uint16_t)(sign | half);
}

float tsm_half_to_float(uint16_t half) {
  uint32_t sign = (uint32_t)(half & 0x8000u) << 16, exponent = (half >> 10) & 31u, fraction = half & 0x3ffu, bits;
  if (exponent == 31) {
    bits = sign | 0x7f800000u | (fraction << 13);
  } else if (exponent) {
    bits = sign | ((exponent + 112u) << 23) | (fraction << 13);
  } else {
    float value = (float)fraction * (1.0f / 16777216.0f);
    return sign ? -value : value;
  }
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

void tsm_from_nchw(const float *nchw, void *native, int64_t channels, int64_t pixels, int bits) {
  if (bits == 16) {
    uint16_t *to = native;
    for (int64_t p = 0; p < pixels; p++)
      for (int64_t c = 0; c < channels; c++) to[p * channels + c] = tsm_float_to_half(nchw[c * pixels + p]);
  } else if (channels == 3) { /* a frame: written so that compilers make vectors of it */
    float *restrict to = native;
    const float *restrict r = nchw, *restrict g = nchw + pixels, *restrict b = nchw + 2 * pixels;
    for (int64_t p = 0; p < pixels; p++) {
      to[p * 3] = r[p];
      to[p * 3 + 1] = g[p];
      to[p * 3 + 2] = b[p];
    }
  } else {
    float *to = native;
    for (int64_t p = 0; p < pixels; p++)
      for (int64_t c = 0; c < channels; c++) to[p * channels + c] = nchw[c * pixels + p];
  }
}

void tsm_to_nchw(const void *native, float *nchw, int64_t channels, int64_t pixels, int bits) {
  if (bits == 16) {
    const uint16_t *from = native;
    for (int64_t c = 0; c < channels; c++)
      for (int64_t p = 0; p < pixels; p++) nchw[c * pixels + p] = tsm_half_to_float(from[p * channels + c]);
  } else {
    const float *from = native;
    for (int64_t c = 0; c < channels; c++)
      for (int64_t p = 0; p < pixels; p++) nchw[c * pixels + p] = from[p * channels + c];
  }
}

void tsm_softmax(const float *logits, float *scores, int32_t n) {
  float most = logits[0], sum = 0;
  for (int32_t i = 1; i < n; i++)
    if (logits[i] > most) most = logits[i];
  for (int32_t i = 0; i < n; i++) sum += scores[i] = expf(logits[i] - most);
  for (int32_t i = 0; i < n; i++) scores[i] /= sum;
}
