# How everything in csrc/ is compiled: the extension and the standalone tests both include this file.

# No errno and no trapping, which nobody reads. Contraction is off, so that a row's sum is the same bits in a tile of one
# row and in a tile of eight; where a fused multiply-add is wanted, the code says so.
set(ARITHMETIC -fno-math-errno -fno-trapping-math -ffp-contract=off)

# Leaf files are the only ones compiled for more than the baseline of the architecture; dispatch.cpp hands them out at run
# time. Another architecture than x86-64 has the portable one.
set(LEAVES portable)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|amd64|AMD64)$")
  list(APPEND LEAVES avx2 avx512 avx512_vnni_bf16)
endif()
set(FLAGS_portable -Wno-psabi)  # vectors of 64 bytes are passed among its own functions alone
set(FLAGS_avx2 -mavx2 -mfma -mf16c)
set(FLAGS_avx512 ${FLAGS_avx2} -mavx512f -mavx512bw -mavx512cd -mavx512dq -mavx512vl)
set(FLAGS_avx512_vnni_bf16 ${FLAGS_avx512} -mavx512vnni -mavx512bf16)

# Adds the leaf files to a target.
function(add_leaves target)
  foreach(leaf IN LISTS LEAVES)
    set(source ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/leaf/${leaf}.cpp)
    if(EXISTS ${source})
      target_sources(${target} PRIVATE ${source})
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${FLAGS_${leaf}}")
      target_compile_definitions(${target} PRIVATE INFERLOOM_LEAF_${leaf})
    endif()
  endforeach()
  target_compile_options(${target} PRIVATE -Wall -Wextra ${ARITHMETIC})
endfunction()
