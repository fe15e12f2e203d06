#!/bin/sh
# No object may hold instructions that are wider than what it is compiled for. And the weak symbols of a leaf, of which the linker
# keeps one copy for the whole program, must be templates over the leaf's own vectors, which no other object has.
# Usage: instructions.sh folder-of-objects
set -e
fail=0

refuse() { # object, pattern of operands, what they are
  if objdump -d --no-show-raw-insn "$1" | grep -m 3 -E "$2"; then
    echo "csrc: $1 has instructions with $3"
    fail=1
  fi
}

for object in $(find "$1" -name '*.cpp.o'); do
  case $object in
  */leaf/avx512_vnni_bf16.cpp.o) ;;
  */leaf/avx512.cpp.o) refuse "$object" '	(vpdp|vdpbf16|vcvtne)' "VNNI or BF16" ;;
  */leaf/avx2.cpp.o) refuse "$object" '%zmm|%[xy]mm(1[6-9]|2[0-9]|3[01])|%k[0-7]' "AVX-512 registers" ;;
  */probes.cpp.o) ;; # chooses among functions that are each compiled for one instruction set
  *) refuse "$object" '%[yz]mm|	v[a-z0-9]+ ' "AVX registers" ;;
  esac
  case $object in
  */leaf/*)
    leaf=$(basename "$object" .cpp.o)
    if nm --defined-only "$object" | grep -E ' [WVu] ' | grep -v "inferloom.*${#leaf}${leaf}4SimdE"; then
      echo "csrc: $object defines symbols that other objects may have too"
      fail=1
    fi
    ;;
  esac
done
[ $fail = 0 ] && echo "csrc: no object has wider instructions than it was compiled for"
exit $fail
