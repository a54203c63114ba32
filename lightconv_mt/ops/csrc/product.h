// Rows times a packed matrix. Every output is one chain of multiply-adds over the inputs in order,
// so a row's result does not depend on the rows beside it.
#pragma once
#include "taps.h"

constexpr int kPanel = 32;  // outputs that lie side by side
constexpr int kPanelVectors = kPanel / Lanes<float>::count;
// Rows whose sums fit the vector registers together with one step of a panel.
constexpr int kTileRows = kVectorBytes == 64 ? 12 : kVectorBytes == 32 ? 3 : 2;

// W (outputs, inputs) as panels (outputs / kPanel, inputs / group, kPanel, group), zeros beyond;
// group inputs fill 4 bytes. int8: W = scale * panel, and 128 * the sum of a row of panels is
// what the sums have too much, as inputs are bytes with an offset of 128.
struct Matrix {
  const void* panels;
  const float *bias, *scales;  // (outputs) or null
  const int32_t* excess;       // (outputs), int8 alone
  i64 inputs, outputs, type;
};
enum MatrixType { kFloat, kBf16, kInt8 };

using Words = Lanes<float>::Words;
using Integers = IntVec<float>;
typedef uint8_t Bytes __attribute__((vector_size(Lanes<float>::count)));

// One group of inputs (4 bytes, the same in all lanes) times that of each lane of a panel.
struct FloatProduct {
  using Sum = Vec<float>;
  static Sum add(Sum sum, u32 input, Words panel) {
    float value;
    std::memcpy(&value, &input, 4);
    return sum + value * (Vec<float>)panel;
  }
};
struct Bf16Product {
  using Sum = Vec<float>;
  static Sum add(Sum sum, u32 input, Words panel) {
#if defined(__AVX512BF16__)
    return (Sum)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(int(input)),
                                 (__m512bh)panel);
#else
    const float low = widen(bf16{uint16_t(input)}), high = widen(bf16{uint16_t(input >> 16)});
    sum += low * (Vec<float>)(panel << 16);
    return sum + high * (Vec<float>)(panel & 0xffff0000u);
#endif
  }
};
struct Int8Product {
  using Sum = Integers;
  static Sum add(Sum sum, u32 input, Words panel) {
#if defined(__AVX512VNNI__)
    return (Sum)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(int(input)), (__m512i)panel);
#else
    for (int byte = 0; byte < 4; ++byte)
      sum += int(input >> 8 * byte & 0xff) * ((Integers)(panel << (24 - 8 * byte)) >> 24);
    return sum;
#endif
  }
};

// ROWS rows of inputs (`stride` groups apart) times one panel.
template <class Product, int ROWS>
inline void tile(const u32* inputs, i64 stride, const u32* panel, i64 groups,
                 typename Product::Sum (*sums)[kPanelVectors]) {
  typename Product::Sum held[ROWS][kPanelVectors] = {};
  for (i64 group = 0; group < groups; ++group, panel += kPanel) {
    Words weights[kPanelVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kPanelVectors; ++v)
      std::memcpy(&weights[v], panel + v * Lanes<float>::count, sizeof(Words));
#pragma GCC unroll 12
    for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 8
      for (int v = 0; v < kPanelVectors; ++v)
        held[row][v] = Product::add(held[row][v], inputs[row * stride + group], weights[v]);
  }
#pragma GCC unroll 12
  for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 8
    for (int v = 0; v < kPanelVectors; ++v) sums[row][v] = held[row][v];
}

template <class Product, int ROWS = kTileRows>
inline void tile_rows(int rows, const u32* inputs, i64 stride, const u32* panel, i64 groups,
                      typename Product::Sum (*sums)[kPanelVectors]) {
  if constexpr (ROWS > 0) {
    if (rows == ROWS)
      tile<Product, ROWS>(inputs, stride, panel, groups, sums);
    else
      tile_rows<Product, ROWS - 1>(rows, inputs, stride, panel, groups, sums);
  }
}

// Inputs as the panels want them, and for int8 the scale of each row.
struct Packed {
  const u32* groups;
  i64 stride;
  const float* scales;
  Packed from(i64 row) const {
    return {groups + row * stride, stride, scales ? scales + row : nullptr};
  }
};

