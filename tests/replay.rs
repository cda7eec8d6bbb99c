//! The incident behind pgweir, replayed: a website is deployed six times, and each old deployment lives on with the connections that it
//! had, some of them in the middle of a transaction. A bot and ten small services ask the same Postgres, which takes 100 connections.
//!
//! Directly, the bot is refused. Through pgweir nobody but the site notices.

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use support::pooler::pgweir;
use support::process::Guarded;
use support::watch::Seen;
use support::{Pooler, Postgres, Raw, ServerError, Watch, eventually};

const MAX_CONNECTIONS: u32 = 100;

/// How often the site is deployed.
const DEPLOYMENTS: usize = 6;

/// A deployment is two instances. When the first one serves requests, the deployment before gets no more of them.
const FIRST: usize = 6;
const SECOND: usize = 14;
const THREADS: usize = FIRST + SECOND;

/// So many of its threads hang in a transaction when a deployment gets no more requests.
const HANGING: usize = 3;

/// What pgweir may have, and the site of it.
const BUDGET: usize = 48;
const CAP: usize = 32;

/// The site is told of above this: less than its cap, more than one deployment of it.
const ALERT: usize = 24;

/// How long sessions of an old deployment are left alone.
const GRACE: Duration = Duration::from_secs(6);

/// And how much later they are gone.
const SLACK: Duration = Duration::from_secs(10);

/// No other service waits for longer than a second: the bucket of pgweir's own histogram that ends there. What a client measures on a
/// busy machine is mostly how long it was not scheduled itself.
const A_SECOND: &str = "1.048576";

const SERVICES: [&str; 10] = [
    "mailer", "search", "billing", "metrics", "forum", "wiki", "backup", "cron", "feeds", "status",
];

/// One replay at a time: each has the machine to itself, as far as that is ours to say.
static STAGE: Mutex<()> = Mutex::new(());

#[test]
fn directly_the_bot_is_refused() {
    let _stage = STAGE.lock();
    let postgres = postgres();
    let others = Others::begin(postgres.port());
    let mut site = Site::prepare(postgres.port());
    for deployment in 0..DEPLOYMENTS {
        site.deploy(deployment);
    }
    others.await_failures("bot");
    let stories = others.end();
    // Postgres has two ways to say it: its last connections are a superuser's.
    let refusals = &stories["bot"].failures;
    assert!(
        refusals.iter().all(|refusal| refusal.code() == "53300"),
        "{refusals:?}"
    );
}

#[test]
fn through_pgweir_in_transaction_mode_nobody_else_notices() {
    replay("transaction");
}

#[test]
fn through_pgweir_with_the_site_in_session_mode_nobody_else_notices() {
    replay("session");
}

fn replay(mode: &str) {
    let _stage = STAGE.lock();
    let postgres = postgres();
    let pooler = pooler(&postgres, mode);
    let watch = Watch::start(&postgres);
    let others = Others::begin(pooler.port());
    // What comes with the start has no order among deployments: the site comes later.
    await_current(&pooler, SERVICES[0], "v1");
    let observer = Observer::begin(&pooler);

    let mut site = Site::prepare(pooler.port());
    site.deploy(0);
    site.begin(1);
    let alert = pooler.await_log("an alert names the site", |line| {
        line.contains("alert: service site has")
    });
    let so_far = postgres.value("select count(*) from pg_stat_activity where usename = 'site'");
    assert!(
        so_far.parse::<usize>().expect("a number") < CAP,
        "the alert is for what is to come: {so_far}"
    );
    assert!(alert.contains("deployment=\"v1\""), "{alert}");
    site.complete(1);
    for deployment in 2..DEPLOYMENTS {
        site.deploy(deployment);
    }
    let deployments = observer.end();
    pooler.await_log("all is over", |line| line.contains("the incident is over"));

    let current = site.count(DEPLOYMENTS - 1);
    assert_eq!(current.failed, 0, "{current:?}");
    assert_eq!(current.connections, THREADS, "none was lost: {current:?}");
    for old in 0..DEPLOYMENTS - 1 {
        let count = site.count(old);
        assert_eq!(count.failed, 0, "v{}: {count:?}", old + 1);
    }
    let (_, waits) = pooler.http("/metrics");
    for (service, story) in others.end() {
        assert_eq!(story.failures, [], "{service}");
        assert!(story.queries > 0, "{service}");
        assert_no_long_waits(&waits, &service);
    }
    let seen = watch.finish();
    assert_within_limits(&seen);
    for (deployment, life) in &deployments {
        assert!(life.is_over_in_time(), "{deployment}: {life:?}");
    }
    assert_the_incident_tells_it(&pooler);
}

fn postgres() -> Postgres {
    let postgres = Postgres::setup().max_connections(MAX_CONNECTIONS).start();
    for name in ["site", "bot"].iter().chain(&SERVICES) {
        // Whoever comes first lends the monitor its name.
        postgres.sql(&format!("create role {name} login in role pg_monitor"));
    }
    postgres
}

