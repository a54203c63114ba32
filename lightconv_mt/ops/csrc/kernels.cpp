// LightConv and DynamicConv on CPUs: softmax, weight dropout and convolution in one pass, forward,
// backward and one step. The definition of all of it is ops/reference.py.
//
// Work is cut into (sentence, head, stretch of positions). A task copies the rows it needs of up to
// kMaxVectors vectors of channels into a panel of accumulators, so that wide strides, narrow types
// and channel counts that fill no vector are dealt with once, and then multiplies from there.
#include <algorithm>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "step.h"
#include "taps.h"

namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kMaxVectors = 4, kMaxTaps = 16;  // 32 vector registers
constexpr int kMaxRows[] = {0, 8, 8, 6, 6};
#else
constexpr int kMaxVectors = 2, kMaxTaps = 8;  // 16 vector registers
constexpr int kMaxRows[] = {0, 8, 6};
#endif
constexpr i64 kStretch = 512;  // positions of a task; two panels of them stay in the L2 cache
constexpr int kTimeBlock = 4;  // rows of the output gradient held in registers for weight gradients

// One call, as the Python side describes it. Strides count elements; channels lie side by side.
struct Call {
  const void *x, *weight, *grad_y;
  void *y, *grad_x, *grad_weight;
  i64 batch, time, channels, heads, width, padding_left;
  i64 x_batch_stride, x_time_stride, grad_y_batch_stride, grad_y_time_stride;
  uint64_t seed;
  double dropout;
  i64 normalize, threads, type;
};

// ---------------------------------------------------------------- panels

// Copy rows [begin, end) of a channel block, zeros where a row lies outside the sequence.
template <class S, class A>
void pack(const S* from, i64 time_stride, i64 time, i64 begin, i64 end, int vectors, int last,
          A* panel) {
  constexpr int W = Lanes<A>::count;
  for (i64 row = begin; row < end; ++row, panel += vectors * W) {
    if (row < 0 || row >= time) {
      for (int v = 0; v < vectors; ++v) store(panel + v * W, Vec<A>{});
      continue;
    }
    const S* source = from + row * time_stride;
    for (int v = 0; v < vectors - 1; ++v) store(panel + v * W, load(source + v * W));
    const S* end_part = source + (vectors - 1) * W;
    A* target = panel + (vectors - 1) * W;
    store(target, last == W ? load(end_part) : load_part(end_part, last, A(0)));
  }
}

// ---------------------------------------------------------------- convolution of panel rows

// Rows FROM..TO of a block take one panel row into their sums.
template <class A, int V, int FROM, int TO, int R>
inline __attribute__((always_inline)) void take_row(const A* row, const A* tap, i64 row_step,
                                                    Vec<A> (&sums)[R][V]) {
  constexpr int W = Lanes<A>::count;
  Vec<A> x[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) x[v] = load(row + v * W);
#pragma GCC unroll 8
  for (int r = FROM; r <= TO; ++r) {
    A weight = tap[r * row_step];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sums[r][v] += weight * x[v];
  }
}

// R output rows: row r is the sum over i of tap[i * step + r * row_step] times panel row i, for i
// in [first, last) with 0 <= i - r < width. Needs width >= R.
template <class S, class A, int V, int R>
void convolve_block(const A* panel, i64 stride, const A* tap, i64 step, i64 row_step, i64 width, i64 first,
                    i64 last, S* out, i64 out_stride, int last_lanes) {
  constexpr int W = Lanes<A>::count;
  Vec<A> sums[R][V] = {};
  auto ramp_up = [&]<int I>(std::integral_constant<int, I>) {
    if (I >= first && I < last)
      take_row<A, V, 0, I, R>(panel + I * stride, tap + I * step, row_step, sums);
  };
  auto ramp_down = [&]<int I>(std::integral_constant<int, I>) {
    i64 i = width + I;
    if (i >= first && i < last)
      take_row<A, V, I + 1, R - 1, R>(panel + i * stride, tap + i * step, row_step, sums);
  };
  [&]<int... I>(std::integer_sequence<int, I...>) {
    (ramp_up(std::integral_constant<int, I>{}), ...);
    i64 end = std::min(last, width);
    for (i64 i = std::max<i64>(first, R - 1); i < end; ++i)
      take_row<A, V, 0, R - 1, R>(panel + i * stride, tap + i * step, row_step, sums);
    (ramp_down(std::integral_constant<int, I>{}), ...);
  }(std::make_integer_sequence<int, R - 1>{});
  for (int r = 0; r < R; ++r, out += out_stride) {
    for (int v = 0; v < V - 1; ++v) store(out + v * W, sums[r][v]);
    if (last_lanes == W)
      store(out + (V - 1) * W, sums[r][V - 1]);
    else
      store_part(out + (V - 1) * W, sums[r][V - 1], last_lanes);
  }
}

