// Beam search around the decoder's step, many steps a call: decode/beam_search.py is the
// definition. Sentences that are done leave; what they found is read from where it was noted.
#include <chrono>
#include <vector>

#include "best_tokens.h"
#include "decoder.h"
#include "memory.h"

namespace {

constexpr double kNone = -std::numeric_limits<double>::infinity();

// How a live hypothesis was continued, and its total with that token.
struct Link {
  int32_t parent, token;
  double total;
};
// EOS after `length` tokens of row `row`.
struct Ending {
  i64 length, row;
  double total, score;
};

// What is noted of a sentence. All fields take 8 bytes, as the Python side packs them.
struct Sentence {
  Link* links;        // (limit, beam), by position
  Ending* endings;    // (beam), the best first; equal ones as they ended
  const i64* prefix;  // (prefix_length), negative for any token
  i64 prefix_length, floor, limit;
  i64 ended, done;    // written: how many endings there are, and whether it has left
};

struct Search {
  decoder::Call step;  // its arrays are written too: sentences that leave are taken out
  i64* sentences;      // (sentences), addresses of what is noted
  double* totals;      // (sentences, beam)
  const double* penalties;  // of lengths 0 and up
  double unk_penalty, word_reward;
  i64 vocab, pad, eos, unk, ban_unk, early_stop;
  // Stop after so many steps, or when what is left is this much at most.
  i64 steps, few_sentences, few_tokens;
  double* result;  // written: sentences left, seconds in the decoder, and in choosing
};

// What a thread needs for ranking.
struct Bench {
  std::vector<float> partition, values;
  std::vector<i64> ids;
  std::vector<Continuation> found;
  std::vector<int32_t> ancestors;
};

// Ban and reward tokens, as `Constraints.apply` in decode/constraints.py.
void constrain(const Search& search, const Sentence& sentence, i64 position, float* logits) {
  const float lowest = -std::numeric_limits<float>::infinity();
  i64 forced = position < sentence.prefix_length ? sentence.prefix[position] : -1;
  if (position == sentence.limit) forced = search.eos;
  if (forced >= 0) {
    const float own = logits[forced];
    std::fill(logits, logits + search.vocab, lowest);
    logits[forced] = own;
    return;
  }
  logits[search.pad] = lowest;
  if (search.ban_unk)
    logits[search.unk] = lowest;
  else
    logits[search.unk] -= float(search.unk_penalty);
  if (search.word_reward != 0) {
    const float reward = float(search.word_reward);
    for (i64 word = 0; word < search.vocab; ++word) logits[word] += reward;
    logits[search.eos] -= reward;
  }
  if (sentence.floor > position) logits[search.eos] = lowest;
}

void end(const Search& search, Sentence& sentence, i64 position, const Continuation& found) {
  const i64 beam = search.step.beam;
  const Ending fresh = {position, found.row, found.score,
                        found.score / search.penalties[position + 1]};
  i64 place = sentence.ended;
  while (place && fresh.score > sentence.endings[place - 1].score) --place;
  if (place == beam) return;
  sentence.ended = std::min(sentence.ended + 1, beam);
  for (i64 at = sentence.ended - 1; at > place; --at) sentence.endings[at] = sentence.endings[at - 1];
  sentence.endings[place] = fresh;
}

bool is_done(const Search& search, const Sentence& sentence, i64 position, double best_total) {
  if (best_total == kNone || sentence.limit == position) return true;
  if (sentence.ended < search.step.beam) return false;
  if (search.early_stop) return true;
  // Totals may rise again, so nothing bounds them.
  if (search.unk_penalty < 0 || search.word_reward > 0) return false;
  // At best a live hypothesis ends as it is, under the kindest divisor.
  const double divisor =
      std::max(search.penalties[position + 2], search.penalties[sentence.limit + 1]);
  return sentence.endings[search.step.beam - 1].score >= best_total / divisor;
}

// Choose how the rows of a sentence go on, given their logits.
void advance(const Search& search, i64 index, float* logits, Bench& bench) {
  const i64 beam = search.step.beam, position = search.step.positions[index];
  const i64 each = std::min(2 * beam, search.vocab), count = std::min(2 * beam, beam * each);
  Sentence& sentence = *reinterpret_cast<Sentence*>(search.sentences[index]);
  double* totals = search.totals + index * beam;
  for (i64 row = 0; row < beam; ++row) {
    float* own = logits + row * search.vocab;
    bench.partition[row] = log_partition_of_row(own, search.vocab);
    constrain(search, sentence, position, own);
  }
  Continuation* found = bench.found.data();
  rank_continuations(logits, bench.partition.data(), totals, beam, search.vocab, count, each,
                     bench.values.data(), bench.ids.data(), found);

  auto ends = [&](i64 n) { return found[n].word == search.eos && found[n].score > kNone; };
  i64 room = search.early_stop ? beam - sentence.ended : beam;
  for (i64 n = 0; n < std::min(beam, count); ++n)
    if (ends(n) && room-- > 0) end(search, sentence, position, found[n]);

  // Each row has one EOS at most, so `beam` of the others live on.
  std::stable_partition(found, found + count,
                        [&](const Continuation& next) {
                          return next.word != search.eos || !(next.score > kNone);
                        });
  i64* tokens = search.step.tokens + index * beam;
  bool moved = false;
  for (i64 row = 0; row < beam; ++row) {
    totals[row] = found[row].score;
    tokens[row] = found[row].score == kNone ? search.eos : found[row].word;
    moved |= found[row].row != row;
    if (position < sentence.limit)
      sentence.links[position * beam + row] = {int32_t(found[row].row), int32_t(tokens[row]),
                                               totals[row]};
  }
  sentence.done = is_done(search, sentence, position, totals[0]);
  search.step.positions[index] = position + 1;
  if (!moved || sentence.done) return;
  const i64 stride = search.step.ancestor_stride;
  int32_t* ancestors = search.step.ancestors + index * beam * stride;
  const i64 used = std::min(stride, position + 1);
  for (i64 row = 0; row < beam; ++row)
    std::copy_n(ancestors + found[row].row * stride, used, bench.ancestors.data() + row * used);
  for (i64 row = 0; row < beam; ++row)
    std::copy_n(bench.ancestors.data() + row * used, used, ancestors + row * stride);
}

// Take out what is done; how many sentences are left.
i64 leave(const Search& search, i64 count) {
  const decoder::Call& step = search.step;
  const i64 beam = step.beam, stride = beam * step.ancestor_stride;
  i64 left = 0;
  for (i64 index = 0; index < count; ++index) {
    if (reinterpret_cast<const Sentence*>(search.sentences[index])->done) continue;
    if (left < index) {
      for (i64* each : {step.arenas, step.slots, step.positions, step.lengths, search.sentences})
        each[left] = each[index];
      std::copy_n(step.tokens + index * beam, beam, step.tokens + left * beam);
      std::copy_n(search.totals + index * beam, beam, search.totals + left * beam);
      std::copy_n(step.ancestors + index * stride, stride, step.ancestors + left * stride);
      if (step.lists) {
        std::copy_n(step.lists + index * step.list_stride, step.list_stride,
                    step.lists + left * step.list_stride);
        step.list_sizes[left] = step.list_sizes[index];
      }
    }
    ++left;
  }
  return left;
}

// The best hypotheses of sentences that are done.
struct Reading {
  const Sentence* sentences;
  i64 count, beam, nbest, room, eos;
  i64* tokens;           // (count, nbest, room), with their log-probabilities
  double* token_scores;
  i64* lengths;          // (count, nbest), with EOS, 0 for none
  double* scores;
};

void read(const Reading& to, const Sentence& sentence, const Ending& ending) {
  *to.lengths = ending.length + 1, *to.scores = ending.score;
  to.tokens[ending.length] = to.eos;
  double total = ending.total;
  i64 row = ending.row;
  for (i64 at = ending.length; at > 0; --at) {
    const Link& link = sentence.links[(at - 1) * to.beam + row];
    to.tokens[at - 1] = link.token, to.token_scores[at] = total - link.total;
    total = link.total, row = link.parent;
  }
  to.token_scores[0] = total;
}

int run(Search search) {
  const i64 beam = search.step.beam, each = std::min(2 * beam, search.vocab);
  i64 count = search.step.rows / beam;
  const int threads = int(std::max<i64>(1, std::min(search.step.threads, count)));
  std::vector<Bench> benches(threads);
  for (Bench& bench : benches) {
    bench.partition.resize(beam), bench.values.resize(each), bench.ids.resize(each);
    bench.found.resize(beam * each);
    bench.ancestors.resize(beam * search.step.ancestor_stride);
  }
  double decoder = 0, choosing = 0;
  auto now = std::chrono::steady_clock::now();
  auto seconds = [&] {
    const auto before = now;
    now = std::chrono::steady_clock::now();
    return std::chrono::duration<double>(now - before).count();
  };
  for (i64 step = 0; step < search.steps && count; ++step) {
    if (const int failed = lcmt_decoder_step(&search.step)) return failed;
    decoder += seconds();
#ifdef _OPENMP
#pragma omp parallel for schedule(static, 1) num_threads(threads) if (threads > 1)
#endif
    for (int thread = 0; thread < threads; ++thread)
      for (i64 index = count * thread / threads; index < count * (thread + 1) / threads; ++index)
        advance(search, index, search.step.logits + index * beam * search.vocab, benches[thread]);
    const i64 left = leave(search, count);
    const bool fewer = left < count;
    count = left, search.step.rows = left * beam;
    i64 tokens = 0;
    for (i64 index = 0; index < count; ++index) tokens += search.step.lengths[index];
    choosing += seconds();
    if (fewer && count <= search.few_sentences && tokens <= search.few_tokens) break;
  }
  search.result[0] = double(count), search.result[1] = decoder, search.result[2] = choosing;
  return 0;
}

}  // namespace

extern "C" {
int lcmt_search(const Search* call) {
  return attempt([&] { return run(*call); });
}

void lcmt_read_search(const Reading* call) {
  Reading to = *call;
  const Sentence* sentence = to.sentences;
  for (i64 index = 0; index < to.count; ++index, ++sentence)
    for (i64 n = 0; n < to.nbest; ++n, ++to.lengths, ++to.scores) {
      *to.lengths = 0;
      if (n < sentence->ended) read(to, *sentence, sentence->endings[n]);
      to.tokens += to.room, to.token_scores += to.room;
    }
}
}
