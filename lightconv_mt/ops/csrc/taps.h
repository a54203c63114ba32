// Raw weights to taps: softmax, then weight dropout, in the type of the sums; and scratch memory.
#pragma once
#include <algorithm>
#include <cstdlib>

#include "dropout.h"
#include "vector.h"

inline i64 round_up(i64 value, i64 unit) { return (value + unit - 1) / unit * unit; }

// Scratch memory of a thread, kept between calls.
struct Scratch {
  void* data = nullptr;
  size_t size = 0;
  ~Scratch() { std::free(data); }
  template <class A>
  A* get(i64 count) {
    size_t wanted = round_up(std::max<i64>(count, 1) * sizeof(A), 64);
    if (wanted > size) {
      std::free(data);
      data = std::aligned_alloc(64, wanted);
      size = data ? wanted : 0;
      if (!data) throw std::bad_alloc();
    }
    return static_cast<A*>(data);
  }
};

enum Slot { kInput, kGradient, kTaps, kSoftmax, kWeightGradient, kSlots };
inline Scratch& scratch(Slot slot) {
  thread_local Scratch slots[kSlots];
  return slots[slot];
}

// Lanes a row of taps takes: whole vectors, or a fraction of one that a few short rows share.
template <class A>
constexpr i64 tap_stride_of(i64 width) {
  constexpr int W = Lanes<A>::count, quarter = std::max(W / 4, 2), half = std::max(W / 2, 2);
  return width <= quarter ? quarter : width <= half ? half : round_up(width, W);
}

// Multiply rows of taps, `lanes` of each, by their dropout mask; `first` is the index of the first
// row's first element, `row_step` the distance of rows in elements.
template <class A>
void drop(double dropout, uint64_t seed, u32 first, u32 row_step, i64 rows, A* taps, i64 lanes,
          i64 stride) {
  constexpr int W = Lanes<A>::count;
  const Dropout<A> dropped(dropout, i64(seed));
  for (i64 row = 0; row < rows; ++row, first += row_step, taps += stride)
    for (i64 at = 0; at < lanes; at += W) {
      const int n = int(std::min<i64>(W, lanes - at));
      put(taps + at, dropped(take(taps + at, n), first + u32(at)), n);
    }
}

// As many rows as a vector has lanes, in PARTS vectors (0: any number) of L lanes each, side by side:
// vector v of a part holds rows v, v + L, v + 2L, ... FULL: there are that many; else the last one
// is repeated.
template <class A, int L, int PARTS, bool FULL>
struct RowBatch {
  static constexpr int W = Lanes<A>::count, G = W / L;
  i64 width, first, rows;

  i64 row(int v, int group) const {
    const i64 index = v + group * L;
    return first + (FULL ? index : std::min(index, rows - 1));
  }
  i64 parts() const { return PARTS ? PARTS : (width + W - 1) / W; }
  int lanes(i64 part) const { return part + 1 < parts() ? W : int(width - part * W); }

  // Elements of one part of rows v, v + L, ..., `fill` beyond the width.
  template <class S>
  Vec<A> load_rows(const S* from, i64 stride, int v, i64 part, A fill) const {
    const int n = lanes(part);
    if constexpr (G == 1) {
      const S* source = from + row(v, 0) * stride + part * W;
      return part + 1 < parts() ? load(source) : load_part(source, n, fill);
    }
    Vec<A> value = Vec<A>{} + fill;
#pragma GCC unroll 4
    for (int group = 0; group < G; ++group)
      value = load_lanes(value, from + row(v, group) * stride, group * L, n);
    return value;
  }

  // The first n lanes of each row.
  template <class S>
  void store_rows(S* to, i64 stride, int v, i64 part, int n, Vec<A> value) const {
    if (n == W) return store(to + row(v, 0) * stride + part * W, value);
#pragma GCC unroll 4
    for (int group = 0; group < G; ++group)
      store_lanes(to + row(v, group) * stride + part * W, value, group * L, n);
  }

  // Ask for the rows that lie behind these, which the next head will want.
  template <class S>
  void prefetch_next(const S* from, i64 stride, int v) const {
    for (int group = 0; group < G; ++group)
      for (i64 at = width; at < 2 * width + 64 / i64(sizeof(S)); at += 64 / i64(sizeof(S)))
        __builtin_prefetch(from + row(v, group) * stride + at);
  }

  // One number a row, from the lane where `reduce_each` leaves it, to all lanes of the row.
  static Vec<A> spread(const A* numbers, int v) {
    if constexpr (G == 1) return numbers[v] - Vec<A>{};
#ifdef __clang__
    A lanes[W];
    for (int lane = 0; lane < W; ++lane) lanes[lane] = numbers[lane / L * L + v];
    return load(lanes);
#else
    IntVec<A> lane;
#pragma GCC unroll 16
    for (int at = 0; at < W; ++at) lane[at] = at / L * L;
    return __builtin_shuffle(load(numbers), lane + v);
#endif
  }
};

