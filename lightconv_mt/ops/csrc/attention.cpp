// Scaled dot-product attention with dropout of its weights, and the gradients. The definition is
// ops/attention.py. Sentences are short: a head's scores of a few queries stay in cache.
#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "dropout.h"
#include "element.h"
#include "memory.h"

namespace {

struct Strides {
  i64 batch, time, head;
};

// One call, as the Python side describes it; results are (batch, time, heads, size) in a row.
struct Call {
  const void *query, *key, *value, *grad;
  const uint8_t* mask;  // (batch, sources), 0: never attended to; null: all are real
  void *out, *grad_query, *grad_key, *grad_value;
  void* log_sums;  // (batch, heads, targets) in the type of sums: log2 of the softmax's sums
  Strides query_strides, key_strides, value_strides, grad_strides;
  i64 batch, heads, targets, sources, size, causal, seed, threads, type;
  double dropout;
};

constexpr int kRows = 4;  // queries side by side

// c (kRows, n) = a (kRows, depth) b (depth, n), n whole vectors.
template <class A>
void multiply(const A* a, i64 a_stride, const A* b, i64 b_stride, i64 depth, i64 n, A* c,
              i64 c_stride) {
  constexpr int W = Lanes<A>::count;
  i64 at = 0;
  for (; at + 2 * W <= n; at += 2 * W) {
    Vec<A> sums[kRows][2] = {};
    for (i64 k = 0; k < depth; ++k) {
      const Vec<A> left = load(b + k * b_stride + at), right = load(b + k * b_stride + at + W);
#pragma GCC unroll 4
      for (int row = 0; row < kRows; ++row) {
        const A factor = a[row * a_stride + k];
        sums[row][0] += left * factor;
        sums[row][1] += right * factor;
      }
    }
    for (int row = 0; row < kRows; ++row) {
      store(c + row * c_stride + at, sums[row][0]);
      store(c + row * c_stride + at + W, sums[row][1]);
    }
  }
  for (; at < n; at += W) {
    Vec<A> sums[kRows] = {};
    for (i64 k = 0; k < depth; ++k) {
      const Vec<A> value = load(b + k * b_stride + at);
#pragma GCC unroll 4
      for (int row = 0; row < kRows; ++row) sums[row] += value * a[row * a_stride + k];
    }
    for (int row = 0; row < kRows; ++row) store(c + row * c_stride + at, sums[row]);
  }
}

// c (count, n) += transposed a (kRows, count) b (kRows, n), n whole vectors.
template <class A>
void add_product(const A* a, i64 a_stride, const A* b, i64 b_stride, i64 count, i64 n, A* c) {
  constexpr int W = Lanes<A>::count;
  for (i64 at = 0; at < n; at += W) {
    Vec<A> rows[kRows];
    for (int row = 0; row < kRows; ++row) rows[row] = load(b + row * b_stride + at);
    for (i64 k = 0; k < count; ++k) {
      Vec<A> sum = load(c + k * n + at);
#pragma GCC unroll 4
      for (int row = 0; row < kRows; ++row) sum += rows[row] * a[row * a_stride + k];
      store(c + k * n + at, sum);
    }
  }
}

template <class S>
struct Head {
  using A = typename Accumulator<S>::type;
  static constexpr int W = Lanes<A>::count;

  const Call& call;
  const Dropout<A> dropout;
  const A scale;  // of scores, whose exponential has base 2
  const i64 targets, sources, size, rows, lanes, depth;  // the last three padded
  std::vector<A> query, key, key_columns, value, value_columns, slope, scores, slopes, row;
  std::vector<A> key_sums, value_sums, bias;

  static i64 padded(i64 n, i64 multiple) { return (n + multiple - 1) / multiple * multiple; }

  explicit Head(const Call& call)
      : call(call),
        dropout(call.dropout, call.seed),
        scale(A(1.4426950408889634 / std::sqrt(double(call.size)))),
        targets(call.targets),
        sources(call.sources),
        size(call.size),
        rows(padded(call.targets, kRows)),
        lanes(padded(call.sources, W)),
        depth(padded(call.size, W)),
        bias(size_t(lanes)) {}

