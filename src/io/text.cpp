#include "io/text.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <set>
#include <system_error>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/error.hpp"
#include "io/config.hpp"
#include "io/utf8.hpp"

namespace loglinear::io {
namespace {

namespace fs = std::filesystem;
constexpr const char* kWhere = "text";
constexpr std::size_t kLongestLine = std::size_t{1} << 30;

std::uint64_t half_of_memory() {
  const long pages = ::sysconf(_SC_PHYS_PAGES), page = ::sysconf(_SC_PAGE_SIZE);
  return pages > 0 && page > 0 ? static_cast<std::uint64_t>(pages) * static_cast<std::uint64_t>(page) / 2
                               : std::numeric_limits<std::uint64_t>::max() / 2;
}

bool is_json_lines(const Path& path) { return path.extension() == ".jsonl" || path.extension() == ".ndjson"; }

// The lines of a file, one at a time.
class Lines {
 public:
  explicit Lines(const Path& path)
      : path_(path), file_(std::fopen(path.c_str(), "rbe"), &std::fclose), block_(1 << 18) {
    if (!file_) fail(kWhere, "cannot open {}: {}", path.string(), std::generic_category().message(errno));
  }

  // The next line without its newline; false at the end of the file.
  bool next(std::string& line) {
    line.clear();
    for (;;) {
      if (begin_ == end_) {
        begin_ = 0;
        end_ = std::fread(block_.data(), 1, block_.size(), file_.get());
        if (std::ferror(file_.get()))
          fail(kWhere, "cannot read {}: {}", path_.string(), std::generic_category().message(errno));
        if (end_ == 0) {
          number_ += !line.empty();
          return !line.empty();
        }
      }
      const char* from = block_.data() + begin_;
      const void* newline = std::memchr(from, '\n', end_ - begin_);
      const std::size_t length = newline ? static_cast<const char*>(newline) - from : end_ - begin_;
      line.append(from, length);
      begin_ += length + (newline != nullptr);
      if (line.size() > kLongestLine)
        fail(kWhere, "{}:{}: the line is longer than {} bytes", path_.string(), number_ + 1, kLongestLine);
      if (newline) {
        ++number_;
        return true;
      }
    }
  }

  std::int64_t number() const { return number_; }  // of the line last given, from 1

 private:
  Path path_;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
  std::vector<char> block_;
  std::size_t begin_ = 0, end_ = 0;
  std::int64_t number_ = 0;
};

class Gatherer {
 public:
  explicit Gatherer(std::uint64_t byte_limit)
      : limit_(byte_limit ? byte_limit : half_of_memory()), cut_(byte_limit > 0) {}

  Corpus corpus;

  void path(const Path& path) {
    struct stat status;
    if (::stat(path.c_str(), &status) != 0)
      fail(kWhere, "cannot open {}: {}", path.string(), std::generic_category().message(errno));
    if (full_) return void(corpus.cut = true);
    if (!S_ISDIR(status.st_mode)) {
      const std::size_t before = corpus.documents.size();
      if (is_json_lines(path)) {
        json_lines(path);
        if (corpus.documents.size() == before && !corpus.cut) fail(kWhere, "{}: holds no text", path.string());
      } else {
        std::string contents = start_of(path);
        if (contents.empty()) fail(kWhere, "{}: is empty", path.string());
        if (const auto at = contents.find('\0'); at != contents.npos)
          fail(kWhere, "{}: not text: byte {} is NUL", path.string(), at);
        add(path, std::move(contents));
      }
      ++corpus.files;
      return;
    }
    const std::size_t documents = corpus.documents.size();
    const std::int64_t binary = corpus.binary_files, empty = corpus.empty_files;
    std::set<std::pair<dev_t, ino_t>> visited;
    folder(path, visited);
    if (corpus.documents.size() == documents && !corpus.cut)
      fail(kWhere, "{}: the folder holds no text (skipped: {} files with NUL bytes, {} empty)", path.string(),
           corpus.binary_files - binary, corpus.empty_files - empty);
  }

 private:
  // What is left of the limit and one byte more, to know whether the file goes on.
  std::string start_of(const Path& path) { return read_file_start(path, limit_ - corpus.bytes + 1); }

  void folder(const Path& path, std::set<std::pair<dev_t, ino_t>>& visited) {
    struct stat status;
    if (::stat(path.c_str(), &status) != 0 || !visited.emplace(status.st_dev, status.st_ino).second) return;
    std::vector<std::string> names;
    std::error_code error;
    for (fs::directory_iterator i(path, error), end; !error && i != end; i.increment(error)) {
      std::string name = i->path().filename().string();
      if (name[0] != '.') names.push_back(std::move(name));
    }
    if (error) fail(kWhere, "cannot read folder {}: {}", path.string(), error.message());
    std::sort(names.begin(), names.end());
    for (const std::string& name : names) {
      const Path entry = path / name;
      if (::stat(entry.c_str(), &status) != 0) {
        if (errno == ENOENT || errno == ELOOP) continue;  // a dangling link, or a file removed meanwhile
        fail(kWhere, "cannot open {}: {}", entry.string(), std::generic_category().message(errno));
      }
      if (S_ISDIR(status.st_mode)) {
        folder(entry, visited);
      } else if (S_ISREG(status.st_mode)) {
        if (full_) return void(corpus.cut = true);
        file(entry);
      }
    }
  }

