// The operator over random shapes, strides, packed lengths, states and lies about them. Only loglinear::Error may come
// out, and then nothing may have been written; otherwise every element of every result is written and nothing beside
// it. Every array lies in memory of exactly the extent that its shape and strides span, so that the address sanitizer
// sees a step too far.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "loglinear/log_linear.hpp"

using namespace loglinear;

namespace {

// Decisions, drawn from the fuzzer's bytes; zeros when they are used up.
class Choices {
 public:
  Choices(const std::uint8_t* data, std::size_t size) : next_(data), end_(data + size) {}

  std::uint64_t bits(int bytes) {
    std::uint64_t x = 0;
    for (int i = 0; i < bytes && next_ != end_; ++i) x = x << 8 | *next_++;
    return x;
  }
  // Uniform enough in low .. high.
  std::int64_t in(std::int64_t low, std::int64_t high) {
    return low + static_cast<std::int64_t>(bits(1) % static_cast<std::uint64_t>(high - low + 1));
  }
  bool one_in(int n) { return bits(1) % n == static_cast<unsigned>(n - 1); }

 private:
  const std::uint8_t *next_, *end_;
};

std::int64_t odd_number(Choices& choose) {
  constexpr std::int64_t kOdd[] = {
      0,         1,        -1, 2, 3, 255, -5, std::int64_t{1} << 31, std::int64_t{1} << 40, std::int64_t{1} << 62,
      INT64_MAX, INT64_MIN};
  return kOdd[choose.in(0, std::size(kOdd) - 1)];
}

// Signalling: arithmetic never gives these, so what still has them was not written.
constexpr std::uint64_t kUnwritten64 = 0x7ff00000dead0000;
constexpr std::uint32_t kUnwritten32 = 0x7fa0dead;
constexpr std::uint16_t kUnwritten16 = 0x7fad;

struct Array {
  Tensor view;
  std::unique_ptr<std::byte[]> memory;
  std::vector<std::byte> before;

