// LightConv and DynamicConv on CPUs: softmax, weight dropout and convolution in one pass, forward,
// backward and one step. The definition of all of it is ops/reference.py.
//
// Work is cut into (sentence, stretch of positions); a stretch goes through its heads one by one.
// Where narrow types or channel counts that fill no vector would be met again and again, or zeros
// are wanted around a sequence, the rows a head needs are first copied into a panel.
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "convolve.h"
#include "element.h"
#include "gradients.h"
#include "memory.h"
#include "parts.h"
#include "step.h"
#include "taps.h"

namespace {

constexpr i64 kStretch = 64, kBackwardStretch = 128;  // positions of a task at most
constexpr i64 kFarBytes = 1 << 22;
constexpr int kPanelVectors = 4;                      // of channels, in a panel

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

struct Task {
  i64 index, sentence, begin, end;
};

// Rows [begin, end) of a channel block; `start` is where row 0 is or would be.
template <class A>
struct Rows {
  const A* start;
  i64 stride, begin, end;
};

// Row widths of the panels of a task so far.
struct Panels {
  i64 width[kSlots] = {};
};

// Call `work` for every task, spread over threads; tasks write to places of their own.
template <class Work>
void for_each_task(const Call& call, i64 stretch, const Work& work) {
  const i64 stretches = std::max<i64>(1, (call.time + stretch - 1) / stretch);
  const i64 tasks = call.batch * stretches;
  Guard guard;
#ifdef _OPENMP
  const int threads = int(std::min(call.threads, std::max<i64>(tasks, 1)));
#pragma omp parallel for schedule(static) num_threads(threads)
#endif
  for (i64 index = 0; index < tasks; ++index) {
    const i64 place = index % stretches;
    guard([&] {
      work(Task{index, index / stretches, call.time * place / stretches,
                call.time * (place + 1) / stretches});
    });
  }
  guard.check();
}

// Channel blocks of a head: calls work(first channel, vectors, lanes of the last vector).
template <class A, class Work>
void for_each_block(const Call& call, i64 head, const Work& work) {
  constexpr i64 W = Lanes<A>::count, most = W * kPanelVectors;
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

  const Call& call;
  const i64 lead = call.padding_left, lag = call.width - 1 - call.padding_left;
  const i64 tap_stride = tap_stride_of<A>(call.width);
  // Whether the tensors are too large to lie in a cache since they were written.
  const bool far = call.batch * call.time * call.channels * i64(sizeof(S)) > kFarBytes;
  std::vector<A> shared, shared_softmax;  // LightConv's taps, (H, tap_stride)

  explicit Convolution(const Call& call) : call(call) {
    if constexpr (!dynamic) {
      shared.resize(call.heads * tap_stride);
      normalize_rows(call.normalize, call.width, static_cast<const A*>(call.weight), call.width,
                     call.heads, shared.data(), tap_stride);
      shared_softmax = shared;
      if (call.dropout > 0)
        drop(call.dropout, call.seed, 0, u32(call.width), call.heads, shared.data(), tap_stride,
             tap_stride);
    }
  }

  i64 weight_row(i64 sentence, i64 position, i64 head) const {
    return (sentence * call.time + position) * call.heads + head;
  }

  // DynamicConv's taps of one head at positions [begin, end), one row a position.
  A* taps_of(const Task& task, i64 head, i64 begin, i64 end, A** softmax) const {
    const i64 rows = std::max<i64>(end - begin, 0), first = weight_row(task.sentence, begin, head);
    A* taps = scratch(kTaps).template get<A>(rows * tap_stride);
    timed(Part::softmax, [&] {
      normalize_rows(call.normalize, call.width,
                     static_cast<const S*>(call.weight) + first * call.width,
                     call.heads * call.width, rows, taps, tap_stride);
    });
    *softmax = taps;
    if (call.dropout > 0) {
      *softmax = scratch(kSoftmax).template get<A>(rows * tap_stride);
      std::copy(taps, taps + rows * tap_stride, *softmax);
      drop(call.dropout, call.seed, u32(first * call.width), u32(call.heads * call.width), rows,
           taps, tap_stride, tap_stride);
    }
    return taps;
  }

  // From the first channel of a block, at row 0, to the rows that the block after it meets first;
  // a stretch meets those up to `reach` rows beyond it, of which the one before it met some.
  i64 next_block(const Task& task, i64 channel, i64 lanes, i64 batch_stride, i64 time_stride,
                 i64 reach) const {
    if (channel + lanes < call.channels)
      return lanes + (task.begin ? task.begin + reach : 0) * time_stride;
    return (task.end < call.time ? (task.end + reach) * time_stride : batch_stride) - channel;
  }

  // Rows [begin, end) of a channel block as accumulators, `zeros` rows of zeros around them where
  // the sequence ends: where they are, if they are that already, else copied.
  Rows<A> rows_of(Slot slot, const S* from, i64 stride, i64 begin, i64 end, i64 zeros, int vectors,
                  int last, Panels& panels) const {
    if constexpr (std::is_same_v<S, A>)
      if (last == W && !zeros) return {from, stride, 0, call.time};
    const i64 width = vectors * W, before = begin ? 0 : zeros, after = end < call.time ? 0 : zeros;
    A* panel = scratch(slot).template get<A>((before + end - begin + after) * width);
    A* rows = panel + before * width;
    if (panels.width[slot] != width) {  // zeros stay from head to head
      std::fill(panel, rows, A(0));
      std::fill(rows + (end - begin) * width, rows + (end - begin + after) * width, A(0));
      panels.width[slot] = width;
    }
    timed(Part::copies,
          [&] { pack(from + begin * stride, stride, end - begin, vectors, last, rows); });
    return {rows - begin * width, width, begin, end};
  }

  void forward() const {
    for_each_task(call, kStretch, [&](const Task& task) {
      const i64 begin = std::max<i64>(task.begin - lead, 0);
      const i64 end = std::min(task.end + lag, call.time);
      Panels panels;
      for (i64 head = 0; head < call.heads; ++head) {
        TapLayout<A> taps;
        A* softmax;
        if constexpr (dynamic)
          taps = {taps_of(task, head, task.begin, task.end, &softmax), 1, tap_stride - 1,
                  tap_stride, task.begin};
        else
          taps = {shared.data() + head * tap_stride, 1, -1, 0, 0};
        for_each_block<A>(call, head, [&](i64 channel, int vectors, int last) {
          const S* x =
              static_cast<const S*>(call.x) + task.sentence * call.x_batch_stride + channel;
          S* y = static_cast<S*>(call.y) + task.sentence * call.time * call.channels + channel;
          const i64 lanes = (vectors - 1) * W + last;
          const i64 next_x = next_block(task, channel, lanes, call.x_batch_stride,
                                        call.x_time_stride, lag);
          const i64 next_y = next_block(task, channel, lanes, call.time * call.channels,
                                        call.channels, 0);
          const Ahead<S> ahead = {
              {x + next_x, y + next_y}, {call.x_time_stride, call.channels}, far ? 2 : 0};
          const Rows<A> input =
              rows_of(kInput, x, call.x_time_stride, begin, end, 0, vectors, last, panels);
          timed(Part::sums, [&] {
            convolve(vectors, input.start, input.stride, lead, call.time, call.width, task.begin,
                     task.end, taps, y, call.channels, last, ahead);
          });
        });
      }
    });
  }

  void backward() const {
    const i64 stretches = std::max<i64>(1, (call.time + kBackwardStretch - 1) / kBackwardStretch);
    std::vector<A> parts;  // LightConv: (task, H, width), summed in their order
    if constexpr (!dynamic) parts.resize(call.batch * stretches * call.heads * call.width);
    for_each_task(call, kBackwardStretch, [&](const Task& task) {
      Panels panels;
      for (i64 head = 0; head < call.heads; ++head)
        backward_head(task, head, panels,
                      dynamic ? nullptr : &parts[(task.index * call.heads + head) * call.width]);
    });
    if constexpr (!dynamic) sum_parts(parts, call.batch * stretches);
  }

  void backward_head(const Task& task, i64 head, Panels& panels, A* part) const {
    const i64 rows = task.end - task.begin, time = call.time;
    // Gradient rows that meet inputs of this task, and input rows that meet its gradients.
    const i64 dy_begin = std::max<i64>(task.begin - lag, 0), dy_end = std::min(task.end + lead, time);
    const i64 x_begin = std::max<i64>(task.begin - lead, 0), x_end = std::min(task.end + lag, time);
    const i64 product_stride = tap_stride + 2 * W, total_vectors = round_up(call.width, W);
    A *taps = nullptr, *softmax = nullptr, *sums;
    TapLayout<A> layout;
    if constexpr (dynamic) {
      taps = taps_of(task, head, dy_begin, dy_end, &softmax);
      // Position t of the gradient meets input s by tap s - t + lead.
      layout = {taps + (task.begin - lag - dy_begin) * tap_stride + call.width - 1,
                tap_stride - 1, 1, tap_stride, task.begin};
      sums = scratch(kWeightGradient).template get<A>((rows + 1) * product_stride);
      std::fill(sums, sums + (rows + 1) * product_stride, A(0));
    } else {
      layout = {shared.data() + head * tap_stride + call.width - 1, -1, 1, 0, 0};
      sums = scratch(kWeightGradient).template get<A>(total_vectors * W);
      std::fill(sums, sums + total_vectors * W, A(0));
    }
    bool first = true;
    for_each_block<A>(call, head, [&](i64 channel, int vectors, int last) {
      const S* grad_y =
          static_cast<const S*>(call.grad_y) + task.sentence * call.grad_y_batch_stride + channel;
      const S* x_rows =
          static_cast<const S*>(call.x) + task.sentence * call.x_batch_stride + channel;
      S* grad_x = static_cast<S*>(call.grad_x) + task.sentence * time * call.channels + channel;
      const i64 lanes = (vectors - 1) * W + last;
      const i64 next_dy = next_block(task, channel, lanes, call.grad_y_batch_stride,
                                     call.grad_y_time_stride, lead);
      const i64 next_x =
          next_block(task, channel, lanes, call.x_batch_stride, call.x_time_stride, lag);
      const i64 next_grad_x =
          next_block(task, channel, lanes, time * call.channels, call.channels, 0);
      const Ahead<S> ahead = {{grad_y + next_dy, x_rows + next_x, grad_x + next_grad_x},
                              {call.grad_y_time_stride, call.x_time_stride, call.channels},
                              far ? 3 : 0};
      const Rows<A> dy = rows_of(kGradient, grad_y, call.grad_y_time_stride, dy_begin, dy_end, 0,
                                 vectors, last, panels);
      timed(Part::sums, [&] {
        convolve(vectors, dy.start, dy.stride, lag, time, call.width, task.begin, task.end, layout,
                 grad_x, call.channels, last, ahead);
      });
      const Rows<A> x = rows_of(kInput, x_rows, call.x_time_stride, x_begin, x_end,
                                dynamic ? 0 : kZeroRows, vectors, last, panels);
      const A* input = x.start + (task.begin - lead) * x.stride;
      const A* own = dy.start + task.begin * dy.stride;
      if constexpr (dynamic) {
        auto multiply = [&]<int V>(std::integral_constant<int, V>) {
          const i64 origin = task.begin - lead;
          multiply_pairs<A, V>(input, x.stride, own, dy.stride, rows, call.width, -origin,
                               time - origin, x.begin - origin, x.end - origin, !first, sums + W,
                               product_stride);
        };
        timed(Part::tap_gradients, [&] {
          switch (vectors) {
            case 1: multiply(std::integral_constant<int, 1>{}); break;
            case 2: multiply(std::integral_constant<int, 2>{}); break;
            case 3: multiply(std::integral_constant<int, 3>{}); break;
            case 4: multiply(std::integral_constant<int, 4>{}); break;
          }
        });
      } else {
        timed(Part::tap_gradients, [&] {
          correlate(input, x.stride, own, dy.stride, rows, vectors, call.width, task.begin, lead,
                    time, sums);
        });
      }
      first = false;
    });
    if constexpr (dynamic)
      weight_gradients(task, head, sums + W, product_stride, taps + (task.begin - dy_begin) * tap_stride,
                       softmax + (task.begin - dy_begin) * tap_stride);
    else
      for (i64 tap = 0; tap < call.width; tap += W) {
        Vec<A> totals[W];
        for (int v = 0; v < W; ++v) totals[v] = load(sums + (tap + v) * W);
        store_part(part + tap, sum_each<A>(totals), int(std::min<i64>(W, call.width - tap)));
      }
  }

  // DynamicConv: from the gradients of a task's taps.
  void weight_gradients(const Task& task, i64 head, A* products, i64 product_stride, const A* taps,
                        const A* softmax) const {
    const i64 first = weight_row(task.sentence, task.begin, head), rows = task.end - task.begin;
    const i64 row_step = call.heads * call.width;
    if (!call.normalize && call.dropout > 0)
      drop(call.dropout, call.seed, u32(first * call.width), u32(row_step), rows, products,
           tap_stride, product_stride);
    timed(Part::softmax_gradients, [&] {
      taps_backward(call.normalize, call.width, products, product_stride, taps, softmax, tap_stride,
                    rows, static_cast<S*>(call.grad_weight) + first * call.width, row_step);
    });
  }

  // LightConv: from the tasks' sums.
  void sum_parts(const std::vector<A>& parts, i64 tasks) const {
    std::vector<double> sums(call.heads * call.width);
    for (i64 task = 0; task < tasks; ++task)
      for (size_t tap = 0; tap < sums.size(); ++tap) sums[tap] += parts[task * sums.size() + tap];
    std::vector<A> products(call.heads * tap_stride);
    for (i64 head = 0; head < call.heads; ++head)
      std::copy_n(sums.data() + head * call.width, call.width, products.data() + head * tap_stride);
    if (!call.normalize && call.dropout > 0)
      drop(call.dropout, call.seed, 0, u32(call.width), call.heads, products.data(), tap_stride,
           tap_stride);
    taps_backward(call.normalize, call.width, products.data(), tap_stride, shared.data(),
                  shared_softmax.data(), tap_stride, call.heads, static_cast<A*>(call.grad_weight),
                  call.width);
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

int dispatch(const Call* call, bool dynamic, bool backward) {
  return by_type(call->type, [&](auto element) {
    return run<decltype(element)>(*call, dynamic, backward), 0;
  });
}

}  // namespace

extern "C" {
int lcmt_lanes() { return Lanes<float>::count; }
int lcmt_lightconv(const Call* call) { return dispatch(call, false, false); }
int lcmt_lightconv_backward(const Call* call) { return dispatch(call, false, true); }
int lcmt_dynamicconv(const Call* call) { return dispatch(call, true, false); }
int lcmt_dynamicconv_backward(const Call* call) { return dispatch(call, true, true); }
int lcmt_step(const StepCall* call) {
  return by_type(call->type,
                 [&](auto element) { return Step<decltype(element)>{*call}.run(), 0; });
}
}
