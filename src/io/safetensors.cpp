#include "io/safetensors.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>
#include <system_error>
#include <utility>

#include "base/error.hpp"
#include "io/config.hpp"
#include "io/utf8.hpp"
#include "loglinear/tensor.hpp"

namespace loglinear::io {

static_assert(std::endian::native == std::endian::little, "the format is little-endian, and so is this reader");

// Exactly one of fd and bytes is used.
struct SafetensorsFile::Source {
  std::string name;
  int fd = -1;
  std::string bytes;
  std::uint64_t size = 0;

  Source() = default;
  Source(const Source&) = delete;
  Source& operator=(const Source&) = delete;
  ~Source() {
    if (fd >= 0) ::close(fd);
  }

  void read(std::uint64_t begin, void* out, std::size_t count) const {
    if (fd < 0) {
      if (begin > bytes.size() || count > bytes.size() - begin) fail("safetensors", "{}: read past the end", name);
      if (count > 0) std::memcpy(out, bytes.data() + begin, count);
      return;
    }
    char* next = static_cast<char*>(out);
    while (count > 0) {
      const ssize_t n =
          ::pread(fd, next, std::min<std::size_t>(count, std::size_t{1} << 30), static_cast<off_t>(begin));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0)
        fail("safetensors", "cannot read {}: {}", name, std::error_code(errno, std::generic_category()).message());
      if (n == 0) fail("safetensors", "{}: the file became shorter while it was open", name);
      next += n;
      begin += static_cast<std::uint64_t>(n);
      count -= static_cast<std::size_t>(n);
    }
  }
};

