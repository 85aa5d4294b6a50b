#!/bin/sh
# Runs the CPU tests of the extension, and the emulated CUDA kernels, under AddressSanitizer and
# UndefinedBehaviorSanitizer. Builds apart from the checkout; takes two minutes. Usage: tests/native/sanitize.sh
# PYTHON names the interpreter (default: .venv/bin/python where there is one, else python3).
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-}
if [ -z "$python" ]; then
  if [ -x "$root/.venv/bin/python" ]; then python=$root/.venv/bin/python; else python=python3; fi
fi
cxx=${CXX:-g++}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cp -r "$root/memoir_fast" "$root/kernels" "$root/csrc" "$root/setup.py" "$root/pyproject.toml" "$root/README.md" \
  "$root/LICENSE" "$work"
mkdir -p "$work/tests/io"
cp -r "$root/tests/conftest.py" "$root/tests/native" "$work/tests"
cp "$root/tests/io/conftest.py" "$root/tests/io/test_hostile_files.py" "$work/tests/io"
rm -f "$work"/memoir_fast/*.so
cd "$work"

export CXXFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -O1 -g1"
export LDFLAGS="-fsanitize=address,undefined"
MEMOIR_FAST_BUILD=1 MEMOIR_FAST_CUDA=0 "$python" setup.py -q build_ext --inplace >build.log 2>&1 || {
  cat build.log
  exit 1
}

# Python itself never frees everything, so leaks are not looked for.
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 OMP_NUM_THREADS=2 PYTHONPATH="$work"
run() {
  LD_PRELOAD="$("$cxx" -print-file-name=libasan.so) $("$cxx" -print-file-name=libubsan.so)" \
    "$python" -m pytest -q -p no:cacheprovider --capture=sys "$@"
}
run tests/native/test_masked_linear_emulated.py >linear.log 2>&1 &
linear=$!
status=0
run tests/native/test_cuda_emulated.py tests/native/test_hash_emulated.py tests/native/test_mask_match.py \
  tests/native/test_tophash.py tests/native/test_masked_linear.py tests/native/test_hostile.py \
  -k "not large_store and not threads-" || status=$?
run tests/io/test_hostile_files.py -k tensors_of_chance || status=$? # what files from a stranger give the extension
wait "$linear" || status=$?
cat linear.log
exit "$status"
