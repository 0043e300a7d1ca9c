# One libFuzzer program a file fuzz*.cpp, build-fuzz/fuzz/fuzz_<name>; all of them: the target fuzz. Not part of all. They reach
# what is installed, the operators and src/io, and no further: that is what gets to see numbers from strangers.

add_custom_target(fuzz)
file(GLOB_RECURSE files CONFIGURE_DEPENDS src/fuzz*.cpp tests/fuzz*.cpp)
foreach(file ${files})
  loglinear_program_name(${file} fuzz name)
  add_executable(${name} EXCLUDE_FROM_ALL ${file})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/fuzz)
  target_compile_options(${name} PRIVATE -fsanitize=fuzzer)
  target_link_options(${name} PRIVATE -fsanitize=fuzzer)
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/tests ${RANDOM123_INCLUDE} ${XXHASH_INCLUDE})
  target_link_libraries(${name} PRIVATE loglinear)
  add_dependencies(fuzz ${name})
endforeach()
