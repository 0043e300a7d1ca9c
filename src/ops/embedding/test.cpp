#include "loglinear/embedding.hpp"
#include "op_testing.hpp"

namespace loglinear::testing {
namespace {

template <class T>
class Embedding : public ::testing::Test {};
TYPED_TEST_SUITE(Embedding, Floats);

std::vector<std::int32_t> random_tokens(std::int64_t n, std::uint64_t vocab) {
  Random random(10, vocab);
  std::vector<std::int32_t> tokens;
  for (std::int64_t i = 0; i < n; ++i) tokens.push_back(static_cast<std::int32_t>(random.below(vocab)));
  return tokens;
}

TYPED_TEST(Embedding, gathers_and_adds_back) {
  using T = TypeParam;
  for (std::int64_t N : {0, 1, 300})
    for (std::int64_t width : {1, 64, 131}) {
      const std::int64_t vocab = 11;
      const auto tokens = random_tokens(N, vocab);
      Random random(11, 0);
      Grid<T> table(vocab, width), out(N, width), dtable(vocab, width);
      table.fill(random), dtable.fill(0.5);
      embedding_forward<T>(tokens, vocab, width, table.ptr(), out.ptr());
      Grid<double> want = converted<double>(dtable);
      for (std::int64_t n = 0; n < N; ++n)
        for (std::int64_t c = 0; c < width; ++c) {
          EXPECT_EQ(out(n, c), table(tokens[n], c));
          want(tokens[n], c) += out(n, c);
        }
      embedding_backward<T>(tokens, vocab, width, out.ptr(), dtable.ptr());
      expect_close(dtable, want, 4 * kBound<T>, "dtable");
    }
}

TYPED_TEST(Embedding, same_bits_for_any_number_of_threads) {
  using T = TypeParam;
  const auto tokens = random_tokens(4000, 7);
  Random random(12, 0);
  Grid<T> dout(4000, 300);
  dout.fill(random);
  expect_same_for_threads([&](int threads) {
    Grid<T> dtable(7, 300), out(4000, 300);
    dtable.fill(0.0);
    embedding_backward<T>(tokens, 7, 300, dout.ptr(), dtable.ptr(), threads);
    embedding_forward<T>(tokens, 7, 300, dtable.ptr(), out.ptr(), threads);
    return std::vector{dtable.data, out.data};
  });
}

TEST(Embedding, a_token_outside_the_vocabulary_is_refused_before_anything_is_written) {
  std::vector<float> table(20), out(8, 7.0f);
  for (std::int32_t bad : {-1, 5, 1 << 30}) {
    const std::vector<std::int32_t> tokens = {0, bad};
    expect_error([&] { embedding_forward<float>(tokens, 5, 4, table.data(), out.data()); }, "vocabulary");
    expect_error([&] { embedding_backward<float>(tokens, 5, 4, out.data(), table.data()); }, "vocabulary");
  }
  EXPECT_EQ(out, std::vector<float>(8, 7.0f));
  EXPECT_EQ(table, std::vector<float>(20));
  const std::vector<std::int32_t> tokens = {0};
  expect_error([&] { embedding_forward<float>(tokens, 5, 4, nullptr, out.data()); }, "null");
}

}  // namespace
}  // namespace loglinear::testing
