#include "app/bench/row.hpp"

#include <algorithm>
#include <bit>
#include <charconv>

#include "base/error.hpp"

namespace loglinear::app::bench {
namespace {

struct Key {
  char name;
  std::int64_t Shape::*value;
  std::int64_t most;
};
constexpr Key kKeys[] = {{'B', &Shape::B, 1 << 16}, {'T', &Shape::T, 1 << 26}, {'H', &Shape::H, 1 << 12},
                         {'G', &Shape::G, 1 << 12}, {'K', &Shape::K, 1 << 12}, {'V', &Shape::V, 1 << 12},
                         {'L', &Shape::L, 64}};

}  // namespace

Shape parse_shape(const std::string& text) {
  constexpr const char* where = "bench --shape";
  Shape shape;
  std::string seen;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    const std::string item = text.substr(begin, end - begin);
    begin = end + 1;
    const auto key = std::find_if(std::begin(kKeys), std::end(kKeys),
                                  [&](const Key& k) { return item.size() > 1 && item[0] == k.name && item[1] == '='; });
    if (key == std::end(kKeys))
      fail_usage(where, "got \"{}\", need KEY=NUMBER with a key of B T H G K V L, as in T=4096,H=16", item);
    if (seen.find(key->name) != std::string::npos) fail_usage(where, "{} is given twice", key->name);
    seen += key->name;
    std::int64_t value = 0;
    const char *first = item.data() + 2, *last = item.data() + item.size();
    const auto [stop, error] = std::from_chars(first, last, value);
    if (error != std::errc() || stop != last || value < 1 || value > key->most)
      fail_usage(where, "{}: got \"{}\", need 1 to {}", key->name, std::string(first, last), key->most);
    shape.*(key->value) = value;
  }
  return shape;
}

Shape resolved(Shape s, Rule rule) {
  if (s.G == 0) s.G = has_beta(rule) ? s.H : 1;
  if (s.V == 0) s.V = has_beta(rule) ? 128 : 64;
  if (s.L == 0) s.L = std::bit_width(static_cast<std::uint64_t>(s.T)) + 1;
  if (s.H % s.G != 0) fail_usage("bench --shape", "got G = {} groups, which do not divide H = {} heads", s.G, s.H);
  return s;
}

double useful_work(Rule rule, const Shape& s) {
  const double K = static_cast<double>(s.K), V = static_cast<double>(s.V);
  const double per_head = static_cast<double>(s.G) / static_cast<double>(s.H);  // of products of queries and keys
  const int C = default_chunk(s.K, s.V);
  // Slots below `top` are whole blocks, the one at `top` takes in all that is older.
  const std::int64_t top = std::clamp<std::int64_t>(s.L - 2 - std::countr_zero(static_cast<unsigned>(C)), 0, 40);
  double work = 0;
  for (std::int64_t begin = 0; begin < s.T; begin += C) {
    const std::int64_t z = begin / C;
    const double c = static_cast<double>(std::min<std::int64_t>(C, s.T - begin));
    const bool last = begin + C >= s.T;  // nobody wants a state after it
    const std::int64_t whole = z & ((std::int64_t{1} << top) - 1);
    const double live = std::popcount(static_cast<std::uint64_t>(whole)) + (whole != z ? 1 : 0);
    work += c * c * (per_head * K + V) / 2 + live * c * K * V;
    if (!last) work += c * K * V;
    if (has_beta(rule)) {
      work += c * c * per_head * K / 2 + c * c * c / 3;
      if (live > 0) work += c * c * K / 2;
      // A live state is erased through W, or all of them through one K x K transition.
      if (!last) work += c * c * V / 2 + (live > 0 ? std::min(2 * live * c * K * V, c * K * K + live * K * K * V) : 0);
    }
  }
  return static_cast<double>(s.B * s.H) * work;
}

double useful_step_work(Rule rule, const Shape& s, int live) {
  return static_cast<double>(s.B * s.H * s.K * s.V) * (1 + (has_beta(rule) ? 3 : 1) * live);
}

const Bandwidth& Peaks::level_of(double bytes) const {
  for (const Bandwidth& level : memory)
    if (bytes <= level.capacity) return level;
  return memory.back();
}

}  // namespace loglinear::app::bench
