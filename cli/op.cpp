#include <cstdio>
#include <memory>

#include "app/op.hpp"
#include "commands.hpp"

namespace loglinear::cli {
namespace {

constexpr const char* kOpDetails =
    R"(IN holds q k (B, T, G, K), v (B, T, H, V), g (B, T, H) <= 0, level_scales (B, T, H, L), for gated_delta
beta (B, T, H), all of any float type; optional cu_seqlens (N + 1) of I64 or I32 with B = 1, and do (B, T, H, V),
the gradient of the loss in o. OUT gets o, and given do also dq dk dv dg dlevel_scales (dbeta).
Results in IN (o, dq, ...) are ignored; other tensors are an error.

Examples:
  loglinear op in.safetensors --out out.safetensors
  loglinear op in.safetensors --out out.safetensors --form step --dtype f32
  loglinear op in.safetensors --out out.safetensors --split 3,17 --past-last refuse)";

}  // namespace

void add_op(CLI::App& app, Run& run) {
  CLI::App* command = app.add_subcommand("op", "run the operator on the tensors of a safetensors file");
  struct Flags {
    app::OpSettings settings;
    std::string in, out, rule, form = "chunk", dtype, past_last = "share";
  };
  const auto flags = std::make_shared<Flags>();
  std::vector<std::string> rules;
  for (const Rule rule : kRules) rules.push_back(name_of(rule));
  command->add_option("IN", flags->in, "safetensors file with the inputs")->required();
  command->add_option("--out", flags->out, "safetensors file to write")->required();
  command
      ->add_option("--rule", flags->rule,
                   "default: gated_delta when IN has beta, else scalar_decay; when given, wins over beta")
      ->check(CLI::IsMember(rules));
  command
      ->add_option("--form", flags->form,
                   "ref: the definition; chunk: in chunks; step: token by token, without gradients")
      ->check(CLI::IsMember({"ref", "chunk", "step"}))
      ->capture_default_str();
  command
      ->add_option(
          "--dtype", flags->dtype,
          "of the computation and the results (bf16: gates and states stay f32); default: that of q, with f32 for F16")
      ->check(CLI::IsMember({"f64", "f32", "bf16"}));
  command->add_option("--split", flags->settings.split, "cut T before these tokens and run from state to state")
      ->delimiter(',')
      ->type_name("a,b,...");
  command->add_option("--past-last", flags->past_last, "tokens past the last level: share its scale, or refuse")
      ->check(CLI::IsMember({"share", "refuse"}))
      ->capture_default_str();
  command->add_option("--chunk", flags->settings.chunk, "tokens in a chunk, a power of two up to 256; 0: chosen")
      ->capture_default_str();
  command->add_option("--threads", flags->settings.threads, "0: all cores; never changes the result")
      ->capture_default_str();
  command->footer(kOpDetails);
  command->callback([&run, flags] {
    run = [flags] {
      app::OpSettings& settings = flags->settings;
      settings.in = flags->in;
      settings.out = flags->out;
      if (!flags->rule.empty()) settings.rule = rule_from_name(flags->rule);
      settings.form = *app::form_from_name(flags->form);
      for (const DType dtype : {DType::f64, DType::f32, DType::bf16})
        if (flags->dtype == name_of(dtype)) settings.dtype = dtype;
      if (flags->past_last == "refuse") settings.past_last = log_linear::PastLast::refuse;
      const app::OpReport report = app::run_op(settings);
      for (const std::string& note : report.notes) std::fprintf(stderr, "note: %s\n", note.c_str());
      std::string line =
          std::string(name_of(report.rule)) + ", " + name_of(settings.form) + ", " + name_of(report.dtype) + ":";
      for (const std::string& name : report.written) line += " " + name;
      print(line + " -> " + flags->out + "\n");
      return 0;
    };
  });
}

}  // namespace loglinear::cli