// How panel row i and output row r meet in the taps: base[(t - origin) * time_step + i * step + r * row_step].
template <class A>
struct TapLayout {
  const A* base;
  i64 step, row_step, time_step, origin;
};

// Output rows [begin, end): out[t] = sum over i of tap(i) * in[t - lead + i], clipped to [0, time).
template <class S, class A, int V>
void convolve_rows(const A* panel, i64 stride, i64 panel_begin, i64 lead, i64 time, i64 width, i64 begin,
                   i64 end, const TapLayout<A>& taps, S* out, i64 out_stride, int last_lanes) {
  const i64 most = std::min<i64>(kMaxRows[V], width);
  const i64 blocks = (end - begin + most - 1) / most;
  for (i64 block = 0; block < blocks; ++block) {
    i64 t = begin + (end - begin) * block / blocks;
    i64 rows = begin + (end - begin) * (block + 1) / blocks - t;
    const A* tap = taps.base + (t - taps.origin) * taps.time_step;
    const A* from = panel + (t - lead - panel_begin) * stride;
    i64 first = std::max<i64>(0, lead - t), last = time - t + lead;
    S* to = out + t * out_stride;
#define LCMT_ROWS(R)                                                                      \
  case R:                                                                                 \
    if constexpr (R <= kMaxRows[V])                                                       \
      convolve_block<S, A, V, R>(from, stride, tap, taps.step, taps.row_step, width, first, last, \
                                 to, out_stride, last_lanes);                             \
    break;
    switch (rows) {
      LCMT_ROWS(1) LCMT_ROWS(2) LCMT_ROWS(3) LCMT_ROWS(4)
      LCMT_ROWS(5) LCMT_ROWS(6) LCMT_ROWS(7) LCMT_ROWS(8)
    }
#undef LCMT_ROWS
  }
}

template <class S, class A>
void convolve(int vectors, const A* panel, i64 stride, i64 panel_begin, i64 lead, i64 time, i64 width,
              i64 begin, i64 end, const TapLayout<A>& taps, S* out, i64 out_stride, int last) {
  switch (vectors) {
#define LCMT_VECTORS(V)                                                                         \
  case V:                                                                                       \
    if constexpr (V <= kMaxVectors)                                                             \
      convolve_rows<S, A, V>(panel, stride, panel_begin, lead, time, width, begin, end, taps, out,      \
                             out_stride, last);                                                 \
    break;
    LCMT_VECTORS(1) LCMT_VECTORS(2) LCMT_VECTORS(3) LCMT_VECTORS(4)
#undef LCMT_VECTORS
  }
}

// ---------------------------------------------------------------- gradients of the taps

