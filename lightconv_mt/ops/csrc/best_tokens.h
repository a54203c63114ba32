// One row of logits over a vocabulary, and the rows of one sentence.
#pragma once
#include <algorithm>

#include "vector.h"

// Logarithm of the sum of exponentials of a row; NaN where a logit is NaN.
template <class S, class A = typename Accumulator<S>::type>
A log_partition_of_row(const S* logits, i64 vocab) {
  constexpr int W = Lanes<A>::count;
  const A lowest = -std::numeric_limits<A>::infinity(), log2e = A(1.4426950408889634);
  auto at = [&](i64 place) {
    const i64 left = vocab - place;
    return left >= W ? load(logits + place) : load_part(logits + place, int(left), lowest);
  };
  Vec<A> tops = Vec<A>{} + lowest;
  for (i64 place = 0; place < vocab; place += W) tops = larger(tops, at(place));
  A top = lowest;
  for (int lane = 0; lane < W; ++lane) top = std::max(top, tops[lane]);
  Vec<A> sums = {};
  if (top > lowest)
    for (i64 place = 0; place < vocab; place += W) sums += exp2_negative((at(place) - top) * log2e);
  else
    for (i64 place = 0; place < vocab; place += W) sums += at(place);  // -inf or NaN
  const A sum = sum_lanes<A>(sums);
  return top > lowest ? top + std::log(sum) : sum;
}

// Whether any lane of a comparison is true.
template <class Mask>
inline bool any(Mask mask) {
  uint64_t words[sizeof(Mask) / 8], all = 0;
  std::memcpy(words, &mask, sizeof mask);
  for (uint64_t word : words) all |= word;
  return all != 0;
}

// The `count` largest of a row, equal ones by id.
template <class S, class A>
void best_of_row(const S* logits, i64 vocab, i64 count, A* values, i64* ids) {
  constexpr i64 W = Lanes<A>::count, block = 4 * W;
  const A lowest = -std::numeric_limits<A>::infinity();
  i64 found = 0;
  // Ids come in order, so an equal value found later stands behind.
  auto offer = [&](i64 id) {
    const A value = widen(logits[id]);
    if (!(value > lowest) || (found == count && !(value > values[found - 1]))) return;
    i64 place = found < count ? found++ : found - 1;
    for (; place && value > values[place - 1]; --place) {
      values[place] = values[place - 1];
      ids[place] = ids[place - 1];
    }
    values[place] = value, ids[place] = id;
  };
  i64 at = 0;
  for (; at < vocab && found < count; ++at) offer(at);
  for (; at + block <= vocab; at += block) {
    Vec<A> tops = Vec<A>{} + lowest;  // NaN never becomes larger
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) tops = larger(load(logits + at + v * W), tops);
    if (any(tops > values[found - 1]))
      for (i64 id = at; id < at + block; ++id) offer(id);
  }
  for (; at < vocab; ++at) offer(at);
  // Too few are possible: any others follow, the first ones that are not there.
  for (i64 id = 0; found < count; ++id)
    if (!(widen(logits[id]) > lowest)) values[found] = lowest, ids[found++] = id;
}

struct Continuation {
  double score;
  i64 row, word;
};

// The `count` best continuations of a sentence into the first places of `found`: as
// `rank_continuations` in decode/candidates.py, which is the definition. `found` has room for
// beam * each, `values` and `ids` for each, which is count or the whole vocabulary.
template <class S, class A>
void rank_continuations(const S* logits, const A* partition, const double* totals, i64 beam,
                        i64 vocab, i64 count, i64 each, A* values, i64* ids, Continuation* found) {
  for (i64 row = 0; row < beam; ++row) {
    best_of_row(logits + row * vocab, vocab, each, values, ids);
    for (i64 n = 0; n < each; ++n) {
      const double score = double(values[n] - partition[row]) + totals[row];
      found[row * each + n] = {score == score ? score : -std::numeric_limits<double>::infinity(),
                               row, ids[n]};
    }
  }
  std::partial_sort(found, found + count, found + beam * each,
                    [](const Continuation& a, const Continuation& b) {
                      if (a.score != b.score) return a.score > b.score;
                      return a.word != b.word ? a.word < b.word : a.row < b.row;
                    });
}
