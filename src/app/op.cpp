#include "app/op.hpp"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <span>

#include "base/error.hpp"
#include "base/parallel.hpp"
#include "io/safetensors.hpp"
#include "ops/log_linear/ref.hpp"

namespace loglinear::app {

const char* name_of(Form form) {
  switch (form) {
    case Form::ref:
      return "ref";
    case Form::chunk:
      return "chunk";
    case Form::step:
      return "step";
  }
  return "?";
}

std::optional<Form> form_from_name(std::string_view name) {
  for (const Form form : {Form::ref, Form::chunk, Form::step})
    if (name == name_of(form)) return form;
  return std::nullopt;
}

namespace {

using Shape = std::vector<std::int64_t>;

// A dense array, (B, T, ..).
struct Array {
  DType dtype = DType::f32;
  Shape shape;
  std::vector<std::byte> bytes;

  Array() = default;
  Array(DType type, Shape dims) : dtype(type), shape(std::move(dims)) {
    std::size_t n = size_of(dtype);
    for (const std::int64_t d : shape) n *= static_cast<std::size_t>(d);
    bytes.resize(n);
  }
  bool present() const { return !shape.empty(); }

  template <class T>
  T* data() {
    return reinterpret_cast<T*>(bytes.data());
  }

  // Tokens [begin, end) of axis 1 as a view; an absent array gives an absent view.
  Tensor tokens(std::int64_t begin, std::int64_t end) {
    Tensor t;
    if (!present()) return t;
    t.dtype = dtype;
    t.rank = static_cast<int>(shape.size());
    std::int64_t stride = 1;
    for (int d = t.rank - 1; d >= 0; --d) {
      t.shape[d] = shape[d];
      t.stride[d] = stride;
      stride *= shape[d];
    }
    t.shape[1] = end - begin;
    t.data = bytes.data() + static_cast<std::size_t>(begin * t.stride[1]) * size_of(dtype);
    return t;
  }