fn pooler(postgres: &Postgres, mode: &str) -> Pooler {
    let names = ["postgres", "site", "bot"].into_iter().chain(SERVICES);
    let users: Vec<_> = names.map(|name| format!("\"{name}\" \"\"\n")).collect();
    let config = format!(
        "[pool]\nsize = {BUDGET}\n\n\
         [timeouts]\nserver_idle = \"3s\"\n\n\
         [budget]\nmax_servers = {BUDGET}\ncheck_every = \"200ms\"\n\n\
         [users.site]\nmode = \"{mode}\"\n\n\
         [services.site]\nmax_servers = {CAP}\nalert_servers = {ALERT}\nalert_clients = {ALERT}\n\n\
         [services.\"*\".deployments]\npromote_after = \"1s\"\nstale_grace = \"{grace}s\"\nstale_idle = \"1s\"\n\
         stale_idle_transaction = \"{grace}s\"\n\n\
         [incidents]\ndirectory = \"{{dir}}/incidents\"\nsnapshot_every = \"500ms\"\n",
        grace = GRACE.as_secs()
    );
    Pooler::serve_with_users(postgres, &config, &users.concat())
}

fn await_current(pooler: &Pooler, service: &str, deployment: &str) {
    pooler.await_log("it is current", |line| {
        line.contains("deployment is current")
            && line.contains(&format!("service={service} "))
            && line.contains(&format!("deployment={deployment} "))
    });
}

/// All waits of this service were short.
fn assert_no_long_waits(metrics: &str, service: &str) {
    let label = format!("user=\"{service}\"");
    let count = |name: &str, bucket: &str| {
        let series = metrics
            .lines()
            .find(|line| line.starts_with(name) && line.contains(&label) && line.contains(bucket));
        let series = series.unwrap_or_else(|| panic!("{name} of {service} in\n{metrics}"));
        let (_, count) = series.rsplit_once(' ').expect("a value");
        count.parse::<u64>().expect("a number")
    };
    let short = count("pgweir_wait_seconds_bucket{", &format!("le=\"{A_SECOND}\""));
    assert_eq!(short, count("pgweir_wait_seconds_count{", ""), "{service}");
    assert!(short > 0, "{service}");
}

fn assert_within_limits(seen: &Seen) {
    let site = seen.by_user["site"];
    assert!(site <= CAP, "{seen:?}");
    assert!(seen.total <= BUDGET, "{seen:?}");
}

/// What the incident's export says, for people who read it on the day after.
fn assert_the_incident_tells_it(pooler: &Pooler) {
    let directory = pooler.directory().join("incidents").display().to_string();
    let (status, export) = pgweir(&["incident", "export", "1", "--directory", &directory]);
    assert!(status.success(), "{export}");
    for part in [
        "## Detection",
        "service site has",
        "most clients are of deployment v1",
        "## Holders",
        "| site | v",
        "| idle in transaction |",
        "deployment \"v1\" of service \"site\" was superseded by \"v2\"",
        "deployment \"v5\" of service \"site\" was superseded by \"v6\"",
    ] {
        assert!(export.contains(part), "{part} is missing:\n{export}");
    }
}

/// All deployments of the site, started as processes and waiting for their turn.
struct Site(Vec<Deployment>);

struct Deployment {
    _process: Guarded,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// What a deployment says of itself.
#[derive(Debug)]
struct Count {
    failed: usize,
    connections: usize,
    #[expect(dead_code, reason = "for who reads why a test failed")]
    last_failure: String,
}

impl Site {
    fn prepare(port: u16) -> Self {
        Self(
            (1..=DEPLOYMENTS)
                .map(|nth| Deployment::prepare(port, nth))
                .collect(),
        )
    }

    /// A rolling deployment.
    fn deploy(&mut self, nth: usize) {
        self.begin(nth);
        self.complete(nth);
    }

    fn begin(&mut self, nth: usize) {
        self.0[nth].tell("start", FIRST);
        if let Some(before) = nth.checked_sub(1) {
            self.0[before].tell("rest", HANGING);
        }
    }

    fn complete(&mut self, nth: usize) {
        self.0[nth].tell("start", SECOND);
    }

