// Rows of a few vectors of channels times taps: the sums of both convolutions and of their input
// gradients.
#pragma once
#include "taps.h"

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kMaxVectors = 4, kMaxRows[] = {0, 14, 14, 0, 7};  // 32 vector registers
#else
constexpr int kMaxVectors = 2, kMaxRows[] = {0, 8, 6};  // 16 vector registers
#endif

// Vectors of channels worked on at once, of `left`: few where many rows share each input row.
inline int vectors_at_once(i64 width, i64 left) {
  if (kMaxVectors >= 4 && width <= kMaxRows[4] && left >= 4) return 4;
  return left >= 2 ? 2 : 1;
}

// Copy rows of a channel block, zeros in what the last vector lacks.
template <class S, class A>
void pack(const S* from, i64 time_stride, i64 rows, int vectors, int last, A* panel) {
  constexpr int W = Lanes<A>::count;
  for (i64 row = 0; row < rows; ++row, from += time_stride, panel += vectors * W) {
    for (int v = 0; v < vectors - 1; ++v) store(panel + v * W, load(from + v * W));
    const S* end_part = from + (vectors - 1) * W;
    A* target = panel + (vectors - 1) * W;
    store(target, last == W ? load(end_part) : load_part(end_part, last, A(0)));
  }
}

// How input row i and output row t meet in the taps:
// base[(t - origin) * time_step + i * step + r * row_step] for row r of the block that begins at t.
template <class A>
struct TapLayout {
  const A* base;
  i64 step, row_step, time_step, origin;
};

// Memory the next block will want, as first row and distance of rows: it is fetched into the cache
// next to the core bit by bit, while this block computes.
template <class S>
struct Ahead {
  const S* rows[3];
  i64 strides[3];
  int count;
};

// Ask for V vectors' worth of rows [begin, end).
template <class S, int V, bool WRITE>
inline void prefetch(const S* rows, i64 stride, i64 begin, i64 end) {
  constexpr int lanes = V * Lanes<typename Accumulator<S>::type>::count, line = 64 / sizeof(S);
  for (i64 row = begin; row < end; ++row)
#pragma GCC unroll 4
    for (int at = 0; at < lanes; at += line)
      __builtin_prefetch(rows + row * stride + at, WRITE, WRITE ? 3 : 2);
}

// Rows FROM..TO of a block take one input row into their sums.
template <class A, int V, int FROM, int TO, int R>
inline __attribute__((always_inline)) void take_row(const A* row, const A* tap, i64 row_step,
                                                    Vec<A> (&sums)[R][V]) {
  constexpr int W = Lanes<A>::count;
  Vec<A> x[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) x[v] = load(row + v * W);
#pragma GCC unroll 16
  for (int r = FROM; r <= TO; ++r) {
    A weight = tap[r * row_step];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sums[r][v] += weight * x[v];
  }
}

// R output rows: row r is the sum over i of tap[i * step + r * row_step] times input row i, for i
// in [first, last) with 0 <= i - r < width. Needs width >= R.
template <class S, class A, int V, int R>
void convolve_block(const A* input, i64 stride, const A* tap, i64 step, i64 row_step, i64 width,
                    i64 first, i64 last, S* out, i64 out_stride, int last_lanes) {
  constexpr int W = Lanes<A>::count;
  Vec<A> sums[R][V] = {};
  auto ramp_up = [&]<int I>(std::integral_constant<int, I>) {
    if (I >= first && I < last)
      take_row<A, V, 0, I, R>(input + I * stride, tap + I * step, row_step, sums);
  };
  auto put = [&](int r) {
    S* to = out + r * out_stride;
#pragma GCC unroll 8
    for (int v = 0; v < V - 1; ++v) store(to + v * W, sums[r][v]);
    if (last_lanes == W)
      store(to + (V - 1) * W, sums[r][V - 1]);
    else
      store_part(to + (V - 1) * W, sums[r][V - 1], last_lanes);
  };
  // A row is stored as soon as it is whole: stores are slow, and here hide behind the other rows.
  auto ramp_down = [&]<int I>(std::integral_constant<int, I>) {
    put(I);
    i64 i = width + I;
    if (i >= first && i < last)
      take_row<A, V, I + 1, R - 1, R>(input + i * stride, tap + i * step, row_step, sums);
  };
  [&]<int... I>(std::integer_sequence<int, I...>) {
    (ramp_up(std::integral_constant<int, I>{}), ...);
    i64 end = std::min(last, width);
    for (i64 i = std::max<i64>(first, R - 1); i < end; ++i)
      take_row<A, V, 0, R - 1, R>(input + i * stride, tap + i * step, row_step, sums);
    (ramp_down(std::integral_constant<int, I>{}), ...);
  }(std::make_integer_sequence<int, R - 1>{});
  put(R - 1);
}

