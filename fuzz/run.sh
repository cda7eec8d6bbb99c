#!/usr/bin/env bash
# Runs every fuzz target, or those named, for FUZZ_SECONDS each (60), as many at once as there are cores.
# No cargo-fuzz is needed: these are its flags, without the address sanitizer, which wants a nightly compiler and finds
# little in a program without unsafe code. (`cargo fuzz run TARGET fuzz/seeds/TARGET` works too.)
# What was learned is kept in fuzz/corpus/, what failed in fuzz/artifacts/.
set -euo pipefail
cd "$(dirname "$0")"

host=$(rustc -vV | sed -n 's/^host: //p')
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
  -Cllvm-args=-sanitizer-coverage-trace-compares"
# The versions that pgweir itself is built with.
cp ../Cargo.lock Cargo.lock
# With --target, build scripts and macros stay as they are.
RUSTFLAGS="--cfg fuzzing $(echo $coverage)" "${CARGO:-cargo}" build --release --target "$host"

if [ $# -eq 0 ]; then
  set -- $(basename -s .rs fuzz_targets/*.rs)
fi

fuzz() {
  local target=$1 log=corpus/$1.log
  mkdir -p "corpus/$target" "artifacts/$target"
  if "$programs/$target" "corpus/$target" "seeds/$target" -max_total_time="$seconds" -timeout=5 -rss_limit_mb=2048 \
      -max_len=4096 -artifact_prefix="artifacts/$target/" >"$log" 2>&1; then
    echo "fuzz $target: ok, $(grep -o 'Done [0-9]* runs' "$log")"
  else
    tail -n 40 "$log"
    echo "fuzz $target: FAILED, see fuzz/artifacts/$target"
    return 1
  fi
}
export -f fuzz
export programs="target/$host/release" seconds="${FUZZ_SECONDS:-60}"
printf '%s\n' "$@" | xargs -P "$(nproc)" -I{} bash -euc 'fuzz {}'
