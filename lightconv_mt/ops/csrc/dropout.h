// What elementwise kernels share: parts of vectors, and dropout by a hash of the element.
#pragma once
#include <algorithm>
#include <cmath>

#include "vector.h"

// Factors 0 and 1 / (1 - p) of elements: see ops/masks.py.
template <class A>
struct Dropout {
  using Words = typename Lanes<A>::Words;
  u32 threshold, low, high;
  A scale;
  Words lane;

  Dropout(double probability, i64 seed)
      : threshold(u32(std::min(std::nearbyint(probability * 4294967296.0), 4294967295.0))),
        low(u32(seed)),
        high(u32(uint64_t(seed) >> 32)),
        scale(A(1.0 / (1.0 - probability))) {
    for (int at = 0; at < Lanes<A>::count; ++at) lane[at] = u32(at);
  }

  Vec<A> operator()(Vec<A> value, u32 first) const {
    if (threshold == 0) return value;
    auto kept = lowbias32(lowbias32((lane + first) ^ low) ^ high) >= threshold;
    return value * (__builtin_convertvector(-kept, Vec<A>) * scale);
  }
};

// The first n lanes, zeros behind them.
template <class S, class A = typename Accumulator<S>::type>
inline Vec<A> take(const S* from, int n) {
  return n == Lanes<A>::count ? load(from) : load_part(from, n, A(0));
}
template <class S, class A = typename Accumulator<S>::type>
inline void put(S* to, Vec<A> value, int n) {
  n == Lanes<A>::count ? store(to, value) : store_part(to, value, n);
}
