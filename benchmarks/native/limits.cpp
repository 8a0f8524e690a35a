// What one core can do at most, for benchmarks/roofline.py: fused multiply-adds, matrix products, reads and writes.
// Compiled by it for the instruction set that the kernels run on, with the kernels' own vectors and product.
#include <cstdlib>
#include <ctime>

#include "product.hpp"

namespace {

using namespace equipes;

// Processor time of this thread, as the profile of the kernels counts it: others on the machine take none of it.
double now() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return double(time.tv_sec) + 1e-9 * double(time.tv_nsec);
}

// Keeps the compiler from leaving out what nobody reads.
template <class T>
void use(T& value) {
  asm volatile("" : : "r"(&value) : "memory");
}

}  // namespace

extern "C" {

// GFLOP/s of fused multiply-adds in registers, enough chains of them to hide their latency.
double fma_float(double seconds) {
  constexpr int kChains = kRegisters == 32 ? 24 : 12;
  Vector<float> sums[kChains], a = Vector<float>{} + 0.999f, b = Vector<float>{} + 1e-3f;
  for (int i = 0; i < kChains; ++i) sums[i] = Vector<float>{} + float(i);
  use(a);
  use(b);
  const double start = now();
  double done = 0, elapsed = 0;
  while (elapsed < seconds) {
    for (int repeat = 0; repeat < 100000; ++repeat)
#pragma GCC unroll 24
      for (int i = 0; i < kChains; ++i) sums[i] = sums[i] * a + b;
    done += 100000.0 * kChains * kLanes<float> * 2;
    elapsed = now() - start;
  }
  for (auto& sum : sums) use(sum);
  return 1e-9 * done / elapsed;
}

// GFLOP/s of the register-blocked product, [rows, depth] times [depth, columns].
double product_float(std::int64_t rows, std::int64_t columns, std::int64_t depth, double seconds) {
  float* a = static_cast<float*>(std::aligned_alloc(64, (rows * depth + 64) * sizeof(float) / 64 * 64));
  float* b = static_cast<float*>(std::aligned_alloc(64, (depth * columns + 64) * sizeof(float) / 64 * 64));
  float* c = static_cast<float*>(std::aligned_alloc(64, (rows * columns + 64) * sizeof(float) / 64 * 64));
  for (std::int64_t i = 0; i < rows * depth; ++i) a[i] = float(i % 7) - 3;
  for (std::int64_t i = 0; i < depth * columns; ++i) b[i] = float(i % 5) - 2;
  const double start = now();
  double done = 0, elapsed = 0;
  while (elapsed < seconds) {
    multiply<float>(Team{}, rows, columns, depth, {a, depth}, {b, columns}, c, columns, false, 1.0f);
    use(*c);
    done += 2.0 * double(rows) * double(columns) * double(depth);
    elapsed = now() - start;
  }
  std::free(a);
  std::free(b);
  std::free(c);
  return 1e-9 * done / elapsed;
}

// GB/s of a = b + s c on three arrays that have `bytes` together: two are read and one is written. What the processor
// reads before it writes is not counted.
double triad_float(std::int64_t bytes, double seconds) {
  constexpr int n = kLanes<float>;
  const std::int64_t size = std::max<std::int64_t>(bytes / 3 / (8 * n * sizeof(float)), 1) * 8 * n;
  // One after the other with an odd number of lines between them, so that they do not fall onto the same cache sets.
  const std::int64_t stride = size + 5 * 16;
  float* data = static_cast<float*>(std::aligned_alloc(64, 3 * stride * sizeof(float)));
  std::fill_n(data, 3 * stride, 1.0f);
  float *a = data, *b = data + stride, *c = b + stride;
  const Vector<float> scale = Vector<float>{} + 0.5f;
  const std::int64_t repeats = std::max<std::int64_t>(1, 1000000 / size);
  double done = 0, elapsed = 0;
  for (int round = 0; elapsed < seconds || round < 3; ++round) {
    const double start = now();
    for (std::int64_t repeat = 0; repeat < repeats; ++repeat) {
      for (std::int64_t i = 0; i < size; i += 8 * n)
#pragma GCC unroll 8
        for (int v = 0; v < 8; ++v) store<float>(a + i + v * n, load(b + i + v * n) + scale * load(c + i + v * n));
      use(*a);
    }
    if (round == 0) continue;  // brings the arrays in
    elapsed += now() - start;
    done += 3.0 * double(size) * sizeof(float) * double(repeats);
  }
  std::free(data);
  return 1e-9 * done / elapsed;
}

}  // extern "C"
