#!/usr/bin/env bash
# The C++ test under the address sanitizer, and under valgrind:
#
#     plugin/tests/sanitize.sh [PYTHON]
#
# PYTHON has OpenMM, torch and setuptools. Both builds go to temporary folders.
set -euo pipefail
python=$(realpath -s "$(command -v "${1:-python3}")")
cd "$(dirname "$0")/.."
compiler=${CXX:-c++}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -W ignore tests/write_modules.py "$work"
openmm=$("$python" -c 'import openmm.version as v; print(v.openmm_library_path)')
torch=$("$python" -c 'import os, torch; print(os.path.join(os.path.dirname(torch.__file__), "lib"))')
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

build() { # NAME FLAGS: the plugin and the test, with these flags
    CXXFLAGS=$2 LDFLAGS=$2 "$python" setup.py -q build --build-lib "$work/$1" --build-temp "$work/$1.o"
    local lib=$work/$1/openmm_sd_native/lib
    # shellcheck disable=SC2086
    $compiler -std=c++17 -w $2 tests/TestReferenceScoreDynamicsForce.cpp -o "$work/$1/test" \
        -Iopenmmapi/include -I"${openmm%/lib}/include" -L"$lib" -L"$openmm" \
        -Wl,-rpath,"$lib:$openmm:$torch" -lOpenMMScoreDynamics -lOpenMM
}

build asan "-g -O1 -fsanitize=address -fno-omit-frame-pointer"
echo "address sanitizer:"
ASAN_OPTIONS=detect_leaks=1:detect_stack_use_after_return=1 \
    LSAN_OPTIONS=suppressions=$PWD/tests/lsan.supp:print_suppressions=0 \
    "$work/asan/test" "$work/shift.pt" "$work/fails.pt" "$work/asan/openmm_sd_native/lib/plugins"

build plain "-g -O1"
echo "valgrind:"
valgrind --error-exitcode=3 --leak-check=full --errors-for-leak-kinds=definite --num-callers=30 \
    --suppressions=tests/valgrind.supp -q \
    "$work/plain/test" "$work/shift.pt" "$work/fails.pt" "$work/plain/openmm_sd_native/lib/plugins"