// totals[j] += sum over rows and lanes of gradient[t] * input[t + j], for J taps. Both panels are
// padded with zero rows to a multiple of kTimeBlock.
template <class A, int J>
void correlate_block(const A* input, const A* gradient, i64 stride, i64 rows, int vectors,
                     double* totals) {
  constexpr int W = Lanes<A>::count, B = kTimeBlock;
  Vec<A> sums[J] = {};
  for (int v = 0; v < vectors; ++v) {
    const A *x = input + v * W, *dy = gradient + v * W;
    for (i64 t = 0; t < rows; t += B, x += B * stride, dy += B * stride) {
      Vec<A> held[B];
#pragma GCC unroll 8
      for (int q = 0; q < B; ++q) held[q] = load(dy + q * stride);
#pragma GCC unroll 32
      for (int u = 0; u < J + B - 1; ++u) {
        Vec<A> value = load(x + u * stride);
#pragma GCC unroll 8
        for (int q = 0; q < B; ++q)
          if (u - q >= 0 && u - q < J) sums[u - q] += held[q] * value;
      }
    }
  }
  for (int j = 0; j < J; ++j) totals[j] += double(sum_lanes<A>(sums[j]));
}

template <class A>
void correlate(const A* input, const A* gradient, i64 stride, i64 rows, int vectors, i64 width,
               double* totals) {
  const i64 blocks = (width + kMaxTaps - 1) / kMaxTaps;
  for (i64 block = 0; block < blocks; ++block) {
    i64 tap = width * block / blocks, taps = width * (block + 1) / blocks - tap;
    switch (taps) {
#define LCMT_TAPS(J)                                                                              \
  case J:                                                                                         \
    if constexpr (J <= kMaxTaps)                                                                  \
      correlate_block<A, J>(input + tap * stride, gradient, stride, rows, vectors, totals + tap); \
    break;
      LCMT_TAPS(1) LCMT_TAPS(2) LCMT_TAPS(3) LCMT_TAPS(4) LCMT_TAPS(5) LCMT_TAPS(6) LCMT_TAPS(7)
      LCMT_TAPS(8) LCMT_TAPS(9) LCMT_TAPS(10) LCMT_TAPS(11) LCMT_TAPS(12) LCMT_TAPS(13)
      LCMT_TAPS(14) LCMT_TAPS(15) LCMT_TAPS(16)
#undef LCMT_TAPS
    }
  }
}

// Products of a pair of gradient rows with input rows: result[t][j] += <gradient[t], input[t + j]>
// for t in [0, rows), j in [0, width). Result rows have `margin` spare elements before and after.
template <class A>
void multiply_pairs(const A* input, const A* gradient, i64 stride, i64 rows, int vectors,
                    i64 width, A* result, i64 result_stride) {
  constexpr int W = Lanes<A>::count, T = W >= 4 ? 2 : 1, N = W / T;
  for (i64 t = 0; t < rows; t += T) {
    for (i64 s = 0; s < width + T - 1; s += N) {
      Vec<A> sums[W] = {};
      const A *x = input + (t + s) * stride, *dy = gradient + t * stride;
      for (int v = 0; v < vectors; ++v, x += W, dy += W) {
        Vec<A> held[T];
#pragma GCC unroll 2
        for (int q = 0; q < T; ++q) held[q] = load(dy + q * stride);
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) {
          Vec<A> value = load(x + n * stride);
#pragma GCC unroll 2
          for (int q = 0; q < T; ++q) sums[q * N + n] += held[q] * value;
        }
      }
      A lanes[W];
      store(lanes, sum_each<A>(sums));
      for (int q = 0; q < T; ++q) {
        A* to = result + (t + q) * result_stride + s - q;
        for (int n = 0; n < N; ++n) to[n] += lanes[q * N + n];
      }
    }
  }
}

// ---------------------------------------------------------------- tasks

struct Task {
  i64 sentence, head, begin, end;
};

// Call `work` for every task, spread over threads; tasks write to places of their own.
template <class Work>
void for_each_task(const Call& call, const Work& work) {
  const i64 stretches = std::max<i64>(1, (call.time + kStretch - 1) / kStretch);
  const i64 tasks = call.batch * call.heads * stretches;
#ifdef _OPENMP
#pragma omp parallel for schedule(static) num_threads(int(std::min(call.threads, std::max<i64>(tasks, 1))))
#endif
  for (i64 index = 0; index < tasks; ++index) {
    i64 stretch = index % stretches, rest = index / stretches;
    work(Task{rest / call.heads, rest % call.heads, call.time * stretch / stretches,
              call.time * (stretch + 1) / stretches},
         index);
  }
}