// Output rows [begin, end): out[t] = sum over i of tap(i) * input[t - lead + i], the input's rows
// clipped to [0, time); `input` and `out` point at row 0.
template <class S, class A, int V>
void convolve_rows(const A* input, i64 stride, i64 lead, i64 time, i64 width, i64 begin, i64 end,
                   const TapLayout<A>& taps, S* out, i64 out_stride, int last_lanes,
                   const Ahead<S>& ahead) {
  const i64 most = std::min<i64>(kMaxRows[V], width);
  const i64 blocks = (end - begin + most - 1) / most;
  for (i64 block = 0; block < blocks; ++block) {
    i64 t = begin + (end - begin) * block / blocks;
    i64 rows = begin + (end - begin) * (block + 1) / blocks - t;
    const A* tap = taps.base + (t - taps.origin) * taps.time_step;
    const A* from = input + (t - lead) * stride;
    i64 first = std::max<i64>(0, lead - t), last = time - t + lead;
    S* to = out + t * out_stride;
    if (ahead.count) prefetch<S, V, true>(to, out_stride, 0, rows);
#define LCMT_ROWS(R)                                                                           \
  case R:                                                                                      \
    if constexpr (R <= kMaxRows[V])                                                            \
      convolve_block<S, A, V, R>(from, stride, tap, taps.step, taps.row_step, width, first,    \
                                 last, to, out_stride, last_lanes);                            \
    break;
    switch (rows) {
      LCMT_ROWS(1) LCMT_ROWS(2) LCMT_ROWS(3) LCMT_ROWS(4) LCMT_ROWS(5) LCMT_ROWS(6) LCMT_ROWS(7)
      LCMT_ROWS(8) LCMT_ROWS(9) LCMT_ROWS(10) LCMT_ROWS(11) LCMT_ROWS(12) LCMT_ROWS(13)
      LCMT_ROWS(14)
    }
#undef LCMT_ROWS
    for (int array = 0; array < ahead.count; ++array)
      prefetch<S, V, false>(ahead.rows[array], ahead.strides[array], t - begin, t - begin + rows);
  }
}

// As `convolve_rows`, for any number of vectors, of which the last has `last` lanes.
template <class S, class A>
void convolve(int vectors, const A* input, i64 stride, i64 lead, i64 time, i64 width, i64 begin,
              i64 end, const TapLayout<A>& taps, S* out, i64 out_stride, int last,
              Ahead<S> ahead) {
  constexpr int W = Lanes<A>::count;
  for (int v = 0, now; v < vectors; v += now, input += now * W, out += now * W) {
    now = vectors_at_once(width, vectors - v);
    const int lanes = v + now == vectors ? last : W;
    switch (now) {
      case 1:
        convolve_rows<S, A, 1>(input, stride, lead, time, width, begin, end, taps, out, out_stride,
                               lanes, ahead);
        break;
      case 2:
        convolve_rows<S, A, 2>(input, stride, lead, time, width, begin, end, taps, out, out_stride,
                               lanes, ahead);
        break;
      case 4:
        if constexpr (kMaxVectors >= 4)
          convolve_rows<S, A, 4>(input, stride, lead, time, width, begin, end, taps, out,
                                 out_stride, lanes, ahead);
        break;
    }
    for (const S*& rows : ahead.rows) rows += now * W;
  }
}
