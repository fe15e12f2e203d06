#!/bin/sh
# Compiles the extension into inferloom/kernels/native, in build/cmake: what did not change is not compiled again.
# Usage: csrc/build.sh [PYTHON]; needs cmake, ninja and nanobind beside that Python (the `dev` extra has them).
#
# INFERLOOM_BUILD_CACHE=folder keeps every finished extension there, under a hash of all that goes into it, and takes it from
# there in a fresh checkout (.ci/run sets it).
set -e
cd "$(dirname "$0")/.."
python=${1:-python}
bin=$(dirname "$(command -v "$python")")
bin=$(cd "$bin" && pwd)
extension=$("$bin/python" -c 'import sysconfig; print("_native" + sysconfig.get_config_var("EXT_SUFFIX"))')
target=inferloom/kernels/native/$extension

content() {
  {
    find csrc CMakeLists.txt -type f ! -path 'csrc/tests/*' | LC_ALL=C sort | xargs sha256sum
    "${CXX:-g++}" --version 2>&1 || true
    "$bin/python" -c 'import nanobind, sys; print(nanobind.__version__, sys.version)'
    echo "$extension ${CXXFLAGS:-} ${LDFLAGS:-}"
  } | sha256sum | cut -d' ' -f1
}

if [ -n "${INFERLOOM_BUILD_CACHE:-}" ]; then
  before=$(content)
  kept=$INFERLOOM_BUILD_CACHE/$before-$extension
  if [ -f "$kept" ]; then
    echo "taking $extension from $INFERLOOM_BUILD_CACHE"
    cp "$kept" "$target.new" && mv "$target.new" "$target"
    exit 0
  fi
fi

"$bin/cmake" -S . -B build/cmake -G Ninja --log-level=WARNING \
  -DCMAKE_MAKE_PROGRAM="$bin/ninja" -DPython_EXECUTABLE="$bin/python"
"$bin/cmake" --build build/cmake

# Sources that were edited meanwhile belong to neither hash.
if [ -n "${kept:-}" ] && [ "$(content)" = "$before" ]; then
  mkdir -p "$INFERLOOM_BUILD_CACHE"
  find "$INFERLOOM_BUILD_CACHE" -name '*-_native*' -mtime +30 -delete
  cp "$target" "$kept.$$" && mv "$kept.$$" "$kept"
fi
