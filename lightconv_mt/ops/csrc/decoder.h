// The call of a step of the decoder.
#pragma once
#include "vector.h"

namespace decoder {

struct Model;
struct Memory;

struct Call {
  const Model* model;
  const Memory* memory;                             // (arenas, layers)
  i64* tokens;                                      // (rows)
  i64 *arenas, *slots, *positions, *lengths;        // (sentences); lengths of the source
  int32_t* ancestors;                               // (rows, ancestor_stride), by position
  const float* places;                              // (positions, dim)
  float* logits;                                    // (rows, list_stride, or vocabulary)
  // Where a sentence may say some tokens only, its list of them, whose numbers `tokens` are; else
  // null.
  i64 *lists, *list_sizes;  // (sentences, list_stride), (sentences)
  const u32* outputs;       // (vocabulary, output_stride) of `project`
  i64 rows, beam, ancestor_stride, longest_source, threads, list_stride, output_stride;
};

}  // namespace decoder

// 0 when it went well.
extern "C" int lcmt_decoder_step(const decoder::Call* call);