// Call `work` with batches of `rows` rows of a width; the last may overlap the one before.
template <class A, class Work>
void for_each_batch(i64 rows, i64 width, const Work& work) {
  constexpr int W = Lanes<A>::count, quarter = std::max(W / 4, 2), half = std::max(W / 2, 2);
  const i64 stride = tap_stride_of<A>(width);
  auto batches = [&]<int L, int PARTS, bool FULL>() {
    for (i64 first = 0; first < rows; first += W)
      work(RowBatch<A, L, PARTS, FULL>{width, FULL ? std::min(first, rows - W) : first, rows});
  };
  if (rows < W) {
    if (stride == quarter) return batches.template operator()<quarter, 1, false>();
    if (stride == half) return batches.template operator()<half, 1, false>();
    return batches.template operator()<W, 0, false>();
  }
  if (stride == quarter) return batches.template operator()<quarter, 1, true>();
  if (stride == half) return batches.template operator()<half, 1, true>();
  if (stride == W) return batches.template operator()<W, 1, true>();
  if (stride == 2 * W) return batches.template operator()<W, 2, true>();
  return batches.template operator()<W, 0, true>();
}

// Softmax of `rows` rows of raw weights into rows of `stride`, zero beyond the width.
template <class S, class A>
void normalize_rows(bool normalize, i64 width, const S* raw, i64 raw_stride, i64 rows, A* taps,
                    i64 stride) {
  const A log2e = A(1.44269504088896340736), lowest = -std::numeric_limits<A>::infinity();
  for_each_batch<A>(rows, width, [&]<int L, int P, bool F>(const RowBatch<A, L, P, F>& batch) {
    if (!normalize) {
      for (int v = 0; v < L; ++v)
        for (i64 part = 0; part < batch.parts(); ++part)
          batch.store_rows(taps, stride, v, part, L,
                           batch.load_rows(raw, raw_stride, v, part, A(0)));
      return;
    }
    Vec<A> tops[L], sums[L];
    A numbers[batch.W];
#pragma GCC unroll 16
    for (int v = 0; v < L; ++v) {
      batch.prefetch_next(raw, raw_stride, v);
      tops[v] = batch.load_rows(raw, raw_stride, v, 0, lowest);
      for (i64 part = 1; part < batch.parts(); ++part)
        tops[v] = larger(tops[v], batch.load_rows(raw, raw_stride, v, part, lowest));
    }
    store(numbers, max_each<A, L / 2>(tops) * log2e);
#pragma GCC unroll 16
    for (int v = 0; v < L; ++v) {
      const Vec<A> top = batch.spread(numbers, v);
      sums[v] = Vec<A>{};
      for (i64 part = 0; part < batch.parts(); ++part) {
        Vec<A> value = batch.load_rows(raw, raw_stride, v, part, lowest);
        value = exp2_negative(value * log2e - top);
        batch.store_rows(taps, stride, v, part, L, value);
        sums[v] += value;
      }
    }
    store(numbers, A(1) / sum_each<A, L / 2>(sums));
    A* row = taps + batch.first * stride;
    for (i64 r = 0; r < std::min<i64>(batch.W, rows - batch.first); ++r, row += stride)
      for (i64 at = 0; at < stride; at += L)
#pragma GCC unroll 16
        for (int lane = 0; lane < L; ++lane) row[at + lane] *= numbers[r];
  });
}

// Gradients of raw weights from those of taps, through dropout and softmax: `products` (rows of
// `product_stride`) are the gradients of the dropped taps. Without dropout taps and softmax are one.
template <class S, class A>
void taps_backward(bool normalize, i64 width, const A* products, i64 product_stride, const A* taps,
                   const A* softmax, i64 stride, i64 rows, S* out, i64 out_stride) {
  for_each_batch<A>(rows, width, [&]<int L, int P, bool F>(const RowBatch<A, L, P, F>& batch) {
    if (!normalize) {
      for (int v = 0; v < L; ++v)
        for (i64 part = 0; part < batch.parts(); ++part)
          batch.store_rows(out, out_stride, v, part, batch.lanes(part),
                           batch.load_rows(products, product_stride, v, part, A(0)));
      return;
    }
    Vec<A> sums[L];
    A numbers[batch.W];
#pragma GCC unroll 2  // more would compute every row's addresses anew
    for (int v = 0; v < L; ++v) {
      batch.prefetch_next(out, out_stride, v);
      sums[v] = Vec<A>{};
      for (i64 part = 0; part < batch.parts(); ++part)
        sums[v] += batch.load_rows(products, product_stride, v, part, A(0)) *
                   batch.load_rows(taps, stride, v, part, A(0));
    }
    store(numbers, sum_each<A, L / 2>(sums));
#pragma GCC unroll 2
    for (int v = 0; v < L; ++v) {
      const Vec<A> sum = batch.spread(numbers, v);
      for (i64 part = 0; part < batch.parts(); ++part)
        batch.store_rows(out, out_stride, v, part, batch.lanes(part),
                         batch.load_rows(products, product_stride, v, part, A(0)) *
                                 batch.load_rows(taps, stride, v, part, A(0)) -
                             batch.load_rows(softmax, stride, v, part, A(0)) * sum);
    }
  });
}
