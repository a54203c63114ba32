// A whole encoder, from source tokens to the keys and values that the decoder's layers read:
// model/encoder.py is the definition. Sentences lie behind each other without padding, so that
// nothing a sentence's rows hold depends on other sentences.
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "convolve.h"
#include "memory.h"
#include "product.h"
#include "rows.h"

namespace {

// All fields take 8 bytes, as the Python side packs them.
struct Layer {
  i64 mixer, width, heads, channels, glu, normalize;  // attention: width is its window, 0 if none
  const float* taps;                                  // (heads, width) of fixed kernels
  Matrix input, predictor, output, inner, outer;
  Norm mixer_norm, feed_forward_norm;
};

struct Model {
  i64 dim, layers, pre_norm, most_inputs, most_taps;  // of a layer's input, of predicted taps
  const Layer* layer;
  const float *embedding, *scale;  // (V, dim), and the one number its rows are multiplied by
  Norm norm;
  i64 readers, reader_dim;
  const Matrix* sources;  // (readers) of keys and values, 2 * reader_dim outputs
};

// What a layer of the decoder reads: keys (sentences, reader_dim, room) and values (sentences,
// room, reader_dim).
struct Reader {
  float *keys, *values;
};

struct Call {
  const Model* model;
  const i64 *tokens, *lengths;  // (sentences, stride), (sentences)
  const float* places;          // (positions, dim)
  float* output;                // (sentences, stride, dim), or null
  const Reader* readers;        // (readers), or null
  i64 sentences, stride, room, threads;
};

// Rows of one sentence that are worked on: [begin, end) of its positions, from row `at` of a block.
struct Segment {
  i64 sentence, begin, end, at;
};

// Memory that all threads share. What a mixer reads of other rows lies in two buffers in turn: of
// one layer while that of the next is written.
struct Shared {
  float *x, *wide[2], *keys[2], *values[2];
};

// How a call's rows lie, and how much memory they take.
struct Plan {
  const Call& call;
  const Model& model;
  std::vector<i64> first, first_key;  // (sentences + 1) of rows, and of those of keys in whole panels
  i64 longest = 1, channels = 1, share = 1, values = 1, most, tap_lanes = 1;

  explicit Plan(const Call& call) : call(call), model(*call.model), first{0}, first_key{0} {
    for (i64 sentence = 0; sentence < call.sentences; ++sentence) {
      const i64 length = call.lengths[sentence];
      first.push_back(first.back() + length);
      first_key.push_back(first_key.back() + round_up(length, kPanel));
      longest = std::max(longest, length);
    }
    most = std::max({model.dim, model.most_inputs, 2 * model.reader_dim});
    for (i64 index = 0; index < model.layers; ++index) {
      const Layer& layer = model.layer[index];
      most = std::max({most, layer.channels, layer.inner.outputs});
      tap_lanes = std::max(tap_lanes, tap_stride_of<float>(layer.width));
      if (layer.mixer == kAttention) {
        channels = std::max(channels, layer.channels);
        values = std::max(values, layer.heads * value_lanes(layer));
      }
    }
  }

  i64 rows() const { return first.back(); }
  static i64 value_lanes(const Layer& layer) {
    return round_up(layer.channels / layer.heads, kPanel);
  }
  i64 shared_floats() const {
    // A vector more: convolutions read whole ones.
    return rows() * (model.dim + 2 * model.most_inputs + 2 * values) +
           2 * first_key.back() * channels + 8 * W;
  }
  i64 own_floats() const {
    return kRows * (2 * model.dim + 3 * most + model.most_taps + tap_lanes + 1) +
           kTileRows * round_up(longest, kPanel) + 8 * W;
  }
};

// One thread's share of the rows.
struct Worker {
  const Plan& plan;
  const Call& call = plan.call;
  const Model& model = plan.model;
  Shared shared;
  float *normed, *branch, *mixed, *inner, *raw, *taps, *scores, *scales;
  u32* words;
  i64 begin = 0, rows = 0;  // the block of rows that is worked on
  std::vector<Segment> segments;