  // One token of a range of sequences, without the axis T: what step reads.
  Tensor token(std::int64_t t, std::int64_t first_sequence, std::int64_t sequences) {
    Tensor whole = tokens(t, t + 1), one = whole;
    if (!present()) return one;
    one.rank = whole.rank - 1;
    one.data = static_cast<std::byte*>(whole.data) +
               static_cast<std::size_t>(first_sequence * whole.stride[0]) * size_of(dtype);
    one.shape = {sequences, whole.shape[2], whole.shape[3], 0};
    one.stride = {whole.stride[0], whole.stride[2], whole.stride[3], 0};
    return one;
  }
};

// Everything of one run.
struct Problem {
  Rule rule = Rule::scalar_decay;
  DType dtype = DType::f32;  // of q k v do
  std::int64_t B = 0, T = 0, G = 0, H = 0, K = 0, V = 0, L = 0, N = 0;
  std::vector<std::int64_t> cu_seqlens;        // empty, or (N + 1)
  std::vector<std::int64_t> cuts;              // 0, the split points, T
  Array q, k, v, g, beta, level_scales, dout;  // inputs; beta and dout may be absent
  Array out, dq, dk, dv, dg, dbeta, dlevel_scales;
};

// The bfloat16 nearest to x, rounded once: by way of the float that is nearest with ties broken to odd, because
// rounding to nearest twice can go wrong.
bfloat16 nearest_bfloat16(double x) {
  const float nearest = static_cast<float>(x);
  if (!std::isfinite(nearest) || static_cast<double>(nearest) == x) return bfloat16(nearest);
  std::uint32_t bits = std::bit_cast<std::uint32_t>(nearest);
  if (std::fabs(static_cast<double>(nearest)) > std::fabs(x)) --bits;  // toward zero
  return bfloat16(std::bit_cast<float>(bits | 1u));
}

[[noreturn]] void refuse_value(const io::SafetensorsFile& file, const std::string& name, const Shape& shape,
                               std::size_t i, double value, const char* why) {
  std::string place;
  for (std::size_t d = shape.size(); d-- > 0;) {
    const auto size = static_cast<std::size_t>(shape[d]);
    place = std::to_string(i % size) + (place.empty() ? "" : ", ") + place;
    i /= size;
  }
  fail("op", "{}: tensor \"{}\" is {} at ({}): {}", file.name(), name, value, place, why);
}

// A float tensor, converted, all values finite.
Array load(const io::SafetensorsFile& file, const std::string& name, const Shape& shape, DType dtype) {
  const io::TensorInfo& info = file.expect(name, shape);
  if (!io::is_float(info.element))
    fail("op", "{}: tensor \"{}\" has type {}, need a float type", file.name(), name, io::name_of(info.element));
  Array array(dtype, shape);
  const auto n = static_cast<std::size_t>(info.elements);
  const std::vector<double> values = file.read_as<double>(name);
  for (std::size_t i = 0; i < n; ++i) {
    const double x = values[i];
    double stored = x;
    if (dtype == DType::f64) {
      array.data<double>()[i] = x;
    } else if (dtype == DType::f32) {
      stored = array.data<float>()[i] = static_cast<float>(x);
    } else {
      const bfloat16 rounded = nearest_bfloat16(x);
      array.data<bfloat16>()[i] = rounded;
      stored = static_cast<double>(rounded);
    }
    if (!std::isfinite(x)) refuse_value(file, name, shape, i, x, "need finite values");
    if (!std::isfinite(stored))
      refuse_value(file, name, shape, i, x, dtype == DType::f32 ? "too large for f32" : "too large for bf16");
  }
  if (name == "g")
    for (std::size_t i = 0; i < n; ++i)
      if (!(values[i] <= 0)) refuse_value(file, name, shape, i, values[i], "a log decay must be <= 0");
  return array;
}

Shape shape_of(const io::SafetensorsFile& file, const std::string& name, std::size_t rank, const char* letters) {
  const io::TensorInfo* info = file.find(name);
  if (info == nullptr) fail("op", "{}: no tensor \"{}\"", file.name(), name);
  if (info->shape.size() != rank)
    fail("op", "{}: tensor \"{}\" is {}, need shape {}", file.name(), name, io::describe(*info), letters);
  return info->shape;
}

void read_cu_seqlens(const io::SafetensorsFile& file, Problem& p) {
  const io::TensorInfo& info = file.info("cu_seqlens");
  const bool wide = info.element == io::Element::I64;
  if (!wide && info.element != io::Element::I32)
    fail("op", "{}: tensor \"cu_seqlens\" has type {}, need I64 or I32", file.name(), io::name_of(info.element));
  if (info.shape.size() != 1 || info.elements < 2)
    fail("op", "{}: tensor \"cu_seqlens\" is {}, need shape (N + 1) with N >= 1", file.name(), io::describe(info));
  if (p.B != 1) fail("op", "{}: cu_seqlens packs sequences into B = 1, but q has B = {}", file.name(), p.B);
  const std::vector<std::byte> bytes = file.bytes("cu_seqlens");
  for (std::int64_t i = 0; i < info.elements; ++i) {
    std::int64_t value = 0;
    if (wide) {
      std::memcpy(&value, bytes.data() + i * 8, 8);
    } else {
      std::int32_t narrow = 0;
      std::memcpy(&narrow, bytes.data() + i * 4, 4);
      value = narrow;
    }
    const std::int64_t before = p.cu_seqlens.empty() ? 0 : p.cu_seqlens.back();
    if (i == 0 && value != 0) fail("op", "{}: cu_seqlens begins with {}, need 0", file.name(), value);
    if (value < before || value > p.T)
      fail("op", "{}: cu_seqlens[{}] is {}, need {} (the one before it) to {} (T)", file.name(), i, value, before, p.T);
    p.cu_seqlens.push_back(value);
  }
  if (p.cu_seqlens.back() != p.T)
    fail("op", "{}: cu_seqlens ends with {}, need T = {}", file.name(), p.cu_seqlens.back(), p.T);
  p.N = info.elements - 1;
}

// Widths so large that the states alone do not fit are refused here: a small file can ask for them.
void check_memory(const io::SafetensorsFile& file, const Problem& p, const OpSettings& settings) {
  const double machine = static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGE_SIZE));
  const double matrix = static_cast<double>(p.K) * static_cast<double>(p.V) * (p.dtype == DType::f64 ? 8 : 4);
  const double levels = std::bit_width(static_cast<std::uint64_t>(p.T)) + 1;
  const bool keeps_states = settings.form == Form::step || p.cuts.size() > 2;
  const double heads = keeps_states ? static_cast<double>(p.H) * static_cast<double>(p.N)
                                    : std::min<double>(thread_count(settings.threads), static_cast<double>(p.H));
  const double chunk = settings.chunk > 0 ? settings.chunk : default_chunk(p.K, p.V);  // its tokens are kept as well
  const double tokens = chunk * (static_cast<double>(p.K + p.V) + chunk) * (p.dtype == DType::f64 ? 8 : 4);
  const double need = (matrix * levels + tokens) * heads;
  // (256 bytes a sequence stand for what a State itself takes)
  if (!(need + 256.0 * static_cast<double>(p.N) < machine / 2))
    fail("op", "{}: B = {}, H = {}, K = {}, V = {} need {:.1f} GiB of states; the machine has {:.1f} GiB", file.name(),
         p.B, p.H, p.K, p.V, need / (1 << 30), machine / (1 << 30));
}

