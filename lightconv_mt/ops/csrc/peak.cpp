// What this machine can do at best, for benchmarks: multiply-adds from registers, copies in cache.
#include "vector.h"

extern "C" {
// Multiply-adds of `rounds` rounds over 12 vectors; returns how many floating-point operations.
double lcmt_peak(i64 rounds, float* out) {
  Vec<float> sums[12];  // all different, or the compiler would do one for all
  for (int v = 0; v < 12; ++v) sums[v] = Vec<float>{} + float(v);
  Vec<float> a = Vec<float>{} + out[0], b = Vec<float>{} + out[1];
  for (i64 round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int v = 0; v < 12; ++v) sums[v] = sums[v] * a + b;
    LCMT_REGISTER(a);
  }
  Vec<float> total = {};
  for (int v = 0; v < 12; ++v) total += sums[v];
  store(out + 2, total);
  return 2.0 * 12 * Lanes<float>::count * double(rounds);
}
}
