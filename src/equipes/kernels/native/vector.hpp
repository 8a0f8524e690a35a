// Vectors of the widest kind that the instruction set has, through the vector extensions of GCC and Clang.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

namespace equipes {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kRegisters = 32;
constexpr const char* kInstructionSet = "avx512";
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kRegisters = 16;
constexpr const char* kInstructionSet = "avx2";
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16;
constexpr int kRegisters = 32;
constexpr const char* kInstructionSet = "neon";
#else
constexpr int kVectorBytes = 16;
constexpr int kRegisters = 16;
constexpr const char* kInstructionSet = "baseline";
#endif

// Number of elements in a vector.
template <class T>
constexpr int kLanes = kVectorBytes / int(sizeof(T));

template <class T, int Bytes>
struct VectorTypes {
  typedef T Type __attribute__((vector_size(Bytes)));
  // What a pointer to any element may be read as.
  typedef T Loose __attribute__((vector_size(Bytes), aligned(sizeof(T)), may_alias));
};

template <class T>
using Vector = typename VectorTypes<T, kVectorBytes>::Type;

template <class T>
inline Vector<T> load(const T* p) {
  return *reinterpret_cast<const typename VectorTypes<T, kVectorBytes>::Loose*>(p);
}

template <class T>
inline void store(T* p, Vector<T> v) {
  *reinterpret_cast<typename VectorTypes<T, kVectorBytes>::Loose*>(p) = v;
}

template <class T>
inline void add_to(T* p, Vector<T> v) {
  store<T>(p, load(p) + v);
}

// The sum of all elements, by halves.
template <class T, int Bytes>
inline T sum_of(typename VectorTypes<T, Bytes>::Type v) {
  if constexpr (Bytes == 2 * sizeof(T)) {
    return v[0] + v[1];
  } else {
    using Half = typename VectorTypes<T, Bytes / 2>::Type;
    union {
      typename VectorTypes<T, Bytes>::Type whole;
      Half half[2];
    } split = {v};
    return sum_of<T, Bytes / 2>(split.half[0] + split.half[1]);
  }
}

template <class T>
inline T sum(Vector<T> v) {
  return sum_of<T, kVectorBytes>(v);
}

// For lambdas that must not become calls: their vectors would go through memory.
#define EQUIPES_INLINE __attribute__((always_inline))

// Calls f with the compile-time numbers 0 .. N-1.
template <class F, int... I>
[[gnu::always_inline]] inline void unroll(F&& f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>{}), ...);
}

template <int N, class F>
[[gnu::always_inline]] inline void unroll(F&& f) {
  unroll(f, std::make_integer_sequence<int, N>{});
}

#ifndef __has_builtin
#define __has_builtin(name) 0
#endif

// Elements of a and b by number; those of b count from the number of lanes on.
template <class T, int... Places>
[[gnu::always_inline]] inline Vector<T> shuffle(Vector<T> a, Vector<T> b) {
#if __has_builtin(__builtin_shufflevector)
  return __builtin_shufflevector(a, b, Places...);
#else
  typedef std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t> Numbers
      __attribute__((vector_size(kVectorBytes)));
  return __builtin_shuffle(a, b, Numbers{Places...});
#endif
}

template <class T, int Step, int... I>
[[gnu::always_inline]] inline void exchange(Vector<T>& a, Vector<T>& b, std::integer_sequence<int, I...>) {
  const Vector<T> low = shuffle<T, ((I & Step) != 0 ? kLanes<T> + I - Step : I)...>(a, b);
  b = shuffle<T, ((I & Step) != 0 ? kLanes<T> + I : I + Step)...>(a, b);
  a = low;
}

// Transposes a square of vectors: for each bit, rows whose numbers differ in it exchange the elements whose places do.
template <class T, int Step = 1>
[[gnu::always_inline]] inline void transpose(Vector<T>* rows) {
  if constexpr (Step < kLanes<T>) {
    unroll<kLanes<T>>([&](auto i) {
      if constexpr ((i & Step) == 0)
        exchange<T, Step>(rows[i], rows[i + Step], std::make_integer_sequence<int, kLanes<T>>{});
    });
    transpose<T, 2 * Step>(rows);
  }
}

template <class T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  using Integer = std::int32_t;
  static constexpr int kTerms = 7, kMantissa = 23, kBias = 127;
  static constexpr float kLimit = 87.0f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
};

template <>
struct ExpConstants<double> {
  using Integer = std::int64_t;
  static constexpr int kTerms = 13, kMantissa = 52, kBias = 1023;
  static constexpr double kLimit = 708.0, kLn2High = 6.93145751953125e-1, kLn2Low = 1.42860682030941723212e-6;
};

// exp(x) to a few units in the last place, for x clamped to where it is a normal number.
template <class T>
inline Vector<T> exponential(Vector<T> x) {
  using C = ExpConstants<T>;
  using Integer = typename C::Integer;
  typedef Integer Integers __attribute__((vector_size(kVectorBytes)));
  constexpr T kRound = T(3) * T(Integer(1) << (C::kMantissa - 1));  // adding it rounds to a whole number
  const Vector<T> limit = Vector<T>{} + C::kLimit;
  x = x > limit ? limit : x;
  x = x < -limit ? -limit : x;
  const Vector<T> shifted = x * T(1.44269504088896340736) + kRound;
  const Vector<T> whole = shifted - kRound;
  const Vector<T> r = (x - whole * C::kLn2High) - whole * C::kLn2Low;
  Vector<T> p = Vector<T>{} + T(1);  // Taylor's series by Horner's rule; |r| <= ln(2)/2
#pragma GCC unroll 16
  for (int k = C::kTerms; k > 0; --k) p = p * r * T(1.0 / k) + T(1);
  const Integers power = (__builtin_convertvector(whole, Integers) + Integer(C::kBias)) << C::kMantissa;
  Vector<T> scale;
  std::memcpy(&scale, &power, sizeof scale);
  return p * scale;
}

}  // namespace equipes
