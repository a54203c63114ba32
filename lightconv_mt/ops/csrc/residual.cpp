// x + dropout(y), alone or followed by layer norm, and the gradients. The definition is
// ops/residual.py.
#include <algorithm>
#include <cmath>
#include <vector>

#include "dropout.h"
#include "element.h"

namespace {

// One call, as the Python side describes it.
struct Call {
  const void* x;        // (rows, channels), or null: dropout alone
  const void* y;        // (rows, channels)
  void* out;            // (rows, channels)
  void* joined;         // (rows, channels) in the type of sums
  void* statistics;     // (rows, 2) in the type of sums: mean, 1 / deviation
  const void* weight;   // (channels) in the type of sums, as the four below
  const void* bias;
  const void* grad;     // (rows, channels) in x's type
  void* grad_x;
  void* grad_y;
  void* grad_weight;
  void* grad_bias;
  i64 rows, channels, seed, threads, x_type, y_type, out_type;
  double dropout, eps;
};

constexpr i64 kPiece = 1 << 14;  // elements a thread takes at once
constexpr i64 kBlock = 64;       // rows whose gradients of weight and bias are summed first

template <class X, class Y, class O>
void residual(const Call& call) {
  using A = typename Accumulator<X>::type;
  constexpr int W = Lanes<A>::count;
  const X* x = static_cast<const X*>(call.x);
  const Y* y = static_cast<const Y*>(call.y);
  O* out = static_cast<O*>(call.out);
  const i64 count = call.rows * call.channels, pieces = (count + kPiece - 1) / kPiece;
  const Dropout<A> dropout(call.dropout, call.seed);
#ifdef _OPENMP
#pragma omp parallel for schedule(static) num_threads(int(std::max<i64>(1, std::min(call.threads, pieces))))
#endif
  for (i64 piece = 0; piece < pieces; ++piece)
    for (i64 at = piece * kPiece; at < std::min(count, (piece + 1) * kPiece); at += W) {
      const int n = int(std::min<i64>(W, count - at));
      Vec<A> value = dropout(take(y + at, n), u32(at));
      if (x) value += take(x + at, n);
      put(out + at, value, n);
    }
}

template <class X, class Y>
void norm(const Call& call) {
  using A = typename Accumulator<X>::type;
  constexpr int W = Lanes<A>::count;
  const i64 channels = call.channels, blocks = (call.rows + kBlock - 1) / kBlock;
  const A *weight = static_cast<const A*>(call.weight), *bias = static_cast<const A*>(call.bias);
  const Dropout<A> dropout(call.dropout, call.seed);
#ifdef _OPENMP
#pragma omp parallel for schedule(static) num_threads(int(std::max<i64>(1, std::min(call.threads, blocks))))
#endif
  for (i64 block = 0; block < blocks; ++block)
    for (i64 row = block * kBlock; row < std::min(call.rows, (block + 1) * kBlock); ++row) {
      const i64 first = row * channels;
      const X* x = static_cast<const X*>(call.x) + first;
      const Y* y = static_cast<const Y*>(call.y) + first;
      X* out = static_cast<X*>(call.out) + first;
      A* joined = static_cast<A*>(call.joined) + first;
      Vec<A> sum = {};
      for (i64 at = 0; at < channels; at += W) {
        const int n = int(std::min<i64>(W, channels - at));
        const Vec<A> value = take(x + at, n) + dropout(take(y + at, n), u32(first + at));
        put(joined + at, value, n);
        sum += value;
      }
      const A mean = sum_lanes<A>(sum) / A(channels);
      Vec<A> squares = {};
      for (i64 at = 0; at < channels; at += W) {
        const int n = int(std::min<i64>(W, channels - at));
        const Vec<A> value =
            (n == W ? load(joined + at) : load_part(joined + at, n, mean)) - mean;
        squares += value * value;
      }
      const A scale = A(1) / std::sqrt(sum_lanes<A>(squares) / A(channels) + A(call.eps));
      for (i64 at = 0; at < channels; at += W) {
        const int n = int(std::min<i64>(W, channels - at));
        const Vec<A> value = (take(joined + at, n) - mean) * scale;
        put(out + at, value * take(weight + at, n) + take(bias + at, n), n);
      }
      A* statistics = static_cast<A*>(call.statistics) + 2 * row;
      statistics[0] = mean, statistics[1] = scale;
    }
}

template <class X, class Y>
void norm_backward(const Call& call) {
  using A = typename Accumulator<X>::type;
  constexpr int W = Lanes<A>::count;
  const i64 channels = call.channels, blocks = (call.rows + kBlock - 1) / kBlock;
  const A* weight = static_cast<const A*>(call.weight);
  const Dropout<A> dropout(call.dropout, call.seed);
  // Sums of blocks are added in order, so that the number of threads changes no bit.
  std::vector<A> sums(size_t(2 * blocks * channels));
#ifdef _OPENMP
#pragma omp parallel for schedule(static) num_threads(int(std::max<i64>(1, std::min(call.threads, blocks))))
#endif
  for (i64 block = 0; block < blocks; ++block) {
    A *weight_sum = sums.data() + 2 * block * channels, *bias_sum = weight_sum + channels;
    for (i64 row = block * kBlock; row < std::min(call.rows, (block + 1) * kBlock); ++row) {
      const i64 first = row * channels;
      const X* grad = static_cast<const X*>(call.grad) + first;
      const A* joined = static_cast<const A*>(call.joined) + first;
      const A* statistics = static_cast<const A*>(call.statistics) + 2 * row;
      const A mean = statistics[0], scale = statistics[1];
      Vec<A> plain = {}, along = {};
      for (i64 at = 0; at < channels; at += W) {
        const int n = int(std::min<i64>(W, channels - at));
        const Vec<A> slope = take(grad + at, n);
        const Vec<A> normed = (take(joined + at, n) - mean) * scale;
        put(weight_sum + at, take(weight_sum + at, n) + slope * normed, n);
        put(bias_sum + at, take(bias_sum + at, n) + slope, n);
        const Vec<A> weighted = slope * take(weight + at, n);  // 0 beyond the row
        plain += weighted, along += weighted * normed;
      }
      const A mean_plain = sum_lanes<A>(plain) / A(channels);
      const A mean_along = sum_lanes<A>(along) / A(channels);
      X* grad_x = static_cast<X*>(call.grad_x) + first;
      Y* grad_y = static_cast<Y*>(call.grad_y) + first;
      for (i64 at = 0; at < channels; at += W) {
        const int n = int(std::min<i64>(W, channels - at));
        const Vec<A> normed = (take(joined + at, n) - mean) * scale;
        const Vec<A> slope =
            (take(grad + at, n) * take(weight + at, n) - mean_plain - normed * mean_along) * scale;
        put(grad_x + at, slope, n);
        put(grad_y + at, dropout(slope, u32(first + at)), n);
      }
    }
  }
  A *grad_weight = static_cast<A*>(call.grad_weight), *grad_bias = static_cast<A*>(call.grad_bias);
  std::fill(grad_weight, grad_weight + channels, A(0));
  std::fill(grad_bias, grad_bias + channels, A(0));
  for (i64 block = 0; block < blocks; ++block)
    for (i64 channel = 0; channel < channels; ++channel) {
      grad_weight[channel] += sums[size_t(2 * block * channels + channel)];
      grad_bias[channel] += sums[size_t((2 * block + 1) * channels + channel)];
    }
}

template <class X, class Y>
constexpr bool same_sums =
    std::is_same_v<typename Accumulator<X>::type, typename Accumulator<Y>::type>;

// What `run` returns when called with values of the types of x and y; 2 where their sums differ.
template <class Run>
int with_types(const Call* call, const Run& run) {
  return by_type(call->x_type, [&](auto x) {
    return by_type(call->y_type, [&](auto y) {
      using X = decltype(x);
      using Y = decltype(y);
      if constexpr (same_sums<X, Y>)
        return run(x, y);
      else
        return 2;
    });
  });
}

}  // namespace

extern "C" int lcmt_residual(const Call* call) {
  return with_types(call, [&](auto x, auto y) {
    return by_type(call->out_type, [&](auto out) {
      using X = decltype(x);
      using O = decltype(out);
      if constexpr (same_sums<X, O>)
        return residual<X, decltype(y), O>(*call), 0;
      else
        return 2;
    });
  });
}

extern "C" int lcmt_residual_norm(const Call* call) {
  return with_types(call,
                    [&](auto x, auto y) { return norm<decltype(x), decltype(y)>(*call), 0; });
}

extern "C" int lcmt_residual_norm_backward(const Call* call) {
  return with_types(call, [&](auto x, auto y) {
    return norm_backward<decltype(x), decltype(y)>(*call), 0;
  });
}
