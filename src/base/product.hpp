#pragma once
// What the matrix kernels multiply: base/matrix-inl.h in the type of the matrices, base/bf16_matrix.hpp in bfloat16.

#include <cstdint>

namespace loglinear {

// Rows of memory that will be used soon and lie further apart than hardware foresees. They are asked for a line at a
// time, evenly between other work: a CPU has a dozen or two on their way at once, and whoever asks for more waits, or
// is not heard.
class Prefetch {
 public:
  // Nothing yet, to be asked for during so many multiply-adds.
  void begin(std::int64_t work) { work_ = work, lines_ = credit_ = 0, lists_ = at_ = 0; }

  // `count` rows of `bytes` bytes from `first` on, `stride` bytes apart.
  void add(const void* first, std::int64_t count, std::int64_t stride, std::int64_t bytes) {
    if (count <= 0 || lists_ == kLists) return;
    const std::uintptr_t row = reinterpret_cast<std::uintptr_t>(first);
    rows_[lists_++] = {row / kLine * kLine, row + static_cast<std::uintptr_t>(bytes), count, stride, bytes};
    lines_ += count * (bytes / static_cast<std::int64_t>(kLine) + 1);
    work_a_line_ = work_ / lines_;
  }

  // So many multiply-adds are done or about to be.
  void work(std::int64_t done) {
    credit_ += done;
    for (int most = kMost; credit_ >= work_a_line_ && at_ < lists_ && most > 0; --most) {
      credit_ -= work_a_line_;
      Rows& rows = rows_[at_];
      __builtin_prefetch(reinterpret_cast<const void*>(rows.line), 0, 2);
      rows.line += kLine;
      if (rows.line < rows.end) continue;
      rows.end += static_cast<std::uintptr_t>(rows.stride);
      rows.line = (rows.end - static_cast<std::uintptr_t>(rows.bytes)) / kLine * kLine;
      if (--rows.count == 0) ++at_;
    }
  }

 private:
  static constexpr int kLists = 32, kMost = 16;  // lines at once
  static constexpr std::uintptr_t kLine = 64;
  struct Rows {
    std::uintptr_t line, end;  // of the current row: the next line, and where it ends
    std::int64_t count, stride, bytes;
  };
  Rows rows_[kLists];
  int lists_ = 0, at_ = 0;
  std::int64_t work_ = 0, lines_ = 0, work_a_line_ = 0, credit_ = 0;
};

// Which part of a product exists. Lower and upper are exact: entries on the other side are neither read nor multiplied
// by zero, so that a NaN of a later token cannot reach an earlier one.
enum class Part {
  full,
  lower_a,  // A[m, k] = 0 for k > m
  upper_a,  // A[m, k] = 0 for k < m
  lower_c,  // only C[m, n] with n <= m is wanted; other entries of C are unspecified
};

template <class T>
struct Epilogue {
  T alpha = 1;                   // C = beta C + alpha diag(row_scale) A B
  T beta = 0;                    // 0: C is not read
  const T* row_scale = nullptr;  // (M), or null for ones
  Part part = Part::full;
  Prefetch* prefetch = nullptr;  // what to ask for meanwhile
  // With these, for alpha = beta = 1 and the full product: C += A B diag(column_scale) and
  // dots[n] += sum over m of (A B)[m, n] * dots_with[m, n]. (N), whole vectors; dots_with lies as C does.
  const T *column_scale = nullptr, *dots_with = nullptr;
  T* dots = nullptr;
};

}  // namespace loglinear
