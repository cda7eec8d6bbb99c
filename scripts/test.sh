#!/usr/bin/env bash
# Runs all tests, two programs of them at a time: most of what they do is wait. What measures others runs alone, at the end.
# One report of everything that is wrong, in the form of cargo's own.
set -euo pipefail
cd "$(dirname "$0")/.."

# These compare how long something takes with and without a disturbance.
alone='^(vanishing)$'
# Those that take longest begin first.
first=(drivers pgbouncer replay prometheus chaos main_job page faults)

cargo=${CARGO:-cargo}
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
"$cargo" test --locked --no-run 2>&1 | tee "$logs/build"

# `NAME PROGRAM` of each line `Executable tests/NAME.rs (target/debug/deps/NAME-...)`.
sed -nE 's/^ *Executable .*\((.*\/([a-z_0-9]+)-[0-9a-f]+)\)$/\2 \1/p' "$logs/build" >"$logs/programs"
[ -s "$logs/programs" ] || { echo "no test program was built" >&2; exit 1; }

# As cargo starts them; what one says is told as a whole when it has ended.
program() {
  local name=$1 path=$2 status=0
  local log=$logs/${path##*/}
  "$path" >"$log" 2>&1 || status=$?
  {
    flock 9
    echo "     Running $name ($path)"
    cat "$log"
    if [ "$status" -ne 0 ]; then
      echo "error: test failed, to rerun: $path"
      echo "$name" >>"$logs/failed"
    fi
  } 9>"$logs/lock"
}
export -f program
export logs CARGO_MANIFEST_DIR=$PWD

in_order() {
  for name in "${first[@]}"; do grep -E "^$name " "$logs/programs" || true; done
  grep -vE "^($(IFS='|'; echo "${first[*]}")) " "$logs/programs"
}
run() { xargs -r -L1 -P "$1" bash -c 'program "$@"' program; }

in_order | grep -vE "${alone/\$/ }" | run 2
in_order | grep -E "${alone/\$/ }" | run 1
"$cargo" test --locked --doc

if [ -s "$logs/failed" ]; then
  echo "error: tests failed in: $(tr '\n' ' ' <"$logs/failed")" >&2
  exit 1
fi