// Channel blocks of a head: calls work(first channel, vectors, lanes of the last vector).
template <class A, class Work>
void for_each_block(const Call& call, i64 head, const Work& work) {
  constexpr i64 W = Lanes<A>::count, most = W * kMaxVectors;
  const i64 share = call.channels / call.heads;
  for (i64 at = 0; at < share; at += most) {
    i64 lanes = std::min(most, share - at), vectors = (lanes + W - 1) / W;
    work(head * share + at, int(vectors), int(lanes - (vectors - 1) * W));
  }
}

template <class S, bool dynamic>
struct Convolution {
  using A = typename Accumulator<S>::type;
  static constexpr int W = Lanes<A>::count;
  static constexpr i64 margin = W;

  const Call& call;
  const i64 lead = call.padding_left, lag = call.width - 1 - call.padding_left;
  const i64 tap_stride = round_up(call.width, W);
  std::vector<A> shared, shared_softmax;  // LightConv's taps, (H, tap_stride)

  explicit Convolution(const Call& call) : call(call) {
    if constexpr (!dynamic) {
      shared.resize(call.heads * tap_stride);
      normalize_rows(call.normalize, call.width, static_cast<const A*>(call.weight), call.width, call.heads,
                     shared.data(), tap_stride);
      shared_softmax = shared;
      if (call.dropout > 0)
        for (i64 head = 0; head < call.heads; ++head)
          drop(call.dropout, call.seed, u32(head * call.width), call.width, shared.data() + head * tap_stride);
    }
  }

  // DynamicConv's taps of positions [begin, end), cut to the sequence, one row a position.
  A* task_taps(const Task& task, i64 begin, i64 end, A** softmax) const {
    begin = std::max<i64>(begin, 0), end = std::min(end, call.time);
    const i64 rows = std::max<i64>(end - begin, 0), row = call.heads * call.width;
    const i64 first = (task.sentence * call.time + begin) * call.heads + task.head;
    A* taps = scratch(kTaps).template get<A>(rows * tap_stride);
    normalize_rows(call.normalize, call.width, static_cast<const S*>(call.weight) + first * call.width, row, rows, taps,
                   tap_stride);
    if (softmax) {
      *softmax = taps;
      if (call.dropout > 0) {
        *softmax = scratch(kSoftmax).template get<A>(rows * tap_stride);
        std::copy(taps, taps + rows * tap_stride, *softmax);
      }
    }
    if (call.dropout > 0)
      for (i64 r = 0; r < rows; ++r)
        drop(call.dropout, call.seed, u32((first + r * call.heads) * call.width), call.width, taps + r * tap_stride);
    return taps;
  }

  void forward() const {
    for_each_task(call, [&](const Task& task, i64) {
      TapLayout<A> taps;
      if constexpr (dynamic)
        taps = {task_taps(task, task.begin, task.end, nullptr), 1, tap_stride - 1, tap_stride,
                task.begin};
      else
        taps = {shared.data() + task.head * tap_stride, 1, -1, 0, 0};
      const i64 begin = std::max<i64>(task.begin - lead, 0);
      const i64 end = std::min(task.end + lag, call.time);
      for_each_block<A>(call, task.head, [&](i64 channel, int vectors, int last) {
        const S* x = static_cast<const S*>(call.x) + task.sentence * call.x_batch_stride + channel;
        S* y = static_cast<S*>(call.y) + task.sentence * call.time * call.channels + channel;
        if constexpr (std::is_same_v<S, A>)
          if (last == W) {  // whole vectors of the right type are read where they are
            convolve(vectors, x, call.x_time_stride, 0, lead, call.time, call.width, task.begin,
                     task.end, taps, y, call.channels, last);
            return;
          }
        A* panel = scratch(kInput).template get<A>((end - begin) * vectors * W);
        pack(x, call.x_time_stride, call.time, begin, end, vectors, last, panel);
        convolve(vectors, panel, i64(vectors * W), begin, lead, call.time, call.width, task.begin, task.end, taps, y,
                 call.channels, last);
      });
    });
  }

