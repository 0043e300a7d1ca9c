#pragma once
// Rows as JSON, as a table for people, and beside those of an earlier run.

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "app/bench/row.hpp"
#include "io/file.hpp"

namespace loglinear::app::bench {

// Every key in every row; null where a number is absent or not finite.
nlohmann::ordered_json to_json(const Row& row);
nlohmann::ordered_json to_json(const std::vector<Row>& rows);

// The lines above the table: machine, threads, instruction set and what the run measured as its limits.
std::string header(const Peaks& peaks);

// A table that grows row by row: `previous` is the row before, null for the first. Gives a row's line, after the names
// of the columns where they change and before what does not fit in a line.
std::string table_lines(const Row* previous, const Row& row);

// What --against reads of a row: which case it is, and its time.
struct Earlier {
  std::string key;   // what it has to share with a row of this run
  std::string name;  // for people
  double ms = kAbsent;
};
Earlier earlier_of(const Row& row);

// Reads what --json printed. Throws Error (failure) with the path: unreadable, not JSON, not an array of such rows.
std::vector<Earlier> read_earlier(const io::Path& path);

// Sets against_ms and change_percent of the row that has a like (the last one of equal ones). Whether it has one.
bool set_change(Row& row, const std::vector<Earlier>& earlier);
// The earlier rows that no row is like.
std::vector<std::string> only_earlier(const std::vector<Row>& rows, const std::vector<Earlier>& earlier);

}  // namespace loglinear::app::bench
