#!/bin/sh
# Builds and runs the standalone tests, as `make test` does: under the sanitizers; then as the extension is compiled, here
# and on emulated processors that lack the wider instructions; then looks for instructions that an object must not have.
# Usage: csrc/tests/run.sh [folder of cmake and ninja]
#
# Without qemu-x86_64 (Debian, Ubuntu: apt install qemu-user) the emulated runs are left out and the last line says so;
# INFERLOOM_REQUIRE_QEMU=1 makes that a failure.
set -e
cd "$(dirname "$0")/../.."
[ -z "${1:-}" ] || PATH=$(cd "$1" && pwd):$PATH
build=build/csrc-tests

if ! command -v "${CXX:-g++}" > /dev/null; then
  echo "csrc: NOT TESTED: there is no ${CXX:-g++}"
  exit 0
fi

compile() { # folder, cmake arguments
  folder=$1
  shift
  cmake -S csrc/tests -B "$folder" -G Ninja --log-level=WARNING "$@" > /dev/null
  cmake --build "$folder" -- --quiet
}

run_all() { # what it is, folder, command in front
  what=$1
  folder=$2
  shift 2
  log=$(mktemp)
  for test in "$folder"/*_test; do
    if ! "$@" "$test" > "$log" 2>&1; then
      cat "$log"
      rm -f "$log"
      echo "csrc: $(basename "$test") FAILED ($what)"
      return 1
    fi
  done
  rm -f "$log"
  echo "csrc: all standalone tests passed ($what)"
}

compile "$build/sanitized" -DSANITIZE=ON
compile "$build/plain"

# All at once: the tests have one thread.
running=
run_all "address and undefined-behaviour sanitizers" "$build/sanitized" env UBSAN_OPTIONS=print_stacktrace=1 &
running="$running $!"
run_all "this processor" "$build/plain" env &
running="$running $!"
missing=0
if [ "$(uname -m)" = x86_64 ]; then
  sh csrc/tests/instructions.sh "$build/plain" &
  running="$running $!"
  if command -v qemu-x86_64 > /dev/null; then
    INFERLOOM_ISA=avx2 run_all "emulated Haswell: AVX2" "$build/plain" qemu-x86_64 -cpu Haswell &
    running="$running $!"
    INFERLOOM_ISA=portable run_all "emulated Nehalem: portable" "$build/plain" qemu-x86_64 -cpu Nehalem &
    running="$running $!"
  else
    missing=1
  fi
fi
failed=0
for job in $running; do
  wait "$job" || failed=1
done
if [ $missing = 1 ]; then
  echo "csrc: NOT RUN on emulated processors without AVX-512: there is no qemu-x86_64 (apt install qemu-user)"
  [ "${INFERLOOM_REQUIRE_QEMU:-}" != 1 ] || failed=1
fi
exit $failed
