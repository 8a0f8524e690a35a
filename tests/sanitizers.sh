#!/usr/bin/env bash
# Builds the native code with sanitizers and runs its tests and the fuzz of shapes under them.
#
#     bash tests/sanitizers.sh                 AddressSanitizer, UndefinedBehaviorSanitizer, ThreadSanitizer
#     bash tests/sanitizers.sh thread          one of them: address, undefined or thread
#
# PYTHON (python3) must have torch, nanobind and what the tests need. BUILD (build/sanitizers) takes the builds, which keep
# a core busy for a while; SETS (the best instruction set that runs here) and MAX_L (4) choose what is built, TESTS which
# files are run; PYTEST_ARGS is handed on.
#
# OpenMP's runtime is not instrumented: ThreadSanitizer would not see that it starts threads before they work and waits for
# them afterwards. It gets a build in which std::thread does that; the barriers in between are the same ones (team.hpp).
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
python=$(command -v "${PYTHON:-python3}")
build=$(realpath -m "${BUILD:-build/sanitizers}")
tests="tests/test_native.py tests/test_native_shapes.py tests/test_native_mace.py tests/test_native_moments.py"
tests="$tests tests/test_contraction_native.py tests/test_frozen.py"
sets=${SETS:-$(PYTHONPATH=src "$python" -c 'from equipes.kernels import native; print(native.instruction_set() or "baseline")')}

library() { "${CXX:-c++}" -print-file-name="$1"; }

# $1: its name, $2: -fsanitize=…, $3: use OpenMP, $4: libraries that must be loaded first, $5: prefix of the command
check() {
    local folder=$build/$1
    printf '\n== %s: building %s in %s\n' "$1" "$sets" "$folder"
    # Not "Release", of which nanobind takes the names of functions away.
    cmake -S "$root" -B "$folder" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DPython_EXECUTABLE="$python" \
        -DEQUIPES_SANITIZE="$2" -DEQUIPES_OPENMP="$3" -DEQUIPES_INSTRUCTION_SETS="$sets" -DEQUIPES_MAX_L="${MAX_L:-}" \
        -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$folder/lib" >"$folder.cmake.log" 2>&1 || { cat "$folder.cmake.log"; exit 1; }
    cmake --build "$folder" --parallel "${JOBS:-1}" >"$folder.build.log" 2>&1 || { tail -n 30 "$folder.build.log"; exit 1; }
    # A package of its own, so that no other build is imported.
    rm -rf "$folder/package"
    mkdir -p "$folder/package"
    cp -r src/equipes "$folder/package/"
    rm -f "$folder"/package/equipes/kernels/native/*.so
    cp "$folder"/lib/*.so "$folder/package/equipes/kernels/native/"
    printf '\n== %s: testing\n' "$1"
    rm -f "$folder"/report*
    # Nothing but the tests is loaded with the sanitizer's library: compilers and shells would be checked, too.
    # shellcheck disable=SC2086
    LD_PRELOAD=$4 OMP_NUM_THREADS=1 PYTHONPATH=$folder/package PYTHONDONTWRITEBYTECODE=1 \
        $5 "$python" -m pytest -p no:cacheprovider -q ${TESTS:-$tests} ${PYTEST_ARGS:-}
    if compgen -G "$folder/report*" >/dev/null; then
        cat "$folder"/report*
        exit 1
    fi
    printf '\n== %s: nothing found\n' "$1"
}

mkdir -p "$build"
[ $# -gt 0 ] || set -- address undefined thread
for sanitizer in "$@"; do
    case $sanitizer in
    address)
        # What Python keeps until it ends is no leak of ours. Its allocator would hide arrays from the sanitizer, and
        # exceptions are followed only if libstdc++ is there from the beginning.
        export ASAN_OPTIONS="detect_leaks=0:log_path=$build/address/report"
        PYTHONMALLOC=malloc check address address ON "$(library libasan.so) $(library libstdc++.so)" ""
        ;;
    undefined)
        export UBSAN_OPTIONS="print_stacktrace=1:log_path=$build/undefined/report"
        check undefined undefined ON "$(library libubsan.so)" ""
        ;;
    thread)
        # Where addresses are random ThreadSanitizer may not find room for its own memory.
        export TSAN_OPTIONS="exitcode=66:report_signal_unsafe=0:die_after_fork=0:suppressions=$root/tests/thread_sanitizer.supp:log_path=$build/thread/report"
        check thread thread OFF "$(library libtsan.so)" "setarch $(uname -m) -R"
        ;;
    *)
        echo "unknown sanitizer $sanitizer; choose address, undefined or thread" >&2
        exit 2
        ;;
    esac
done