  void file(const Path& path) {
    if (is_json_lines(path)) {
      const std::size_t before = corpus.documents.size();
      json_lines(path);
      ++(corpus.documents.size() > before ? corpus.files : corpus.empty_files);
      return;
    }
    std::string contents = start_of(path);
    if (contents.empty()) {
      ++corpus.empty_files;
    } else if (contents.find('\0') != contents.npos) {
      ++corpus.binary_files;
    } else {
      add(path, std::move(contents));
      ++corpus.files;
    }
  }

  void json_lines(const Path& path) {
    Lines lines(path);
    for (std::string line; lines.next(line);) {
      if (line.find_first_not_of(" \t\r") == line.npos) continue;
      if (full_) return void(corpus.cut = true);
      nlohmann::json object = parse_json(line, path.string(), lines.number());
      const auto text = object.is_object() ? object.find("text") : object.end();
      if (text == object.end() || !text->is_string())
        fail(kWhere, "{}:{}: need an object with the text field \"text\"", path.string(), lines.number());
      add(path, std::move(text->get_ref<std::string&>()));
    }
  }

  void add(const Path& path, std::string document) {
    if (document.empty()) return;
    const std::uint64_t left = limit_ - corpus.bytes;
    if (document.size() > left) {
      if (!cut_)
        fail(kWhere, "{}: the text is longer than half of the memory ({} bytes): set a limit", path.string(), limit_);
      corpus.cut = true;
      document.resize(whole_characters(std::string_view(document).substr(0, left)));
      full_ = true;
    }
    corpus.bytes += document.size();
    if (corpus.bytes == limit_) full_ = true;
    if (!document.empty()) corpus.documents.push_back(std::move(document));
  }

  std::uint64_t limit_;
  bool cut_;           // the limit ends the reading; otherwise it is an error
  bool full_ = false;  // no more is wanted
};

// The last place not after `at` (0 < at < text.size()) to cut a text in two: the end of a line if one is near,
// otherwise between two characters. 0 when there is none.
std::size_t cut_before(const std::string& text, std::size_t at) {
  constexpr std::size_t kNear = 1024;
  const std::size_t newline = text.rfind('\n', at - 1);
  if (newline != text.npos && at - (newline + 1) <= kNear) return newline + 1;
  return whole_characters(std::string_view(text).substr(0, at));
}

TextSplit split_tail(std::vector<std::string> documents, std::uint64_t total, std::uint64_t held) {
  TextSplit split;
  std::uint64_t keep = total - held;  // bytes that are still to go to train
  for (std::string& document : documents) {
    if (keep >= document.size()) {
      keep -= document.size();
      split.train.push_back(std::move(document));
      continue;
    }
    std::size_t cut = keep > 0 ? cut_before(document, keep) : 0;
    if (cut == 0 && split.train.empty()) {  // nothing would be left to train on: cut after the first character
      cut = 1;
      while (cut < document.size() && whole_characters(std::string_view(document).substr(0, cut)) < cut) ++cut;
    }
    if (cut > 0) split.train.push_back(document.substr(0, cut));
    if (cut < document.size()) split.held_out.push_back(document.substr(cut));
    keep = 0;
  }
  return split;
}

}  // namespace

Corpus read_text(const std::vector<Path>& paths, std::uint64_t byte_limit) {
  if (paths.empty()) fail(kWhere, "no path was given");
  Gatherer gatherer(byte_limit);
  for (const Path& path : paths) gatherer.path(path);
  if (gatherer.corpus.documents.empty())
    fail(kWhere, "{}: no whole character fits the limit of {} bytes", paths[0].string(), byte_limit);
  return std::move(gatherer.corpus);
}

Corpus read_text(const Path& path, std::uint64_t byte_limit) { return read_text(std::vector<Path>{path}, byte_limit); }

TextSplit split_text(std::vector<std::string> documents, double fraction) {
  if (!(fraction >= 0 && fraction < 1))
    fail_usage(kWhere, "held-out fraction: got {}, need 0 <= fraction < 1", fraction);
  std::erase_if(documents, [](const std::string& d) { return d.empty(); });
  if (fraction == 0) return {std::move(documents), {}};
  std::uint64_t total = 0;
  for (const std::string& d : documents) total += d.size();
  if (total < 2) fail(kWhere, "{} bytes of text are too few to hold some out", total);
  const std::uint64_t held = std::clamp<std::uint64_t>(
      static_cast<std::uint64_t>(std::llround(static_cast<double>(total) * fraction)), 1, total - 1);

  constexpr std::size_t kMany = 20;
  if (documents.size() >= kMany) {
    std::vector<std::pair<std::uint64_t, std::size_t>> order;
    for (std::size_t i = 0; i < documents.size(); ++i)
      order.emplace_back(XXH3_64bits(documents[i].data(), documents[i].size()), i);
    std::sort(order.begin(), order.end());
    std::vector<bool> out(documents.size(), false);
    std::uint64_t taken = 0;
    for (const auto& [hash, i] : order) {
      if (taken + documents[i].size() > held) continue;
      taken += documents[i].size();
      out[i] = true;
    }
    if (2 * taken >= held) {
      TextSplit split;
      for (std::size_t i = 0; i < documents.size(); ++i)
        (out[i] ? split.held_out : split.train).push_back(std::move(documents[i]));
      return split;
    }
  }
  TextSplit split = split_tail(std::move(documents), total, held);
  if (split.train.empty() || split.held_out.empty())
    fail(kWhere, "{} bytes of text are too few to hold some out", total);
  return split;
}

}  // namespace loglinear::io