namespace {

constexpr std::uint64_t kLargestHeader = 100'000'000;
constexpr std::size_t kMostDimensions = 64;
constexpr const char* kMetadata = "__metadata__";

struct ElementType {
  Element element;
  const char* name;
  std::size_t size;
};
constexpr ElementType kElements[] = {
    {Element::F64, "F64", 8},         {Element::F32, "F32", 4},         {Element::F16, "F16", 2},
    {Element::BF16, "BF16", 2},       {Element::F8_E5M2, "F8_E5M2", 1}, {Element::F8_E4M3, "F8_E4M3", 1},
    {Element::F8_E8M0, "F8_E8M0", 1}, {Element::C64, "C64", 8},         {Element::I64, "I64", 8},
    {Element::I32, "I32", 4},         {Element::I16, "I16", 2},         {Element::I8, "I8", 1},
    {Element::U64, "U64", 8},         {Element::U32, "U32", 4},         {Element::U16, "U16", 2},
    {Element::U8, "U8", 1},           {Element::BOOL, "BOOL", 1},
};

// Elements and bytes of a shape. False when a dimension is negative or the product of the dimensions (zeros left out,
// so that products of some of them are safe too) times the element size does not fit 63 bits.
bool measure(std::span<const std::int64_t> shape, std::size_t element_size, std::int64_t& elements,
             std::uint64_t& bytes) {
  std::int64_t product = 1, total = 0;
  bool zero = false;
  for (const std::int64_t d : shape) {
    if (d < 0) return false;
    if (d == 0) {
      zero = true;
    } else if (__builtin_mul_overflow(product, d, &product)) {
      return false;
    }
  }
  if (__builtin_mul_overflow(product, static_cast<std::int64_t>(element_size), &total)) return false;
  elements = zero ? 0 : product;
  bytes = zero ? 0 : static_cast<std::uint64_t>(total);
  return true;
}

std::string shape_text(std::span<const std::int64_t> shape) { return fmt::format("({})", fmt::join(shape, ", ")); }

// Checks the header as it is parsed. A SAX reader, because a DOM merges keys given twice and would first build whatever
// a 100 MB header asks for. Ranges are checked against each other afterwards, in check_ranges.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  struct Entry {
    TensorInfo info;
    std::uint64_t begin = 0, end = 0;
  };

  explicit HeaderReader(const std::string& file) : file_(file) {}

  std::vector<Entry> entries;
  std::map<std::string, std::string> metadata;

  bool null() override { unexpected("null"); }
  bool boolean(bool) override { unexpected("a boolean"); }
  bool number_float(double, const std::string& text) override { number_refused(text); }
  bool number_integer(std::int64_t value) override {
    if (value < 0) number_refused(std::to_string(value));
    return number_unsigned(static_cast<std::uint64_t>(value));
  }
  bool number_unsigned(std::uint64_t value) override {
    if (place_ == Place::shape) {
      if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
        refuse("a dimension of {} is too large", value);
      if (current_.info.shape.size() == kMostDimensions) refuse("more than {} dimensions", kMostDimensions);
      current_.info.shape.push_back(static_cast<std::int64_t>(value));
    } else if (place_ == Place::offsets) {
      if (offsets_ == 2) refuse("data_offsets has more than 2 numbers");
      (offsets_++ == 0 ? current_.begin : current_.end) = value;
    } else {
      unexpected("a number");
    }
    return true;
  }
  bool string(std::string& value) override {
    if (place_ == Place::metadata) {
      metadata[key_] = value;
    } else if (place_ == Place::tensor && key_ == "dtype") {
      const std::optional<Element> element = element_from_name(value);
      if (!element) refuse("unknown dtype {}", in_quotes(value));
      current_.info.element = *element;
    } else {
      unexpected("a text");
    }
    return true;
  }
  bool binary(binary_t&) override { unexpected("binary data"); }

  bool start_object(std::size_t) override {
    if (place_ == Place::outside) {
      place_ = Place::top;
    } else if (place_ == Place::top) {
      place_ = name_ == kMetadata ? Place::metadata : Place::tensor;
      fields_.clear();
      current_ = {};
      offsets_ = 0;
    } else {
      unexpected("an object");
    }
    return true;
  }
  bool key(std::string& value) override {
    if (place_ == Place::top) {
      name_ = value;
      if (!names_.insert(value).second) refuse("given twice");
      if (value.empty()) refuse("a tensor needs a name");
    } else {
      key_ = value;
      if (!fields_.insert(value).second) refuse("key {} given twice", in_quotes(value));
      if (place_ == Place::tensor && value != "dtype" && value != "shape" && value != "data_offsets")
        refuse("unknown key {}", in_quotes(value));
    }
    return true;
  }
  bool end_object() override {
    if (place_ == Place::tensor) {
      for (const char* field : {"dtype", "shape", "data_offsets"})
        if (!fields_.count(field)) refuse("{} is missing", field);
      TensorInfo& info = current_.info;
      info.name = name_;
      if (!measure(info.shape, size_of(info.element), info.elements, info.bytes))
        refuse("the shape {} is too large: its size overflows", shape_text(info.shape));
      if (current_.begin > current_.end) refuse("data_offsets out of order: {} to {}", current_.begin, current_.end);
      if (current_.end - current_.begin != info.bytes)
        refuse("{} needs {} bytes, data_offsets {} to {} give {}", describe(info), info.bytes, current_.begin,
               current_.end, current_.end - current_.begin);
      entries.push_back(std::move(current_));
    }
    place_ = place_ == Place::top ? Place::outside : Place::top;
    return true;
  }
  bool start_array(std::size_t) override {
    if (place_ != Place::tensor || key_ == "dtype") unexpected("a list");
    place_ = key_ == "shape" ? Place::shape : Place::offsets;
    return true;
  }
  bool end_array() override {
    if (place_ == Place::offsets && offsets_ != 2) refuse("data_offsets needs 2 numbers, got {}", offsets_);
    place_ = Place::tensor;
    return true;
  }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception&) override {
    fail("safetensors", "{}: the header is not valid JSON (at byte {} of the header)", file_, position);
  }

 private:
  enum class Place { outside, top, metadata, tensor, shape, offsets };

  template <class... Args>
  [[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) const {
    refuse_as(fmt::format(format, std::forward<Args>(args)...));
  }
  [[noreturn]] void refuse_as(const std::string& message) const {
    const std::string place = name_ == kMetadata ? kMetadata : "tensor " + in_quotes(name_);
    fail("safetensors", "{}: {}: {}", file_, place, message);
  }
  [[noreturn]] void number_refused(const std::string& text) const {
    if (place_ == Place::shape) refuse("the shape needs integers from 0 to 2^63 - 1, got {}", text);
    if (place_ == Place::offsets) refuse("data_offsets needs integers from 0 to 2^64 - 1, got {}", text);
    unexpected("a number");
  }
  [[noreturn]] void unexpected(const std::string& what) const {
    if (place_ == Place::outside) fail("safetensors", "{}: the header is {}, need an object", file_, what);
    if (place_ == Place::top) refuse_as("got " + what + ", need an object");
    if (place_ == Place::metadata) refuse_as(in_quotes(key_) + " is " + what + ", need a text");
    if (place_ != Place::tensor) refuse_as(key_ + " holds " + what + ", need integers");
    refuse_as(key_ + " is " + what + (key_ == "dtype" ? ", need a text" : ", need a list of integers"));
  }

  const std::string& file_;
  Place place_ = Place::outside;
  std::string name_, key_;
  std::set<std::string> names_, fields_;
  Entry current_;
  int offsets_ = 0;
};

