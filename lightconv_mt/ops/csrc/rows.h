// What encoder and decoder do to rows of activations beside products: norms, softmax, gates.
#pragma once
#include "product.h"

constexpr int W = Lanes<float>::count;
constexpr i64 kRows = 8 * kTileRows;  // whose activations a thread holds at a time
constexpr float kLog2E = 1.4426950408889634f, kNormEpsilon = 1e-5f;

enum Mixer { kFixedKernels, kPredictedKernels, kAttention };

struct Norm {
  const float *weight, *bias;
};

inline float sum_of(const float* x, i64 count) {
  Vec<float> sums = {};
  for (i64 at = 0; at < count; at += W)
    sums += load_part(x + at, int(std::min<i64>(W, count - at)), 0.0f);
  return sum_lanes<float>(sums);
}

// Layer norm of a row, onto itself or elsewhere.
inline void normalize(const Norm& norm, const float* x, i64 dim, float* y) {
  const float mean = sum_of(x, dim) / float(dim);
  Vec<float> squares = {};
  for (i64 at = 0; at < dim; at += W) {
    const Vec<float> off = load_part(x + at, int(std::min<i64>(W, dim - at)), mean) - mean;
    squares += off * off;
  }
  const float rate = 1.0f / std::sqrt(sum_lanes<float>(squares) / float(dim) + kNormEpsilon);
  for (i64 at = 0; at < dim; at += W) {
    const int lanes = int(std::min<i64>(W, dim - at));
    const Vec<float> value = (load_part(x + at, lanes, 0.0f) - mean) * rate;
    store_part(y + at,
               value * load_part(norm.weight + at, lanes, 0.0f) +
                   load_part(norm.bias + at, lanes, 0.0f),
               lanes);
  }
}

// Softmax of `count` scores times log2(e), in place.
inline void softmax(float* scores, i64 count) {
  Vec<float> tops = Vec<float>{} - std::numeric_limits<float>::infinity();
  const float lowest = -std::numeric_limits<float>::infinity();
  for (i64 at = 0; at < count; at += W)
    tops = larger(tops, load_part(scores + at, int(std::min<i64>(W, count - at)), lowest));
  float top = lowest;
  for (int lane = 0; lane < W; ++lane) top = std::max(top, tops[lane]);
  Vec<float> sums = {};
  for (i64 at = 0; at < count; at += W) {
    const int lanes = int(std::min<i64>(W, count - at));
    const Vec<float> likely = exp2_negative(load_part(scores + at, lanes, lowest) - top);
    sums += likely;
    store_part(scores + at, likely, lanes);
  }
  const float share = 1.0f / sum_lanes<float>(sums);
  for (i64 at = 0; at < count; at += W) {
    const int lanes = int(std::min<i64>(W, count - at));
    store_part(scores + at, load_part(scores + at, lanes, 0.0f) * share, lanes);
  }
}

// Gated linear units: the first `channels` of each row times the logistic function of those after.
inline void gate(float* x, i64 stride, i64 rows, i64 channels) {
  for (i64 row = 0; row < rows; ++row, x += stride)
    for (i64 at = 0; at < channels; at += W) {
      const int lanes = int(std::min<i64>(W, channels - at));
      const Vec<float> in = load_part(x + channels + at, lanes, 0.0f);
      // Of the two forms of the logistic function the one whose exponential is at most 1.
      const Vec<float> small = exp2_negative((in < 0.0f ? in : -in) * kLog2E);
      const Vec<float> open = (in < 0.0f ? small : Vec<float>{} + 1.0f) / (1.0f + small);
      store_part(x + at, load_part(x + at, lanes, 0.0f) * open, lanes);
    }
}
