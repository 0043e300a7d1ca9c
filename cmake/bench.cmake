# One program a file bench*.cpp, build/bench/bench_<operator>; all of them: the target bench. Not part of all. ./run test
# runs the benchmarks whose names have a component 1023 or 1024, so that they do not rot.

find_package(benchmark REQUIRED)
add_custom_target(bench)
file(GLOB_RECURSE files CONFIGURE_DEPENDS src/bench*.cpp)
foreach(file ${files})
  loglinear_program_name(${file} bench name)
  add_executable(${name} EXCLUDE_FROM_ALL ${file})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bench)
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/src ${RANDOM123_INCLUDE})
  target_link_libraries(${name} PRIVATE loglinear_app benchmark::benchmark_main)
  add_dependencies(bench ${name})
endforeach()

# The yardstick of the small products, where it is installed (Debian: libxsmm-dev).
find_path(LIBXSMM_INCLUDE libxsmm.h)
find_library(LIBXSMM_LIBRARY xsmm)
find_library(LIBXSMM_NOBLAS_LIBRARY xsmmnoblas)
if(LIBXSMM_INCLUDE AND LIBXSMM_LIBRARY AND LIBXSMM_NOBLAS_LIBRARY)
  target_compile_definitions(bench_base_matrix PRIVATE LOGLINEAR_HAVE_LIBXSMM)
  target_include_directories(bench_base_matrix SYSTEM PRIVATE ${LIBXSMM_INCLUDE})
  target_link_libraries(bench_base_matrix PRIVATE ${LIBXSMM_LIBRARY} ${LIBXSMM_NOBLAS_LIBRARY} ${CMAKE_DL_LIBS})
endif()