// Sorts the tensors by place and checks that they fill the `size` bytes behind the header exactly.
void check_ranges(const std::string& file, std::uint64_t size, std::vector<HeaderReader::Entry>& entries) {
  std::stable_sort(entries.begin(), entries.end(),
                   [](const auto& a, const auto& b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
  std::uint64_t end = 0;
  const std::string* before = nullptr;
  for (const auto& entry : entries) {
    const std::string& name = entry.info.name;
    if (entry.end > size)
      fail("safetensors", "{}: tensor {}: ends at byte {} of the data, the file holds {} (truncated?)", file,
           in_quotes(name), entry.end, size);
    if (entry.begin < end)
      fail("safetensors", "{}: tensor {}: begins at byte {}, inside tensor {} that ends at {}", file, in_quotes(name),
           entry.begin, in_quotes(*before), end);
    if (entry.begin > end)
      fail("safetensors", "{}: tensor {}: begins at byte {}, which leaves a hole of {} bytes before it", file,
           in_quotes(name), entry.begin, entry.begin - end);
    end = entry.end;
    before = &name;
  }
  if (end != size)
    fail("safetensors", "{}: {} bytes follow the last tensor, which ends at byte {} of the data", file, size - end,
         end);
}

struct Header {
  std::vector<TensorInfo> tensors;
  std::map<std::string, std::string> metadata;
};

Header read_header(const SafetensorsFile::Source& source) {
  const std::string& file = source.name;
  std::uint64_t length = 0;
  if (source.size < sizeof(length))
    fail("safetensors", "{}: {} bytes are too few for a safetensors file", file, source.size);
  source.read(0, &length, sizeof(length));
  if (length > kLargestHeader)
    fail("safetensors", "{}: the header claims {} bytes, more than the {} allowed (not a safetensors file?)", file,
         length, kLargestHeader);
  if (length > source.size - sizeof(length))
    fail("safetensors", "{}: the header claims {} bytes, the file has {} after the length (truncated?)", file, length,
         source.size - sizeof(length));
  std::string text(length, '\0');
  source.read(sizeof(length), text.data(), length);
  if (text.empty() || text[0] != '{') fail("safetensors", "{}: the header does not begin with '{{'", file);

  HeaderReader reader(file);
  nlohmann::json::sax_parse(text, &reader);
  check_ranges(file, source.size - sizeof(length) - length, reader.entries);
  Header header{{}, std::move(reader.metadata)};
  for (auto& entry : reader.entries) {
    entry.info.offset = sizeof(length) + length + entry.begin;
    header.tensors.push_back(std::move(entry.info));
  }
  return header;
}

std::shared_ptr<SafetensorsFile::Source> open_source(const Path& path) {
  auto source = std::make_shared<SafetensorsFile::Source>();
  source->name = path.string();
  // Without O_NONBLOCK a pipe would make open() wait for a writer.
  source->fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  struct stat status;
  if (source->fd < 0 || ::fstat(source->fd, &status) != 0)
    fail("safetensors", "cannot open {}: {}", source->name, std::error_code(errno, std::generic_category()).message());
  if (S_ISDIR(status.st_mode)) fail("safetensors", "{} is a folder, need a file", source->name);
  if (!S_ISREG(status.st_mode)) fail("safetensors", "{} is not a regular file", source->name);
  source->size = static_cast<std::uint64_t>(status.st_size);
  return source;
}

// Which file holds which tensor, as an index says.
std::map<std::string, std::string> read_index(const Path& path) {
  const std::string file = path.string();
  const nlohmann::json index = parse_json(read_file(path, kLargestHeader), file);
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object())
    fail("safetensors", "{}: not an index: \"weight_map\" is missing or not an object", file);
  std::map<std::string, std::string> shard_of;
  for (const auto& [tensor, shard] : index["weight_map"].items()) {
    if (!shard.is_string()) fail("safetensors", "{}: tensor {}: need a file name", file, in_quotes(tensor));
    const std::string name = shard;
    // Names only: an index must not reach files outside its folder.
    if (name.empty() || name == "." || name == ".." || name.find_first_of(std::string_view("/\\\0", 3)) != name.npos)
      fail("safetensors", "{}: tensor {}: {} is not the name of a file beside the index", file, in_quotes(tensor),
           in_quotes(name));
    shard_of[tensor] = name;
  }
  if (shard_of.empty()) fail("safetensors", "{}: the index lists no tensor", file);
  return shard_of;
}

// Header and order of the tensors of a file to be written.
struct Layout {
  std::string head;  // length and header
  std::vector<std::size_t> order;
};

Layout layout(std::span<const TensorView> tensors, const std::map<std::string, std::string>& metadata) {
  const char* where = "safetensors.write";
  std::set<std::string_view> names;
  for (const TensorView& t : tensors) {
    if (t.name.empty()) fail(where, "a tensor needs a name");
    if (t.name == kMetadata || !is_utf8(t.name)) fail(where, "{} cannot be the name of a tensor", in_quotes(t.name));
    if (!names.insert(t.name).second) fail(where, "tensor {}: given twice", in_quotes(t.name));
    std::int64_t elements = 0;
    std::uint64_t bytes = 0;
    if (t.shape.size() > kMostDimensions || !measure(t.shape, size_of(t.element), elements, bytes))
      fail(where, "tensor {}: the shape {} is negative or too large", in_quotes(t.name), shape_text(t.shape));
    if (bytes != t.bytes.size())
      fail(where, "tensor {}: {} {} needs {} bytes, got {}", in_quotes(t.name), name_of(t.element), shape_text(t.shape),
           bytes, t.bytes.size());
  }
  for (const auto& [key, value] : metadata)
    if (!is_utf8(key) || !is_utf8(value)) fail(where, "metadata {}: not UTF-8", in_quotes(key));

  Layout result;
  result.order.resize(tensors.size());
  std::iota(result.order.begin(), result.order.end(), std::size_t{0});
  std::stable_sort(result.order.begin(), result.order.end(), [&](std::size_t a, std::size_t b) {
    return size_of(tensors[a].element) > size_of(tensors[b].element);
  });
  std::string header = "{";
  if (!metadata.empty()) header += fmt::format("\"{}\":{}", kMetadata, nlohmann::json(metadata).dump());
  std::uint64_t offset = 0;
  for (const std::size_t i : result.order) {
    const TensorView& t = tensors[i];
    const std::uint64_t end = offset + t.bytes.size();
    header +=
        fmt::format("{}{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}", header.size() > 1 ? "," : "",
                    nlohmann::json(t.name).dump(), name_of(t.element), fmt::join(t.shape, ","), offset, end);
    offset = end;
  }
  header += "}";
  header.append((8 - header.size() % 8) % 8, ' ');
  if (header.size() > kLargestHeader) fail(where, "the header would have {} bytes, too many", header.size());
  const std::uint64_t length = header.size();
  result.head.assign(reinterpret_cast<const char*>(&length), sizeof(length));
  result.head += header;
  return result;
}

// Allocates what a checked header asks for; a file may honestly hold more than the machine has memory.
template <class T>
std::vector<T> allocate(const std::string& file, const TensorInfo& tensor, std::uint64_t count) {
  try {
    return std::vector<T>(count);
  } catch (const std::bad_alloc&) {
  } catch (const std::length_error&) {
  }
  fail("safetensors", "{}: tensor {}: not enough memory for {}", file, in_quotes(tensor.name), describe(tensor));
}

template <class From, class To>
void convert(const std::byte* from, std::span<To> to) {
  for (std::size_t i = 0; i < to.size(); ++i) {
    From x;
    std::memcpy(&x, from + i * sizeof(From), sizeof(From));
    to[i] = static_cast<To>(x);
  }
}

struct Half {
  std::uint16_t bits;
  operator float() const { return half_to_float(bits); }
};

}  // namespace

