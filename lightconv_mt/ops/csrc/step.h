// New positions after remembered ones: each row's last K - 1 inputs lie in a ring of slots.
#pragma once
#ifdef _OPENMP
#include <omp.h>
#endif

#include "taps.h"

// One call, as the Python side describes it. Strides count elements; the ring is contiguous.
struct StepCall {
  const void *x, *weight;
  const i64* position;
  void *ring, *y;
  i64 rows, time, channels, heads, width, x_row_stride, x_time_stride;
  i64 normalize, threads, type, wide_weight, dynamic;
};

constexpr i64 kSlotsAtOnce = 8;            // side by side through all channels: as many streams
constexpr i64 kWorthThreads = 256 * 1024;  // bytes read; a fork costs as much as reading these

// sums += tap[s] * slots[s] for s in [0, count), V vectors of which the last has `last` lanes.
template <class S, class A, int V>
inline void add_slots(const S* slots, i64 stride, const A* tap, i64 count, int last, A* sums) {
  constexpr int W = Lanes<A>::count;
  Vec<A> held[V];
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) held[v] = load(sums + v * W);
  for (i64 s = 0; s < count; ++s, slots += stride) {
#pragma GCC unroll 4
    for (int v = 0; v < V - 1; ++v) held[v] += load(slots + v * W) * tap[s];
    const S* end = slots + (V - 1) * W;
    held[V - 1] += (last == W ? load(end) : load_part(end, last, A(0))) * tap[s];
  }
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) store(sums + v * W, held[v]);
}

template <class S>
struct Step {
  using A = typename Accumulator<S>::type;
  static constexpr i64 W = Lanes<A>::count, most = 4;

  const StepCall& call;
  const i64 slots = call.width - 1, share = call.channels / call.heads;
  const i64 tap_stride = round_up(call.width, W), sum_stride = round_up(share, W);

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

  // Add slots [begin, end), whose taps begin at `tap` in each head's row.
  void add(const S* from, i64 count, const A* taps, A* sums) const {
    for (i64 head = 0; head < call.heads; ++head, taps += tap_stride, sums += sum_stride)
      for (i64 at = 0; at < share; at += most * W) {
        const i64 lanes = std::min(most * W, share - at), vectors = (lanes + W - 1) / W;
        const int last = int(lanes - (vectors - 1) * W);
        const S* source = from + head * share + at;
        switch (vectors) {
          case 1: add_slots<S, A, 1>(source, call.channels, taps, count, last, sums + at); break;
          case 2: add_slots<S, A, 2>(source, call.channels, taps, count, last, sums + at); break;
          case 3: add_slots<S, A, 3>(source, call.channels, taps, count, last, sums + at); break;
          case 4: add_slots<S, A, 4>(source, call.channels, taps, count, last, sums + at); break;
        }
      }
  }

  void position(i64 row, i64 time, const A* taps) const {
    const S* x = static_cast<const S*>(call.x) + row * call.x_row_stride + time * call.x_time_stride;
    S* ring = static_cast<S*>(call.ring) + row * slots * call.channels;
    S* y = static_cast<S*>(call.y) + (row * call.time + time) * call.channels;
    A* sums = scratch(kSums).get<A>(call.heads * sum_stride);
    std::fill(sums, sums + call.heads * sum_stride, A(0));
    if (slots) {
      // The oldest input is where the new one goes; from there on slots are in order of age.
      i64 oldest = (call.position[row] + time) % slots;
      oldest += oldest < 0 ? slots : 0;
      for (i64 slot = 0; slot < slots;) {
        const i64 end = std::min(slot + kSlotsAtOnce, slot < oldest ? oldest : slots);
        const i64 tap = slot < oldest ? slot - oldest + slots : slot - oldest;
        add(ring + slot * call.channels, end - slot, taps + tap, sums);
        slot = end;
      }
      std::copy(x, x + call.channels, ring + oldest * call.channels);
    }
    add(x, 1, taps + slots, sums);
    for (i64 head = 0; head < call.heads; ++head, sums += sum_stride, y += share) {
      i64 at = 0;
      for (; at + W <= share; at += W) store(y + at, load(sums + at));
      if (at < share) store_part(y + at, load(sums + at), int(share - at));
    }
  }

  void run() const {
    const A* shared = call.dynamic ? nullptr : taps_of(0);
    [[maybe_unused]] const i64 read = call.rows * call.time * call.width * call.channels * i64(sizeof(S));
#ifdef _OPENMP
#pragma omp parallel for schedule(static) num_threads(int(call.threads)) if (read > kWorthThreads)
#endif
    for (i64 row = 0; row < call.rows; ++row)
      for (i64 time = 0; time < call.time; ++time)
        position(row, time, call.dynamic ? taps_of(row * call.time + time) : shared);
  }
};