inline Packed pack_rows(const Matrix& matrix, const float* x, i64 x_stride, i64 rows, u32* words,
                        float* scales) {
  constexpr int W = Lanes<float>::count;
  const i64 inputs = matrix.inputs;
  if (matrix.type == kFloat)
    return {reinterpret_cast<const u32*>(x), x_stride, nullptr};
  const i64 each = matrix.type == kBf16 ? 2 : 4, stride = (inputs + each - 1) / each;
  for (i64 row = 0; row < rows; ++row, x += x_stride) {
    u32* to = words + row * stride;
    to[stride - 1] = 0;
    if (matrix.type == kBf16) {
      bf16* out = reinterpret_cast<bf16*>(to);
      i64 at = 0;
      for (; at + W <= inputs; at += W) store(out + at, load(x + at));
      for (; at < inputs; ++at) narrow(x[at], out + at);
      continue;
    }
    Vec<float> most = {};
    IntVec<float> finite = IntVec<float>{} - 1;
    for (i64 at = 0; at < inputs; at += W) {
      const Vec<float> value = load_part(x + at, int(std::min<i64>(W, inputs - at)), 0.0f);
      const Vec<float> magnitude = value < 0.0f ? -value : value;
      finite &= magnitude <= std::numeric_limits<float>::max();
      most = larger(most, magnitude);
    }
    float largest = 0.0f;
    bool whole = true;
    for (int lane = 0; lane < W; ++lane) {
      largest = std::max(largest, most[lane]);
      whole &= finite[lane] != 0;
    }
    scales[row] = whole ? largest / 127.0f : std::numeric_limits<float>::quiet_NaN();
    const float scale = whole && largest > 0.0f ? 127.0f / largest : 0.0f;
    const float rounder = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to integers
    uint8_t* out = reinterpret_cast<uint8_t*>(to);
    for (i64 at = 0; at < inputs; at += W) {
      const int lanes = int(std::min<i64>(W, inputs - at));
      Vec<float> value = load_part(x + at, lanes, 0.0f) * scale + rounder;
      if (!whole) value = Vec<float>{} + rounder;
      const auto bytes = __builtin_convertvector((Integers)value - 0x4b400000 + 128, Bytes);
      std::memcpy(out + at, &bytes, lanes);
    }
  }
  return {words, stride, scales};
}

// y (rows, outputs) = x W^T + bias, negative ones made zero if RELU.
template <class Product, bool RELU>
void multiply(const Matrix& matrix, const Packed& x, i64 rows, float* y, i64 y_stride) {
  constexpr int W = Lanes<float>::count;
  const i64 each = matrix.type == kFloat ? 1 : matrix.type == kBf16 ? 2 : 4;
  const i64 groups = (matrix.inputs + each - 1) / each;
  const u32* panel = static_cast<const u32*>(matrix.panels);
  for (i64 first = 0; first < matrix.outputs; first += kPanel, panel += groups * kPanel)
    for (i64 row = 0; row < rows; row += kTileRows) {
      const int count = int(std::min<i64>(kTileRows, rows - row));
      typename Product::Sum sums[kTileRows][kPanelVectors];
      tile_rows<Product>(count, x.groups + row * x.stride, x.stride, panel, groups, sums);
      for (int v = 0; v < kPanelVectors; ++v) {
        const i64 output = first + v * W;
        const int lanes = int(std::min<i64>(W, matrix.outputs - output));
        if (lanes <= 0) break;
        Vec<float> bias = matrix.bias ? load_part(matrix.bias + output, lanes, 0.0f) : Vec<float>{};
        for (int r = 0; r < count; ++r) {
          Vec<float> value;
          if constexpr (std::is_same_v<Product, Int8Product>) {
            Integers excess = {};
            std::memcpy(&excess, matrix.excess + output, lanes * 4);
            value = __builtin_convertvector(sums[r][v] - excess, Vec<float>) *
                        (load_part(matrix.scales + output, lanes, 0.0f) * x.scales[row + r]) +
                    bias;
          } else {
            value = sums[r][v] + bias;
          }
          if (RELU) value = larger(value, Vec<float>{});
          float* to = y + (row + r) * y_stride + output;
          lanes == W ? store(to, value) : store_part(to, value, lanes);
        }
      }
    }
}

template <bool RELU>
void multiply_packed(const Matrix& matrix, const Packed& x, i64 rows, float* y, i64 y_stride) {
  switch (matrix.type) {
    case kFloat: multiply<FloatProduct, RELU>(matrix, x, rows, y, y_stride); break;
    case kBf16: multiply<Bf16Product, RELU>(matrix, x, rows, y, y_stride); break;
    case kInt8: multiply<Int8Product, RELU>(matrix, x, rows, y, y_stride); break;
  }
}

template <bool RELU = false>
void multiply(const Matrix& matrix, const float* x, i64 x_stride, i64 rows, float* y, i64 y_stride,
              u32* words, float* scales) {
  const Packed packed = pack_rows(matrix, x, x_stride, rows, words, scales);
  multiply_packed<RELU>(matrix, packed, rows, y, y_stride);
}