Problem read_problem(const OpSettings& settings, OpReport& report) {
  const io::SafetensorsFile file = io::SafetensorsFile::open(settings.in);
  constexpr std::array<std::string_view, 15> kKnown = {
      "q", "k",  "v",  "g",  "beta", "level_scales", "cu_seqlens",   "do",
      "o", "dq", "dk", "dv", "dg",   "dbeta",        "dlevel_scales"};
  for (const io::TensorInfo& info : file.tensors())
    if (std::find(kKnown.begin(), kKnown.end(), info.name) == kKnown.end())
      fail("op", "{}: unknown tensor \"{}\"; known: q k v g level_scales beta cu_seqlens do (and results, ignored)",
           file.name(), info.name);

  Problem p;
  const Shape q = shape_of(file, "q", 4, "(B, T, G, K)"), v = shape_of(file, "v", 4, "(B, T, H, V)"),
              scales = shape_of(file, "level_scales", 4, "(B, T, H, L)");
  p.B = q[0], p.T = q[1], p.G = q[2], p.K = q[3], p.H = v[2], p.V = v[3], p.L = scales[3];
  const std::pair<const char*, std::int64_t> sizes[] = {{"B", p.B}, {"G", p.G}, {"H", p.H},
                                                        {"K", p.K}, {"V", p.V}, {"L", p.L}};
  for (const auto& [letter, size] : sizes)
    if (size < 1 || size > std::int64_t{1} << 31)
      fail("op", "{}: {} is {}, need at least 1", file.name(), letter, size);
  if (p.H % p.G != 0) fail("op", "{}: G = {} does not divide H = {}", file.name(), p.G, p.H);

  p.rule = settings.rule.value_or(file.has("beta") ? Rule::gated_delta : Rule::scalar_decay);
  if (has_beta(p.rule) && !file.has("beta"))
    fail("op", "{}: no tensor \"beta\", which the rule {} needs", file.name(), name_of(p.rule));
  if (!has_beta(p.rule) && file.has("beta"))
    report.notes.push_back(std::string("beta ignored: the rule ") + name_of(p.rule) + " has none");

  const io::Element element = file.info("q").element;
  p.dtype = settings.dtype.value_or(element == io::Element::F64    ? DType::f64
                                    : element == io::Element::BF16 ? DType::bf16
                                                                   : DType::f32);
  const DType wide = p.dtype == DType::f64 ? DType::f64 : DType::f32;

  p.N = p.B;
  if (file.has("cu_seqlens")) read_cu_seqlens(file, p);
  p.cuts = {0};
  for (const std::int64_t cut : settings.split) {
    if (cut < p.cuts.back() || cut > p.T)
      fail_usage("op", "split: got {}, need {} to {} (in order, within T = {})", cut, p.cuts.back(), p.T, p.T);
    p.cuts.push_back(cut);
  }
  p.cuts.push_back(p.T);
  check_memory(file, p, settings);

  p.q = load(file, "q", {p.B, p.T, p.G, p.K}, p.dtype);
  p.k = load(file, "k", {p.B, p.T, p.G, p.K}, p.dtype);
  p.v = load(file, "v", {p.B, p.T, p.H, p.V}, p.dtype);
  p.g = load(file, "g", {p.B, p.T, p.H}, wide);
  p.level_scales = load(file, "level_scales", {p.B, p.T, p.H, p.L}, wide);
  if (has_beta(p.rule)) p.beta = load(file, "beta", {p.B, p.T, p.H}, wide);
  p.out = Array(p.dtype, p.v.shape);
  if (!file.has("do")) return p;
  if (settings.form == Form::step) {
    report.notes.push_back("no gradients: the form step has no backward (chunk and ref have one)");
    return p;
  }
  p.dout = load(file, "do", {p.B, p.T, p.H, p.V}, p.dtype);
  p.dq = Array(p.dtype, p.q.shape);
  p.dk = Array(p.dtype, p.k.shape);
  p.dv = Array(p.dtype, p.v.shape);
  p.dg = Array(wide, p.g.shape);
  p.dlevel_scales = Array(wide, p.level_scales.shape);
  if (has_beta(p.rule)) p.dbeta = Array(wide, p.beta.shape);
  return p;
}