const char* name_of(Element element) {
  for (const ElementType& type : kElements)
    if (type.element == element) return type.name;
  return "?";
}

std::size_t size_of(Element element) {
  for (const ElementType& type : kElements)
    if (type.element == element) return type.size;
  return 1;
}

std::optional<Element> element_from_name(std::string_view name) {
  for (const ElementType& type : kElements)
    if (name == type.name) return type.element;
  return std::nullopt;
}

bool is_float(Element element) {
  return element == Element::F64 || element == Element::F32 || element == Element::F16 || element == Element::BF16;
}

float half_to_float(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
  const std::uint32_t exponent = (bits >> 10) & 0x1fu, fraction = bits & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: fraction * 2^-24
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  const std::uint32_t wide = exponent == 31 ? 255 : exponent + (127 - 15);
  return std::bit_cast<float>(sign | wide << 23 | fraction << 13);
}

std::string describe(const TensorInfo& tensor) {
  return fmt::format("{} {}", name_of(tensor.element), shape_text(tensor.shape));
}

void SafetensorsFile::add(std::shared_ptr<const Source> source) {
  Header header = read_header(*source);
  for (TensorInfo& tensor : header.tensors) {
    tensor.shard = sources_.size();
    if (!by_name_.emplace(tensor.name, tensors_.size()).second)
      fail("safetensors", "{}: tensor {}: also in {}", source->name, in_quotes(tensor.name),
           sources_[info(tensor.name).shard]->name);
    tensors_.push_back(std::move(tensor));
  }
  metadata_.merge(header.metadata);
  sources_.push_back(std::move(source));
}

