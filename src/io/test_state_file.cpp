#include <rapidcheck.h>

#include <cmath>

#include "io/state_file.hpp"
#include "io/testing.hpp"

namespace loglinear::io {
namespace {

constexpr int kChunk = 4;

// A state with arbitrary but reproducible contents.
State make_state(Rule rule, std::int64_t heads, std::int64_t key_width, std::int64_t value_width, DType dtype,
                 std::int64_t position) {
  State state(rule, heads, key_width, value_width, dtype, kChunk);
  std::vector<State::Slot> slots;
  std::uint64_t random = static_cast<std::uint64_t>(position) + 1;
  const auto next = [&] { return static_cast<double>((random = random * 6364136223846793005u + 1) >> 40) * 0x1p-24; };
  const auto fill = [&](Buffer& buffer) {
    for (std::size_t i = 0; i < buffer.size() / size_of(dtype); ++i) {
      if (dtype == DType::f64)
        reinterpret_cast<double*>(buffer.data())[i] = next() - 0.5;
      else
        reinterpret_cast<float*>(buffer.data())[i] = static_cast<float>(next() - 0.5);
    }
  };
  for (int bit = 62; bit >= 2; --bit) {
    if (!(position >> bit & 1)) continue;
    State::Slot slot;
    slot.bit = bit;
    const std::size_t elements = static_cast<std::size_t>(heads * key_width * value_width);
    slot.matrix = std::make_shared<Buffer>(elements * size_of(dtype));
    fill(*slot.matrix);
    for (std::int64_t h = 0; h < heads; ++h) slot.log_decay.push_back(-next());
    slots.push_back(std::move(slot));
  }
  std::shared_ptr<State::Open> open = state.new_open(heads);
  for (Buffer* rows : {&open->k, &open->v, &open->g, &open->beta}) fill(*rows);
  state.assign(position, std::move(slots), open);
  return state;
}

std::vector<std::byte> bytes_of(const Buffer& buffer) { return {buffer.begin(), buffer.end()}; }

// The rows in use of open tokens (heads, C, ...).
std::vector<std::byte> rows_of(const State& state, const Buffer& buffer) {
  std::vector<std::byte> rows;
  const std::size_t head = buffer.size() / static_cast<std::size_t>(state.heads());
  for (std::size_t h = 0; h < static_cast<std::size_t>(state.heads()) && head > 0; ++h)
    rows.insert(rows.end(), buffer.begin() + h * head,
                buffer.begin() + h * head + head / kChunk * static_cast<std::size_t>(state.open_tokens()));
  return rows;
}

void expect_equal(const State& a, const State& b) {
  EXPECT_EQ(a.rule(), b.rule());
  EXPECT_EQ(a.dtype(), b.dtype());
  EXPECT_EQ(a.heads(), b.heads());
  EXPECT_EQ(a.key_width(), b.key_width());
  EXPECT_EQ(a.value_width(), b.value_width());
  EXPECT_EQ(a.position(), b.position());
  EXPECT_EQ(a.chunk(), b.chunk());
  ASSERT_EQ(a.slots().size(), b.slots().size());
  for (std::size_t i = 0; i < a.slots().size(); ++i) {
    EXPECT_EQ(a.slots()[i].bit, b.slots()[i].bit);
    EXPECT_EQ(bytes_of(*a.slots()[i].matrix), bytes_of(*b.slots()[i].matrix));
    EXPECT_EQ(a.slots()[i].log_decay, b.slots()[i].log_decay);
  }
  ASSERT_EQ(a.open() != nullptr, b.open() != nullptr);
  if (!a.open()) return;
  EXPECT_EQ(a.open()->groups, b.open()->groups);
  for (Buffer State::Open::*rows : {&State::Open::k, &State::Open::v, &State::Open::g, &State::Open::beta})
    EXPECT_EQ(rows_of(a, (*a.open()).*rows), rows_of(b, (*b.open()).*rows));
}

TEST(StateFile, RoundTrip) {
  TestFolder folder;
  for (const Rule rule : kRules)
    for (const DType dtype : {DType::f32, DType::f64})
      for (const std::int64_t position : {std::int64_t{0}, std::int64_t{1}, std::int64_t{2}, std::int64_t{127},
                                          std::int64_t{1} << 62, (std::int64_t{1} << 40) + 5}) {
        const State state = make_state(rule, 3, 4, 5, dtype, position);
        save_state(state, folder / "s");
        expect_equal(load_state(folder / "s"), state);
        const std::string bytes = get(folder / "s");
        save_state(load_state(folder / "s"), folder / "s");
        EXPECT_EQ(get(folder / "s"), bytes);
      }
  EXPECT_EQ(folder.entries(), 1);
}

TEST(StateFile, SeveralInOneFile) {
  const State one = make_state(Rule::scalar_decay, 2, 3, 4, DType::f32, 11);
  const State two = make_state(Rule::gated_delta, 1, 2, 2, DType::f64, 4);
  std::vector<TensorView> tensors;
  std::map<std::string, std::string> metadata;
  std::vector<std::vector<std::byte>> memory;
  append_state(one, "layers.0.", tensors, metadata, memory);
  append_state(two, "layers.1.", tensors, metadata, memory);
  const SafetensorsFile file = SafetensorsFile::from_bytes(safetensors_bytes(tensors, metadata), "two");
  expect_equal(read_state(file, "layers.0."), one);
  expect_equal(read_state(file, "layers.1."), two);
  EXPECT_ERROR(read_state(file, "layers.2."), "metadata \"layers.2.format\" is missing");
}

// A saved state with one thing changed.
class LyingState : public ::testing::Test {
 protected:
  LyingState() { append_state(state_, "", tensors, metadata, memory_); }
  void expect_refused(const std::string& part) {
    write_safetensors(folder_ / "s", tensors, metadata);
    EXPECT_ERROR(load_state(folder_ / "s"), part);
    EXPECT_ERROR(load_state(folder_ / "s"), (folder_ / "s").string());
  }
  TensorView& tensor(const std::string& name) {
    for (TensorView& t : tensors)
      if (t.name == name) return t;
    throw std::runtime_error(name);
  }