    fn count(&mut self, nth: usize) -> Count {
        let said = self.0[nth].tell("count", 0);
        let mut words = said.splitn(4, ' ');
        let mut number = || words.next().expect("four words").parse().expect("a number");
        let (_served, failed, connections): (usize, usize, usize) = (number(), number(), number());
        Count {
            failed,
            connections,
            last_failure: words.next().unwrap_or_default().to_owned(),
        }
    }
}

impl Deployment {
    fn prepare(port: u16, nth: usize) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let python = root.join(".venv/bin/python");
        assert!(
            python.exists(),
            "{} is missing: run scripts/install-deps.sh (make test does)",
            python.display()
        );
        let mut command = Command::new(python);
        command
            .arg(root.join("tests/replay/site.py"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", port.to_string())
            .env("PGUSER", "site")
            .env("PGDATABASE", "postgres")
            .env("PGAPPNAME", format!("site@v{nth}"));
        // It lays nothing down, so its guardian has nothing to remove.
        let (process, input, output) =
            Guarded::spawn_piped(&mut command, "KILL", Path::new("/nonexistent"));
        Self {
            _process: process,
            input,
            output: BufReader::new(output),
        }
    }

    /// Tells it what to do, and waits until it has done so.
    fn tell(&mut self, word: &str, number: usize) -> String {
        writeln!(self.input, "{word} {number}").expect("it listens");
        let mut answer = String::new();
        self.output.read_line(&mut answer).expect("it speaks");
        assert!(!answer.is_empty(), "it ended when it was told to {word}");
        answer.trim_end().to_owned()
    }
}

/// The bot and the small services.
struct Others {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    stories: Arc<Mutex<BTreeMap<String, Story>>>,
}

/// What a service has been through.
#[derive(Debug, Default)]
struct Story {
    queries: usize,
    failures: Vec<ServerError>,
}

impl Others {
    /// They come, and have all been served once when this returns.
    fn begin(port: u16) -> Self {
        let mut others = Self {
            over: Arc::default(),
            threads: Vec::new(),
            stories: Arc::default(),
        };
        for service in SERVICES {
            for _ in 0..2 {
                let mut session = None;
                others.spawn(service, move || ask(&mut session, port, service));
            }
        }
        // It connects anew for each question.
        others.spawn("bot", move || ask(&mut None, port, "bot"));
        eventually("all have been served", || {
            let stories = others.stories.lock();
            stories.len() == SERVICES.len() + 1 && stories.values().all(|story| story.queries > 1)
        });
        others
    }

    fn spawn(
        &mut self,
        service: &'static str,
        mut ask: impl FnMut() -> Result<(), ServerError> + Send + 'static,
    ) {
        let (over, stories) = (Arc::clone(&self.over), Arc::clone(&self.stories));
        let thread = thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                let answer = ask();
                let mut stories = stories.lock();
                let story = stories.entry(service.to_owned()).or_default();
                story.queries += 1;
                story.failures.extend(answer.err());
                drop(stories);
                thread::sleep(Duration::from_millis(50));
            }
        });
        self.threads.push(thread);
    }

    fn await_failures(&self, service: &str) {
        eventually("it fails", || {
            let stories = self.stories.lock();
            !stories[service].failures.is_empty()
        });
    }

    fn end(mut self) -> BTreeMap<String, Story> {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("no other answer than its own");
        }
        std::mem::take(&mut self.stories.lock())
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// One question, over a session that is kept, or made for it.
fn ask(session: &mut Option<Raw>, port: u16, service: &str) -> Result<(), ServerError> {
    let mut raw = match session.take() {
        Some(raw) => raw,
        None => log_in(port, service)?,
    };
    let rows = raw.query(&format!("select '{service}' from pg_sleep(0.002)"))?;
    assert_eq!(rows, [[Some(service.to_owned())]]);
    *session = Some(raw);
    Ok(())
}

fn log_in(port: u16, service: &str) -> Result<Raw, ServerError> {
    let mut raw = Raw::connect(port);
    let name = format!("{service}@v1");
    let startup = [
        ("user", service),
        ("database", "postgres"),
        ("application_name", &name),
    ];
    raw.log_in(&startup, None)?;
    Ok(raw)
}

/// Looks on the console at what becomes of the site's deployments.
struct Observer(JoinHandle<BTreeMap<String, Life>>);

/// The end of a deployment's life.
#[derive(Debug)]
struct Life {
    superseded: Instant,
    gone: Option<Instant>,
}

impl Observer {
    fn begin(pooler: &Pooler) -> Self {
        let mut console = Raw::login(pooler.port(), "postgres", "pgweir");
        Self(thread::spawn(move || {
            let mut lives = BTreeMap::new();
            let all_gone = |lives: &BTreeMap<_, Life>| {
                lives.len() == DEPLOYMENTS - 1 && lives.values().all(|life| life.gone.is_some())
            };
            let begun = Instant::now();
            while !all_gone(&lives) && begun.elapsed() < Duration::from_secs(90) {
                observe(&mut console, &mut lives);
                thread::sleep(Duration::from_millis(50));
            }
            lives
        }))
    }

    /// Waits until the old ones are gone.
    fn end(self) -> BTreeMap<String, Life> {
        let lives = self.0.join().expect("it does not panic");
        assert_eq!(lives.len(), DEPLOYMENTS - 1, "{lives:?}");
        lives
    }
}

fn observe(console: &mut Raw, lives: &mut BTreeMap<String, Life>) {
    let rows = console.query("SHOW DEPLOYMENTS").expect("rows");
    for row in rows {
        let text = |at: usize| row[at].clone().unwrap_or_default();
        if text(0) != "site" {
            continue;
        }
        let now = Instant::now();
        match text(2).as_str() {
            "superseded" => {
                let life = Life {
                    superseded: now,
                    gone: None,
                };
                lives.entry(text(1)).or_insert(life);
            }
            "gone" => {
                let life = lives.get_mut(&text(1)).expect("it was superseded first");
                life.gone.get_or_insert(now);
            }
            _ => {}
        }
    }
}

impl Life {
    fn is_over_in_time(&self) -> bool {
        self.gone
            .is_some_and(|gone| gone <= self.superseded + GRACE + SLACK)
    }
}
