// Matrix products for many rows and few columns, blocked for registers.
#pragma once

#include <algorithm>

#include "team.hpp"
#include "vector.hpp"

namespace equipes {

// A matrix to be read: element (i, k) is data[i * row + k * column].
template <class T>
struct Matrix {
  const T* data;
  std::int64_t row;
  std::int64_t column = 1;

  Matrix transposed() const { return {data, column, row}; }
  Matrix from(std::int64_t i, std::int64_t k) const { return {data + i * row + k * column, row, column}; }
};

// Rows of C that a tile keeps in registers: two accumulators each, beside two vectors of B and one element of A.
constexpr int kTileRows = kRegisters == 32 ? 12 : 6;
// Elements of K for which a panel of B stays in the first-level cache.
constexpr int kDepth = 128;
// The same and panels for which packed B stays in the second-level cache.
constexpr int kBlockDepth = 192, kBlockPanels = 4;

// C[Rows, Vectors · lanes] (+)= alpha A[Rows, K] B[K, Vectors · lanes]
template <class T, int Rows, int Vectors>
void multiply_tile(std::int64_t depth, Matrix<T> a, const T* b, std::int64_t b_row, T* c, std::int64_t c_row, bool add,
                   T alpha) {
  constexpr int n = kLanes<T>;
  Vector<T> sums[Rows][Vectors];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) sums[i][v] = Vector<T>{};
  for (std::int64_t k = 0; k < depth; ++k) {
    Vector<T> column[Vectors];
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) column[v] = load(b + k * b_row + v * n);
    const T* elements = a.data + k * a.column;
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const T element = elements[i * a.row];
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) sums[i][v] += column[v] * element;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) {
      Vector<T> result = sums[i][v] * alpha;
      if (add) result += load(c + i * c_row + v * n);
      store<T>(c + i * c_row + v * n, result);
    }
}

template <class T, int Vectors>
void multiply_rows(int rows, std::int64_t depth, Matrix<T> a, const T* b, std::int64_t b_row, T* c, std::int64_t c_row,
                   bool add, T alpha) {
  if (rows == kTileRows) {
    multiply_tile<T, kTileRows, Vectors>(depth, a, b, b_row, c, c_row, add, alpha);
    return;
  }
  unroll<kTileRows - 1>([&](auto index) {
    constexpr int kRows = decltype(index)::value + 1;
    if (rows == kRows) multiply_tile<T, kRows, Vectors>(depth, a, b, b_row, c, c_row, add, alpha);
  });
}

// packed[k, j] = b[k, j] for a matrix whose columns are far apart, usually a transposed one.
template <class T>
void pack_transposed(int width, std::int64_t depth, const T* b, std::int64_t row, std::int64_t column, T* packed) {
  constexpr int n = kLanes<T>;
  std::int64_t k = 0;
  if (row == 1)
    for (; k + n <= depth; k += n)
      for (int j = 0; j < width; j += n) {
        Vector<T> square[n];
        for (int i = 0; i < n; ++i) square[i] = load(b + (j + i) * column + k);
        transpose<T>(square);
        for (int i = 0; i < n; ++i) store<T>(packed + (k + i) * width + j, square[i]);
      }
  for (; k < depth; ++k)
    for (int j = 0; j < width; ++j) packed[k * width + j] = b[k * row + j * column];
}

// One or two vectors. Written out: of a loop compilers make a call or a string instruction, which takes longer than the copy.
template <class T>
inline void copy_row(bool two, const T* from, T* to) {
  store<T>(to, load(from));
  if (two) store<T>(to + kLanes<T>, load(from + kLanes<T>));
}