// cu_seqlens of the tokens [begin, end) of the packed axis: every sequence's part, possibly empty.
std::vector<std::int64_t> cut_seqlens(const Problem& p, std::int64_t begin, std::int64_t end) {
  std::vector<std::int64_t> part;
  for (const std::int64_t n : p.cu_seqlens) part.push_back(std::clamp(n, begin, end) - begin);
  return part;
}

void run_steps(Problem& p, const OpSettings& settings, std::span<State> states, std::int64_t begin, std::int64_t end) {
  const auto step = [&](std::int64_t t, std::int64_t sequence, std::int64_t sequences, std::span<State> of) {
    log_linear::StepArgs args;
    args.rule = p.rule;
    args.q = p.q.token(t, sequence, sequences);
    args.k = p.k.token(t, sequence, sequences);
    args.v = p.v.token(t, sequence, sequences);
    args.g = p.g.token(t, sequence, sequences);
    args.beta = p.beta.token(t, sequence, sequences);
    args.level_scales = p.level_scales.token(t, sequence, sequences);
    args.out = p.out.token(t, sequence, sequences);
    args.states = of;
    args.past_last = settings.past_last;
    args.threads = settings.threads;
    log_linear::step(args);
  };
  if (p.cu_seqlens.empty()) {
    for (std::int64_t t = begin; t < end; ++t) step(t, 0, p.B, states);
    return;
  }
  for (std::int64_t n = 0; n < p.N; ++n)
    for (std::int64_t t = std::max(begin, p.cu_seqlens[n]); t < std::min(end, p.cu_seqlens[n + 1]); ++t)
      step(t, 0, 1, states.subspan(static_cast<std::size_t>(n), 1));
}

// Forward piece by piece; returns the states in which each piece began.
std::vector<std::vector<State>> run_forward(Problem& p, const OpSettings& settings) {
  const std::size_t pieces = p.cuts.size() - 1;
  const DType state_dtype = p.dtype == DType::f64 ? DType::f64 : DType::f32;
  const State empty(p.rule, p.H, p.K, p.V, state_dtype, settings.chunk);
  std::vector<State> states(static_cast<std::size_t>(p.N), empty);
  std::vector<std::vector<State>> began;
  for (std::size_t i = 0; i < pieces; ++i) {
    const std::int64_t begin = p.cuts[i], end = p.cuts[i + 1];
    if (pieces > 1) began.push_back(states);
    if (settings.form == Form::step) {
      run_steps(p, settings, states, begin, end);
      continue;
    }
    const std::vector<std::int64_t> cu_seqlens = cut_seqlens(p, begin, end);
    log_linear::ForwardArgs args;
    args.rule = p.rule;
    args.q = p.q.tokens(begin, end);
    args.k = p.k.tokens(begin, end);
    args.v = p.v.tokens(begin, end);
    args.g = p.g.tokens(begin, end);
    args.beta = p.beta.tokens(begin, end);
    args.level_scales = p.level_scales.tokens(begin, end);
    args.out = p.out.tokens(begin, end);
    args.cu_seqlens = cu_seqlens;
    if (pieces > 1) args.initial_state = states, args.final_state = states;
    args.past_last = settings.past_last;
    args.chunk = settings.chunk;
    args.threads = settings.threads;
    settings.form == Form::ref ? log_linear::ref_forward(args) : log_linear::forward(args);
  }
  return began;
}

