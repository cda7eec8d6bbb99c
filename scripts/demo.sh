#!/usr/bin/env bash
# Shows pgweir at work: a Postgres of its own, pgweir in front of it, and many clients on few server connections.
# Nothing is left behind.
set -euo pipefail
cd "$(dirname "$0")/.."

pgweir=$(realpath "${PGWEIR:-target/debug/pgweir}")
bin=
for candidate in "$(dirname "$(command -v initdb || echo /)")" $(compgen -G '/usr/lib/postgresql/*/bin' | sort -V); do
  if [ -x "$candidate/initdb" ] && [ -x "$candidate/pgbench" ] && [ -x "$candidate/psql" ]; then bin=$candidate; fi
done
[ -n "$bin" ] || { echo "PostgreSQL is missing: run scripts/install-deps.sh" >&2; exit 1; }

dir=$(mktemp -d)
postgres_pid= pgweir_pid=
clean_up() {
  if [ -n "$pgweir_pid" ]; then kill -TERM "$pgweir_pid" 2>/dev/null || true; wait "$pgweir_pid" 2>/dev/null || true; fi
  if [ -n "$postgres_pid" ]; then kill -QUIT "$postgres_pid" 2>/dev/null || true; wait "$postgres_pid" 2>/dev/null || true; fi
  rm -rf "$dir"
}
trap clean_up EXIT
trap 'exit 130' INT TERM HUP

drop=()
if [ "$(id -u)" -eq 0 ]; then
  account=postgres
  id "$account" >/dev/null 2>&1 || account=nobody
  chown "$account" "$dir"
  drop=(setpriv "--reuid=$account" "--regid=$(id -g "$account")" --clear-groups --)
fi

free_port() {
  local port
  while :; do
    port=$((10000 + RANDOM % 20000))
    if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then echo "$port"; return; fi
  done
}
# await LOG COMMAND...: until the command succeeds
await() {
  local log=$1 deadline=$((SECONDS + 30)); shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $deadline ] || { echo "waited in vain for: $*" >&2; cat "$log" >&2; exit 1; }
    sleep 0.1
  done
}
step() { printf '\n\033[1m%s\033[0m\n' "$*"; }
show() { printf '$ %s\n' "$*"; "$@"; }

step "A Postgres with max_connections = 20"
postgres_port=$(free_port)
"${drop[@]}" "$bin/initdb" -D "$dir/data" -U postgres -A trust --no-sync >"$dir/initdb.log"
"${drop[@]}" "$bin/postgres" -D "$dir/data" -p "$postgres_port" -k "$dir" -c listen_addresses=127.0.0.1 \
  -c max_connections=20 -c fsync=off >"$dir/postgres.log" 2>&1 &
postgres_pid=$!
direct=("$bin/psql" -X -h 127.0.0.1 -p "$postgres_port" -U postgres)
await "$dir/postgres.log" "${direct[@]}" -c 'select 1'
"$bin/pgbench" -i -q -s 1 -h 127.0.0.1 -p "$postgres_port" -U postgres postgres >/dev/null 2>&1

step "pgweir in front of it: 10 server connections, two services with caps"
port=$(free_port) http=$(free_port)
printf '"postgres" ""\n"site" ""\n"bot" ""\n' >"$dir/users.txt"
"${direct[@]}" -q -c 'create role site login superuser' -c 'create role bot login superuser'
cat >"$dir/pooler.toml" <<TOML
[listen]
addresses = ["127.0.0.1:$port"]
http = "127.0.0.1:$http"

[auth]
method = "trust"
users_file = "$dir/users.txt"

[budget]
max_servers = 10
check_every = 0

[databases."*"]
url = "postgres://127.0.0.1:$postgres_port"

[services.site]
match = { user = "site" }
max_servers = 6

[services.bot]
match = { user = "bot" }
max_servers = 4
TOML
cat "$dir/pooler.toml"
"$pgweir" serve "$dir/pooler.toml" >"$dir/pgweir.log" 2>&1 &
pgweir_pid=$!
through=("$bin/psql" -X -h 127.0.0.1 -p "$port" -U postgres)
await "$dir/pgweir.log" "${through[@]}" -c 'select 1'
show "${through[@]}" -c "select 'through pgweir' as hello, current_setting('max_connections') as max_connections"

step "300 clients of the site and 20 of the bot, where Postgres alone takes 20"
printf '$ pgbench -c 100 postgres     # without pgweir\n'
"$bin/pgbench" -n -S -c 100 -T 2 -h 127.0.0.1 -p "$postgres_port" -U site postgres 2>&1 | grep -m 1 -i 'too many' || true
"$bin/pgbench" -n -S -c 300 -j 2 -T 6 -h 127.0.0.1 -p "$port" -U site postgres >"$dir/site.log" 2>&1 &
site=$!
"$bin/pgbench" -n -S -c 20 -T 6 -h 127.0.0.1 -p "$port" -U bot postgres >"$dir/bot.log" 2>&1 &
bot=$!
await "$dir/pgweir.log" bash -c "'${direct[0]}' -X -A -t -h 127.0.0.1 -p $postgres_port -U postgres \
  -c \"select count(*) from pg_stat_activity where usename = 'site'\" | grep -q '^6$'"
printf '\nwho holds connections in Postgres meanwhile:\n'
"${direct[@]}" -c "select usename, count(*) from pg_stat_activity where usename in ('site', 'bot') group by 1 order by 1"
wait "$site" "$bot"
for name in site bot; do
  echo "$name:"
  grep -E '^(number of (clients|transactions|failed)|latency average|tps)' "$dir/$name.log" | sed 's/^/  /'
done

step "What pgweir counts"
if command -v curl >/dev/null; then
  show curl -s "http://127.0.0.1:$http/metrics" | grep -v '^#' | head -20
else
  echo "http://127.0.0.1:$http/metrics"
fi

step "SIGTERM: transactions end, then pgweir does"
kill -TERM "$pgweir_pid"
wait "$pgweir_pid" && echo "pgweir has ended with status 0"
pgweir_pid=