// For products of many rows, whose matrices come from memory: B is packed whole, a tile's rows of A are read once and its rows
// of C written once, and what comes next is asked for ahead. Tiles are shared by the team.
template <class T>
void multiply_blocked(Team team, std::int64_t M, std::int64_t N, std::int64_t K, Matrix<T> a, Matrix<T> b, T* c,
                      std::int64_t c_row, bool add, T alpha) {
  constexpr int n = kLanes<T>, kWidth = 2 * n, kLine = 64 / int(sizeof(T));
  alignas(64) T packed[kBlockPanels * kBlockDepth * kWidth];
  const auto [first_tile, last_tile] = team.share((M + kTileRows - 1) / kTileRows);
  const std::int64_t first = first_tile * kTileRows, last = std::min(M, last_tile * kTileRows);
  if (first >= last) return;
  for (std::int64_t n0 = 0; n0 < N; n0 += kBlockPanels * kWidth) {
    const std::int64_t width = std::min<std::int64_t>(kBlockPanels * kWidth, N - n0), panels = (width + kWidth - 1) / kWidth;
    for (std::int64_t k0 = 0; k0 < K; k0 += kBlockDepth) {
      const std::int64_t depth = std::min<std::int64_t>(kBlockDepth, K - k0), next = std::min<std::int64_t>(kBlockDepth, K - k0 - depth);
      const auto panel_width = [&](std::int64_t p) { return int(std::min<std::int64_t>(kWidth, width - p * kWidth)); };
      const T* from = b.data + k0 * b.row + n0 * b.column;
      if (b.column == 1) {
        for (std::int64_t k = 0; k < depth; ++k)
          for (std::int64_t p = 0; p < panels; ++p)
            copy_row(panel_width(p) == kWidth, from + k * b.row + p * kWidth,
                     packed + p * kBlockDepth * kWidth + k * panel_width(p));
      } else {
        for (std::int64_t p = 0; p < panels; ++p)
          pack_transposed(panel_width(p), depth, from + p * kWidth * b.column, b.row, b.column,
                          packed + p * kBlockDepth * kWidth);
      }
      for (std::int64_t i = first; i < last; i += kTileRows) {
        const int rows = int(std::min<std::int64_t>(kTileRows, last - i));
        for (std::int64_t p = 0; p < panels; ++p) {
          T* target = c + i * c_row + n0 + p * kWidth;
          if (k0 == 0)
            for (int r = 0; r < rows; ++r)
              for (int v = 0; v < panel_width(p); v += kLine) __builtin_prefetch(target + r * c_row + v, 1);
          if (a.column == 1) {  // the rows of the next tile
            const std::int64_t lines = (depth + kLine - 1) / kLine, end = std::min(last, i + 2 * kTileRows);
            for (std::int64_t r = i + kTileRows; r < end; ++r)
              for (std::int64_t q = lines * p / panels; q < lines * (p + 1) / panels; ++q)
                __builtin_prefetch(a.data + r * a.row + k0 + q * kLine, 0, 2);
          } else {  // the rows of the next step in K, a few with each tile
            const std::int64_t calls = panels * ((last - first + kTileRows - 1) / kTileRows);
            const std::int64_t call = (i - first) / kTileRows * panels + p;
            for (std::int64_t k = k0 + depth + next * call / calls; k < k0 + depth + next * (call + 1) / calls; ++k) {
              for (std::int64_t q = first; q < last; q += kLine) __builtin_prefetch(a.data + q * a.row + k * a.column, 0, 2);
              if (b.column == 1)
                for (std::int64_t q = 0; q < width; q += kLine) __builtin_prefetch(b.data + k * b.row + n0 + q, 0, 2);
            }
          }
          const T* panel = packed + p * kBlockDepth * kWidth;
          if (panel_width(p) == kWidth)
            multiply_rows<T, 2>(rows, depth, a.from(i, k0), panel, kWidth, target, c_row, add || k0 > 0, alpha);
          else
            multiply_rows<T, 1>(rows, depth, a.from(i, k0), panel, n, target, c_row, add || k0 > 0, alpha);
        }
      }
    }
  }
}

// C[M, N] (+)= alpha A[M, K] B[K, N], the tiles shared by the team; N is a multiple of the vector width.
template <class T>
void multiply(Team team, std::int64_t M, std::int64_t N, std::int64_t K, Matrix<T> a, Matrix<T> b, T* c,
              std::int64_t c_row, bool add, T alpha) {
  constexpr int n = kLanes<T>;
  constexpr int kWidth = 2 * n;
  alignas(64) T packed[kDepth * kWidth];
  const std::int64_t panels = (N + kWidth - 1) / kWidth, tiles = (M + kTileRows - 1) / kTileRows;
  // Worth it for more than one panel of B, and in a sum over many rows for more than one step.
  if (panels > 1 && tiles >= 4 * team.size && (a.column == 1 || K > 2 * kBlockDepth))
    return multiply_blocked(team, M, N, K, a, b, c, c_row, add, alpha);
  const auto [first, last] = team.share(panels * tiles);
  for (std::int64_t work = first; work < last;) {
    const std::int64_t panel = work / tiles, tile = work % tiles, end = std::min(tiles, tile + last - work);
    work += end - tile;
    const std::int64_t n0 = panel * kWidth, row_end = std::min(M, end * kTileRows);
    const int vectors = N - n0 >= kWidth ? 2 : 1;
    if (K == 0 && !add)
      for (std::int64_t i = tile * kTileRows; i < row_end; ++i) std::fill_n(c + i * c_row + n0, vectors * n, T(0));
    for (std::int64_t k0 = 0; k0 < K; k0 += kDepth) {
      const std::int64_t depth = std::min<std::int64_t>(kDepth, K - k0);
      const T* panel_b = b.data + k0 * b.row + n0 * b.column;
      std::int64_t panel_row = b.row;
      // Rows far apart cost translation misses, columns far apart cannot be loaded as vectors: gather them first.
      if (b.column != 1 || (row_end - tile * kTileRows >= 3 * kTileRows && b.row > kWidth)) {
        const int width = vectors * n;
        if (b.column == 1) {
          for (std::int64_t k = 0; k < depth; ++k) copy_row(vectors == 2, panel_b + k * b.row, packed + k * width);
        } else {
          pack_transposed(width, depth, panel_b, b.row, b.column, packed);
        }
        panel_b = packed;
        panel_row = width;
      }
      for (std::int64_t i = tile * kTileRows; i < row_end; i += kTileRows) {
        const int rows = int(std::min<std::int64_t>(kTileRows, row_end - i));
        T* target = c + i * c_row + n0;
        if (vectors == 2)
          multiply_rows<T, 2>(rows, depth, a.from(i, k0), panel_b, panel_row, target, c_row, add || k0 > 0, alpha);
        else
          multiply_rows<T, 1>(rows, depth, a.from(i, k0), panel_b, panel_row, target, c_row, add || k0 > 0, alpha);
      }
    }
  }
}

}  // namespace equipes