  // A head's rows (count, size), widened, zeros around them.
  void fetch(const void* from, Strides strides, i64 batch, i64 head, i64 count, i64 all,
             std::vector<A>& to, A factor = A(1)) {
    to.resize(size_t(all * depth));
    const S* first = static_cast<const S*>(from) + batch * strides.batch + head * strides.head;
    for (i64 t = 0; t < all; ++t)
      for (i64 at = 0; at < depth; at += W) {
        const int n = int(std::clamp<i64>(size - at, 0, W));
        Vec<A> value = {};
        if (t < count && n) value = take(first + t * strides.time + at, n) * factor;
        store(to.data() + t * depth + at, value);
      }
  }

  // Short pieces of long rows are not what a processor sees coming.
  void prefetch(const void* from, Strides strides, i64 batch, i64 head, i64 count) {
    const S* first = static_cast<const S*>(from) + batch * strides.batch + head * strides.head;
    for (i64 t = 0; t < count; ++t)
      for (i64 at = 0; at < size; at += 64 / i64(sizeof(S)))
        __builtin_prefetch(first + t * strides.time + at);
  }

  // (sources, depth) -> (size, lanes).
  void transpose(const std::vector<A>& from, std::vector<A>& to) {
    to.assign(size_t(size * lanes), A(0));
    for (i64 s = 0; s < sources; ++s)
      for (i64 d = 0; d < size; ++d) to[size_t(d * lanes + s)] = from[size_t(s * depth + d)];
  }

  void write(const A* from, i64 count, i64 batch, i64 head, void* to, A factor = A(1)) {
    for (i64 t = 0; t < count; ++t) {
      S* out = static_cast<S*>(to) + ((batch * count + t) * call.heads + head) * size;
      for (i64 at = 0; at < size; at += W) {
        const int n = int(std::min<i64>(W, size - at));
        put(out + at, load(from + t * depth + at) * factor, n);
      }
    }
  }

  void start(i64 batch, i64 head) {
    fetch(call.query, call.query_strides, batch, head, targets, rows, query, scale);
    fetch(call.key, call.key_strides, batch, head, sources, sources, key);
    fetch(call.value, call.value_strides, batch, head, sources, sources, value);
    transpose(key, key_columns);
    for (i64 s = 0; s < lanes; ++s) {
      const bool real = s < sources && (!call.mask || call.mask[batch * sources + s]);
      bias[size_t(s)] = real ? A(0) : -std::numeric_limits<A>::infinity();
    }
    scores.resize(size_t(kRows * lanes));
    const i64 next = batch * call.heads + head + 1;
    if (next == call.batch * call.heads) return;
    batch = next / call.heads, head = next % call.heads;
    prefetch(call.query, call.query_strides, batch, head, targets);
    prefetch(call.key, call.key_strides, batch, head, sources);
    prefetch(call.value, call.value_strides, batch, head, sources);
    prefetch(call.grad, call.grad_strides, batch, head, targets);
  }

  // Keys that some of the queries from `first` on may see, in whole vectors.
  i64 reach(i64 first) const {
    return call.causal ? std::min(lanes, padded(first + kRows, W)) : lanes;
  }
  Vec<A> visible(Vec<A> score, i64 at, i64 target) const {
    score += load(bias.data() + at);
    if (call.causal && at + W > target + 1)
      for (i64 lane = std::max<i64>(0, target + 1 - at); lane < W; ++lane)
        score[int(lane)] = -std::numeric_limits<A>::infinity();
    return score;
  }
  u32 element(i64 batch, i64 head, i64 target) const {
    return u32(((batch * call.heads + head) * targets + target) * sources);
  }

  void forward(i64 batch, i64 head) {
    start(batch, head);
    row.resize(size_t(rows * depth));
    A* sums = static_cast<A*>(call.log_sums) + (batch * call.heads + head) * targets;
    for (i64 first = 0; first < targets; first += kRows) {
      const i64 n = reach(first);
      multiply(query.data() + first * depth, depth, key_columns.data(), lanes, size, n,
               scores.data(), lanes);
      for (int r = 0; r < kRows && first + r < targets; ++r) {
        A* score = scores.data() + r * lanes;
        Vec<A> top = Vec<A>{} - std::numeric_limits<A>::infinity();
        for (i64 at = 0; at < n; at += W) {
          const Vec<A> value = visible(load(score + at), at, first + r);
          store(score + at, value);
          top = larger(value, top);
        }
        A highest = max_lanes<A>(top);
        if (highest == -std::numeric_limits<A>::infinity()) highest = A(0);  // sees nothing
        Vec<A> total = {};
        for (i64 at = 0; at < n; at += W) {
          const Vec<A> weight = exp2_negative(load(score + at) - highest);
          store(score + at, weight);
          total += weight;
        }
        const A sum = sum_lanes<A>(total), inverse = sum > A(0) ? A(1) / sum : A(0);
        sums[first + r] = sum > A(0) ? highest + std::log2(sum) : std::numeric_limits<A>::infinity();
        for (i64 at = 0; at < n; at += W)
          store(score + at, dropout(load(score + at) * inverse,
                                    element(batch, head, first + r) + u32(at)));
      }
      multiply(scores.data(), lanes, value.data(), depth, std::min(n, sources), depth,
               row.data() + first * depth, depth);
    }
    write(row.data(), targets, batch, head, call.out);
  }

