#pragma once
// Which instruction set the kernels run with.

#include <string>
#include <vector>

namespace loglinear {

// Instruction sets that this program was built for and this CPU has, best first, as LOGLINEAR_ISA spells them.
std::vector<std::string> instruction_sets();

// The name above of what Highway calls a target ("AVX2", log_linear::cpu::instruction_set()); its own in small letters
// when there is none.
std::string instruction_set_name(const std::string& highway_name);

// Makes every kernel use one of instruction_sets(); "" goes back to the best. Throws Error for a name that is unknown
// or that this CPU lacks. Not for use while another thread is inside the library.
void force_instruction_set(const std::string& name);

// Applies the environment variable LOGLINEAR_ISA once, at the first kernel call. Throws Error as force_instruction_set
// does.
void apply_instruction_set_from_environment();

}  // namespace loglinear