  std::vector<TensorView> tensors;
  std::map<std::string, std::string> metadata;

 private:
  TestFolder folder_;
  std::vector<std::vector<std::byte>> memory_;
  const State state_ = make_state(Rule::scalar_decay, 2, 3, 4, DType::f32, 23);  // bits 4 and 2, three open tokens
};

TEST_F(LyingState, Metadata) {
  const auto original = metadata;
  const auto with = [&](const std::string& key, const std::string& value, const std::string& part) {
    SCOPED_TRACE(key + "=" + value);
    metadata = original;
    metadata[key] = value;
    expect_refused(part);
  };
  with("format", "else", "metadata \"format\" is \"else\"");
  with("version", "1", "metadata \"version\" is \"1\"");
  with("rule", "none", "metadata \"rule\" is \"none\"");
  with("dtype", "bf16", "metadata \"dtype\" is \"bf16\"");
  for (const char* bad : {"", "-1", "0x5", "5 ", " 5", "5.0", "9223372036854775808", "nan"})
    with("position", bad, "metadata \"position\"");
  for (const char* bad : {"0", "-2", "1152921504606846976", "99999999999999999999"})
    with("heads", bad, "metadata \"heads\"");
  with("position", "20", "metadata \"groups\"");
  with("position", "22", "got shape (2, 3, 3), need (2, 2, 3)");
  with("position", "19", "slots: got bits (4, 2)");
  with("position", "31", "slots: got bits (4, 2)");
  with("position", "9223372036854775807", "slots: got bits (4, 2)");
  for (const char* bad : {"", "0", "-1", "3", "512"}) with("chunk", bad, "metadata \"chunk\"");
  with("chunk", "1", "metadata \"groups\"");
  with("chunk", "8", "got shape (2, 3, 3), need (2, 7, 3)");
  for (const char* bad : {"0", "-1", "3"}) with("groups", bad, "metadata \"groups\"");
  with("groups", "1", "got shape (2, 3, 3), need (1, 3, 3)");
  with("heads", "1", "metadata \"groups\"");
  with("heads", "4", "got shape (2, 3, 4), need (4, 3, 4)");
  with("key_width", "4", "got shape (2, 3, 4), need (2, 4, 4)");
  with("value_width", "1048576", "need (2, 3, 1048576)");
  with("dtype", "f64", "got F32, need F64");
  with("colour", "blue", "unknown metadata \"colour\"");
  for (const auto& [key, value] : original) {
    metadata = original;
    metadata.erase(key);
    expect_refused("metadata \"" + key + "\" is missing");
  }
}

TEST_F(LyingState, Tensors) {
  const auto original = tensors;
  const std::vector<double> nan = {0.0, NAN}, infinite = {INFINITY, 0.0}, one = {0.0};
  tensor("slot.2.log_decay").bytes = std::as_bytes(std::span(nan));
  expect_refused("tensor \"slot.2.log_decay\": holds nan");
  tensor("slot.2.log_decay").bytes = std::as_bytes(std::span(infinite));
  expect_refused("tensor \"slot.2.log_decay\": holds inf");
  tensors = original;
  tensor("slot.4.log_decay") = view_of<double>("slot.4.log_decay", {1}, one);
  expect_refused("got shape (1), need (2)");
  tensors = original;
  tensor("slot.4.log_decay").element = Element::I64;
  expect_refused("got I64, need F64");
  tensors = original;
  tensor("slot.4.matrix").name = "slot.3.matrix";
  expect_refused("there is no tensor \"slot.3.log_decay\"");
  tensors = original;
  tensor("open.v").name = "open.w";
  expect_refused("there is no tensor \"open.v\"");
  tensors = original;
  tensors.push_back(view_of<double>("open.w", {1}, one));
  expect_refused("a state at position 23 has no such tensor");
  tensors = original;
  tensors.push_back(view_of<double>("extra", {1}, one));
  expect_refused("unknown tensor \"extra\"");
}

TEST(StateFile, Errors) {
  TestFolder folder;
  EXPECT_ERROR(load_state(folder / "none"), "No such file");
  EXPECT_ERROR(save_state(State(), folder / "s"), "the state is empty");
  EXPECT_ERROR(save_state(make_state(Rule::scalar_decay, 1, 1, 1, DType::f32, 1), folder / "none/s"), "No such file");
  EXPECT_ERROR(save_state(make_state(Rule::scalar_decay, 1, 1, 1, DType::f32, 1), "/dev/full"), "No space left");
  EXPECT_EQ(folder.entries(), 0);
}

TEST(StateFileProperty, AnyPosition) {
  EXPECT_TRUE(rc::check([](std::uint64_t position, bool wide) {
    const State state = make_state(Rule::gated_delta, 2, 1, 3, wide ? DType::f64 : DType::f32,
                                   static_cast<std::int64_t>(position >> 1));
    std::vector<TensorView> tensors;
    std::map<std::string, std::string> metadata;
    std::vector<std::vector<std::byte>> memory;
    append_state(state, "p.", tensors, metadata, memory);
    expect_equal(read_state(SafetensorsFile::from_bytes(safetensors_bytes(tensors, metadata), "m"), "p."), state);
  }));
}

}  // namespace
}  // namespace loglinear::io
