// Where the time of a call goes: counted only in a build with LCMT_PARTS, for scripts/bench_parts.py.
#pragma once
enum class Part { softmax, copies, sums, tap_gradients, softmax_gradients, count };

#ifdef LCMT_PARTS
#include <chrono>
inline double part_seconds[int(Part::count)];
template <class Work>
inline void timed(Part part, const Work& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  part_seconds[int(part)] += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}
#else
template <class Work>
inline __attribute__((always_inline)) void timed(Part, const Work& work) {
  work();
}
#endif
