#!/usr/bin/env bash
# pgweir next to Debian's PgBouncer, on this machine: CPU per transaction, throughput, bulk data, logins, memory of idle
# clients, system calls. Prints a Markdown table; what it did goes to standard error.
#
#   benches/pgbench.sh          3 rounds of 5 seconds, everything
#   benches/pgbench.sh quick    1 round of 2 seconds, fewer scenarios
#   benches/pgbench.sh instructions   what the programs themselves do for a transaction, in instructions, under valgrind: the same
#                               within a sixth whatever else the machine does, where CPU time moves by half
#   benches/pgbench.sh scrape   10,000 idle clients in 200 pools and 16 busy ones: how long a scrape of /metrics takes, and what
#                               scraping five times a second does to the busy ones' latency
#   benches/pgbench.sh soak     pgweir alone, 10,000 idle and 1,000 busy clients for 5 minutes (SECONDS_EACH, CLIENTS_IDLE,
#                               CLIENTS_BUSY): resident memory every tenth of it; fails on any error, or on growth
#
# Programs run in turns within a round, each started fresh, Postgres and all logs in memory. CPU is the process's own
# clock over the run, user and system, logins included. A ratio is the median of the ratios within the rounds; below
# 10 % it is no difference.
#
# ROUNDS, SECONDS_EACH, CLIENTS_IDLE and THREADS (of pgweir) can be set; PGWEIR and PGBOUNCER are other builds of them.
# ONLY='idle|TLS' runs the scenarios whose name or arguments fit, in both programs and not directly.
set -euo pipefail
cd "$(dirname "$0")/.."

mode=${1:-full}
case "$mode" in
  full) rounds=${ROUNDS:-3} seconds=${SECONDS_EACH:-5} bulk_mb=256 ;;
  quick) rounds=${ROUNDS:-1} seconds=${SECONDS_EACH:-2} bulk_mb=64 ;;
  instructions) rounds=0 seconds=0 bulk_mb=1 ;;
  scrape) rounds=0 seconds=${SECONDS_EACH:-20} bulk_mb=1 ;;
  soak) rounds=0 seconds=${SECONDS_EACH:-300} bulk_mb=1 ;;
  *) echo "usage: $0 [quick | instructions | scrape | soak]" >&2; exit 2 ;;
esac
threads=${THREADS:-1}
idle_clients=${CLIENTS_IDLE:-10000}
pgweir=$(realpath "${PGWEIR:-target/release/pgweir}")
pgbouncer=${PGBOUNCER:-$(command -v pgbouncer || echo /usr/sbin/pgbouncer)}
client=$(realpath benches/raw_client.py)

for program in "$pgweir" "$pgbouncer"; do
  [ -x "$program" ] || { echo "$program is missing (make bench builds and installs what is needed)" >&2; exit 1; }
done
bin=
for candidate in "$(dirname "$(command -v initdb || echo /)")" $(compgen -G '/usr/lib/postgresql/*/bin' | sort -V); do
  if [ -x "$candidate/initdb" ] && [ -x "$candidate/pgbench" ] && [ -x "$candidate/psql" ]; then bin=$candidate; fi
done
[ -n "$bin" ] || { echo "PostgreSQL is missing (make bench installs it)" >&2; exit 1; }

# --- a place in memory, and an account that is not root --------------------------------------------------------------
base=${TMPDIR:-/tmp}
if [ -w /dev/shm ]; then base=/dev/shm; fi
dir=$(mktemp -d "$base/pgweir-bench-XXXXXX")
postgres_pid= pooler_pid= strace_pid=
tls=          # not empty: clients speak TLS
under=()      # the command under which the poolers run
http= pools=0 # where pgweir serves metrics, and how many databases beside the one it has
clean_up() {
  # A shell's background processes ignore SIGQUIT unless they handle it, as Postgres does: an immediate shutdown.
  for pid in $strace_pid $pooler_pid; do kill -KILL "$pid" 2>/dev/null || true; done
  if [ -n "$postgres_pid" ]; then kill -QUIT "$postgres_pid" 2>/dev/null || true; fi
  for pid in $strace_pid $pooler_pid $postgres_pid; do wait "$pid" 2>/dev/null || true; done
  rm -rf "$dir"
}
trap clean_up EXIT
trap 'exit 130' INT TERM HUP PIPE

