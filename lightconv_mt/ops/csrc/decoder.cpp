// One step of a whole decoder, from tokens to logits, for rows of a beam: model/decoder.py is the
// definition. What a hypothesis remembers stays where it was written; `ancestors` says in which row
// of its sentence's beam each earlier position lies, so that a beam is reordered without moving it.
#ifdef _OPENMP
#include <omp.h>
#endif

#include "chosen.h"
#include "decoder.h"
#include "memory.h"
#include "rows.h"

namespace decoder {

// All fields take 8 bytes, as the Python side packs them.
struct Layer {
  i64 mixer, width, heads, channels, glu, normalize;  // attention: width is its window, 0 if none
  const float* taps;                                  // (heads, width) of fixed kernels
  Matrix input, predictor, output, source_query, source_output, inner, outer;
  Norm mixer_norm, source_norm, feed_forward_norm;
  i64 source_heads;
};

struct Model {
  i64 dim, layers, pre_norm, inner_dim, most_channels, most_taps;
  const Layer* layer;
  const float *embedding, *scale;  // (V, dim), and the one number its rows are multiplied by
  Norm norm;
  Matrix project;
};

// What a layer remembers of sentences that came together: frames (slots, capacity, beam, channels),
// for attention keys and values of 2 * channels; and of the source keys (slots, dim, room) and
// values (slots, room, dim).
struct Memory {
  float* frames;
  i64 capacity;
  const float *keys, *values;
  i64 room;
};

namespace {

// The sum of rows times weights, channels `first` and up: out = sum_i weights[i] * rows[i].
void weighted_sum(const float* const* rows, const float* weights, i64 count, i64 first, i64 channels,
                  float* out) {
  for (i64 at = 0; at < channels; at += 2 * W) {
    const int left = int(channels - at), low = std::min(W, left), high = std::min(W, left - W);
    Vec<float> sums[2] = {};
    if (high == W) {
      for (i64 i = 0; i < count; ++i)
        for (int v = 0; v < 2; ++v) sums[v] += load(rows[i] + first + at + v * W) * weights[i];
    } else {
      for (i64 i = 0; i < count; ++i) {
        sums[0] += load_part(rows[i] + first + at, low, 0.0f) * weights[i];
        if (high > 0) sums[1] += load_part(rows[i] + first + at + W, high, 0.0f) * weights[i];
      }
    }
    store_part(out + at, sums[0], low);
    if (high > 0) store_part(out + at + W, sums[1], high);
  }
}

// The rows [begin, end) of one thread, at most kRows.
struct Step {
  const Call& call;
  const Model& model;
  i64 begin, rows, most;
  float *x, *normed, *wide, *mixed, *branch, *taps, *scores, *scales;
  u32 *words, *chosen;
  const float** frames;

  static i64 floats(const Call& call, i64 longest) {
    const Model& model = *call.model;
    const i64 most = widest(model);
    return kRows * (2 * model.dim + 2 * most + model.dim + model.most_taps + 1 + most) +
           round_up(longest, W) + 2 * longest + chosen_words(model.dim) + 8 * W;
  }
  static i64 widest(const Model& model) {
    return std::max({model.inner_dim, 3 * model.most_channels, model.dim});
  }

  Step(const Call& call, i64 longest, float* memory)
      : call(call), model(*call.model), begin(0), rows(0), most(widest(*call.model)) {
    auto take = [&](i64 count) {
      float* taken = memory;
      memory += count;
      return taken;
    };
    frames = reinterpret_cast<const float**>(take(2 * longest));
    x = take(kRows * model.dim), normed = take(kRows * model.dim), branch = take(kRows * model.dim);
    wide = take(kRows * most), mixed = take(kRows * most);
    taps = take(kRows * model.most_taps);
    words = reinterpret_cast<u32*>(take(kRows * most));
    scales = take(kRows), scores = take(round_up(longest, W));
    chosen = reinterpret_cast<u32*>(take(chosen_words(model.dim)));
  }

  i64 sentence(i64 row) const { return (begin + row) / call.beam; }
  i64 slot(i64 row) const { return call.slots[sentence(row)]; }
  i64 position(i64 row) const { return call.positions[sentence(row)]; }
  const Memory& memory(i64 row, i64 layer) const {
    return call.memory[call.arenas[sentence(row)] * model.layers + layer];
  }

