// Vectors of the machine's width in GCC's own notation: one source for AVX-512, AVX2, SSE and NEON.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>
#include <utility>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

using i64 = int64_t;
using u32 = uint32_t;

// Element types of tensors; sums are in float, or double for double.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

template <class A>
struct Lanes;
template <>
struct Lanes<float> {
  static constexpr int count = kVectorBytes / 4;
  typedef float Vector __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Integer __attribute__((vector_size(kVectorBytes)));
  typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));
};
template <>
struct Lanes<double> {
  static constexpr int count = kVectorBytes / 8;
  typedef double Vector __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Integer __attribute__((vector_size(kVectorBytes)));
  typedef uint32_t Words __attribute__((vector_size(kVectorBytes / 2)));
};
template <class A>
using Vec = typename Lanes<A>::Vector;
template <class A>
using IntVec = typename Lanes<A>::Integer;

// Keeps a value in a vector register, and the compiler from knowing what it is.
#if defined(__aarch64__)
#define LCMT_REGISTER(value) asm("" : "+w"(value))
#elif defined(__x86_64__)
#define LCMT_REGISTER(value) asm("" : "+v"(value))
#else
#define LCMT_REGISTER(value)
#endif

template <class S>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};

inline float widen(float value) { return value; }
inline double widen(double value) { return value; }
inline float widen(bf16 value) {
  u32 word = u32(value.bits) << 16;
  float wide;
  std::memcpy(&wide, &word, 4);
  return wide;
}
inline float widen(f16 value) {
  u32 sign = u32(value.bits & 0x8000) << 16, magnitude = value.bits & 0x7fff, word;
  float wide;
  if (magnitude >= 0x7c00) {
    word = sign | 0x7f800000 | (magnitude & 0x3ff) << 13;
  } else {
    // As a float with the exponent of a half, then scaled: exact for subnormals too.
    word = magnitude << 13;
    std::memcpy(&wide, &word, 4);
    wide *= 0x1p112f;
    std::memcpy(&word, &wide, 4);
    word |= sign;
  }
  std::memcpy(&wide, &word, 4);
  return wide;
}

inline void narrow(float value, float* out) { *out = value; }
inline void narrow(double value, double* out) { *out = value; }
inline void narrow(float value, bf16* out) {
  u32 word;
  std::memcpy(&word, &value, 4);
  if (value != value) {
    out->bits = uint16_t(word >> 16 | 0x40);
  } else {
    out->bits = uint16_t((word + 0x7fff + (word >> 16 & 1)) >> 16);  // to nearest, ties to even
  }
}
inline void narrow(float value, f16* out) {
  u32 word;
  std::memcpy(&word, &value, 4);
  uint16_t sign = uint16_t(word >> 16 & 0x8000);
  word &= 0x7fffffff;
  if (word > 0x7f800000) {
    out->bits = sign | 0x7e00;
  } else if (word >= 0x477ff000) {
    out->bits = sign | 0x7c00;
  } else if (word >= 0x38800000) {
    out->bits = sign | uint16_t((word - 0x38000000 + 0xfff + (word >> 13 & 1)) >> 13);
  } else {
    // Adding 2^-1 * 2^-13 * 2^... lets the float adder round subnormal halves to nearest even.
    float magnitude;
    std::memcpy(&magnitude, &word, 4);
    magnitude += 0.5f;
    std::memcpy(&word, &magnitude, 4);
    out->bits = sign | uint16_t(word - 0x3f000000);
  }
}