drop=()
if [ "$(id -u)" -eq 0 ]; then
  account=postgres
  id "$account" >/dev/null 2>&1 || account=nobody
  chown "$account" "$dir"
  drop=(setpriv "--reuid=$account" "--regid=$(id -g "$account")" --clear-groups --)
fi
ulimit -n "$(ulimit -Hn)"
say() { echo "$*" >&2; }

free_port() {
  local port
  while :; do
    port=$((10000 + RANDOM % 20000))
    if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then echo "$port"; return; fi
  done
}

# Waits until this port answers; gives up when the process behind it has ended.
await_port() {
  local deadline=$((SECONDS + 30))
  until (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; do
    kill -0 "$2" 2>/dev/null || { say "the process on port $1 has ended:"; cat "$3" >&2; exit 1; }
    [ $SECONDS -lt $deadline ] || { say "nothing listens on port $1:"; cat "$3" >&2; exit 1; }
    sleep 0.05
  done
}

# --- Postgres --------------------------------------------------------------------------------------------------------
cd "$dir"
"${drop[@]}" "$bin/initdb" -D "$dir/data" -U bench -A trust -E UTF8 --no-locale --no-sync >"$dir/initdb.log"
postgres_port=$(free_port)
"${drop[@]}" "$bin/postgres" -D "$dir/data" -p "$postgres_port" -k "$dir" -c listen_addresses=127.0.0.1 \
  -c fsync=off -c synchronous_commit=off -c full_page_writes=off -c wal_level=minimal -c max_wal_senders=0 \
  -c max_connections=260 -c shared_buffers=256MB -c autovacuum=off -c max_wal_size=4GB \
  >"$dir/postgres.log" 2>&1 &
postgres_pid=$!
await_port "$postgres_port" "$postgres_pid" "$dir/postgres.log"
direct() { "$bin/psql" -X -q -A -t -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$postgres_port" -U bench -d bench "$@"; }
deadline=$((SECONDS + 30))
until direct -d postgres -c "create database bench" 2>"$dir/psql.err"; do
  [ $SECONDS -lt $deadline ] || { say "Postgres does not start:"; cat "$dir/psql.err" "$dir/postgres.log" >&2; exit 1; }
  sleep 0.1
done
"$bin/pgbench" -i -q -s 10 -h 127.0.0.1 -p "$postgres_port" -U bench bench >/dev/null 2>&1
direct -c "create unlogged table bulk as select n, repeat(md5(n::text), 30) as t from generate_series(1, $bulk_mb * 1000) n" \
       -c "create unlogged table target (n int, t text)" \
       -c "copy bulk to '$dir/bulk.copy'" -c "vacuum analyze" >/dev/null
bulk_bytes=$(stat -c %s "$dir/bulk.copy")
echo "select repeat('x', 100000);" >"$dir/100kb.sql"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=127.0.0.1 \
  -keyout "$dir/key.pem" -out "$dir/certificate.pem" 2>/dev/null
if [ ${#drop[@]} -gt 0 ]; then chown "$account" "$dir/key.pem"; fi

# --- the poolers -----------------------------------------------------------------------------------------------------
# start NAME SIZE METHOD: a fresh one on $port, its process in $pooler_pid
start() {
  local name=$1 size=$2 method=$3
  port=$(free_port)
  printf '"bench" "a secret"\n' >"$dir/users.txt"
  case "$name" in
    pgbouncer)
      cat >"$dir/pgbouncer.ini" <<INI
[databases]
* = host=127.0.0.1 port=$postgres_port
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $port
unix_socket_dir =
auth_type = $method
auth_file = $dir/users.txt
pool_mode = transaction
default_pool_size = $size
max_client_conn = 12000
ignore_startup_parameters = extra_float_digits
log_connections = 0
log_disconnections = 0
${tls:+client_tls_sslmode = require
client_tls_key_file = $dir/key.pem
client_tls_cert_file = $dir/certificate.pem}
INI
      "${drop[@]}" "${under[@]}" "$pgbouncer" "$dir/pgbouncer.ini" >"$dir/pooler.log" 2>&1 &
      ;;
    pgweir)
      cat >"$dir/pooler.toml" <<TOML
[listen]
addresses = ["127.0.0.1:$port"]
http = "${http:-}"
[pool]
mode = "transaction"
size = $size
[budget]
max_servers = $((size + pools))
check_every = 0
[limits]
max_clients = 12000
[auth]
method = "$method"
users_file = "$dir/users.txt"
[databases."*"]
url = "postgres://127.0.0.1:$postgres_port"
[log]
connections = false
disconnections = false
[runtime]
threads = $threads
TOML
      for nth in $(seq 0 $((pools - 1))); do
        printf '[databases.d%s]\nurl = "postgres://127.0.0.1:%s/bench"\n' "$nth" "$postgres_port" >>"$dir/pooler.toml"
      done
      if [ -n "$tls" ]; then
        cat >>"$dir/pooler.toml" <<TOML
[tls.client]
mode = "require"
certificate = "$dir/certificate.pem"
key = "$dir/key.pem"
TOML
      fi
      "${drop[@]}" "${under[@]}" "$pgweir" serve "$dir/pooler.toml" >"$dir/pooler.log" 2>&1 &
      ;;
    direct)
      port=$postgres_port
      return
      ;;
  esac
  pooler_pid=$!
  await_port "$port" "$pooler_pid" "$dir/pooler.log"
}

stop() {
  if [ -n "$pooler_pid" ]; then
    kill -KILL "$pooler_pid" 2>/dev/null || true
    wait "$pooler_pid" 2>/dev/null || true
    pooler_pid=
  fi
}

# Nanoseconds of CPU that all threads of the pooler have used; 0 without one.
cpu() {
  if [ -n "$pooler_pid" ]; then cat "/proc/$pooler_pid/task/"*/schedstat | awk '{ s += $1 } END { printf "%.0f", s }'; else echo 0; fi
}

# run_pgbench ARGUMENTS: sets $transactions and $tps
run_pgbench() {
  PGPASSWORD='a secret' PGSSLMODE=$(if [ -n "$tls" ]; then echo require; else echo disable; fi) "$bin/pgbench" -n -h 127.0.0.1 -p "$port" -U bench "$@" bench >"$dir/pgbench.log" 2>&1 || {
    say "pgbench $* failed:"; tail -5 "$dir/pgbench.log" "$dir/pooler.log" >&2; exit 1; }
  transactions=$(awk -F: '/^number of transactions actually processed/ { split($2, n, "/"); print n[1] + 0 }' "$dir/pgbench.log")
  tps=$(awk '/^tps = / { print $3; exit }' "$dir/pgbench.log")
  if ! grep -q '^number of failed transactions: 0 ' "$dir/pgbench.log"; then
    say "pgbench $*:"; cat "$dir/pgbench.log" >&2; exit 1
  fi
}

# record SCENARIO UNIT PROGRAM VALUE [TPS]
record() {
  printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$round" "$1" "$2" "$3" "$4" "${5:-}" >>"$dir/results"
  say "round $round: $1: $3: $4 $2${5:+, $5 tps}"
}

divide() { awk -v a="$1" -v b="$2" -v by="$3" 'BEGIN { printf "%.3f", a / b / by }'; }

# --- scenarios: each takes the program's name ------------------------------------------------------------------------
# transactions_of LABEL SIZE ARGUMENTS...
transactions_of() {
  local label=$1 size=$2 before; shift 2
  start "$program" "$size" trust
  if [ "$program" != direct ]; then run_pgbench -S -c "$size" -t 20; fi
  before=$(cpu)
  run_pgbench -j 2 -T "$seconds" "$@"
  if [ "$program" = direct ]; then record "$label" us 'direct' - "$tps"
  else record "$label" us "$program" "$(divide $(($(cpu) - before)) "$transactions" 1000)" "$tps"; fi
  stop
}

bulk_select() {
  local before; start "$program" 4 trust
  direct_warm; before=$(cpu)
  python3 "$client" select "$port" "select n, t from bulk"
  record "bulk SELECT" s/GB "$program" "$(divide $(($(cpu) - before)) "$bulk_bytes" 1)"
  stop
}

copy_out() {
  local before; start "$program" 4 trust
  direct_warm; before=$(cpu)
  "$bin/psql" -X -q -h 127.0.0.1 -p "$port" -U bench -d bench -c '\copy bulk to /dev/null'
  record "COPY out" s/GB "$program" "$(divide $(($(cpu) - before)) "$bulk_bytes" 1)"
  stop
}

copy_in() {
  local before; start "$program" 4 trust
  direct -c "truncate target"
  direct_warm; before=$(cpu)
  "$bin/psql" -X -q -h 127.0.0.1 -p "$port" -U bench -d bench -c "\\copy target from '$dir/bulk.copy'"
  record "COPY in" s/GB "$program" "$(divide $(($(cpu) - before)) "$bulk_bytes" 1)"
  stop
}

# One query through the pooler, so that the server connection is there.
direct_warm() { "$bin/psql" -X -q -A -t -h 127.0.0.1 -p "$port" -U bench -d bench -c 'select 1' >/dev/null; }

# logins LABEL METHOD
logins() {
  local before; start "$program" 8 "$2"
  run_pgbench -S -C -c 8 -t 5
  before=$(cpu)
  run_pgbench -S -C -c 8 -j 2 -T "$seconds"
  record "$1" us "$program" "$(divide $(($(cpu) - before)) "$transactions" 1000)" "$tps"
  stop
}

idle_memory() {
  start "$program" 20 trust
  run_pgbench -S -c 20 -t 10
  record "$1" bytes "$program" "$(python3 "$client" "idle${tls:+-tls}" "$port" "$idle_clients" "$pooler_pid")"
  stop
}

# system_calls LABEL SIZE CLIENTS
system_calls() {
  start "$program" "$2" trust
  run_pgbench -S -c "$2" -t 20
  : >"$dir/strace.err"
  strace -f -c -U calls,name -o "$dir/strace.log" -p "$pooler_pid" 2>"$dir/strace.err" &
  strace_pid=$!
  local deadline=$((SECONDS + 10))
  until grep -q attached "$dir/strace.err"; do
    if [ $SECONDS -ge $deadline ] || ! kill -0 "$strace_pid" 2>/dev/null; then
      say "strace cannot attach here: $1 is left out: $(head -1 "$dir/strace.err")"
      wait "$strace_pid" 2>/dev/null || true
      strace_pid=
      stop
      return
    fi
    sleep 0.05
  done
  run_pgbench -S -c "$3" -j 2 -T "$seconds"
  kill -INT "$strace_pid"; wait "$strace_pid" || true; strace_pid=
  local calls; calls=$(awk '$2 == "total" { print $1 }' "$dir/strace.log")
  record "$1" calls "$program" "$(divide "$calls" "$transactions" 1)"
  stop
}

# Sets $counted to the instructions outside the kernel of a pooler's whole life, in which each of 16 clients makes so many transactions.
count_instructions() {
  local each=$1; shift
  start "$program" 16 trust
  run_pgbench -c 16 -t "$each" "$@"
  kill -TERM "$pooler_pid"
  wait "$pooler_pid" || true
  pooler_pid=
  counted=$(awk '/Collected/ { n = $4 } END { print n }' "$dir/pooler.log")
  [ -n "$counted" ] || { say "valgrind counted nothing:"; cat "$dir/pooler.log" >&2; exit 1; }
}

# instructions_of LABEL ARGUMENTS...: what 400 more transactions of each of 16 clients add
instructions_of() {
  local label=$1 few; shift
  count_instructions 100 "$@"
  few=$counted
  count_instructions 500 "$@"
  record "$label" instructions "$program" "$(divide $((counted - few)) 6400 1)"
}

# in_turns SCENARIO ARGUMENTS...: first one program, then the other, the order changing from round to round
in_turns() {
  [[ -z "${ONLY:-}" || "$*" =~ $ONLY ]] || return 0
  local programs="pgbouncer pgweir"
  if [ $((round % 2)) -eq 0 ]; then programs="pgweir pgbouncer"; fi
  for program in $programs; do "$@"; done
}

# What pgweir is asked to hold for five minutes: nothing fails, and it does not grow.
soak() {
  local busy=${CLIENTS_BUSY:-1000} first last
  program=pgweir
  start pgweir 20 trust
  run_pgbench -S -c "$busy" -j 2 -T 5
  python3 "$client" hold "$port" "$idle_clients" <"$dir/hold.in" >"$dir/hold.out" &
  local holder=$!
  exec 9>"$dir/hold.in"
  until grep -q ready "$dir/hold.out"; do kill -0 "$holder" || { say "the idle clients failed"; exit 1; }; sleep 0.1; done
  resident() { awk '/^VmRSS:/ { print $2 }' "/proc/$pooler_pid/status"; }
  (for _ in 1 2 3 4 5 6 7 8 9 10; do sleep $((seconds / 10)); resident; done) >"$dir/resident" &
  local sampler=$!
  run_pgbench -S -c "$busy" -j 2 -T "$seconds"
  wait "$sampler"
  echo >&9; exec 9>&-
  wait "$holder" || { say "an idle client was lost"; cat "$dir/hold.out" >&2; exit 1; }
  first=$(sed -n 2p "$dir/resident") last=$(tail -1 "$dir/resident")
  echo "$idle_clients idle and $busy busy clients for $seconds s: $transactions transactions, $tps tps, none failed."
  echo "Resident kB, every tenth of it: $(tr '\n' ' ' <"$dir/resident")"
  # The allocator's own noise is a few per cent.
  [ "$last" -le $((first + first / 20)) ] || { say "it grew from $first to $last kB"; exit 1; }
  stop
}
# Milliseconds that half and 99 of 100 transactions took at most.
latencies() {
  rm -f "$dir"/latency.*
  (cd "$dir" && run_pgbench -S -c 16 -j 2 -T "$seconds" -l --log-prefix="$dir/latency")
  cat "$dir"/latency.* | awk '{ print $3 }' | sort -n | awk '{ t[NR] = $1 } END { printf "%.2f and %.2f", t[int(NR / 2)] / 1000, t[int(NR * 0.99)] / 1000 }'
}

# What a scrape costs, and whom.
scrape() {
  program=pgweir pools=200 http=127.0.0.1:$(free_port)
  start pgweir 20 trust
  run_pgbench -S -c 16 -t 20
  python3 "$client" hold "$port" "$idle_clients" "$pools" <"$dir/hold.in" >"$dir/hold.out" &
  local holder=$!
  exec 9>"$dir/hold.in"
  until grep -q ready "$dir/hold.out"; do kill -0 "$holder" || { say "the idle clients failed"; exit 1; }; sleep 0.1; done
  one() { curl -s -o "$dir/metrics" -w '%{time_total}\n' "http://$http/metrics"; }
  local quiet busy alone together scraper before
  one >/dev/null
  alone=$(for _ in $(seq 50); do one; done | sort -n | awk '{ t[NR] = $1 * 1000 } END { printf "%.1f (half of them) to %.1f (the slowest)", t[25], t[50] }')
  before=$(cpu)
  for _ in $(seq 50); do one; done >/dev/null
  before=$(divide $(($(cpu) - before)) 50 1000000)
  quiet=$(latencies)
  (for _ in $(seq $((seconds * 5))); do one; sleep 0.2; done >"$dir/scrapes") &
  scraper=$!
  busy=$(latencies)
  wait "$scraper"
  together=$(sort -n "$dir/scrapes" | awk '{ t[NR] = $1 * 1000 } END { printf "%.1f (half of %d) to %.1f (the slowest)", t[int((NR + 1) / 2)], NR, t[NR] }')
  echo "$idle_clients idle clients in $pools pools; $(wc -l <"$dir/metrics") lines, $(wc -c <"$dir/metrics") bytes."
  echo "A scrape by itself: $alone ms, $before ms of CPU. Beside 16 busy clients: $together ms."
  echo "Those clients' transactions, half and 99 of 100: $quiet ms without scrapes, $busy ms with five a second."
  echo >&9; exec 9>&-
  wait "$holder" || { say "an idle client was lost"; cat "$dir/hold.out" >&2; exit 1; }
  stop
}
if [ "$mode" = scrape ]; then mkfifo "$dir/hold.in"; scrape; exit 0; fi
if [ "$mode" = soak ]; then mkfifo "$dir/hold.in"; soak; exit 0; fi

if [ "$mode" = instructions ]; then
  under=(valgrind --tool=callgrind --vgdb=no --trace-children=yes --callgrind-out-file=/dev/null)
  round=1
  for protocol in simple extended prepared; do in_turns instructions_of "$protocol" -S -M "$protocol"; done
  tls=yes in_turns instructions_of "TLS, simple" -S
  in_turns instructions_of "login by trust and one query" -S -C
fi

sizes="16:16 64:20 500:20"
if [ "$mode" = quick ]; then sizes="16:16 500:20"; fi
for round in $(seq "$rounds"); do
  for protocol in simple extended prepared; do
    for pair in $sizes; do
      clients=${pair%:*} servers=${pair#*:}
      label="$protocol, $clients clients on $servers"
      # Postgres alone has no queue: only where every client has a connection.
      if [ "$clients" -le 64 ] && [ -z "${ONLY:-}" ]; then program=direct transactions_of "$label" "$servers" -S -M "$protocol" -c "$clients"; fi
      in_turns transactions_of "$label" "$servers" -S -M "$protocol" -c "$clients"
    done
  done
  tls=yes in_turns transactions_of "TLS, simple, 16 clients on 16" 16 -S -c 16
  in_turns transactions_of "100 KB results, 16 clients on 16" 16 -f "$dir/100kb.sql" -c 16
  in_turns bulk_select
  in_turns copy_out
  in_turns copy_in
  in_turns logins "login by SCRAM and one query" scram-sha-256
  in_turns logins "login by trust and one query" trust
  tls=yes in_turns logins "login by trust over TLS and one query" trust
  if [ "$round" -eq 1 ]; then
    in_turns idle_memory "idle client, resident"
    tls=yes in_turns idle_memory "idle TLS client, resident"
    in_turns system_calls "system calls, 16 clients on 16" 16 16
    in_turns system_calls "system calls, 64 clients on 20" 20 64
    tls=yes in_turns system_calls "TLS: system calls, 16 clients on 16" 16 16
  fi
done

# --- the table -------------------------------------------------------------------------------------------------------
echo "pgweir ($threads thread$([ "$threads" = 1 ] || echo s)) and $("$pgbouncer" --version | head -1),"
echo "$("$bin/postgres" --version), $(nproc) cores, Linux $(uname -r), $([ "$mode" = instructions ] || echo "$rounds round(s) of $seconds s, ")$(date -u +%F)."
echo
python3 - "$dir/results" <<'PYTHON'
import collections
import statistics
import sys

values = collections.defaultdict(dict)  # (scenario, unit) -> (program, round) -> (value, tps)
for line in open(sys.argv[1]):
    turn, scenario, unit, program, value, tps = line.rstrip("\n").split("\t")
    values[scenario, unit][program, turn] = (None if value == "-" else float(value), float(tps) if tps else None)


def median(numbers):
    numbers = [number for number in numbers if number is not None]
    return statistics.median(numbers) if numbers else None


def shown(number, digits=3):
    if number is None:
        return ""
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.{digits}g}"


print("| | unit | PgBouncer | pgweir | ratio | rounds' ratios | TPS direct | TPS PgBouncer | TPS pgweir |")
print("|---|---|---:|---:|---:|---|---:|---:|---:|")
for (scenario, unit), found in values.items():
    turns = sorted({turn for _, turn in found}, key=int)

    def column(program, which):
        return [found.get((program, turn), (None, None))[which] for turn in turns]

    pairs = zip(column("pgweir", 0), column("pgbouncer", 0))
    ratios = [ours / theirs for ours, theirs in pairs if ours is not None and theirs]
    print(
        "|",
        " | ".join(
            [
                scenario,
                unit,
                shown(median(column("pgbouncer", 0))),
                shown(median(column("pgweir", 0))),
                f"**{median(ratios):.2f}**" if ratios else "",
                " ".join(f"{ratio:.2f}" for ratio in ratios),
                shown(median(column("direct", 1))),
                shown(median(column("pgbouncer", 1))),
                shown(median(column("pgweir", 1))),
            ]
        ),
        "|",
    )
PYTHON