void run_backward(Problem& p, const OpSettings& settings, const std::vector<std::vector<State>>& began) {
  const std::size_t pieces = p.cuts.size() - 1;
  std::vector<State> dstate, dbefore(static_cast<std::size_t>(p.N));  // after the piece at hand, and before it
  for (std::size_t i = pieces; i-- > 0;) {
    const std::int64_t begin = p.cuts[i], end = p.cuts[i + 1];
    const std::vector<std::int64_t> cu_seqlens = cut_seqlens(p, begin, end);
    log_linear::BackwardArgs args;
    args.rule = p.rule;
    args.q = p.q.tokens(begin, end);
    args.k = p.k.tokens(begin, end);
    args.v = p.v.tokens(begin, end);
    args.g = p.g.tokens(begin, end);
    args.beta = p.beta.tokens(begin, end);
    args.level_scales = p.level_scales.tokens(begin, end);
    args.dout = p.dout.tokens(begin, end);
    args.dq = p.dq.tokens(begin, end);
    args.dk = p.dk.tokens(begin, end);
    args.dv = p.dv.tokens(begin, end);
    args.dg = p.dg.tokens(begin, end);
    args.dbeta = p.dbeta.tokens(begin, end);
    args.dlevel_scales = p.dlevel_scales.tokens(begin, end);
    args.cu_seqlens = cu_seqlens;
    if (pieces > 1) {
      args.initial_state = began[i];
      args.dfinal_state = dstate;  // none after the last piece
      args.dinitial_state = dbefore;
    }
    args.past_last = settings.past_last;
    args.chunk = settings.chunk;
    args.threads = settings.threads;
    settings.form == Form::ref ? log_linear::ref_backward(args) : log_linear::backward(args);
    dstate = dbefore;
  }
}

void check(const OpSettings& settings) {
  if (settings.threads < 0 || settings.threads > 4096)
    fail_usage("op", "threads: got {}, need 0 (all cores) to 4096", settings.threads);
  if (settings.chunk < 0 || settings.chunk > 256 ||
      (settings.chunk > 0 && !std::has_single_bit(static_cast<unsigned>(settings.chunk))))
    fail_usage("op", "chunk: got {}, need a power of two up to 256 (0 chooses)", settings.chunk);
  std::error_code ignored;
  if (std::filesystem::equivalent(settings.in, settings.out, ignored))
    fail_usage("op", "out: {} is the input, which would be lost", settings.out.string());
}

}  // namespace

OpReport run_op(const OpSettings& settings) {
  check(settings);
  OpReport report;
  Problem p = read_problem(settings, report);
  report.rule = p.rule;
  report.dtype = p.dtype;
  const std::vector<std::vector<State>> began = run_forward(p, settings);
  if (p.dout.present()) run_backward(p, settings, began);

  std::vector<io::TensorView> views;
  const auto add = [&](const char* name, const Array& array) {
    if (!array.present()) return;
    const io::Element element = array.dtype == DType::f64   ? io::Element::F64
                                : array.dtype == DType::f32 ? io::Element::F32
                                                            : io::Element::BF16;
    views.push_back({name, element, array.shape, array.bytes});
    report.written.push_back(name);
  };
  add("o", p.out);
  add("dq", p.dq);
  add("dk", p.dk);
  add("dv", p.dv);
  add("dg", p.dg);
  add("dbeta", p.dbeta);
  add("dlevel_scales", p.dlevel_scales);
  io::write_safetensors(settings.out, views,
                        {{"format", "loglinear.op"}, {"rule", name_of(p.rule)}, {"form", name_of(settings.form)}});
  return report;
}

}  // namespace loglinear::app
