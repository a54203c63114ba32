// Gradients of taps: products of output-gradient rows with input rows, summed over channels.
#pragma once
#include "taps.h"

constexpr int kTapsAtOnce = 8, kRowsAtOnce = 8;  // sums and gradient rows held in registers

// totals[j] += gradient[t] * input[t + j], lane by lane, over rows [begin, end) and vectors, for J
// taps. Reads up to kRowsAtOnce - 1 rows more, which must be zero in one of the two.
template <class A, int J>
void correlate_block(const A* input, const A* gradient, i64 stride, i64 begin, i64 end, int vectors,
                     A* totals) {
  constexpr int W = Lanes<A>::count, B = kRowsAtOnce;
  Vec<A> sums[J];
#pragma GCC unroll 8
  for (int j = 0; j < J; ++j) sums[j] = load(totals + j * W);
  for (int v = 0; v < vectors; ++v) {
    const A *x = input + begin * stride + v * W, *dy = gradient + begin * stride + v * W;
    for (i64 t = begin; t < end; t += B, x += B * stride, dy += B * stride) {
      Vec<A> held[B];
#pragma GCC unroll 8
      for (int q = 0; q < B; ++q) held[q] = load(dy + q * stride);
#pragma GCC unroll 32
      for (int u = 0; u < J + B - 1; ++u) {
        Vec<A> value = load(x + u * stride);
#pragma GCC unroll 8
        for (int q = 0; q < B; ++q)
          if (u - q >= 0 && u - q < J) sums[u - q] += held[q] * value;
      }
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < J; ++j) store(totals + j * W, sums[j]);
}

// totals (width vectors) of all taps, for `rows` gradient rows, of which the first meets, by its
// first tap, row `lead` before the one at `position` of a sequence of `time` rows.
template <class A>
void correlate(const A* input, const A* gradient, i64 stride, i64 rows, int vectors, i64 width,
               i64 position, i64 lead, i64 time, A* totals) {
  constexpr int W = Lanes<A>::count;
  for (i64 tap = 0; tap < width; tap += kTapsAtOnce) {
    const i64 taps = std::min<i64>(kTapsAtOnce, width - tap);
    // Rows that meet the sequence by one of these taps.
    const i64 begin = std::max<i64>(0, lead - position - (tap + taps - 1));
    const i64 end = std::min(rows, time - position + lead - tap);
    switch (taps) {
#define LCMT_TAPS(J)                                                                              \
  case J:                                                                                         \
    correlate_block<A, J>(input + tap * stride, gradient, stride, begin, end, vectors,            \
                          totals + tap * W);                                                      \
    break;
      LCMT_TAPS(1) LCMT_TAPS(2) LCMT_TAPS(3) LCMT_TAPS(4)
      LCMT_TAPS(5) LCMT_TAPS(6) LCMT_TAPS(7) LCMT_TAPS(8)
#undef LCMT_TAPS
    }
  }
}

// Products of gradient rows with input rows: result[t][j] (+)= <gradient[t], input[t + j]> for t in
// [0, rows), j in [begin(t), end(t)), V vectors. Result rows have a vector's lanes to spare on both
// sides; rows and columns are taken in small tiles, so a few elements beside the range are written.
template <class A, int V>
void multiply_pairs(const A* input, const A* gradient, i64 stride, i64 rows, i64 width, i64 position,
                    i64 lead, i64 time, bool add, A* result, i64 result_stride) {
  constexpr int W = Lanes<A>::count, T = W >= 4 ? 2 : 1, N = W / T;
  for (i64 t = 0; t < rows; t += T) {
    // Input rows of the sequence that these rows meet.
    const i64 begin = std::max<i64>(0, lead - position - t);
    const i64 end = std::min(width + T - 1, time - position - t + lead);
    for (i64 s = begin; s < end; s += N) {
      Vec<A> sums[W] = {};
      const A *x = input + (t + s) * stride, *dy = gradient + t * stride;
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v, x += W, dy += W) {
        Vec<A> held[T];
#pragma GCC unroll 2
        for (int q = 0; q < T; ++q) held[q] = load(dy + q * stride);
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) {
          Vec<A> value = load(x + n * stride);
          LCMT_REGISTER(value);  // used T times: as operands of multiply-adds it would be T loads
#pragma GCC unroll 2
          for (int q = 0; q < T; ++q) sums[q * N + n] += held[q] * value;
        }
      }
      Vec<A> found = sum_each<A>(sums);
#pragma GCC unroll 2
      for (int q = 0; q < T; ++q) {
        A* to = result + (t + q) * result_stride + s - q;
        if (add) found += load_lanes(Vec<A>{}, to, q * N, N);
        store_lanes(to, found, q * N, N);
      }
    }
  }
}