// Whole vectors.
template <class A>
inline Vec<A> load(const A* from) {
  Vec<A> value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
template <class A>
inline void store(A* to, Vec<A> value) {
  std::memcpy(to, &value, sizeof value);
}
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
inline Vec<float> load(const bf16* from) {
  __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return (Vec<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
}
inline Vec<float> load(const f16* from) {
  return (Vec<float>)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
inline __m256i rounded_bf16(Vec<float> value) {
#ifdef __AVX512BF16__
  return (__m256i)_mm512_cvtneps_pbh((__m512)value);
#endif
  __m512i word = (__m512i)value;
  __m512i even = _mm512_and_si512(_mm512_srli_epi32(word, 16), _mm512_set1_epi32(1));
  __m512i near = _mm512_add_epi32(word, _mm512_add_epi32(even, _mm512_set1_epi32(0x7fff)));
  __mmask16 nan = _mm512_cmp_ps_mask((__m512)value, (__m512)value, _CMP_UNORD_Q);
  near = _mm512_mask_or_epi32(near, nan, word, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(near, 16));
}
inline void store(bf16* to, Vec<float> value) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), rounded_bf16(value));
}
inline void store(f16* to, Vec<float> value) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      _mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT));
}
// The first n lanes, 0 < n <= lanes; the others are `fill`.
inline Vec<float> load_part(const float* from, int n, float fill) {
  __mmask16 mask = __mmask16((1u << n) - 1);
  return (Vec<float>)_mm512_mask_loadu_ps(_mm512_set1_ps(fill), mask, from);
}
inline Vec<float> load_part(const bf16* from, int n, float fill) {
  __mmask16 mask = __mmask16((1u << n) - 1);
  __m512i wide = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from)), 16);
  return (Vec<float>)_mm512_mask_blend_ps(mask, _mm512_set1_ps(fill), (__m512)wide);
}
inline Vec<float> load_part(const f16* from, int n, float fill) {
  __mmask16 mask = __mmask16((1u << n) - 1);
  __m512 wide = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, from));
  return (Vec<float>)_mm512_mask_blend_ps(mask, _mm512_set1_ps(fill), wide);
}
// `into` with its lanes from `at` on replaced by n elements.
inline Vec<float> load_lanes(Vec<float> into, const float* from, int at, int n) {
  return (Vec<float>)_mm512_mask_loadu_ps((__m512)into, __mmask16(((1u << n) - 1) << at), from - at);
}
inline Vec<double> load_lanes(Vec<double> into, const double* from, int at, int n) {
  return (Vec<double>)_mm512_mask_loadu_pd((__m512d)into, __mmask8(((1u << n) - 1) << at), from - at);
}
inline Vec<float> load_lanes(Vec<float> into, const bf16* from, int at, int n) {
  __mmask16 mask = __mmask16(((1u << n) - 1) << at);
  __m256i half = _mm256_maskz_loadu_epi16(mask, from - at);
  return (Vec<float>)_mm512_mask_slli_epi32((__m512i)into, mask, _mm512_cvtepu16_epi32(half), 16);
}
inline Vec<float> load_lanes(Vec<float> into, const f16* from, int at, int n) {
  __mmask16 mask = __mmask16(((1u << n) - 1) << at);
  __m256i half = _mm256_maskz_loadu_epi16(mask, from - at);
  return (Vec<float>)_mm512_mask_cvtph_ps((__m512)into, mask, half);
}
inline Vec<double> load_part(const double* from, int n, double fill) {
  return (Vec<double>)_mm512_mask_loadu_pd(_mm512_set1_pd(fill), __mmask8((1u << n) - 1), from);
}
// Lanes at, ..., at + n - 1 of a value, side by side.
inline void store_lanes(float* to, Vec<float> value, int at, int n) {
  _mm512_mask_storeu_ps(to - at, __mmask16(((1u << n) - 1) << at), (__m512)value);
}
inline void store_lanes(bf16* to, Vec<float> value, int at, int n) {
  _mm256_mask_storeu_epi16(to - at, __mmask16(((1u << n) - 1) << at), rounded_bf16(value));
}
inline void store_lanes(f16* to, Vec<float> value, int at, int n) {
  _mm256_mask_storeu_epi16(to - at, __mmask16(((1u << n) - 1) << at),
                           _mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT));
}
inline void store_lanes(double* to, Vec<double> value, int at, int n) {
  _mm512_mask_storeu_pd(to - at, __mmask8(((1u << n) - 1) << at), (__m512d)value);
}
#else
template <class S>
inline Vec<typename Accumulator<S>::type> load_part(const S* from, int n,
                                                    typename Accumulator<S>::type fill) {
  using A = typename Accumulator<S>::type;
  A lanes[Lanes<A>::count];
  for (int lane = 0; lane < Lanes<A>::count; ++lane) lanes[lane] = lane < n ? widen(from[lane]) : fill;
  return load(lanes);
}
template <class V, class S>
inline V load_lanes(V into, const S* from, int at, int n) {
  for (int lane = 0; lane < n; ++lane) into[at + lane] = widen(from[lane]);
  return into;
}
template <class S, class V>
inline void store_lanes(S* to, V value, int at, int n) {
  for (int lane = 0; lane < n; ++lane) narrow(value[at + lane], to + lane);
}
inline Vec<float> load(const bf16* from) {
  Vec<float> value;
  for (int lane = 0; lane < Lanes<float>::count; ++lane) value[lane] = widen(from[lane]);
  return value;
}
inline Vec<float> load(const f16* from) {
  Vec<float> value;
  for (int lane = 0; lane < Lanes<float>::count; ++lane) value[lane] = widen(from[lane]);
  return value;
}
inline void store(bf16* to, Vec<float> value) {
  for (int lane = 0; lane < Lanes<float>::count; ++lane) narrow(value[lane], to + lane);
}
inline void store(f16* to, Vec<float> value) {
  for (int lane = 0; lane < Lanes<float>::count; ++lane) narrow(value[lane], to + lane);
}
#endif

inline Vec<float> larger(Vec<float> a, Vec<float> b) { return a > b ? a : b; }
inline Vec<double> larger(Vec<double> a, Vec<double> b) { return a > b ? a : b; }

template <class S, class V>
inline void store_part(S* to, V value, int n) {
  store_lanes(to, value, 0, n);
}

template <class A>
inline A sum_lanes(Vec<A> value) {
  A lanes[Lanes<A>::count];
  store(lanes, value);
  for (int half = Lanes<A>::count / 2; half; half /= 2)
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  return lanes[0];
}