  template <bool RELU = false>
  void multiply(const Matrix& matrix, const float* from, i64 stride, float* to) const {
    ::multiply<RELU>(matrix, from, stride, rows, to, matrix.outputs, words, scales);
  }

  const float* enter(const Norm& norm) const {
    if (!model.pre_norm) return x;
    for (i64 row = 0; row < rows; ++row)
      normalize(norm, x + row * model.dim, model.dim, normed + row * model.dim);
    return normed;
  }
  void leave(const Norm& norm) const {
    for (i64 at = 0; at < rows * model.dim; ++at) x[at] += branch[at];
    if (!model.pre_norm)
      for (i64 row = 0; row < rows; ++row)
        normalize(norm, x + row * model.dim, model.dim, x + row * model.dim);
  }

  float* frame(const Memory& held, i64 row, i64 channels, i64 at, i64 from) const {
    const i64 place = slot(row) * held.capacity + at % held.capacity;
    return held.frames + (place * call.beam + from) * channels;
  }
  // Where what a row may read lies, the oldest first; the last is its own.
  i64 find_frames(const Memory& held, i64 row, i64 channels, i64 most_positions) const {
    const i64 last = position(row), first = std::max<i64>(0, last + 1 - most_positions);
    const int32_t* from = call.ancestors + (begin + row) * call.ancestor_stride;
    i64 place = first % call.ancestor_stride;
    for (i64 at = first; at <= last; ++at) {
      frames[at - first] = frame(held, row, channels, at, from[place]);
      if (++place == call.ancestor_stride) place = 0;
    }
    return last + 1 - first;
  }

  void convolve(const Layer& layer, i64 index) const {
    const i64 channels = layer.channels, stride = layer.input.outputs, K = layer.width;
    const i64 share = channels / layer.heads, tap_stride = layer.heads * K;
    if (layer.glu) gate(wide, stride, rows, channels);
    if (layer.mixer == kPredictedKernels) {
      multiply(layer.predictor, wide, stride, taps);
      if (layer.normalize) {
        for (i64 at = 0; at < rows * tap_stride; ++at) taps[at] *= kLog2E;
        for (i64 at = 0; at < rows * tap_stride; at += K) softmax(taps + at, K);
      }
    }
    for (i64 row = 0; row < rows; ++row) {
      std::memcpy(frame(memory(row, index), row, channels, position(row), (begin + row) % call.beam),
                  wide + row * stride, channels * sizeof(float));
      const i64 count = find_frames(memory(row, index), row, channels, K);
      const float* weights = layer.mixer == kFixedKernels ? layer.taps : taps + row * tap_stride;
      for (i64 head = 0; head < layer.heads; ++head)
        weighted_sum(frames, weights + head * K + K - count, count, head * share, share,
                     mixed + row * channels + head * share);
    }
    multiply(layer.output, mixed, channels, branch);
  }

  void attend(const Layer& layer, i64 index) const {
    const i64 channels = layer.channels, share = channels / layer.heads;
    const float scale = kLog2E / std::sqrt(float(share));
    for (i64 row = 0; row < rows; ++row) {
      const float* query = wide + row * 3 * channels;
      std::memcpy(frame(memory(row, index), row, 2 * channels, position(row), (begin + row) % call.beam),
                  query + channels, 2 * channels * sizeof(float));
      const i64 count = find_frames(memory(row, index), row, 2 * channels,
                                    layer.width ? layer.width : position(row) + 1);
      for (i64 head = 0; head < layer.heads; ++head) {
        for (i64 at = 0; at < count; ++at) {
          Vec<float> sums = {};
          for (i64 c = 0; c < share; c += W) {
            const int lanes = int(std::min<i64>(W, share - c));
            sums += load_part(query + head * share + c, lanes, 0.0f) *
                    load_part(frames[at] + head * share + c, lanes, 0.0f);
          }
          scores[at] = sum_lanes<float>(sums) * scale;
        }
        softmax(scores, count);
        weighted_sum(frames, scores, count, channels + head * share, share,
                     mixed + row * channels + head * share);
      }
    }
    multiply(layer.output, mixed, channels, branch);
  }