  Worker(const Plan& plan, float* common, float* own) : plan(plan) {
    auto take = [](float*& memory, i64 count) {
      float* taken = memory;
      memory += round_up(count, W);
      return taken;
    };
    const i64 all = plan.rows();
    shared.x = take(common, all * model.dim);
    for (int turn = 0; turn < 2; ++turn) {
      shared.wide[turn] = take(common, all * model.most_inputs);
      shared.keys[turn] = take(common, plan.first_key.back() * plan.channels);
      shared.values[turn] = take(common, all * plan.values);
    }
    normed = take(own, kRows * model.dim), branch = take(own, kRows * model.dim);
    mixed = take(own, kRows * plan.most), inner = take(own, kRows * plan.most);
    words = reinterpret_cast<u32*>(take(own, kRows * plan.most));
    raw = take(own, kRows * model.most_taps), taps = take(own, kRows * plan.tap_lanes);
    scores = take(own, kTileRows * round_up(plan.longest, kPanel));
    scales = take(own, kRows);
    segments.reserve(kRows);
  }

  template <bool RELU = false>
  void multiply(const Matrix& matrix, const float* from, i64 stride, float* to) const {
    ::multiply<RELU>(matrix, from, stride, rows, to, matrix.outputs, words, scales);
  }

  float* x() const { return shared.x + begin * model.dim; }

  const float* enter(const Norm& norm) const {
    if (!model.pre_norm) return x();
    for (i64 row = 0; row < rows; ++row)
      normalize(norm, x() + row * model.dim, model.dim, normed + row * model.dim);
    return normed;
  }
  void leave(const Norm& norm) const {
    for (i64 at = 0; at < rows * model.dim; ++at) x()[at] += branch[at];
    if (!model.pre_norm)
      for (i64 row = 0; row < rows; ++row)
        normalize(norm, x() + row * model.dim, model.dim, x() + row * model.dim);
  }

  void embed() const {
    const i64 dim = model.dim;
    for (const Segment& part : segments)
      for (i64 place = part.begin; place < part.end; ++place) {
        const float* token =
            model.embedding + call.tokens[part.sentence * call.stride + place] * dim;
        float* to = x() + (part.at + place - part.begin) * dim;
        for (i64 c = 0; c < dim; ++c) to[c] = token[c] * *model.scale + call.places[place * dim + c];
      }
  }

  // What the mixer of a layer reads, of its own and of other rows.
  void prepare(i64 index) const {
    const Layer& layer = model.layer[index];
    float* wide = shared.wide[index % 2] + begin * layer.input.outputs;
    multiply(layer.input, enter(layer.mixer_norm), model.dim, wide);
    if (layer.mixer == kAttention)
      spread(layer, wide, shared.keys[index % 2], shared.values[index % 2]);
    else if (layer.glu)
      gate(wide, layer.input.outputs, rows, layer.channels);
  }

  // Keys and values as panels of products: keys (heads, length / kPanel, share, kPanel), values
  // (heads, share / kPanel, length, kPanel).
  void spread(const Layer& layer, const float* wide, float* all_keys, float* all_values) const {
    const i64 channels = layer.channels, share = channels / layer.heads;
    const i64 lanes = Plan::value_lanes(layer);
    for (const Segment& part : segments) {
      const i64 length = call.lengths[part.sentence], key_rows = round_up(length, kPanel);
      float* keys = all_keys + plan.first_key[part.sentence] * channels;
      float* values = all_values + plan.first[part.sentence] * layer.heads * lanes;
      for (i64 place = part.begin; place < part.end; ++place) {
        const float* key = wide + (part.at + place - part.begin) * 3 * channels + channels;
        for (i64 head = 0; head < layer.heads; ++head) {
          float* column =
              keys + (head * key_rows + place / kPanel * kPanel) * share + place % kPanel;
          for (i64 c = 0; c < share; ++c) column[c * kPanel] = key[head * share + c];
          const float* value = key + channels + head * share;
          for (i64 c = 0; c < share; c += kPanel)
            std::copy_n(value + c, std::min<i64>(kPanel, share - c),
                        values + head * length * lanes + (c * length + place * kPanel));
        }
      }
    }
  }