template <class A>
inline A max_lanes(Vec<A> value) {
  A top = value[0];
  for (int lane = 1; lane < Lanes<A>::count; ++lane) top = std::max<A>(top, value[lane]);
  return top;
}

// Take lanes of two vectors, as numbered by INDEX (the second's count on).
#ifdef __clang__
template <class A, int... INDEX>
inline Vec<A> pick_lanes(Vec<A> a, Vec<A> b, std::integer_sequence<int, INDEX...>) {
  return __builtin_shufflevector(a, b, INDEX...);
}
#else
template <class A, int... INDEX>
inline Vec<A> pick_lanes(Vec<A> a, Vec<A> b, std::integer_sequence<int, INDEX...>) {
  return __builtin_shuffle(a, b, IntVec<A>{INDEX...});
}
#endif

// Lane at which group `lane / SPAN` of the result finds its element: of the first vector for even
// groups, of the second for odd ones; of the same group (a blend, cheaper than a shuffle), or of
// the OTHER one of each pair of groups.
template <int COUNT, int SPAN, bool OTHER>
constexpr int source_lane(int lane) {
  bool odd = lane / SPAN % 2;
  return (odd ? COUNT : 0) + lane + (!OTHER ? 0 : odd ? -SPAN : SPAN);
}
template <class A, int SPAN, bool OTHER, int... LANE>
inline Vec<A> halves(Vec<A> a, Vec<A> b, std::integer_sequence<int, LANE...>) {
  constexpr int W = Lanes<A>::count;
  return pick_lanes<A>(a, b, std::integer_sequence<int, source_lane<W, SPAN, OTHER>(LANE)...>{});
}

// Of each group of 2 * SPAN lanes of each of 2 * SPAN vectors, all lanes reduced to one: that of
// group g of vectors[v] stands in lane g * 2 * SPAN + v.
template <class A, int SPAN, class Reduce>
inline __attribute__((always_inline)) Vec<A> reduce_each(Vec<A>* vectors, const Reduce& reduce) {
  using All = std::make_integer_sequence<int, Lanes<A>::count>;
#pragma GCC unroll 16
  for (int v = 0; v < SPAN; ++v)
    vectors[v] = reduce(halves<A, SPAN, false>(vectors[v], vectors[v + SPAN], All{}),
                        halves<A, SPAN, true>(vectors[v], vectors[v + SPAN], All{}));
  if constexpr (SPAN > 1)
    return reduce_each<A, SPAN / 2>(vectors, reduce);
  else
    return vectors[0];
}
template <class A, int SPAN = Lanes<A>::count / 2>
inline __attribute__((always_inline)) Vec<A> sum_each(Vec<A>* vectors) {
  return reduce_each<A, SPAN>(vectors, [](Vec<A> a, Vec<A> b) { return a + b; });
}
template <class A, int SPAN = Lanes<A>::count / 2>
inline __attribute__((always_inline)) Vec<A> max_each(Vec<A>* vectors) {
  return reduce_each<A, SPAN>(vectors, [](Vec<A> a, Vec<A> b) { return larger(a, b); });
}

// 2^x for x at most about 0; far below it is 0, also for -inf.
inline Vec<float> exp2_negative(Vec<float> x) {
#ifdef __AVX512F__
  __m512 clipped = _mm512_max_ps(_mm512_set1_ps(-300.0f), (__m512)x);  // keeps NaN
  __m512 n = _mm512_roundscale_ps(clipped, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  Vec<float> r = (Vec<float>)clipped - (Vec<float>)n;
#else
  Vec<float> zero = {};
  IntVec<float> tiny = x < -126.0f;
  Vec<float> shifted = (tiny ? zero - 126.0f : x) + 12582912.0f;  // 1.5 * 2^23: rounds to nearest
  IntVec<float> power = (IntVec<float>)shifted << 23;
  Vec<float> r = (tiny ? zero - 126.0f : x) - (shifted - 12582912.0f);
#endif
  // Minimax for [-1/2, 1/2], exact at 0: relative error 9e-8.
  Vec<float> p = r * 1.326472731e-3f + 9.671512991e-3f;
  p = p * r + 5.550733581e-2f;
  p = p * r + 2.402224243e-1f;
  p = p * r + 6.931470037e-1f;
  p = p * r + 1.0f;
#ifdef __AVX512F__
  return (Vec<float>)_mm512_scalef_ps((__m512)p, n);
#else
  return tiny ? zero : (Vec<float>)((IntVec<float>)p + power);
#endif
}
inline Vec<double> exp2_negative(Vec<double> x) {
  for (int lane = 0; lane < Lanes<double>::count; ++lane) x[lane] = std::exp2(x[lane]);
  return x;
}

// Whether element i of a dropout mask is kept: see ops/masks.py.
template <class Word>
inline Word lowbias32(Word word) {
  word = (word ^ (word >> 16)) * 0x7feb352du;
  word = (word ^ (word >> 15)) * 0x846ca68bu;
  return word ^ (word >> 16);
}
