//! A real Prometheus scrapes pgweir under load: for a minute, or as long as `PGWEIR_PROMETHEUS_SECONDS` says.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pgweir::metrics::{FAMILIES, Kind};
use serde_json::Value;
use support::postgres::program;
use support::process::{Guarded, free_port, scratch};
use support::{Batch, Pooler, Postgres, Raw, eventually};
use tempfile::TempDir;

/// A running Prometheus; killed and removed on drop.
struct Prometheus {
    port: u16,
    _process: Guarded,
    _directory: TempDir,
}

impl Prometheus {
    /// Scrapes this port of the machine once a second.
    fn scraping(port: u16) -> Self {
        let directory = scratch();
        let path = |name: &str| directory.path().join(name);
        let config = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\n\
             scrape_configs:\n- job_name: pgweir\n  static_configs:\n  - targets: ['127.0.0.1:{port}']\n"
        );
        fs::write(path("prometheus.yml"), config).expect("the directory is ours");
        let log = fs::File::create(path("log")).expect("the directory is ours");
        let own = free_port();
        let mut command = Command::new("prometheus");
        command
            .arg(format!(
                "--config.file={}",
                path("prometheus.yml").display()
            ))
            .arg(format!("--storage.tsdb.path={}", path("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{own}"))
            .current_dir(directory.path())
            .stdout(Stdio::null())
            .stderr(log);
        let process = Guarded::spawn(&mut command, "KILL", directory.path());
        let prometheus = Self {
            port: own,
            _process: process,
            _directory: directory,
        };
        eventually("Prometheus is ready", || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, own)).is_ok() && prometheus.ask("up").is_some()
        });
        prometheus
    }

    /// The series that an expression gives: labels and value.
    fn ask(&self, expression: &str) -> Option<Vec<(Value, f64)>> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).ok()?;
        let query: String = url::form_urlencoded::byte_serialize(expression.as_bytes()).collect();
        // Version 1.0 has no chunks.
        let request =
            format!("GET /api/v1/query?query={query} HTTP/1.0\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (_, body) = answer.split_once("\r\n\r\n")?;
        let body: Value = serde_json::from_str(body).ok()?;
        let series = body.pointer("/data/result")?.as_array()?;
        let read = |series: &Value| {
            let value = series.pointer("/value/1")?.as_str()?.parse().ok()?;
            Some((series["metric"].clone(), value))
        };
        series.iter().map(read).collect()
    }

    /// The value of an expression that gives one series.
    #[track_caller]
    fn value(&self, expression: &str) -> f64 {
        let series = self.ask(expression).expect("Prometheus answers");
        let [(_, value)] = &series[..] else {
            panic!("{expression}: {series:?}")
        };
        *value
    }
}

fn seconds() -> u64 {
    let given = std::env::var("PGWEIR_PROMETHEUS_SECONDS").ok();
    given.map_or(65, |text| text.parse().expect("a number of seconds"))
}

#[test]
fn prometheus_scrapes_it_under_load() {
    let postgres = Postgres::start();
    postgres.fill_for_pgbench();
    let pooler = Pooler::serve(&postgres, "[pool]\nsize = 4\n");
    let prometheus = Prometheus::scraping(pooler.http_port());
    let seconds = seconds();
    let port = pooler.port().to_string();
    let mut load = program("pgbench")
        .args([
            "-n",
            "-S",
            "-C",
            "-c",
            "8",
            "-j",
            "2",
            "-h",
            "127.0.0.1",
            "-U",
            "postgres",
            "-p",
            &port,
        ])
        .args(["-R", "200", "-T", &seconds.to_string(), "postgres"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("pgbench is installed");
    let began = Instant::now();
    let mut client = Raw::login_as(pooler.port(), "postgres", "postgres", "site@v1");
    while began.elapsed() < Duration::from_secs(seconds) {
        // What fails is counted too; and each query is one more scrape's worth of time.
        Raw::try_login(pooler.port(), "eve", "postgres", None)
            .err()
            .expect("nobody knows this user");
        client.send(&Batch::new().query("select pg_sleep(0.5)"));
        client.rows().expect("an answer");
    }
    assert!(
        load.wait().expect("it is our child").success(),
        "pgbench failed:\n{}",
        pooler.log()
    );

    let window = format!("[{seconds}s]");
    assert!(prometheus.value("up") > 0.5);
    assert!(
        prometheus.value(&format!("min_over_time(up{window})")) > 0.5,
        "a scrape failed"
    );
    let scrapes = prometheus.value(&format!("count_over_time(up{window})"));
    let wanted = u32::try_from(seconds / 2).expect("a minute or a few");
    assert!(scrapes > f64::from(wanted), "{scrapes} scrapes");
    for counter in [
        "pgweir_transactions_total",
        "pgweir_logins_total",
        "pgweir_sessions_ended_total{reason=\"goodbye\"}",
        "pgweir_login_failures_total{reason=\"unknown_user\"}",
        "pgweir_wait_seconds_count",
        "process_cpu_seconds_total",
    ] {
        let grown = prometheus.value(&format!("sum(increase({counter}{window}))"));
        assert!(grown > 1.0, "{counter} grew by {grown}");
    }
    for family in FAMILIES {
        let suffixes: &[_] = match family.kind {
            Kind::Counter => &[""],
            Kind::Histogram => &["_bucket", "_sum", "_count"],
            Kind::Gauge => &[],
        };
        for suffix in suffixes {
            let back = format!("resets({}{suffix}{window}) > 0", family.name);
            let back = prometheus.ask(&back).expect("Prometheus answers");
            assert!(
                back.is_empty(),
                "{}{suffix} went back: {back:?}",
                family.name
            );
        }
    }
    for histogram in ["wait", "transaction", "query", "login"] {
        let rate = format!("sum by (le) (rate(pgweir_{histogram}_seconds_bucket{window}))");
        let p99 = prometheus.value(&format!("histogram_quantile(0.99, {rate})"));
        assert!(p99 > 0.0 && p99 < 67.2, "{histogram}: {p99}");
    }
    let median = prometheus.value(&format!(
        "histogram_quantile(0.5, sum by (le) (rate(pgweir_query_seconds_bucket{window})))"
    ));
    assert!(median < 0.5, "most queries are no pg_sleep: {median}");

    // Half of its lines are told once a minute.
    if seconds >= 65 {
        let line = pooler.await_log("a line of statistics", |line| line.contains("stats: "));
        assert!(
            line.contains(" xacts/s, ") && !line.contains("stats: 0 xacts/s"),
            "{line}"
        );
        let line = pooler.await_log("the refusals together", |line| {
            line.contains("again within the last minute")
        });
        assert!(
            line.contains("login refused") && line.contains("count="),
            "{line}"
        );
    }
}

#[test]
fn promtool_is_content() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(
        &postgres,
        "[services.\"a \\\"b\\\" \\\\ c\"]\nmax_servers = 2\n",
    );
    let mut client = Raw::login_as(pooler.port(), "postgres", "postgres", "a \"b\" \\ c@v1");
    client.value("select 1");
    let (_, text) = pooler.http("/metrics");
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is installed");
    let mut input = promtool.stdin.take().expect("it is piped");
    input.write_all(text.as_bytes()).expect("it reads");
    drop(input);
    let output = promtool.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.is_empty(), "{said}");
}
