// Rows times some outputs of a matrix. These are put side by side as they are needed, so that every
// sum has the terms of product.h in its order, and nothing is kept for a sentence between steps.
#pragma once
#include "product.h"

// Take the lanes of both vectors that stand in LOW (or else high) halves of groups of 2 * SPAN.
template <int SPAN, bool LOW, int... LANE>
inline Vec<float> half_groups(Vec<float> a, Vec<float> b, std::integer_sequence<int, LANE...>) {
  constexpr int W = Lanes<float>::count;
  return pick_lanes<float>(
      a, b,
      std::integer_sequence<int, (LANE & SPAN ? W + LANE - (LOW ? SPAN : 0)
                                              : LANE + (LOW ? 0 : SPAN))...>{});
}

// Lane l of vector v becomes lane v of vector l.
template <int SPAN = 1>
inline __attribute__((always_inline)) void transpose(Vec<float>* vectors) {
  constexpr int W = Lanes<float>::count;
  using All = std::make_integer_sequence<int, W>;
#pragma GCC unroll 16
  for (int v = 0; v < W; ++v)
    if (!(v & SPAN)) {
      const Vec<float> a = vectors[v], b = vectors[v + SPAN];
      vectors[v] = half_groups<SPAN, true>(a, b, All{});
      vectors[v + SPAN] = half_groups<SPAN, false>(a, b, All{});
    }
  if constexpr (2 * SPAN < W) transpose<2 * SPAN>(vectors);
}

// A matrix's outputs one after the other, (outputs, stride): groups of inputs, 4 bytes each, and
// zeros up to whole vectors of the widest machine.
struct OutputRows {
  const u32* groups;
  i64 stride;
};
constexpr i64 kOutputStep = 16;  // that the stride is a multiple of

// Words that `multiply_chosen` needs.
inline i64 chosen_words(i64 inputs) {
  return round_up(inputs, kOutputStep) * kPanel + 2 * kPanel;
}

// y (rows, count) = x W^T for the outputs `chosen` of a matrix without bias; as `multiply`, bit for
// bit.
inline void multiply_chosen(const Matrix& matrix, const OutputRows& outputs, const i64* chosen,
                            i64 count, const Packed& x, i64 rows, float* y, i64 y_stride,
                            u32* memory) {
  constexpr int W = Lanes<float>::count;
  u32* panel = memory;
  float* scales = reinterpret_cast<float*>(panel + outputs.stride * kPanel);
  int32_t* excess = reinterpret_cast<int32_t*>(scales + kPanel);
  for (i64 first = 0; first < count; first += kPanel) {
    const i64 some = std::min<i64>(kPanel, count - first);
    for (i64 lane = 0; lane < kPanel; lane += W) {
      const float* from[W];  // the last one also stands for those beyond it
      for (i64 v = 0; v < W; ++v)
        from[v] = reinterpret_cast<const float*>(
            outputs.groups + chosen[first + std::min(lane + v, some - 1)] * outputs.stride);
      for (i64 group = 0; group < outputs.stride; group += W) {
        Vec<float> block[W];
#pragma GCC unroll 16
        for (int v = 0; v < W; ++v) block[v] = load(from[v] + group);
        transpose(block);
#pragma GCC unroll 16
        for (int v = 0; v < W; ++v)
          std::memcpy(panel + (group + v) * kPanel + lane, &block[v], sizeof block[v]);
      }
    }
    if (matrix.type == kInt8)
      for (i64 lane = 0; lane < some; ++lane) {
        scales[lane] = matrix.scales[chosen[first + lane]];
        excess[lane] = matrix.excess[chosen[first + lane]];
      }
    const Matrix part = {panel, nullptr, scales, excess, matrix.inputs, some, matrix.type};
    multiply_packed<false>(part, x, rows, y + first, y_stride);
  }
}