SafetensorsFile SafetensorsFile::open(const Path& path) {
  SafetensorsFile file;
  file.name_ = path.string();
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    const Path single = path / "model.safetensors", index = path / "model.safetensors.index.json";
    if (std::filesystem::exists(single, error)) return open(single);
    if (std::filesystem::exists(index, error)) return open(index);
    fail("safetensors", "{}: holds neither model.safetensors nor model.safetensors.index.json", file.name_);
  }
  if (!path.filename().string().ends_with(".index.json")) {
    file.add(open_source(path));
    return file;
  }

  const std::map<std::string, std::string> shard_of = read_index(path);
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : shard_of) shards.insert(shard);
  std::vector<std::string> names;
  for (const std::string& shard : shards) {
    file.add(open_source(path.parent_path() / shard));
    names.push_back(shard);
  }
  for (const auto& [tensor, shard] : shard_of)
    if (!file.has(tensor)) fail("safetensors", "{}: tensor {}: not in {}", file.name_, in_quotes(tensor), shard);
  for (const TensorInfo& tensor : file.tensors_) {
    const auto entry = shard_of.find(tensor.name);
    if (entry == shard_of.end() || entry->second != names[tensor.shard])
      fail("safetensors", "{}: tensor {}: is in {}, not where the index says", file.name_, in_quotes(tensor.name),
           names[tensor.shard]);
  }
  return file;
}

SafetensorsFile SafetensorsFile::from_bytes(std::string bytes, const std::string& name) {
  auto source = std::make_shared<Source>();
  source->name = name;
  source->size = bytes.size();
  source->bytes = std::move(bytes);
  SafetensorsFile file;
  file.name_ = name;
  file.add(std::move(source));
  return file;
}

const TensorInfo* SafetensorsFile::find(std::string_view tensor) const {
  const auto found = by_name_.find(tensor);
  return found == by_name_.end() ? nullptr : &tensors_[found->second];
}

const TensorInfo& SafetensorsFile::info(std::string_view tensor) const {
  const TensorInfo* found = find(tensor);
  if (!found) fail("safetensors", "{}: there is no tensor {}", name_, in_quotes(tensor));
  return *found;
}

const TensorInfo& SafetensorsFile::expect(std::string_view tensor, std::span<const std::int64_t> shape) const {
  const TensorInfo& found = info(tensor);
  if (!std::equal(shape.begin(), shape.end(), found.shape.begin(), found.shape.end()))
    fail("safetensors", "{}: tensor {}: got shape {}, need {}", name_, in_quotes(tensor), shape_text(found.shape),
         shape_text(shape));
  return found;
}

void SafetensorsFile::read(const TensorInfo& tensor, std::uint64_t begin, void* out, std::size_t bytes) const {
  sources_[tensor.shard]->read(tensor.offset + begin, out, bytes);
}

