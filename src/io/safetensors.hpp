#pragma once
// The safetensors format: an 8-byte little-endian header length, a JSON header, then the tensors' bytes, row-major and
// little-endian, without gaps. Source: https://github.com/huggingface/safetensors (format section of its README).
//
// The reader believes nothing. Before anything is allocated from a number in the file, these are checked: header length
// against the file's size and 100 MB; UTF-8 and JSON syntax; keys given twice; dtypes; shapes (integers >= 0, product
// within 63 bits); byte ranges (inside the file, in sequence, no overlap, no hole, no bytes left over, length = product
// of the shape times element size). Every refusal is one loglinear::Error that names the file and the tensor.
//
// Files are read with pread, not mapped: a file that shrinks while it is open gives an Error, where a mapping would
// give a bus error.

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/file.hpp"

namespace loglinear::io {

// Element types of the format. name_of: "F32"; size_of: bytes of one element.
enum class Element { F64, F32, F16, BF16, F8_E5M2, F8_E4M3, F8_E8M0, C64, I64, I32, I16, I8, U64, U32, U16, U8, BOOL };
const char* name_of(Element element);
std::size_t size_of(Element element);
std::optional<Element> element_from_name(std::string_view name);
// F64, F32, F16 or BF16: what read_as converts.
bool is_float(Element element);

// IEEE half precision to float, exact for all 65536 values (a NaN stays a NaN).
float half_to_float(std::uint16_t bits);

struct TensorInfo {
  std::string name;
  Element element = Element::F32;
  std::vector<std::int64_t> shape;  // empty for a scalar; zeros allowed
  std::int64_t elements = 0;        // product of the shape
  std::uint64_t bytes = 0;          // elements * size_of(element)
  std::uint64_t offset = 0;         // of the first byte, from the beginning of its file
  std::size_t shard = 0;            // which file of a set, counted from 0
};

// "F32 (2, 3)", for messages.
std::string describe(const TensorInfo& tensor);

// One safetensors file, or a set of them behind an index, open for reading. Copies share the open files. All reading
// functions may be called from several threads at once.
class SafetensorsFile {
 public:
  // path: a .safetensors file; an index (*.index.json: {"weight_map": {tensor: file}}, every file beside the index;
  // names with a folder part are refused; index and files must agree on which tensor lies where); or a folder that
  // holds model.safetensors or model.safetensors.index.json. Reads and checks all headers, no tensor.
  static SafetensorsFile open(const Path& path);
  // The same for the bytes of one file in memory. `name` stands in for the path in messages.
  static SafetensorsFile from_bytes(std::string bytes, const std::string& name);

  // What messages call it: the path it was opened with.
  const std::string& name() const { return name_; }
  // "__metadata__" of the file (of the first file that has the key in a set).
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  // In the order of their bytes, file after file.
  const std::vector<TensorInfo>& tensors() const { return tensors_; }

  bool has(std::string_view tensor) const { return find(tensor) != nullptr; }
  // nullptr when there is no such tensor.
  const TensorInfo* find(std::string_view tensor) const;
  // Error when there is no such tensor.
  const TensorInfo& info(std::string_view tensor) const;
  // Error unless the tensor exists with exactly this shape.
  const TensorInfo& expect(std::string_view tensor, std::span<const std::int64_t> shape) const;

  // The elements of a float tensor (F64, F32, F16, BF16), converted: exact where the target is wider, rounded to
  // nearest from F64 to float (overflow gives infinity). T: float or double. Error for other types or when the file
  // cannot be read.
  template <class T>
  std::vector<T> read_as(std::string_view tensor) const;
  // The same into a place of the caller's. Error unless values.size() is the tensor's number of elements.
  template <class T>
  void read_into(std::string_view tensor, std::span<T> values) const;
  // The elements as they are in the file.
  std::vector<std::byte> bytes(std::string_view tensor) const;
  // The same into a place of the caller's. Error unless out.size() is the tensor's number of bytes.
  void bytes_into(std::string_view tensor, std::span<std::byte> out) const;

  struct Source;  // one open file or the bytes of one

 private:
  SafetensorsFile() = default;
  void add(std::shared_ptr<const Source> source);
  void read(const TensorInfo& tensor, std::uint64_t begin, void* out, std::size_t bytes) const;

  std::string name_;
  std::vector<std::shared_ptr<const Source>> sources_;
  std::map<std::string, std::string> metadata_;
  std::vector<TensorInfo> tensors_;
  std::map<std::string, std::size_t, std::less<>> by_name_;
};

// A tensor to be written. The bytes are the caller's and must stay until the call returns.
struct TensorView {
  std::string name;
  Element element = Element::F32;
  std::vector<std::int64_t> shape;
  std::span<const std::byte> bytes;
};

// A dense array as a view. T: double, float, bfloat16, int64_t, int32_t, uint8_t.
template <class T>
TensorView view_of(std::string name, std::vector<std::int64_t> shape, std::span<const T> values);

// Writes a file atomically (io/file.hpp), streaming. Wider elements come first so that every tensor is aligned to its
// element size, tensors of one width in the given order; the header is padded to 8 bytes with spaces. Equal arguments
// give equal bytes. Error on duplicate or empty names, "__metadata__" as a name, names or metadata that are not UTF-8,
// negative or overflowing shapes, and views whose size differs from their shape's; nothing is written then.
void write_safetensors(const Path& path, std::span<const TensorView> tensors,
                       const std::map<std::string, std::string>& metadata = {});
// The bytes of such a file, for tests and small files.
std::string safetensors_bytes(std::span<const TensorView> tensors,
                              const std::map<std::string, std::string>& metadata = {});

}  // namespace loglinear::io
