// Activation functions of frozen models, with derivatives, and what symmetry functions are made of.
#pragma once

#include <cmath>

#include "vector.hpp"

namespace equipes {

// silu(x) and its derivative, without factors.
template <class T>
Vector<T> silu(Vector<T> x, Vector<T>& slope) {
  const Vector<T> s = T(1) / (T(1) + exponential<T>(-x));
  slope = s * (T(1) + x * (T(1) - s));
  return x * s;
}

// 2 artanh(z) for |z| <= `Third` ? 1/3 : 0.172, by its series.
template <class T, bool Third>
inline Vector<T> twice_artanh(Vector<T> z) {
  constexpr int terms = sizeof(T) == 4 ? (Third ? 8 : 5) : (Third ? 17 : 11);
  const Vector<T> square = z * z;
  Vector<T> sum = Vector<T>{} + T(2.0 / (2 * terms - 1));
#pragma GCC unroll 20
  for (int k = terms - 2; k >= 0; --k) sum = sum * square + T(2.0 / (2 * k + 1));
  return z * sum;
}

// ln(½ e^x + ½) and its derivative. With y = e^-|x| it is max(x, 0) + ln((1 + y) / 2), and the logarithm -2 artanh((1 - y) /
// (3 + y)), which loses no digits where x is small.
template <class T>
Vector<T> shifted_softplus(Vector<T> x, Vector<T>& slope) {
  const Vector<T> positive = x > T(0) ? x : Vector<T>{};
  const Vector<T> y = exponential<T>(x - positive - positive);
  const Vector<T> larger = T(1) / (T(1) + y);
  slope = x > T(0) ? larger : y * larger;
  return positive - twice_artanh<T, true>((T(1) - y) / (T(3) + y));
}

// ln(x) of normal positive numbers.
inline Vector<double> logarithm(Vector<double> x) {
  typedef std::int64_t Integers __attribute__((vector_size(kVectorBytes)));
  Integers bits;
  std::memcpy(&bits, &x, sizeof bits);
  // x = 2^power m, m in [√½, √2).
  constexpr std::int64_t kRoot = 0x3fe6a09e667f3bcd;  // √½
  const Integers power = (bits - kRoot) >> 52;
  bits -= power << 52;
  Vector<double> m;
  std::memcpy(&m, &bits, sizeof m);
  return twice_artanh<double, false>((m - 1.0) / (m + 1.0)) +
         __builtin_convertvector(power, Vector<double>) * 0.69314718055994530942;
}

// x to some power, x of normal positive numbers: whole powers by squaring.
inline Vector<double> power_of(Vector<double> x, double power) {
  const double whole = std::floor(power);
  Vector<double> result = Vector<double>{} + 1.0, square = whole < 0 ? 1.0 / x : x;
  for (auto n = std::int64_t(std::abs(whole)); n > 0; n /= 2) {
    if (n % 2 == 1) result *= square;
    square *= square;
  }
  return power == whole ? result : result * exponential<double>((power - whole) * logarithm(x));
}

}  // namespace equipes
