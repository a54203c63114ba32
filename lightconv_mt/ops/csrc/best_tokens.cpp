// Rows of logits over a vocabulary: the logarithm of their partition function, and the best
// continuations of a beam. The definitions are ops/best_tokens.py and decode/candidates.py.
#include <vector>

#include "best_tokens.h"
#include "element.h"
#include "memory.h"

namespace {

// One call, as the Python side describes it; results are in the type of the sums.
struct Call {
  const void* logits;  // (rows, vocab)
  void* values;        // (rows)
  i64 rows, vocab, threads, type;
};

template <class Work>
void for_each_row(i64 rows, [[maybe_unused]] i64 threads, const Work& work) {
  Guard guard;
#ifdef _OPENMP
#pragma omp parallel for schedule(static) num_threads(int(std::max<i64>(1, std::min(threads, rows))))
#endif
  for (i64 row = 0; row < rows; ++row) guard([&] { work(row); });
  guard.check();
}

template <class S>
void log_partition(const Call& call) {
  using A = typename Accumulator<S>::type;
  for_each_row(call.rows, call.threads, [&](i64 row) {
    static_cast<A*>(call.values)[row] =
        log_partition_of_row(static_cast<const S*>(call.logits) + row * call.vocab, call.vocab);
  });
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
  const i64 each = std::min(call.count, call.vocab);
  for_each_row(call.batch, call.threads, [&](i64 sentence) {
    std::vector<A> values(each);
    std::vector<i64> ids(each);
    std::vector<Continuation> found(call.beam * each);
    const i64 first = sentence * call.beam;
    rank_continuations(static_cast<const S*>(call.logits) + first * call.vocab,
                       static_cast<const A*>(call.partition) + first, call.totals + first, call.beam,
                       call.vocab, call.count, each, values.data(), ids.data(), found.data());
    for (i64 n = 0; n < call.count; ++n) {
      const i64 at = sentence * call.count + n;
      call.scores[at] = found[n].score, call.rows[at] = found[n].row, call.words[at] = found[n].word;
    }
  });
}

}  // namespace

extern "C" {
int lcmt_log_partition(const Call* call) {
  return by_type(call->type, [&](auto element) {
    return log_partition<decltype(element)>(*call), 0;
  });
}
int lcmt_best_continuations(const RankCall* call) {
  return by_type(call->type, [&](auto element) {
    return best_continuations<decltype(element)>(*call), 0;
  });
}
}
