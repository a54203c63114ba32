// Label-smoothed cross-entropy of rows of logits and its gradient, written over the logits. The
// definition is ops/cross_entropy.py.
#include <algorithm>
#include <vector>

#include "element.h"
#include "memory.h"

namespace {

// One call, as the Python side describes it.
struct Call {
  void* logits;         // (rows, vocab), overwritten by the gradient
  const i64* target;    // (rows)
  double* losses;       // (rows, 3): smoothed loss, negative log-likelihood, divergence
  i64 rows, vocab, paired, with_gradient, threads, type;
  double scale, peak, spread, agreement;
};

template <class S>
struct Row {
  using A = typename Accumulator<S>::type;
  static constexpr int W = Lanes<A>::count;

  S* logits;
  i64 target;
  std::vector<A>& exponents;
  A highest, log_partition, inverse_partition;
  double loss, nll;

  // Elements [at, at + W) of the logits less the largest; 0 beyond the vocabulary.
  Vec<A> shifted(i64 at, i64 vocab) const {
    const i64 left = vocab - at;
    return (left >= W ? load(logits + at) : load_part(logits + at, int(left), highest)) - highest;
  }

  void softmax(const Call& call) {
    Vec<A> top = Vec<A>{} - std::numeric_limits<A>::infinity();
    for (i64 at = 0; at < call.vocab; at += W) {
      const i64 left = call.vocab - at;
      Vec<A> value = left >= W ? load(logits + at) : load_part(logits + at, int(left), top[0]);
      top = value > top ? value : top;
    }
    highest = max_lanes<A>(top);
    Vec<A> partition = {}, total = {};
    for (i64 at = 0; at < call.vocab; at += W) {
      const Vec<A> value = shifted(at, call.vocab);
      Vec<A> exponent = exp2_negative(value * A(1.4426950408889634));  // log2 of e
      if (call.vocab - at < W)
        for (int lane = int(call.vocab - at); lane < W; ++lane) exponent[lane] = A(0);
      store(exponents.data() + at, exponent);
      partition += exponent;
      total += value;
    }
    const A sum = sum_lanes<A>(partition);
    log_partition = std::log(sum);
    inverse_partition = A(1) / sum;
    nll = double(log_partition) - double(widen(logits[target]) - highest);
    loss = call.peak * nll +
           call.spread * (double(call.vocab) * log_partition - double(sum_lanes<A>(total)));
  }

  void report(double divergence, double* losses) const {
    losses[0] = loss, losses[1] = nll, losses[2] = divergence;
  }

  // The gradient at `at`, but for what only the target has.
  void write(i64 at, i64 vocab, Vec<A> gradient) {
    const i64 left = vocab - at;
    left >= W ? store(logits + at, gradient) : store_part(logits + at, gradient, int(left));
  }
};

template <class S>
void single(const Call& call, i64 index, std::vector<typename Accumulator<S>::type>& exponents) {
  using A = typename Accumulator<S>::type;
  Row<S> row{static_cast<S*>(call.logits) + index * call.vocab, call.target[index], exponents};
  row.softmax(call);
  row.report(0.0, call.losses + 3 * index);
  if (!call.with_gradient) return;
  const A factor = A(call.scale) * row.inverse_partition, shift = A(call.scale * call.spread);
  const A probability = exponents[row.target];
  for (i64 at = 0; at < call.vocab; at += Row<S>::W)
    row.write(at, call.vocab, load(exponents.data() + at) * factor - shift);
  narrow(probability * factor - shift - A(call.scale * call.peak), row.logits + row.target);
}

// Rows `index` and `index + rows / 2` hold two predictions of one target.
template <class S>
void pair(const Call& call, i64 index, std::vector<typename Accumulator<S>::type> (&exponents)[2]) {
  using A = typename Accumulator<S>::type;
  constexpr int W = Row<S>::W;
  const i64 half = call.rows / 2;
  S* logits = static_cast<S*>(call.logits);
  Row<S> one{logits + index * call.vocab, call.target[index], exponents[0]};
  Row<S> two{logits + (index + half) * call.vocab, call.target[index + half], exponents[1]};
  one.softmax(call), two.softmax(call);
  const A apart = two.log_partition - one.log_partition;
  Vec<A> sum_one = {}, sum_two = {};
  for (i64 at = 0; at < call.vocab; at += W) {
    const Vec<A> log_ratio = one.shifted(at, call.vocab) - two.shifted(at, call.vocab) + apart;
    sum_one += load(exponents[0].data() + at) * log_ratio;
    sum_two -= load(exponents[1].data() + at) * log_ratio;
  }
  const A from_one = sum_lanes<A>(sum_one) * one.inverse_partition;
  const A from_two = sum_lanes<A>(sum_two) * two.inverse_partition;
  one.report(from_one, call.losses + 3 * index);
  two.report(from_two, call.losses + 3 * (index + half));
  if (!call.with_gradient) return;
  const A scale = A(call.scale), shift = A(call.scale * call.spread), weight = A(call.agreement);
  for (i64 at = 0; at < call.vocab; at += W) {
    const Vec<A> log_ratio = one.shifted(at, call.vocab) - two.shifted(at, call.vocab) + apart;
    Vec<A> p = load(exponents[0].data() + at) * one.inverse_partition;
    Vec<A> q = load(exponents[1].data() + at) * two.inverse_partition;
    Vec<A> gradient_one = p * scale - shift + weight * (p * (log_ratio - from_one) + p - q);
    Vec<A> gradient_two = q * scale - shift + weight * (q - q * (log_ratio + from_two) - p);
    const i64 target = one.target - at;
    if (target >= 0 && target < W) {
      gradient_one[target] -= A(call.scale * call.peak);
      gradient_two[target] -= A(call.scale * call.peak);
    }
    one.write(at, call.vocab, gradient_one);
    two.write(at, call.vocab, gradient_two);
  }
}

template <class S>
void run(const Call& call) {
  using A = typename Accumulator<S>::type;
  const i64 padded = (call.vocab + Row<S>::W - 1) / Row<S>::W * Row<S>::W;
  const i64 tasks = call.paired ? call.rows / 2 : call.rows;
  Guard guard;
#ifdef _OPENMP
#pragma omp parallel num_threads(int(std::max<i64>(1, std::min(call.threads, tasks))))
#endif
  {
    std::vector<A> exponents[2];
    guard([&] { exponents[0].resize(padded), exponents[1].resize(call.paired ? padded : 0); });
#ifdef _OPENMP
#pragma omp for schedule(static)
#endif
    for (i64 index = 0; index < tasks; ++index)
      guard([&] {
        call.paired ? pair<S>(call, index, exponents) : single<S>(call, index, exponents[0]);
      });
  }
  guard.check();
}

}  // namespace

extern "C" int lcmt_cross_entropy(const Call* call) {
  for (i64 row = 0; row < call->rows; ++row)
    if (call->target[row] < 0 || call->target[row] >= call->vocab) return 1;
  return by_type(call->type, [&](auto element) { return run<decltype(element)>(*call), 0; });
}