template <class T>
void SafetensorsFile::read_into(std::string_view tensor, std::span<T> values) const {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, double>);
  const TensorInfo& found = info(tensor);
  if (!is_float(found.element))
    fail("safetensors", "{}: tensor {}: got {}, need a float type (F64, F32, F16, BF16)", name_, in_quotes(tensor),
         name_of(found.element));
  if (values.size() != static_cast<std::uint64_t>(found.elements))
    fail("safetensors", "{}: tensor {}: holds {} elements, {} were asked for", name_, in_quotes(tensor), found.elements,
         values.size());
  if (found.element == (sizeof(T) == 4 ? Element::F32 : Element::F64))
    return read(found, 0, values.data(), values.size_bytes());
  const std::size_t size = size_of(found.element);
  std::vector<std::byte> block(std::min<std::size_t>(values.size(), std::size_t{1} << 17) * size);
  for (std::size_t begin = 0; begin < values.size();) {
    const std::span<T> part = values.subspan(begin, std::min(values.size() - begin, block.size() / size));
    read(found, begin * size, block.data(), part.size() * size);
    switch (found.element) {
      case Element::F64:
        convert<double>(block.data(), part);
        break;
      case Element::F32:
        convert<float>(block.data(), part);
        break;
      case Element::F16:
        convert<Half>(block.data(), part);
        break;
      default:
        convert<bfloat16>(block.data(), part);
    }
    begin += part.size();
  }
}
template void SafetensorsFile::read_into(std::string_view, std::span<float>) const;
template void SafetensorsFile::read_into(std::string_view, std::span<double>) const;

template <class T>
std::vector<T> SafetensorsFile::read_as(std::string_view tensor) const {
  const TensorInfo& found = info(tensor);
  if (!is_float(found.element)) read_into(tensor, std::span<T>());  // the error comes before the memory
  std::vector<T> values = allocate<T>(name_, found, static_cast<std::uint64_t>(found.elements));
  read_into(tensor, std::span<T>(values));
  return values;
}
template std::vector<float> SafetensorsFile::read_as(std::string_view) const;
template std::vector<double> SafetensorsFile::read_as(std::string_view) const;

std::vector<std::byte> SafetensorsFile::bytes(std::string_view tensor) const {
  const TensorInfo& found = info(tensor);
  std::vector<std::byte> out = allocate<std::byte>(name_, found, found.bytes);
  read(found, 0, out.data(), out.size());
  return out;
}

void SafetensorsFile::bytes_into(std::string_view tensor, std::span<std::byte> out) const {
  const TensorInfo& found = info(tensor);
  if (out.size() != found.bytes)
    fail("safetensors", "{}: tensor {}: holds {} bytes, {} were asked for", name_, in_quotes(tensor), found.bytes,
         out.size());
  read(found, 0, out.data(), out.size());
}

template <class T>
TensorView view_of(std::string name, std::vector<std::int64_t> shape, std::span<const T> values) {
  constexpr Element element = std::is_same_v<T, double>         ? Element::F64
                              : std::is_same_v<T, float>        ? Element::F32
                              : std::is_same_v<T, bfloat16>     ? Element::BF16
                              : std::is_same_v<T, std::int64_t> ? Element::I64
                              : std::is_same_v<T, std::int32_t> ? Element::I32
                                                                : Element::U8;
  return {std::move(name), element, std::move(shape), std::as_bytes(values)};
}
template TensorView view_of(std::string, std::vector<std::int64_t>, std::span<const double>);
template TensorView view_of(std::string, std::vector<std::int64_t>, std::span<const float>);
template TensorView view_of(std::string, std::vector<std::int64_t>, std::span<const bfloat16>);
template TensorView view_of(std::string, std::vector<std::int64_t>, std::span<const std::int64_t>);
template TensorView view_of(std::string, std::vector<std::int64_t>, std::span<const std::int32_t>);
template TensorView view_of(std::string, std::vector<std::int64_t>, std::span<const std::uint8_t>);

void write_safetensors(const Path& path, std::span<const TensorView> tensors,
                       const std::map<std::string, std::string>& metadata) {
  const Layout plan = layout(tensors, metadata);
  AtomicFile file(path);
  file.write(plan.head);
  for (const std::size_t i : plan.order) file.write(tensors[i].bytes);
  file.commit();
}

std::string safetensors_bytes(std::span<const TensorView> tensors, const std::map<std::string, std::string>& metadata) {
  const Layout plan = layout(tensors, metadata);
  std::string result = plan.head;
  for (const std::size_t i : plan.order)
    result.append(reinterpret_cast<const char*>(tensors[i].bytes.data()), tensors[i].bytes.size());
  return result;
}

}  // namespace loglinear::io
