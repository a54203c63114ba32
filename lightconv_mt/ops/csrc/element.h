// From the number that Python has for an element type to code for the type.
#pragma once
#include "memory.h"
#include "vector.h"

// What `work` returns when called with a value of the type, or kNoMemory; 1 where the number is of
// none.
template <class Work>
int by_type(i64 type, const Work& work) {
  return attempt([&] {
    switch (type) {
      case 0: return work(float{});
      case 1: return work(bf16{});
      case 2: return work(f16{});
      case 3: return work(double{});
    }
    return 1;
  });
}