  void convolve(const Layer& layer, const float* all) const {
    const i64 channels = layer.channels, stride = layer.input.outputs, K = layer.width;
    const i64 share = channels / layer.heads, tap_stride = tap_stride_of<float>(K), lead = K / 2;
    const int vectors = int((share + W - 1) / W), last = int(share - (vectors - 1) * W);
    const bool predicted = layer.mixer == kPredictedKernels;
    if (predicted) multiply(layer.predictor, all + begin * stride, stride, raw);
    for (const Segment& part : segments)
      for (i64 head = 0; head < layer.heads; ++head) {
        TapLayout<float> layout = {layer.taps + head * K, 1, -1, 0, 0};
        if (predicted) {
          normalize_rows(layer.normalize, K, raw + (part.at * layer.heads + head) * K,
                         layer.heads * K, part.end - part.begin, taps, tap_stride);
          layout = {taps, 1, tap_stride - 1, tap_stride, part.begin};
        }
        const float* from = all + plan.first[part.sentence] * stride + head * share;
        float* to = mixed + (part.at - part.begin) * channels + head * share;
        ::convolve(vectors, from, stride, lead, call.lengths[part.sentence], K, part.begin, part.end,
                   layout, to, channels, last, Ahead<float>{{from, to}, {}, 0});
      }
  }

  void attend(const Layer& layer, const float* wide, const float* keys, const float* values) const {
    for (const Segment& part : segments)
      for (i64 at = part.begin; at < part.end; at += kTileRows) {
        const i64 row = part.at + at - part.begin, end = std::min(part.end, at + kTileRows);
        attend(layer, {part.sentence, at, end, row}, wide + (begin + row) * 3 * layer.channels,
               keys + plan.first_key[part.sentence] * layer.channels,
               values + plan.first[part.sentence] * layer.heads * Plan::value_lanes(layer));
      }
  }

  // A few rows of a sentence, whose queries, keys and values are given.
  void attend(const Layer& layer, const Segment& part, const float* query, const float* keys,
              const float* values) const {
    const i64 channels = layer.channels, share = channels / layer.heads, count = part.end - part.begin;
    const i64 length = call.lengths[part.sentence], lead = layer.width / 2;
    const i64 lanes = Plan::value_lanes(layer), score_stride = round_up(plan.longest, kPanel);
    const float scale = kLog2E / std::sqrt(float(share));
    const float lowest = -std::numeric_limits<float>::infinity();
    // Keys that some row sees, from a whole panel on: sums do not depend on the rows beside it.
    i64 from = 0, to = length;
    if (layer.width) {
      from = std::max<i64>(0, part.begin - lead) / kPanel * kPanel;
      to = std::min(length, part.end - 1 - lead + layer.width);
    }
    for (i64 head = 0; head < layer.heads; ++head) {
      const Matrix key = {keys + (head * round_up(length, kPanel) + from) * share,
                          nullptr, nullptr, nullptr, share, to - from, kFloat};
      const Packed queries = {reinterpret_cast<const u32*>(query + head * share), 3 * channels, {}};
      ::multiply<FloatProduct, false>(key, queries, count, scores, score_stride);
      for (i64 row = 0; row < count; ++row) {
        float* score = scores + row * score_stride;
        for (i64 at = 0; at < to - from; ++at) score[at] *= scale;
        if (layer.width) {
          const i64 low = part.begin + row - lead - from;
          std::fill(score, score + std::max<i64>(low, 0), lowest);
          std::fill(std::min(score + low + layer.width, score + to - from), score + to - from,
                    lowest);
        }
        softmax(score, to - from);
      }
      const Packed weights = {reinterpret_cast<const u32*>(scores), score_stride, {}};
      float* out = mixed + part.at * channels + head * share;
      for (i64 c = 0; c < share; c += kPanel) {
        const Matrix value = {values + head * length * lanes + c * length + from * kPanel,
                              nullptr, nullptr, nullptr,
                              to - from, std::min<i64>(kPanel, share - c), kFloat};
        ::multiply<FloatProduct, false>(value, weights, count, out + c, channels);
      }
    }
  }

