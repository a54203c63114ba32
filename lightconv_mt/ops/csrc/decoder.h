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
  float* logits;                                    // (rows, vocabulary)
  i64 rows, beam, ancestor_stride, longest_source, threads;
};

}  // namespace decoder

// 0 when it went well.
extern "C" int lcmt_decoder_step(const decoder::Call* call);