  void read_source(const Layer& layer, i64 index) const {
    const i64 dim = model.dim, share = dim / layer.source_heads;
    const float scale = kLog2E / std::sqrt(float(share));
    for (i64 row = 0; row < rows; ++row) {
      const Memory& source = memory(row, index);
      const i64 length = call.lengths[sentence(row)], room = source.room;
      const float* keys = source.keys + slot(row) * dim * room;
      const float* values = source.values + slot(row) * room * dim;
      const float* query = wide + row * dim;
      for (i64 at = 0; at < length; ++at) frames[at] = values + at * dim;
      for (i64 head = 0; head < layer.source_heads; ++head) {
        const float* keys_of = keys + head * share * room;
        for (i64 at = 0; at < length; at += W) {
          Vec<float> sums = {};
          for (i64 c = 0; c < share; ++c)
            sums += load(keys_of + c * room + at) * query[head * share + c];
          store(scores + at, sums * scale);
        }
        softmax(scores, length);
        weighted_sum(frames, scores, length, head * share, share, mixed + row * dim + head * share);
      }
    }
    multiply(layer.source_output, mixed, dim, branch);
  }

  // Logits of the tokens in the list of each row's sentence, -inf behind them.
  void project_lists(const float* from) const {
    const Packed all = pack_rows(model.project, from, model.dim, rows, words, scales);
    const OutputRows outputs = {call.outputs, call.output_stride};
    const i64 stride = call.list_stride;
    for (i64 row = 0, end; row < rows; row = end) {
      end = std::min(rows, (sentence(row) + 1) * call.beam - begin);
      const i64 count = call.list_sizes[sentence(row)];
      float* to = call.logits + (begin + row) * stride;
      multiply_chosen(model.project, outputs, call.lists + sentence(row) * stride, count,
                      all.from(row), end - row, to, stride, chosen);
      for (i64 each = row; each < end; ++each, to += stride)
        std::fill(to + count, to + stride, -std::numeric_limits<float>::infinity());
    }
  }

  void run(i64 first, i64 count) {
    begin = first, rows = count;
    const i64 dim = model.dim;
    for (i64 row = 0; row < rows; ++row) {
      const i64 place = position(row);
      call.ancestors[(begin + row) * call.ancestor_stride + place % call.ancestor_stride] =
          int32_t((begin + row) % call.beam);
      const i64 said = call.tokens[begin + row];
      const i64 which = call.lists ? call.lists[sentence(row) * call.list_stride + said] : said;
      const float* token = model.embedding + which * dim;
      for (i64 c = 0; c < dim; ++c)
        x[row * dim + c] = token[c] * *model.scale + call.places[place * dim + c];
    }
    for (i64 index = 0; index < model.layers; ++index) {
      const Layer& layer = model.layer[index];
      multiply(layer.input, enter(layer.mixer_norm), dim, wide);
      layer.mixer == kAttention ? attend(layer, index) : convolve(layer, index);
      leave(layer.mixer_norm);
      multiply(layer.source_query, enter(layer.source_norm), dim, wide);
      read_source(layer, index);
      leave(layer.source_norm);
      multiply<true>(layer.inner, enter(layer.feed_forward_norm), dim, wide);
      multiply(layer.outer, wide, layer.inner.outputs, branch);
      leave(layer.feed_forward_norm);
    }
    const float* last = enter(model.norm);
    if (call.lists)
      project_lists(last);
    else
      multiply(model.project, last, dim, call.logits + begin * model.project.outputs);
  }
};

}  // namespace
}  // namespace decoder

extern "C" int lcmt_decoder_step(const decoder::Call* call) {
  using namespace decoder;
  i64 longest = call->longest_source;
  for (i64 sentence = 0; sentence < call->rows / call->beam; ++sentence)
    longest = std::max(longest, call->positions[sentence] + 1);
  longest = round_up(longest, W);
  const i64 blocks = (call->rows + kTileRows - 1) / kTileRows;
  [[maybe_unused]] const int threads = int(std::max<i64>(1, std::min(call->threads, blocks)));
  Guard guard;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
#endif
  {
#ifdef _OPENMP
    const i64 own = omp_get_thread_num(), all = omp_get_num_threads();
#else
    const i64 own = 0, all = 1;
#endif
    guard([&] {
      thread_local Scratch memory;
      Step step(*call, longest, memory.get<float>(Step::floats(*call, longest)));
      const i64 first = own * call->rows / all, last = (own + 1) * call->rows / all;
      for (i64 at = first; at < last; at += kRows) step.run(at, std::min(kRows, last - at));
    });
  }
  return guard.failed() ? kNoMemory : 0;
}
