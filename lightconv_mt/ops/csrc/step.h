// New positions after remembered ones: each row's last K - 1 inputs lie in a ring of slots.
#pragma once
#ifdef _OPENMP
#include <omp.h>
#endif

#include "memory.h"
#include "taps.h"

// One call, as the Python side describes it. Strides count elements; the ring is contiguous.
struct StepCall {
  const void *x, *weight;
  const i64* position;
  void *ring, *y;
  i64 rows, time, channels, heads, width, x_row_stride, x_time_stride;
  i64 normalize, threads, type, wide_weight, dynamic;
};

constexpr i64 kWorthThreads = 256 * 1024;  // bytes read; a fork costs as much as reading these

// One position of V vectors of channels, the last of `lanes` lanes, WHOLE if that is all:
// y = tap[slots] * x + the sum of tap[s] * ring[(oldest + s) % slots]; then x takes the oldest slot.
template <class S, class A, int V, bool WHOLE>
inline void step_block(const S* x, S* ring, i64 stride, i64 slots, i64 oldest, const A* tap,
                       int lanes, S* y) {
  constexpr int W = Lanes<A>::count;
  auto vector = [&](const S* row, int v) {
    return WHOLE || v < V - 1 ? load(row + v * W) : load_part(row + v * W, lanes, A(0));
  };
  Vec<A> sums[2][V];  // of even and odd slots: a single sum would wait for itself
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) sums[0][v] = vector(x, v) * tap[slots], sums[1][v] = Vec<A>{};
  auto sweep = [&](const S* row, const A* weight, i64 count) {
    i64 s = 0;
    for (; s + 2 <= count; s += 2, row += 2 * stride)
#pragma GCC unroll 2
      for (int odd = 0; odd < 2; ++odd)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sums[odd][v] += vector(row + odd * stride, v) * weight[s + odd];
    if (s < count)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sums[0][v] += vector(row, v) * weight[s];
  };
  sweep(ring + oldest * stride, tap, slots - oldest);
  sweep(ring, tap + slots - oldest, oldest);
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    Vec<A> sum = sums[0][v] + sums[1][v];
    WHOLE || v < V - 1 ? store(y + v * W, sum) : store_part(y + v * W, sum, lanes);
  }
  if (slots) std::memcpy(ring + oldest * stride, x, ((V - 1) * W + lanes) * sizeof(S));
}

template <class S>
struct Step {
  using A = typename Accumulator<S>::type;
  static constexpr i64 W = Lanes<A>::count, most = 4;

  const StepCall& call;
  const i64 slots = call.width - 1, share = call.channels / call.heads;
  const i64 tap_stride = tap_stride_of<A>(call.width);

  // Taps of one position, or LightConv's, (H, tap_stride).
  A* taps_of(i64 position) const {
    A* taps = scratch(kTaps).get<A>(call.heads * tap_stride);
    const i64 first = position * call.heads * call.width;
    if (call.wide_weight)
      normalize_rows(call.normalize, call.width, static_cast<const A*>(call.weight) + first,
                     call.width, call.heads, taps, tap_stride);
    else
      normalize_rows(call.normalize, call.width, static_cast<const S*>(call.weight) + first,
                     call.width, call.heads, taps, tap_stride);
    return taps;
  }

  void position(i64 row, i64 time, const A* taps) const {
    const S* x = static_cast<const S*>(call.x) + row * call.x_row_stride + time * call.x_time_stride;
    S* ring = static_cast<S*>(call.ring) + row * slots * call.channels;
    S* y = static_cast<S*>(call.y) + (row * call.time + time) * call.channels;
    // The oldest input is where the new one goes; from there on slots are in order of age.
    i64 oldest = slots ? (call.position[row] + time) % slots : 0;
    oldest += oldest < 0 ? slots : 0;
    for (i64 head = 0; head < call.heads; ++head, taps += tap_stride)
      for (i64 at = 0; at < share; at += most * W) {
        const i64 channel = head * share + at, left = std::min(most * W, share - at);
        const int vectors = int((left + W - 1) / W), lanes = int(left - (vectors - 1) * W);
        auto block = [&]<int V>(std::integral_constant<int, V>) {
          auto function = lanes == W ? &step_block<S, A, V, true> : &step_block<S, A, V, false>;
          function(x + channel, ring + channel, call.channels, slots, oldest, taps, lanes,
                   y + channel);
        };
        switch (vectors) {
          case 1: block(std::integral_constant<int, 1>{}); break;
          case 2: block(std::integral_constant<int, 2>{}); break;
          case 3: block(std::integral_constant<int, 3>{}); break;
          case 4: block(std::integral_constant<int, 4>{}); break;
        }
      }
  }

  void run() const {
    const A* shared = call.dynamic ? nullptr : taps_of(0);
    [[maybe_unused]] const i64 read = call.rows * call.time * call.width * call.channels * i64(sizeof(S));
    Guard guard;
#ifdef _OPENMP
#pragma omp parallel for schedule(static) num_threads(int(call.threads)) if (read > kWorthThreads)
#endif
    for (i64 row = 0; row < call.rows; ++row)
      guard([&] {
        for (i64 time = 0; time < call.time; ++time)
          position(row, time, call.dynamic ? taps_of(row * call.time + time) : shared);
      });
    guard.check();
  }
};