  void layer_of_block(i64 index) const {
    const Layer& layer = model.layer[index];
    const float* wide = shared.wide[index % 2];
    if (layer.mixer == kAttention)
      attend(layer, wide, shared.keys[index % 2], shared.values[index % 2]);
    else
      convolve(layer, wide);
    multiply(layer.output, mixed, layer.channels, branch);
    leave(layer.mixer_norm);
    multiply<true>(layer.inner, enter(layer.feed_forward_norm), model.dim, inner);
    multiply(layer.outer, inner, layer.inner.outputs, branch);
    leave(layer.feed_forward_norm);
  }

  // Put what was encoded where it is read.
  void finish() const {
    const i64 dim = model.dim, wide = model.reader_dim;
    const float* encoded = enter(model.norm);
    if (call.output)
      for (const Segment& part : segments)
        std::copy_n(encoded + part.at * dim, (part.end - part.begin) * dim,
                    call.output + (part.sentence * call.stride + part.begin) * dim);
    for (i64 reader = 0; call.readers && reader < model.readers; ++reader) {
      multiply(model.sources[reader], encoded, dim, inner);
      for (const Segment& part : segments) {
        float* keys = call.readers[reader].keys + part.sentence * wide * call.room;
        float* values = call.readers[reader].values + part.sentence * call.room * wide;
        const float* from = inner + part.at * 2 * wide;
        for (i64 c = 0; c < wide; ++c)
          for (i64 place = part.begin; place < part.end; ++place)
            keys[c * call.room + place] = from[(place - part.begin) * 2 * wide + c];
        for (i64 place = part.begin; place < part.end; ++place)
          std::copy_n(from + (place - part.begin) * 2 * wide + wide, wide, values + place * wide);
      }
    }
  }

  // Call `work` for every block of the rows [from, to).
  template <class Work>
  void for_each_block(i64 from, i64 to, const Work& work) {
    for (begin = from; begin < to; begin += rows) {
      rows = std::min(kRows, to - begin);
      segments.clear();
      i64 sentence = std::upper_bound(plan.first.begin(), plan.first.end(), begin) -
                     plan.first.begin() - 1;
      for (i64 at = 0; at < rows; ++sentence) {
        const i64 start = begin + at - plan.first[sentence];
        const i64 end = std::min(call.lengths[sentence], start + rows - at);
        if (end > start) segments.push_back({sentence, start, end, at});
        at += end - start;
      }
      work();
    }
  }

  // `wait` returns when all threads have called it.
  template <class Wait>
  void run(i64 from, i64 to, const Wait& wait) {
    for_each_block(from, to, [&] {
      embed();
      prepare(0);
    });
    for (i64 index = 0; index < model.layers; ++index) {
      wait();
      for_each_block(from, to, [&] {
        layer_of_block(index);
        index + 1 < model.layers ? prepare(index + 1) : finish();
      });
    }
  }
};

}  // namespace

extern "C" int lcmt_encode(const Call* call) {
  return attempt([&] {
    thread_local Scratch memory;
    const Plan plan(*call);
    const i64 blocks = (plan.rows() + kTileRows - 1) / kTileRows;
    const int threads = int(std::max<i64>(1, std::min(call->threads, blocks)));
    const i64 common = round_up(plan.shared_floats(), W), own = round_up(plan.own_floats(), W);
    float* floats = memory.get<float>(common + threads * own);
    // All memory is taken before the threads start: none may fail where others wait for it.
    std::vector<Worker> workers;
    workers.reserve(threads);
    for (i64 number = 0; number < threads; ++number)
      workers.emplace_back(plan, floats, floats + common + number * own);
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
    {
      const i64 number = omp_get_thread_num(), all = omp_get_num_threads();
      workers[number].run(number * plan.rows() / all, (number + 1) * plan.rows() / all, [] {
#pragma omp barrier
      });
    }
#else
    workers[0].run(0, plan.rows(), [] {});
#endif
    return 0;
  });
}
