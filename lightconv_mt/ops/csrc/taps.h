// Raw weights to taps: softmax, then weight dropout, in the type of the sums; and scratch memory.
#pragma once
#include <algorithm>
#include <cstdlib>

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

enum Slot { kInput, kGradient, kTaps, kSoftmax, kWeightGradient, kSums, kSlots };
inline Scratch& scratch(Slot slot) {
  thread_local Scratch slots[kSlots];
  return slots[slot];
}

// Multiply a row of taps by its dropout mask; `first` is the index of its first element.
template <class A>
void drop(double dropout, uint64_t seed, u32 first, i64 width, A* taps) {
  u32 low = u32(seed), high = u32(seed >> 32);
  u32 threshold = u32(std::min(std::nearbyint(dropout * 4294967296.0), 4294967295.0));
  A scale = A(1.0 / (1.0 - dropout));
  for (i64 tap = 0; tap < width; ++tap) {
    u32 word = lowbias32(lowbias32((first + u32(tap)) ^ low) ^ high);
    taps[tap] = word >= threshold ? taps[tap] * scale : A(0);
  }
}

// Softmax of `rows` rows of raw weights into rows of `stride`, zero beyond the width.
template <class S, class A>
void normalize_rows(bool normalize, i64 width, const S* raw, i64 raw_stride, i64 rows, A* taps,
                    i64 stride) {
  constexpr int W = Lanes<A>::count;
  const A lowest = -std::numeric_limits<A>::infinity();
  const i64 whole = width / W;
  const int rest = int(width % W);
  for (i64 row = 0; row < rows; ++row, raw += raw_stride, taps += stride) {
    if (!normalize) {
      for (i64 v = 0; v < whole; ++v) store(taps + v * W, load(raw + v * W));
      if (rest) store(taps + whole * W, load_part(raw + whole * W, rest, A(0)));
      continue;
    }
    Vec<A> top = rest ? load_part(raw + whole * W, rest, lowest) : load(raw);
    for (i64 v = 0; v < whole; ++v) {
      Vec<A> value = load(raw + v * W);
      top = value > top ? value : top;
    }
    A highest = max_lanes<A>(top);
    Vec<A> sum = {};
    for (i64 v = 0; v < whole; ++v) {
      Vec<A> value = exp_negative(load(raw + v * W) - highest);
      store(taps + v * W, value);
      sum += value;
    }
    if (rest) {
      Vec<A> value = exp_negative(load_part(raw + whole * W, rest, lowest) - highest);
      store(taps + whole * W, value);
      sum += value;
    }
    A scale = A(1) / sum_lanes<A>(sum);
    for (i64 at = 0; at < stride; at += W) store(taps + at, load(taps + at) * scale);
  }
}
