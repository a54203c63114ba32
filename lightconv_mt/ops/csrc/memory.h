// Work that may find too little memory: an exception may leave neither a parallel region nor the
// library.
#pragma once
#include <atomic>
#include <new>

constexpr int kNoMemory = 3;  // what a function of the library returns then

// What `work` returns, or kNoMemory.
template <class Work>
int attempt(const Work& work) {
  try {
    return work();
  } catch (const std::bad_alloc&) {
    return kNoMemory;
  }
}

// In a parallel region all that may take memory is done by one of these; `check` follows behind it.
class Guard {
 public:
  // Do the work, unless some has failed.
  template <class Work>
  void operator()(const Work& work) {
    if (failed_.load(std::memory_order_relaxed)) return;
    try {
      work();
    } catch (const std::bad_alloc&) {
      failed_.store(true, std::memory_order_relaxed);
    }
  }

  bool failed() const { return failed_.load(); }
  void check() const {
    if (failed()) throw std::bad_alloc();
  }

 private:
  std::atomic<bool> failed_{false};
};
