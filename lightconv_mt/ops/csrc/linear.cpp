// What the gradient of a linear layer with ReLU needs besides products, in one pass: the output's
// gradient where the output is above 0, and the sums of that over rows. The definition is
// ops/products.py.
#include <algorithm>
#include <vector>

#include "dropout.h"
#include "element.h"

namespace {

// One call, as the Python side describes it.
struct Call {
  const void* grad;  // (rows, channels)
  const void* y;     // (rows, channels)
  void* masked;      // (rows, channels)
  void* sums;        // (channels) in the type of sums
  i64 rows, channels, threads, type;
};

constexpr i64 kBlock = 64;  // rows that are summed first

template <class S>
void relu_backward(const Call& call) {
  using A = typename Accumulator<S>::type;
  constexpr int W = Lanes<A>::count;
  const i64 channels = call.channels, blocks = (call.rows + kBlock - 1) / kBlock;
  // Sums of blocks are added in order, so that the number of threads changes no bit.
  std::vector<A> sums(size_t(blocks * channels));
#ifdef _OPENMP
#pragma omp parallel for schedule(static) num_threads(int(std::max<i64>(1, std::min(call.threads, blocks))))
#endif
  for (i64 block = 0; block < blocks; ++block) {
    A* sum = sums.data() + block * channels;
    for (i64 row = block * kBlock; row < std::min(call.rows, (block + 1) * kBlock); ++row) {
      const S* grad = static_cast<const S*>(call.grad) + row * channels;
      const S* y = static_cast<const S*>(call.y) + row * channels;
      S* masked = static_cast<S*>(call.masked) + row * channels;
      for (i64 at = 0; at < channels; at += W) {
        const int n = int(std::min<i64>(W, channels - at));
        const Vec<A> slope = take(y + at, n) <= A(0) ? Vec<A>{} : take(grad + at, n);
        put(masked + at, slope, n);
        put(sum + at, take(sum + at, n) + slope, n);
      }
    }
  }
  A* all = static_cast<A*>(call.sums);
  std::fill(all, all + channels, A(0));
  for (i64 block = 0; block < blocks; ++block)
    for (i64 channel = 0; channel < channels; ++channel)
      all[channel] += sums[size_t(block * channels + channel)];
}

}  // namespace

extern "C" int lcmt_relu_backward(const Call* call) {
  return by_type(call->type, [&](auto element) { return relu_backward<decltype(element)>(*call), 0; });
}
