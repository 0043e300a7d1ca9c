// The reader over any bytes, as the file they claim to be and as a saved state: loglinear::Error may come out, nothing
// else, and memory in proportion to the input.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "io/safetensors.hpp"
#include "io/state_file.hpp"
#include "loglinear/error.hpp"

using namespace loglinear;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  // Most headers of random length would be refused by their length alone. So an input that begins with a brace is taken
  // as header and data: the header ends at its first newline (which the format does not allow there in any other role).
  std::string bytes(reinterpret_cast<const char*>(data), size);
  if (size > 0 && data[0] == '{') {
    const std::size_t newline = bytes.find('\n');
    const std::uint64_t length = newline == bytes.npos ? size : newline;
    if (newline != bytes.npos) bytes.erase(newline, 1);
    bytes.insert(0, reinterpret_cast<const char*>(&length), sizeof(length));
  }
  try {
    const io::SafetensorsFile file = io::SafetensorsFile::from_bytes(bytes, "input");
    std::uint64_t total = 0;
    for (const io::TensorInfo& tensor : file.tensors()) {
      total += tensor.bytes;
      if (file.bytes(tensor.name).size() != tensor.bytes) std::abort();
      if (io::is_float(tensor.element) &&
          file.read_as<float>(tensor.name).size() != static_cast<std::uint64_t>(tensor.elements))
        std::abort();
    }
    if (total > bytes.size()) std::abort();

    // What was read can be written, and reads as the same.
    std::vector<std::vector<std::byte>> contents;
    std::vector<io::TensorView> views;
    for (const io::TensorInfo& tensor : file.tensors()) contents.push_back(file.bytes(tensor.name));
    for (std::size_t i = 0; i < contents.size(); ++i)
      views.push_back({file.tensors()[i].name, file.tensors()[i].element, file.tensors()[i].shape, contents[i]});
    const io::SafetensorsFile again =
        io::SafetensorsFile::from_bytes(io::safetensors_bytes(views, file.metadata()), "again");
    if (again.tensors().size() != views.size() || again.metadata() != file.metadata()) std::abort();
    for (const io::TensorView& view : views)
      if (again.info(view.name).shape != view.shape) std::abort();

    io::read_state(file, "");
  } catch (const Error&) {
  }
  return 0;
}