  template <class Visit>  // visit(byte offset of an element in memory)
  void each(const Visit& visit) const {
    std::int64_t at[Tensor::kMaxRank] = {};
    const std::int64_t size = static_cast<std::int64_t>(size_of(view.dtype));
    const std::int64_t origin = static_cast<std::byte*>(view.data) - memory.get();
    for (int d = 0; d < view.rank; ++d)
      if (view.shape[d] == 0) return;
    for (;;) {
      std::int64_t offset = 0;
      for (int d = 0; d < view.rank; ++d) offset += at[d] * view.stride[d];
      visit(origin + offset * size);
      int d = view.rank - 1;
      while (d >= 0 && ++at[d] == view.shape[d]) at[d--] = 0;
      if (d < 0) return;
    }
  }
};

void put_unwritten(std::byte* at, std::size_t size) {
  if (size == 8) std::memcpy(at, &kUnwritten64, 8);
  if (size == 4) std::memcpy(at, &kUnwritten32, 4);
  if (size == 2) std::memcpy(at, &kUnwritten16, 2);
}

bool is_unwritten(const std::byte* at, std::size_t size) {
  std::byte mark[8];
  put_unwritten(mark, size);
  return std::memcmp(at, mark, size) == 0;
}

// An array of that shape in some memory layout: outer dimensions in any order, with gaps, forwards or backwards. Inputs
// may repeat along a dimension (stride 0).
Array make_array(Choices& choose, std::vector<std::int64_t> shape, DType dtype, bool output) {
  Array a;
  a.view.dtype = dtype;
  a.view.rank = static_cast<int>(shape.size());
  for (int d = 0; d < a.view.rank; ++d) a.view.shape[d] = shape[d];
  // An array without elements has no memory, however wide it says it is.
  const bool empty = std::find(shape.begin(), shape.end(), 0) != shape.end();
  if (empty) std::fill(shape.begin(), shape.end(), 1);
  const int outer = a.view.rank - 1;
  std::vector<int> order(outer);
  std::iota(order.begin(), order.end(), 0);
  const bool plain = choose.one_in(2);
  if (!plain)
    for (int i = outer - 1; i > 0; --i) std::swap(order[i], order[choose.in(0, i)]);
  std::int64_t step = shape[outer] + (plain ? 0 : choose.in(0, 3));
  a.view.stride[outer] = 1;
  std::int64_t low = 0, high = shape[outer] - 1;
  for (int i = outer - 1; i >= 0; --i) {
    const int d = order[i];
    const bool backwards = !plain && choose.one_in(6), repeated = !plain && !output && choose.one_in(6);
    a.view.stride[d] = repeated ? 0 : backwards ? -step : step;
    (backwards ? low : high) += repeated ? 0 : (shape[d] - 1) * a.view.stride[d];
    if (!repeated) step = step * shape[d] + (plain ? 0 : choose.in(0, 2));
  }
  const std::size_t size = size_of(dtype);
  const std::size_t elements = static_cast<std::size_t>(high - low + 1);
  a.memory.reset(new std::byte[elements * size]);
  for (std::size_t i = 0; i < elements; ++i) put_unwritten(a.memory.get() + i * size, size);
  a.view.data = a.memory.get() - low * static_cast<std::int64_t>(size);
  if (output) a.before.assign(a.memory.get(), a.memory.get() + elements * size);
  return a;
}

enum class Values { tame, wild };

void fill(Array& a, std::uint64_t& random, Values values, double low, double high) {
  const std::size_t size = size_of(a.view.dtype);
  a.each([&](std::int64_t offset) {
    random = random * 6364136223846793005u + 1442695040888963407u;
    std::byte* at = a.memory.get() + offset;
    const std::uint64_t noise = random ^ random >> 29;
    if (values == Values::wild && noise % 8 == 0) {  // any bits: NaN, infinity, denormals, huge
      std::memcpy(at, reinterpret_cast<const std::byte*>(&noise), size);
      return;
    }
    const double x = low + (high - low) * static_cast<double>(random >> 11) * 0x1p-53;
    if (size == 8) std::memcpy(at, &x, 8);
    const float f = static_cast<float>(x);
    if (size == 4) std::memcpy(at, &f, 4);
    const bfloat16 b(f);
    if (size == 2) std::memcpy(at, &b, 2);
  });
}

// A state, usually of the right kind, at any position.
State make_state(Choices& choose, std::uint64_t& random, Rule rule, std::int64_t G, std::int64_t H, std::int64_t K,
                 std::int64_t V, DType dtype, int chunk, std::int64_t position) {
  if (choose.one_in(40)) rule = rule == Rule::scalar_decay ? Rule::gated_delta : Rule::scalar_decay;
  if (choose.one_in(40)) dtype = dtype == DType::f64 ? DType::f32 : DType::f64;
  if (choose.one_in(40)) H += 1;
  if (choose.one_in(40)) K += 1;
  if (choose.one_in(40)) V += 1;
  if (choose.one_in(40)) G = 1;
  if (chunk < 1 || chunk > 256 || (chunk & (chunk - 1)) != 0 || choose.one_in(40)) chunk = 0;
  State state(rule, H, K, V, dtype, chunk);
  if (choose.one_in(4)) state.allow_rollback();
  const auto fill = [&](Buffer& buffer) {
    for (std::size_t i = 0; i < buffer.size() / size_of(dtype); ++i) {
      random = random * 6364136223846793005u + 1442695040888963407u;
      const double x = static_cast<double>(random >> 11) * -0x1p-53;
      const float f = static_cast<float>(x);
      if (dtype == DType::f64) std::memcpy(buffer.data() + i * 8, &x, 8);
      if (dtype == DType::f32) std::memcpy(buffer.data() + i * 4, &f, 4);
    }
  };
  std::vector<State::Slot> slots;
  for (int bit = 62; bit >= 0 && std::int64_t{1} << bit >= state.chunk(); --bit) {
    if (!(position >> bit & 1)) continue;
    State::Slot slot{bit, std::make_shared<Buffer>(H * K * V * size_of(dtype)),
                     std::vector<double>(H, -0.25 * static_cast<double>(random >> 62))};
    fill(*slot.matrix);
    slots.push_back(std::move(slot));
  }
  std::shared_ptr<State::Open> open;
  if (position % state.chunk() != 0 && H % G == 0) {
    open = state.new_open(G);
    for (Buffer* rows : {&open->k, &open->v, &open->g, &open->beta}) fill(*rows);
  } else {
    position -= position % state.chunk();
  }
  state.assign(position, std::move(slots), open);
  return state;
}

std::int64_t make_position(Choices& choose) {
  switch (choose.in(0, 4)) {
    case 0:
      return 0;
    case 1:
      return choose.in(0, 255);
    case 2:
      return std::int64_t{1} << choose.in(0, 62);
    case 3:
      return (std::int64_t{1} << choose.in(1, 62)) - 1 - choose.in(0, 3) / 3;
    default:
      return static_cast<std::int64_t>(choose.bits(8) >> 1);
  }
}

// Changes what a view says of itself so that the call must notice, or so that less memory is read, never more. The lie
// about L is only ever a smaller one: nothing else says what L is.
void lie(Choices& choose, auto& view, bool is_scales) {
  if (view.rank == 0) return;
  switch (choose.in(0, 5)) {
    case 0:
      view.rank = static_cast<int>(choose.in(0, 5));
      break;
    case 1:
      view.dtype = static_cast<DType>(choose.in(0, 2));
      break;
    case 2:
      view.data = nullptr;
      break;
    case 3:
      view.stride[view.rank - 1] = choose.in(0, 1) ? 0 : -1;
      break;
    default: {
      const int d = static_cast<int>(choose.in(0, view.rank - 1));
      const std::int64_t n = odd_number(choose);
      view.shape[d] = is_scales && d == view.rank - 1 ? std::min(n, view.shape[d]) : n;
    }
  }
}

[[noreturn]] void wrong(const char* what) {
  std::fprintf(stderr, "fuzz_log_linear: %s\n", what);
  std::abort();
}

void expect_untouched(const std::vector<Array*>& outputs) {
  for (const Array* a : outputs)
    if (std::memcmp(a->memory.get(), a->before.data(), a->before.size()) != 0)
      wrong("written, though an error came out");
}

void expect_written(const std::vector<Array*>& outputs) {
  for (Array* a : outputs) {
    const std::size_t size = size_of(a->view.dtype);
    a->each([&](std::int64_t offset) {
      if (is_unwritten(a->memory.get() + offset, size)) wrong("an element was not written");
      put_unwritten(a->memory.get() + offset, size);
    });
  }
  expect_untouched(outputs);  // the elements taken back, everything else must be as before
}

bool all_finite(const Array& a) {
  bool finite = true;
  a.each([&](std::int64_t offset) {
    const std::byte* at = a.memory.get() + offset;
    double x = 0;
    float f = 0;
    bfloat16 b;
    if (a.view.dtype == DType::f64) std::memcpy(&x, at, 8);
    if (a.view.dtype == DType::f32) std::memcpy(&f, at, 4), x = f;
    if (a.view.dtype == DType::bf16) std::memcpy(&b, at, 2), x = static_cast<float>(b);
    finite = finite && std::isfinite(x);
  });
  return finite;
}

std::vector<std::byte> contents(const std::vector<Array>& arrays) {
  std::vector<std::byte> all;
  for (const Array& a : arrays) all.insert(all.end(), a.memory.get(), a.memory.get() + a.before.size());
  return all;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Choices choose(data, size);
  const int form = static_cast<int>(choose.in(0, 2));  // forward, backward, step
  const Rule rule = kRules[choose.in(0, std::size(kRules) - 1)];
  const DType dtype = static_cast<DType>(choose.in(0, 2));
  const DType wide = dtype == DType::f64 ? DType::f64 : DType::f32;
  const bool packed = form != 2 && choose.one_in(3), tokens = form != 2;
  const std::int64_t B = packed ? 1 : choose.in(choose.one_in(20) ? 0 : 1, 3);
  std::int64_t T = !tokens ? 1 : choose.one_in(4) ? choose.in(0, 140) : choose.in(0, 20);
  const std::int64_t G = choose.in(1, 3), H = G * choose.in(1, 3) + (choose.one_in(50) ? 1 : 0);
  std::int64_t K = choose.in(1, choose.one_in(4) ? 40 : 9), V = choose.in(1, choose.one_in(4) ? 40 : 9);
  std::int64_t L = choose.in(1, 10);
  // Old states may be sixty in number and each token may close a chunk: bounded, since what takes seconds is tried once
  // where a hundred others could be.
  T = std::min(T, std::max<std::int64_t>(50'000 / (std::max<std::int64_t>(B, 1) * H * K * V), 1));
  if (B * T == 0 && choose.one_in(8)) K = std::int64_t{1} << choose.in(3, 30);  // no memory behind it
  const Values values = choose.one_in(3) ? Values::wild : Values::tame;
  std::uint64_t random = choose.bits(2);

  const auto shape = [&](std::int64_t rows, std::int64_t width) {
    std::vector<std::int64_t> s = {B};
    if (tokens) s.push_back(T);
    s.push_back(rows);
    if (width > 0) s.push_back(width);
    return s;
  };
  Array q = make_array(choose, shape(G, K), dtype, false), k = make_array(choose, shape(G, K), dtype, false);
  Array v = make_array(choose, shape(H, V), dtype, false);
  Array g = make_array(choose, shape(H, 0), wide, false), beta = make_array(choose, shape(H, 0), wide, false);
  Array scales = make_array(choose, shape(H, L), wide, false), dout = make_array(choose, shape(H, V), dtype, false);
  fill(q, random, values, -1, 1), fill(k, random, values, -0.5, 0.5), fill(v, random, values, -1, 1);
  fill(g, random, values, -1, 0), fill(beta, random, values, 0, 1), fill(scales, random, values, 0, 1);
  fill(dout, random, values, -1, 1);

  std::vector<std::int64_t> cu_seqlens;
  std::int64_t N = B;
  if (packed) {
    cu_seqlens.push_back(0);
    N = choose.in(1, 4);
    for (std::int64_t i = 1; i < N; ++i) cu_seqlens.push_back(choose.in(0, std::min<std::int64_t>(T, 255)));
    cu_seqlens.push_back(T);
    std::sort(cu_seqlens.begin(), cu_seqlens.end());
    if (choose.one_in(8)) cu_seqlens[choose.in(0, N)] = odd_number(choose);
    if (choose.one_in(20)) cu_seqlens.pop_back();
    N = std::max<std::int64_t>(static_cast<std::int64_t>(cu_seqlens.size()) - 1, 0);
  }
  const int chunks[] = {0, 1, 2, 4, 8, 16, 64, 256, 3, -1, 512, INT32_MIN};
  const int chunk = chunks[choose.in(0, choose.one_in(8) ? 11 : 7)];
  const int threads = static_cast<int>(choose.in(choose.one_in(20) ? -1 : 0, 3));
  const log_linear::PastLast past_last = choose.one_in(8) ? log_linear::PastLast::refuse : log_linear::PastLast::share;
  const bool lying = choose.one_in(3);
  const std::int64_t victim = choose.in(0, 6);

  const bool small = K * V <= 4096;
  std::vector<State> initial, final_states;
  if (small && (form == 2 || choose.one_in(2)))
    for (std::int64_t n = choose.one_in(40) ? 1 : 0; n < N; ++n)
      initial.push_back(make_state(choose, random, rule, G, H, K, V, wide, chunk, make_position(choose)));
  const auto spoil = [&](auto& a, ConstTensor* extra) {
    if (!lying) return;
    ConstTensor* views[] = {&a.q, &a.k, &a.v, &a.g, &a.beta, &a.level_scales, extra ? extra : &a.q};
    lie(choose, *views[victim], victim == 5);
  };

  std::vector<Array> outputs;
  const auto output = [&](const std::vector<std::int64_t>& s, DType type) {
    outputs.push_back(make_array(choose, s, type, true));
    return outputs.back().view;
  };
  const auto written = [&] {
    std::vector<Array*> all;
    for (Array& a : outputs) all.push_back(&a);
    return all;
  };
  // Calls again with another number of threads. (The contract excepts heads with a NaN or infinity where bfloat16 is
  // multiplied.)
  const auto expect_same_bits = [&](auto& a, const auto& call) {
    const std::vector<std::byte> once = contents(outputs);
    a.threads = threads == 1 ? 3 : 1;
    call(a);
    const bool comparable = dtype != DType::bf16 || std::all_of(outputs.begin(), outputs.end(), all_finite);
    if (comparable && contents(outputs) != once) wrong("the bits depend on the number of threads");
  };
  try {
    if (form == 0) {
      log_linear::ForwardArgs a;
      a.rule = rule, a.q = q.view, a.k = k.view, a.v = v.view, a.g = g.view, a.level_scales = scales.view;
      if (has_beta(rule) != choose.one_in(50)) a.beta = beta.view;
      a.out = output(shape(H, V), dtype);
      a.cu_seqlens = cu_seqlens, a.initial_state = initial, a.chunk = chunk, a.threads = threads,
      a.past_last = past_last;
      if (small && choose.one_in(2)) final_states.resize(N + (choose.one_in(40) ? 1 : 0));
      a.final_state = final_states;
      spoil(a, nullptr);
      if (lying && victim == 6) lie(choose, a.out, false);
      log_linear::forward(a);
      if (!lying) {
        a.final_state = {};
        expect_same_bits(a, log_linear::forward);
        expect_written(written());
      }
      for (const State& state : final_states)
        if (state.heads() > 0 && (state.bytes() == 0) != (state.position() == 0)) wrong("a final state is hollow");
    } else if (form == 1) {
      log_linear::BackwardArgs a;
      a.rule = rule, a.q = q.view, a.k = k.view, a.v = v.view, a.g = g.view, a.level_scales = scales.view;
      a.dout = dout.view;
      if (has_beta(rule) != choose.one_in(50)) a.beta = beta.view;
      a.dq = output(shape(G, K), dtype), a.dk = output(shape(G, K), dtype), a.dv = output(shape(H, V), dtype);
      a.dg = output(shape(H, 0), wide), a.dlevel_scales = output(shape(H, L), wide);
      if (has_beta(rule)) a.dbeta = output(shape(H, 0), wide);
      a.cu_seqlens = cu_seqlens, a.initial_state = initial, a.chunk = chunk, a.threads = threads,
      a.past_last = past_last;
      std::vector<State> dfinal, dinitial;
      if (small && choose.one_in(2)) {
        for (std::int64_t n = 0; n < N; ++n) {
          const std::uint64_t begin = initial.size() == static_cast<std::size_t>(N) ? initial[n].position() : 0;
          const std::uint64_t length =
              packed ? static_cast<std::uint64_t>(cu_seqlens[n + 1]) - static_cast<std::uint64_t>(cu_seqlens[n]) : T;
          const std::uint64_t end = begin + length + (choose.one_in(40) ? 1 : 0);
          dfinal.push_back(
              make_state(choose, random, rule, G, H, K, V, wide, chunk, static_cast<std::int64_t>(end & INT64_MAX)));
        }
        a.dfinal_state = dfinal;
      }
      if (small && choose.one_in(2)) dinitial.resize(N);
      a.dinitial_state = dinitial;
      spoil(a, &a.dout);
      log_linear::backward(a);
      if (!lying) {
        a.dinitial_state = {};
        expect_same_bits(a, log_linear::backward);
        expect_written(written());
      }
    } else {
      log_linear::StepArgs a;
      a.rule = rule, a.q = q.view, a.k = k.view, a.v = v.view, a.g = g.view, a.level_scales = scales.view;
      if (has_beta(rule) != choose.one_in(50)) a.beta = beta.view;
      a.out = output(shape(H, V), dtype);
      const std::vector<State> forks = initial;  // must not change
      a.states = initial, a.threads = threads, a.past_last = past_last;
      spoil(a, nullptr);
      std::vector<std::vector<std::byte>> matrices;
      for (const State& fork : forks)
        for (const State::Slot& slot : fork.slots()) matrices.emplace_back(slot.matrix->begin(), slot.matrix->end());
      log_linear::step(a);
      if (!lying) expect_written(written());
      std::size_t i = 0;
      for (std::size_t n = 0; n < forks.size(); ++n) {
        if (initial[n].position() != forks[n].position() + 1) wrong("a step did not advance by one");
        for (const State::Slot& slot : forks[n].slots())
          if (!std::equal(slot.matrix->begin(), slot.matrix->end(), matrices[i++].begin()))
            wrong("a step wrote into a shared matrix");
      }
    }
  } catch (const Error&) {
    expect_untouched(written());
  }
  return 0;
}
