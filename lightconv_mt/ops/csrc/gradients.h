// Gradients of taps: products of output-gradient rows with input rows, summed over channels.
#pragma once
#include "taps.h"

constexpr int kTapsAtOnce = 8, kRowsAtOnce = 8;  // sums and gradient rows held in registers
constexpr i64 kZeroRows = 16;                    // around a sequence, read by `correlate`

// totals[j] += gradient[t] * input[t + j], lane by lane, over rows [begin, end) and vectors, for J
// taps.
template <class A, int J>
void correlate_block(const A* input, i64 input_stride, const A* gradient, i64 gradient_stride,
                     i64 begin, i64 end, int vectors, A* totals) {
  constexpr int W = Lanes<A>::count;
  Vec<A> sums[J];
#pragma GCC unroll 8
  for (int j = 0; j < J; ++j) sums[j] = load(totals + j * W);
  for (int v = 0; v < vectors; ++v) {
    const A *x = input + begin * input_stride + v * W;
    const A* dy = gradient + begin * gradient_stride + v * W;
    auto take_rows = [&]<int B>(std::integral_constant<int, B>) {
      Vec<A> held[B];
#pragma GCC unroll 8
      for (int q = 0; q < B; ++q) held[q] = load(dy + q * gradient_stride);
#pragma GCC unroll 32
      for (int u = 0; u < J + B - 1; ++u) {
        Vec<A> value = load(x + u * input_stride);
#pragma GCC unroll 8
        for (int q = 0; q < B; ++q)
          if (u - q >= 0 && u - q < J) sums[u - q] += held[q] * value;
      }
      x += B * input_stride, dy += B * gradient_stride;
    };
    i64 t = begin;
    for (; t + kRowsAtOnce <= end; t += kRowsAtOnce)
      take_rows(std::integral_constant<int, kRowsAtOnce>{});
    for (; t < end; ++t) take_rows(std::integral_constant<int, 1>{});
  }
#pragma GCC unroll 8
  for (int j = 0; j < J; ++j) store(totals + j * W, sums[j]);
}

// totals (width vectors) of all taps, for `rows` gradient rows, of which the first meets, by its
// first tap, row `lead` before the one at `position` of a sequence of `time` rows. Around that
// sequence kZeroRows rows of zeros are read.
template <class A>
void correlate(const A* input, i64 input_stride, const A* gradient, i64 gradient_stride, i64 rows,
               int vectors, i64 width, i64 position, i64 lead, i64 time, A* totals) {
  constexpr int W = Lanes<A>::count;
  for (i64 tap = 0; tap < width; tap += kTapsAtOnce) {
    const i64 taps = std::min<i64>(kTapsAtOnce, width - tap);
    // Rows that meet the sequence by one of these taps, and what makes their number a round one.
    const i64 begin = std::max<i64>(0, lead - position - (tap + taps - 1));
    const i64 needed = std::max<i64>(0, std::min(rows, time - position + lead - tap) - begin);
    const i64 end = std::min(rows, begin + round_up(needed, kRowsAtOnce));
    switch (taps) {
#define LCMT_TAPS(J)                                                                              \
  case J:                                                                                         \
    correlate_block<A, J>(input + tap * input_stride, input_stride, gradient, gradient_stride,    \
                          begin, end, vectors, totals + tap * W);                                 \
    break;
      LCMT_TAPS(1) LCMT_TAPS(2) LCMT_TAPS(3) LCMT_TAPS(4)
      LCMT_TAPS(5) LCMT_TAPS(6) LCMT_TAPS(7) LCMT_TAPS(8)
#undef LCMT_TAPS
    }
  }
}

// Products of T gradient rows with N input rows of V vectors, (T, N) in one vector.
template <class A, int V, int T, int N>
inline __attribute__((always_inline)) Vec<A> multiply_tile(const A* x, i64 x_stride, const A* dy,
                                                           i64 dy_stride) {
  constexpr int W = Lanes<A>::count;
  Vec<A> sums[T * N] = {};
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v, x += W, dy += W) {
    Vec<A> held[T];
#pragma GCC unroll 2
    for (int q = 0; q < T; ++q) held[q] = load(dy + q * dy_stride);
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {
      Vec<A> value = load(x + n * x_stride);
      LCMT_REGISTER(value);  // used T times: as operands of multiply-adds it would be T loads
#pragma GCC unroll 2
      for (int q = 0; q < T; ++q) sums[q * N + n] += held[q] * value;
    }
  }
  if constexpr (T * N == W)
    return sum_each<A>(sums);
  else {
    Vec<A> found = {};
    for (int n = 0; n < T * N; ++n) found[n] = sum_lanes<A>(sums[n]);
    return found;
  }
}

// Products of gradient rows with input rows: result[t][j] (+)= <gradient[t], input[t + j]> for t in
// [0, rows) and all j in [0, width) for which row t + j of the input is in [first, last), its rows
// in the sequence; it can be read in [readable_first, readable_last), which is no less. V vectors.
// Result rows have an element to spare on both sides.
template <class A, int V>
void multiply_pairs(const A* input, i64 input_stride, const A* gradient, i64 gradient_stride,
                    i64 rows, i64 width, i64 first, i64 last, i64 readable_first,
                    i64 readable_last, bool add, A* result, i64 result_stride) {
  constexpr int W = Lanes<A>::count, T = W >= 4 ? 2 : 1, N = W / T;
  const bool tiles = readable_last - readable_first >= N;
  auto take = [&]<int Q>(std::integral_constant<int, Q>, i64 t) {
    const i64 end = std::min(width + Q - 1, last - t);
    const A *x = input + t * input_stride, *dy = gradient + t * gradient_stride;
    for (i64 s = std::max<i64>(0, first - t), count; s < end; s += count) {
      auto put = [&](Vec<A> found, int from, int columns) {
#pragma GCC unroll 2
        for (int q = 0; q < Q; ++q) {
          A* to = result + (t + q) * result_stride + s - q;
          const int at = q * columns + from;
          store_lanes(to, add ? found + load_lanes(Vec<A>{}, to, at, int(count)) : found, at,
                      int(count));
        }
      };
      if (tiles) {
        // Where rows end a tile begins early, and what it computes besides is not stored.
        const i64 at = std::min(s, readable_last - t - N);
        count = std::min<i64>(N - (s - at), end - s);
        put(multiply_tile<A, V, Q, N>(x + at * input_stride, input_stride, dy, gradient_stride),
            int(s - at), N);
      } else {
        count = 1;
        put(multiply_tile<A, V, Q, 1>(x + s * input_stride, input_stride, dy, gradient_stride), 0,
            1);
      }
    }
  };
  i64 t = 0;
  for (; t + T <= rows; t += T) take(std::integral_constant<int, T>{}, t);
  for (; t < rows; ++t) take(std::integral_constant<int, 1>{}, t);
}
