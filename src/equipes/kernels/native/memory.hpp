// Working memory that is taken in one go and used again for the next pass.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace equipes {

// Hands out pieces of large blocks. Nothing is freed before the arena is; `clear` makes everything free again.
class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  ~Arena() {
    for (Block& block : blocks_) std::free(block.data);
  }

  // Memory for n elements, not initialised, aligned to a cache line.
  template <class T>
  T* take(std::int64_t n) {
    // The odd cache line keeps arrays of equal power-of-two sizes from falling onto the same cache sets.
    const std::size_t bytes = (std::size_t(n) * sizeof(T) + 63) / 64 * 64 + 64;
    while (current_ < blocks_.size() && used_ + bytes > blocks_[current_].size) {
      ++current_;
      used_ = 0;
    }
    if (current_ == blocks_.size()) add_block(bytes);
    char* piece = blocks_[current_].data + used_;
    used_ += bytes;
    return reinterpret_cast<T*>(piece);
  }

  // Makes all memory free again; several blocks become one, so that the next pass finds its arrays side by side.
  void clear() {
    if (blocks_.size() > 1) {
      std::size_t total = 0;
      for (Block& block : blocks_) {
        total += block.size;
        std::free(block.data);
      }
      blocks_.clear();
      current_ = 0;
      add_block(total);
    }
    current_ = used_ = 0;
  }

 private:
  struct Block {
    char* data;
    std::size_t size;
  };

  static constexpr std::size_t kPage = std::size_t(2) << 20;

  void add_block(std::size_t bytes) {
    const std::size_t size = (bytes + kPage - 1) / kPage * kPage;
    char* data = static_cast<char*>(std::aligned_alloc(kPage, size));
    if (data == nullptr) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    madvise(data, size, MADV_HUGEPAGE);  // large pages: rows of weights are far apart
#endif
    blocks_.push_back({data, size});
    used_ = 0;
  }

  std::vector<Block> blocks_;
  std::size_t current_ = 0;
  std::size_t used_ = 0;
};

// Arenas that wait for their next use.
class ArenaPool : public std::enable_shared_from_this<ArenaPool> {
 public:
  using Lease = std::shared_ptr<Arena>;

  Lease lease() {
    std::unique_ptr<Arena> arena;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!idle_.empty()) {
        arena = std::move(idle_.back());
        idle_.pop_back();
      }
    }
    if (!arena) arena = std::make_unique<Arena>();
    auto pool = shared_from_this();
    return Lease(arena.release(), [pool](Arena* returned) {
      returned->clear();
      std::lock_guard<std::mutex> lock(pool->mutex_);
      pool->idle_.emplace_back(returned);
    });
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Arena>> idle_;
};

}  // namespace equipes