  void backward() const {
    const i64 stretches = std::max<i64>(1, (call.time + kStretch - 1) / kStretch);
    std::vector<double> parts;  // LightConv: (task, K), summed in their order
    if constexpr (!dynamic) parts.resize(call.batch * call.heads * stretches * call.width);
    for_each_task(call, [&](const Task& task, i64 index) {
      const i64 rows = task.end - task.begin;
      // Gradient rows are needed where they meet an input of this task, input rows where they meet
      // a gradient of it.
      const i64 dy_begin = task.begin - lag, dy_end = task.end + lead;
      const i64 x_begin = task.begin - lead, x_end = task.end + lag;
      A *softmax = nullptr, *taps = nullptr, *products = nullptr;
      const i64 product_stride = round_up(call.width, W) + 2 * margin;
      TapLayout<A> layout;
      const i64 tap_begin = std::max<i64>(dy_begin, 0);
      if constexpr (dynamic) {
        taps = task_taps(task, dy_begin, dy_end, &softmax);
        // Position t of the gradient meets input s by tap s - t + lead.
        layout = {taps + (dy_begin - tap_begin) * tap_stride + call.width - 1, tap_stride - 1, 1,
                  tap_stride, task.begin};
        products = scratch(kWeightGradient).template get<A>((rows + 1) * product_stride);
        std::fill(products, products + (rows + 1) * product_stride, A(0));
      } else {
        layout = {shared.data() + task.head * tap_stride + call.width - 1, -1, 1, 0, 0};
      }
      for_each_block<A>(call, task.head, [&](i64 channel, int vectors, int last) {
        const i64 stride = vectors * W, spare = kTimeBlock + W;
        A* dy = scratch(kGradient).template get<A>((dy_end - dy_begin + spare) * stride);
        const S* grad_y = static_cast<const S*>(call.grad_y) +
                          task.sentence * call.grad_y_batch_stride + channel;
        pack(grad_y, call.grad_y_time_stride, call.time, dy_begin, dy_end, vectors, last, dy);
        if (call.grad_x) {
          S* grad_x = static_cast<S*>(call.grad_x) +
                      task.sentence * call.time * call.channels + channel;
          convolve(vectors, dy, stride, dy_begin, lag, call.time, call.width, task.begin, task.end, layout,
                   grad_x, call.channels, last);
        }
        if (!call.grad_weight) return;
        A* x = scratch(kInput).template get<A>((x_end - x_begin + spare) * stride);
        const S* input = static_cast<const S*>(call.x) + task.sentence * call.x_batch_stride + channel;
        pack(input, call.x_time_stride, call.time, x_begin, x_end, vectors, last, x);
        std::fill(x + (x_end - x_begin) * stride, x + (x_end - x_begin + spare) * stride, A(0));
        // Rows of other tasks after this one's must not count here.
        A* own = dy + lag * stride;
        std::fill(own + rows * stride, own + (rows + kTimeBlock) * stride, A(0));
        if constexpr (dynamic)
          multiply_pairs(x, own, stride, rows, vectors, call.width, products + margin,
                         product_stride);
        else
          correlate(x, own, stride, rows, vectors, call.width, parts.data() + index * call.width);
      });
      if constexpr (dynamic) {
        if (!call.grad_weight) return;
        const i64 row = call.heads * call.width;
        S* out = static_cast<S*>(call.grad_weight) +
                 ((task.sentence * call.time + task.begin) * call.heads + task.head) * call.width;
        for (i64 t = 0; t < rows; ++t, out += row) {
          const i64 at = (task.begin - tap_begin + t) * tap_stride;
          weight_gradient(products + margin + t * product_stride, taps + at, softmax + at, 
                          u32(((task.sentence * call.time + task.begin + t) * call.heads +
                               task.head) * call.width), out);
        }
      }
    });
    if constexpr (!dynamic)
      if (call.grad_weight) sum_parts(parts, stretches);
  }

