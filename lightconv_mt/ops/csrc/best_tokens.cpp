// Rows of logits over a vocabulary: the logarithm of their partition function, and the largest of
// them in order. The definition is ops/best_tokens.py.
#include <algorithm>
#include <vector>

#include "vector.h"

namespace {

// One call, as the Python side describes it; results are in the type of the sums.
struct Call {
  const void* logits;  // (rows, vocab)
  void* values;        // (rows, count), or the (rows) partitions
  i64* ids;            // (rows, count)
  i64 rows, vocab, count, threads, type;
};

template <class Work>
void for_each_row(const Call& call, const Work& work) {
#ifdef _OPENMP
  const int threads = int(std::max<i64>(1, std::min(call.threads, call.rows)));
#pragma omp parallel for schedule(static) num_threads(threads)
#endif
  for (i64 row = 0; row < call.rows; ++row) work(row);
}

template <class S>
void log_partition(const Call& call) {
  using A = typename Accumulator<S>::type;
  constexpr int W = Lanes<A>::count;
  const A lowest = -std::numeric_limits<A>::infinity(), log2e = A(1.4426950408889634);
  for_each_row(call, [&](i64 row) {
    const S* logits = static_cast<const S*>(call.logits) + row * call.vocab;
    auto at = [&](i64 place) {
      const i64 left = call.vocab - place;
      return left >= W ? load(logits + place) : load_part(logits + place, int(left), lowest);
    };
    Vec<A> tops = Vec<A>{} + lowest;
    for (i64 place = 0; place < call.vocab; place += W) tops = larger(tops, at(place));
    A top = lowest;
    for (int lane = 0; lane < W; ++lane) top = std::max(top, tops[lane]);
    Vec<A> sums = {};
    if (top > lowest)
      for (i64 place = 0; place < call.vocab; place += W)
        sums += exp2_negative((at(place) - top) * log2e);
    else
      for (i64 place = 0; place < call.vocab; place += W) sums += at(place);  // -inf or NaN
    const A sum = sum_lanes<A>(sums);
    static_cast<A*>(call.values)[row] = top > lowest ? top + std::log(sum) : sum;
  });
}

// Whether any lane of a comparison is true.
template <class Mask>
inline bool any(Mask mask) {
  uint64_t words[sizeof(Mask) / 8], all = 0;
  std::memcpy(words, &mask, sizeof mask);
  for (uint64_t word : words) all |= word;
  return all != 0;
}

template <class S>
void best_tokens(const Call& call) {
  using A = typename Accumulator<S>::type;
  constexpr i64 W = Lanes<A>::count, block = 4 * W;
  const A lowest = -std::numeric_limits<A>::infinity();
  for_each_row(call, [&](i64 row) {
    const S* logits = static_cast<const S*>(call.logits) + row * call.vocab;
    A* values = static_cast<A*>(call.values) + row * call.count;
    i64* ids = call.ids + row * call.count;
    i64 found = 0;
    // Ids come in order, so an equal value found later stands behind.
    auto offer = [&](i64 id) {
      const A value = widen(logits[id]);
      if (!(value > lowest) || (found == call.count && !(value > values[found - 1]))) return;
      i64 place = found < call.count ? found++ : found - 1;
      for (; place && value > values[place - 1]; --place) {
        values[place] = values[place - 1];
        ids[place] = ids[place - 1];
      }
      values[place] = value, ids[place] = id;
    };
    i64 at = 0;
    for (; at < call.vocab && found < call.count; ++at) offer(at);
    for (; at + block <= call.vocab; at += block) {
      Vec<A> tops = Vec<A>{} + lowest;  // NaN never becomes larger
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) tops = larger(load(logits + at + v * W), tops);
      if (any(tops > values[found - 1]))
        for (i64 id = at; id < at + block; ++id) offer(id);
    }
    for (; at < call.vocab; ++at) offer(at);
    // Too few are possible: any others follow, the first ones that are not there.
    for (i64 id = 0; found < call.count; ++id)
      if (!(widen(logits[id]) > lowest)) values[found] = lowest, ids[found++] = id;
  });
}

template <class Work>
int by_type(i64 type, const Work& work) {
  switch (type) {
    case 0: work(float{}); return 0;
    case 1: work(bf16{}); return 0;
    case 2: work(f16{}); return 0;
    case 3: work(double{}); return 0;
  }
  return 1;
}

}  // namespace

extern "C" {
int lcmt_log_partition(const Call* call) {
  return by_type(call->type, [&](auto element) { log_partition<decltype(element)>(*call); });
}
int lcmt_best_tokens(const Call* call) {
  return by_type(call->type, [&](auto element) { best_tokens<decltype(element)>(*call); });
}
}
