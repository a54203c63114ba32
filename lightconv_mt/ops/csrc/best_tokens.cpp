// Rows of logits over a vocabulary: the logarithm of their partition function, and the best
// continuations of a beam. The definitions are ops/best_tokens.py and decode/candidates.py.
#include <algorithm>
#include <vector>

#include "vector.h"

namespace {

// One call, as the Python side describes it; results are in the type of the sums.
struct Call {
  const void* logits;  // (rows, vocab)
  void* values;        // (rows)
  i64 rows, vocab, threads, type;
};

template <class Work>
void for_each_row(i64 rows, [[maybe_unused]] i64 threads, const Work& work) {
#ifdef _OPENMP
#pragma omp parallel for schedule(static) num_threads(int(std::max<i64>(1, std::min(threads, rows))))
#endif
  for (i64 row = 0; row < rows; ++row) work(row);
}

template <class S>
void log_partition(const Call& call) {
  using A = typename Accumulator<S>::type;
  constexpr int W = Lanes<A>::count;
  const A lowest = -std::numeric_limits<A>::infinity(), log2e = A(1.4426950408889634);
  for_each_row(call.rows, call.threads, [&](i64 row) {
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

// One call of `rank_continuations` in decode/candidates.py.
struct RankCall {
  const void *logits, *partition;  // (batch x beam, vocab), (batch x beam)
  const double* totals;            // (batch, beam)
  double* scores;                  // (batch, count), as rows and words
  i64 *rows, *words;
  i64 batch, beam, vocab, count, threads, type;
};

template <class S>
void best_continuations(const RankCall& call) {
  using A = typename Accumulator<S>::type;
  struct Continuation {
    double score;
    i64 row, word;
  };
  const i64 each = std::min(call.count, call.vocab);
  for_each_row(call.batch, call.threads, [&](i64 sentence) {
    std::vector<A> values(each);
    std::vector<i64> ids(each);
    std::vector<Continuation> found(call.beam * each);
    for (i64 row = 0; row < call.beam; ++row) {
      const i64 at = sentence * call.beam + row;
      best_of_row(static_cast<const S*>(call.logits) + at * call.vocab, call.vocab, each,
                  values.data(), ids.data());
      const A partition = static_cast<const A*>(call.partition)[at];
      for (i64 n = 0; n < each; ++n) {
        const double score = double(values[n] - partition) + call.totals[at];
        found[row * each + n] = {score == score ? score : -std::numeric_limits<double>::infinity(),
                                 row, ids[n]};
      }
    }
    std::partial_sort(found.begin(), found.begin() + call.count, found.end(),
                      [](const Continuation& a, const Continuation& b) {
                        if (a.score != b.score) return a.score > b.score;
                        return a.word != b.word ? a.word < b.word : a.row < b.row;
                      });
    for (i64 n = 0; n < call.count; ++n) {
      const i64 at = sentence * call.count + n;
      call.scores[at] = found[n].score, call.rows[at] = found[n].row, call.words[at] = found[n].word;
    }
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
int lcmt_best_continuations(const RankCall* call) {
  return by_type(call->type, [&](auto element) { best_continuations<decltype(element)>(*call); });
}
}
