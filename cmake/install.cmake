# cmake --install: the program, the library and its package, found with find_package(loglinear).

include(CMakePackageConfigHelpers)
set(package_folder ${CMAKE_INSTALL_LIBDIR}/cmake/loglinear)

install(TARGETS loglinear_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(TARGETS loglinear loglinear_ops loglinear_io EXPORT loglinearTargets
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(DIRECTORY include/loglinear DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT loglinearTargets NAMESPACE loglinear:: DESTINATION ${package_folder})

configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/loglinearConfig.cmake.in
  ${PROJECT_BINARY_DIR}/loglinearConfig.cmake INSTALL_DESTINATION ${package_folder})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/loglinearConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/loglinearConfig.cmake ${PROJECT_BINARY_DIR}/loglinearConfigVersion.cmake
  DESTINATION ${package_folder})
