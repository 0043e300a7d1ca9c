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

// What multiplies bfloat16, besides widening it to float32: with the instruction set in force.
enum class Bf16Unit {
  none,
  dot,    // AVX512-BF16, a dot product of pairs
  tiles,  // AMX, 16 x 32 by 32 x 16
};
Bf16Unit bf16_unit();

// Makes every kernel use one of instruction_sets(); "" goes back to what the environment variable LOGLINEAR_ISA names,
// or to the best. Throws Error for a name that is unknown or that this CPU lacks. Not for use while another thread is
// inside the library.
void force_instruction_set(const std::string& name);

// Applies LOGLINEAR_ISA once, at the first kernel call, unless an instruction set was forced before. Throws Error as
// force_instruction_set does.
void apply_instruction_set_from_environment();

}  // namespace loglinear