  // Through dropout and softmax: `product` is the gradient of the dropped taps (K), overwritten.
  template <class Out>
  void weight_gradient(A* product, const A* taps, const A* softmax, u32 element, Out* out) const {
    const i64 whole = call.width / W;
    const int rest = int(call.width % W);
    if (!call.normalize) {
      if (call.dropout > 0) drop(call.dropout, call.seed, element, call.width, product);
      write(product, whole, rest, out);
      return;
    }
    // Beyond the width taps are zero, products finite.
    Vec<A> total = {};
    for (i64 at = 0; at < tap_stride; at += W) total += load(product + at) * load(taps + at);
    const A mean = sum_lanes<A>(total);
    for (i64 at = 0; at < tap_stride; at += W)
      store(product + at, load(product + at) * load(taps + at) - load(softmax + at) * mean);
    write(product, whole, rest, out);
  }

  template <class Out>
  static void write(const A* from, i64 whole, int rest, Out* out) {
    for (i64 v = 0; v < whole; ++v) store(out + v * W, load(from + v * W));
    if (rest) store_part(out + whole * W, load(from + whole * W), rest);
  }

  void sum_parts(const std::vector<double>& parts, i64 stretches) const {
    std::vector<double> sums(call.width);
    std::vector<A> product(tap_stride);
    for (i64 head = 0; head < call.heads; ++head) {
      std::fill(sums.begin(), sums.end(), 0.0);
      for (i64 sentence = 0; sentence < call.batch; ++sentence)
        for (i64 stretch = 0; stretch < stretches; ++stretch) {
          const double* part =
              parts.data() + ((sentence * call.heads + head) * stretches + stretch) * call.width;
          for (i64 tap = 0; tap < call.width; ++tap) sums[tap] += part[tap];
        }
      std::copy(sums.begin(), sums.end(), product.begin());
      weight_gradient(product.data(), shared.data() + head * tap_stride,
                      shared_softmax.data() + head * tap_stride, u32(head * call.width),
                      static_cast<A*>(call.grad_weight) + head * call.width);
    }
  }
};

template <class S>
void run(const Call& call, bool dynamic, bool backward) {
  if (dynamic) {
    Convolution<S, true> convolution(call);
    backward ? convolution.backward() : convolution.forward();
  } else {
    Convolution<S, false> convolution(call);
    backward ? convolution.backward() : convolution.forward();
  }
}

// Call `work` with a value of the element type, 0 when it went well.
template <class Work>
int by_type(i64 type, const Work& work) {
  try {
    switch (type) {
      case 0: work(float{}); return 0;
      case 1: work(bf16{}); return 0;
      case 2: work(f16{}); return 0;
      case 3: work(double{}); return 0;
    }
    return 1;
  } catch (const std::bad_alloc&) {
    return 2;
  }
}

int dispatch(const Call* call, bool dynamic, bool backward) {
  return by_type(call->type, [&](auto element) { run<decltype(element)>(*call, dynamic, backward); });
}

}  // namespace

extern "C" {
int lcmt_lanes() { return Lanes<float>::count; }
int lcmt_lightconv(const Call* call) { return dispatch(call, false, false); }
int lcmt_lightconv_backward(const Call* call) { return dispatch(call, false, true); }
int lcmt_dynamicconv(const Call* call) { return dispatch(call, true, false); }
int lcmt_dynamicconv_backward(const Call* call) { return dispatch(call, true, true); }
int lcmt_step(const StepCall* call) {
  return by_type(call->type, [&](auto element) { Step<decltype(element)>{*call}.run(); });
}
}