  void backward(i64 batch, i64 head) {
    start(batch, head);
    fetch(call.grad, call.grad_strides, batch, head, targets, rows, slope);
    transpose(value, value_columns);
    row.resize(size_t(rows * depth));
    slopes.resize(size_t(kRows * lanes));
    key_sums.assign(size_t(sources * depth), A(0));
    value_sums.assign(size_t(sources * depth), A(0));
    const A* sums = static_cast<const A*>(call.log_sums) + (batch * call.heads + head) * targets;
    for (i64 first = 0; first < targets; first += kRows) {
      const i64 n = reach(first), seen = std::min(n, sources);
      multiply(query.data() + first * depth, depth, key_columns.data(), lanes, size, n,
               scores.data(), lanes);
      multiply(slope.data() + first * depth, depth, value_columns.data(), lanes, size, n,
               slopes.data(), lanes);
      for (int r = 0; r < kRows; ++r) {
        A *score = scores.data() + r * lanes, *grad = slopes.data() + r * lanes;
        if (first + r >= targets) {
          std::fill(score, score + n, A(0));
          std::fill(grad, grad + n, A(0));
          continue;
        }
        Vec<A> along = {};
        for (i64 at = 0; at < n; at += W) {
          const Vec<A> weight =
              exp2_negative(visible(load(score + at), at, first + r) - sums[first + r]);
          const Vec<A> factor =
              dropout(Vec<A>{} + A(1), element(batch, head, first + r) + u32(at));
          const Vec<A> kept = load(grad + at) * factor;
          along += weight * kept;
          store(score + at, weight), store(grad + at, kept);
        }
        const A mean = sum_lanes<A>(along);
        for (i64 at = 0; at < n; at += W) {
          const Vec<A> weight = load(score + at);
          const Vec<A> factor =
              dropout(Vec<A>{} + A(1), element(batch, head, first + r) + u32(at));
          store(grad + at, weight * (load(grad + at) - mean));
          store(score + at, weight * factor);
        }
      }
      multiply(slopes.data(), lanes, key.data(), depth, seen, depth, row.data() + first * depth,
               depth);
      add_product(slopes.data(), lanes, query.data() + first * depth, depth, seen, depth,
                  key_sums.data());
      add_product(scores.data(), lanes, slope.data() + first * depth, depth, seen, depth,
                  value_sums.data());
    }
    write(row.data(), targets, batch, head, call.grad_query, A(1.0 / std::sqrt(double(size))));
    // Queries hold the factor of base 2 besides.
    write(key_sums.data(), sources, batch, head, call.grad_key, A(0.6931471805599453));
    write(value_sums.data(), sources, batch, head, call.grad_value);
  }
};

template <class S>
void run(const Call& call, bool backward) {
  const i64 tasks = call.batch * call.heads;
  Guard guard;
#ifdef _OPENMP
#pragma omp parallel num_threads(int(std::max<i64>(1, std::min(call.threads, tasks))))
#endif
  {
    std::optional<Head<S>> head;
    guard([&] { head.emplace(call); });
#ifdef _OPENMP
#pragma omp for schedule(static)
#endif
    for (i64 task = 0; task < tasks; ++task)
      guard([&] {
        backward ? head->backward(task / call.heads, task % call.heads)
                 : head->forward(task / call.heads, task % call.heads);
      });
  }
  guard.check();
}

int run_typed(const Call& call, bool backward) {
  return by_type(call.type, [&](auto element) { return run<decltype(element)>(call, backward), 0; });
}

}  // namespace

extern "C" int lcmt_attention(const Call* call) { return run_typed(*call, false); }

extern "C" int lcmt_attention_backward(const Call* call) { return run_typed(*call, true); }
