#!/usr/bin/env bash
# Runs all tests, two programs of them at a time: most of what they do is wait. What measures others runs alone, at the end.
# One report of everything that is wrong, in the form of cargo's own.
set -euo pipefail
cd "$(dirname "$0")/.."

# These compare how long something takes with and without a disturbance.
alone='^--test vanishing$'
# Those that take longest begin first.
first='^--test (drivers|pgbouncer|replay|prometheus|chaos|main_job|page|faults)$'

export CARGO=${CARGO:-cargo} logs
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
"$CARGO" test --locked --no-run 2>&1 | tee "$logs/build"

# What cargo calls each program in a line such as `Executable tests/NAME.rs (target/debug/deps/NAME-...)`.
sed -nE 's/^ *Executable (unittests )?(.*)\.rs \(.*/\2/p' "$logs/build" |
  sed -E 's|^src/lib$|--lib|; s|^src/main$|--bins|; s|^tests/|--test |' >"$logs/programs"
[ -s "$logs/programs" ] || { echo "no test program was built" >&2; exit 1; }

# What a program says is told as a whole when it has ended.
program() {
  local log="$logs/$*.log" status=0
  "$CARGO" test --locked "$@" >"$log" 2>&1 || status=$?
  {
    flock 9
    cat "$log"
    if [ "$status" -ne 0 ]; then echo "$*" >>"$logs/failed"; fi
  } 9>"$logs/lock"
}
export -f program
run() { xargs -r -L1 -P "$1" bash -c 'program "$@"' program; }

{ grep -E -- "$first" "$logs/programs"; grep -vE -- "$first|$alone" "$logs/programs"; } | run 2
grep -E -- "$alone" "$logs/programs" | run 1
"$CARGO" test --locked --doc

if [ -s "$logs/failed" ]; then
  echo "error: tests failed in: $(paste -sd, "$logs/failed")" >&2
  exit 1
fi
