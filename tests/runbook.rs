//! docs/runbook.md: every command in it works, in the situation that it is for, and says what the page says it says.
//!
//! The commands are read out of the page: blocks marked `sh` are run, in their order, section by section; a block marked `text` below is
//! what the last one must say. A command that is added is run; a section that is added needs its situation here.

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use pgweir::incident::Cause;
use support::pooler::program;
use support::wait::PATIENCE;
use support::{Pooler, Postgres, Raw, eventually, until};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/runbook.md");
const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/prometheus-rules.yml");

/// Commands that are given together, and what they must say.
#[derive(Debug, Default, Clone)]
struct Block {
    commands: String,
    says: Vec<String>,
}

/// A section and its commands.
#[derive(Debug)]
struct Section {
    heading: String,
    blocks: Vec<Block>,
}

fn sections(page: &str) -> Vec<Section> {
    let mut sections = Vec::<Section>::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if let Some(heading) = line.strip_prefix("## ") {
            sections.push(Section {
                heading: heading.to_owned(),
                blocks: Vec::new(),
            });
        }
        let Some(kind) = line.strip_prefix("```") else {
            continue;
        };
        let inside: Vec<_> = lines.by_ref().take_while(|line| *line != "```").collect();
        let blocks = &mut sections.last_mut().expect("it stands in a section").blocks;
        match kind {
            "sh" => blocks.push(Block {
                commands: inside.join("\n"),
                says: Vec::new(),
            }),
            "text" => {
                let block = blocks.last_mut().expect("commands say it");
                block.says = inside.into_iter().map(str::to_owned).collect();
            }
            other => {
                panic!("a block of the runbook is marked {other:?}: it is neither run nor checked")
            }
        }
    }
    sections
}

/// What a section is about, set up for real.
struct Situation {
    postgres: Postgres,
    pooler: Pooler,
    clients: Vec<Raw>,
    waiting: Vec<JoinHandle<()>>,
}

impl Situation {
    fn new(max_connections: u32, config: &str) -> Self {
        let postgres = Postgres::setup().max_connections(max_connections).start();
        for role in ["alice", "bob"] {
            postgres.sql(&format!("create role {role} login in role pg_monitor"));
        }
        let pooler = Pooler::serve(
            &postgres,
            &format!(
                "[process]\npidfile = \"{{dir}}/pid\"\n\n[log]\nfile = \"{{dir}}/file.log\"\n\n\
                 [incidents]\ndirectory = \"{{dir}}/incidents\"\n\n\
                 [services.\"*\".deployments]\npromote_after = \"400ms\"\nstale_grace = \"1h\"\n\n{config}"
            ),
        );
        Self {
            postgres,
            pooler,
            clients: Vec::new(),
            waiting: Vec::new(),
        }
    }

    /// Nothing is wrong.
    fn quiet() -> Self {
        let mut quiet = Self::new(30, "");
        quiet.log_in("postgres", "site@v42");
        quiet
    }

    /// An old deployment of site was left over, and the service has more clients than it should.
    fn leftovers() -> Self {
        let mut one = Self::new(
            60,
            "[services.site]\nalert_clients = 3\nmax_clients = 40\n\n\
             [budget]\nmax_servers = 30\ncheck_every = \"200ms\"\n",
        );
        // What comes right after the start has no order.
        one.log_in("postgres", "early@v1");
        one.await_current("early", "v1");
        for deployment in ["v41", "v42"] {
            for _ in 0..3 {
                one.log_in("postgres", &format!("site@{deployment}"));
            }
            one.await_current("site", deployment);
        }
        one
    }

    /// Somebody takes most of Postgres, around pgweir.
    fn crowded() -> Self {
        let mut one = Self::new(20, "[budget]\nmax_servers = 10\ncheck_every = \"200ms\"\n");
        one.log_in("postgres", "site@v42");
        one.connect_directly(13);
        one
    }

    /// The budget is spent on transactions that do nothing.
    fn held_up() -> Self {
        let mut one = Self::new(
            30,
            "[budget]\nmax_servers = 3\ncheck_every = \"200ms\"\n\n[pressure]\nwaiters_for = \"300ms\"\n",
        );
        for _ in 0..2 {
            let holder = one.log_in("postgres", "site@v41");
            holder.query("begin").expect("a transaction");
        }
        one.wait_for_a_server("postgres", "bot@v1");
        one
    }

    /// Postgres has no connection left.
    fn full() -> Self {
        let mut one = Self::new(
            10,
            "[budget]\nmax_servers = 90\ncheck_every = \"200ms\"\n\n[timeouts]\nserver_login_retry = \"100ms\"\n",
        );
        one.log_in("bob", "site@v42")
            .query("begin")
            .expect("a transaction");
        let monitored = "select count(*) from pg_stat_activity where usename = 'bob'";
        eventually("it is monitored", || one.postgres.value(monitored) == "2");
        let postgres = one.postgres.port();
        let free = until("others take the rest", PATIENCE, || {
            let named = [
                ("user", "alice"),
                ("database", "postgres"),
                ("application_name", "report"),
            ];
            let mut direct = Raw::connect(postgres);
            let refused = direct.log_in(&named, None).err();
            one.clients.push(direct);
            refused
        });
        assert_eq!(free.code(), "53300");
        one.wait_for_a_server("bob", "bot@v1");
        one
    }

    /// Postgres is gone, and a client that is there already wants something.
    fn unreachable() -> Self {
        let mut one = Self::quiet();
        one.log_in("postgres", "bot@v1");
        one.postgres.stop();
        let client = one.clients.last_mut().expect("it is logged in");
        client.send(&support::Batch::new().query("select 1"));
        one
    }

    fn strangers() -> Self {
        let one = Self::new(30, "[alerts]\nlogin_failures = 3\n");
        // It looks once a second, and counts from its first look.
        until("the alert", PATIENCE, || {
            for _ in 0..5 {
                let refused = Raw::try_login(one.pooler.port(), "stranger", "postgres", None);
                assert!(refused.is_err());
            }
            thread::sleep(Duration::from_millis(100));
            alerts(&one.pooler).contains("login_failures").then_some(())
        });
        one
    }

    fn broken_file() -> Self {
        let one = Self::quiet();
        let file = one.pooler.directory().join("pooler.toml");
        let text = fs::read_to_string(&file).expect("it is there");
        fs::write(&file, format!("{text}\n[budgte]\n")).expect("it is ours");
        one
    }

    fn log_in(&mut self, user: &str, name: &str) -> &mut Raw {
        let mut client = Raw::login_as(self.pooler.port(), user, "postgres", name);
        client.value("select 1");
        self.clients.push(client);
        self.clients.last_mut().expect("it was pushed")
    }

    fn connect_directly(&mut self, count: usize) {
        for _ in 0..count {
            let client = Raw::login_as(self.postgres.port(), "alice", "postgres", "report");
            self.clients.push(client);
        }
    }

    fn wait_for_a_server(&mut self, user: &'static str, name: &'static str) {
        let port = self.pooler.port();
        self.waiting.push(thread::spawn(move || {
            let mut client = Raw::login_as(port, user, "postgres", name);
            assert_eq!(client.value("select 'served'"), "served");
        }));
    }

    fn await_current(&self, service: &str, deployment: &str) {
        self.pooler.await_log("it is current", |line| {
            line.contains("deployment is current")
                && line.contains(&format!("service={service} "))
                && line.contains(&format!("deployment={deployment} "))
        });
    }

    /// The section's commands as they are typed here.
    fn translate(&self, commands: &str) -> String {
        let (pooler, directory) = (&self.pooler, self.pooler.directory());
        let path = |name: &str| directory.join(name).display().to_string();
        let here = format!("-h 127.0.0.1 -p {}", self.postgres.port());
        let places = [
            (
                "-h 127.0.0.1 -p 6432",
                format!("-h 127.0.0.1 -p {}", pooler.port()),
            ),
            ("-h db.internal -p 5432", here),
            (
                "127.0.0.1:9930",
                format!("127.0.0.1:{}", pooler.http_port()),
            ),
            ("/etc/pgweir/pooler.toml", path("pooler.toml")),
            ("/var/log/pgweir.log", path("file.log")),
            ("/run/pgweir.pid", path("pid")),
        ];
        // Marked first: what is real may look like anything.
        let mut text = commands.to_owned();
        for (nth, (written, _)) in places.iter().enumerate() {
            text = text.replace(written, &format!("@@{nth}@@"));
        }
        for unknown in [
            "db.internal",
            "6432",
            "9930",
            "5432",
            "/etc/",
            "/var/",
            "/run/",
            "pidof",
            "pkill",
            "<",
        ] {
            let known = !text.contains(unknown);
            assert!(known, "nobody knows what {unknown:?} stands for in\n{text}");
        }
        for (nth, (_, real)) in places.iter().enumerate() {
            text = text.replace(&format!("@@{nth}@@"), real);
        }
        text
    }

    /// Types them in; what they said, if all went well.
    fn type_in(&self, commands: &str) -> Result<String, String> {
        let directory = self.pooler.directory();
        let shims = directory.join("bin");
        if !shims.exists() {
            fs::create_dir(&shims).expect("the directory is ours");
            std::os::unix::fs::symlink(program(), shims.join("pgweir")).expect("a link");
        }
        let postgres = support::postgres::program("psql");
        let programs = Path::new(postgres.get_program())
            .parent()
            .map(Path::to_owned)
            .unwrap_or_default();
        let path = std::env::var("PATH").unwrap_or_default();
        let output = Command::new("bash")
            .args(["-e", "-o", "pipefail", "-c", commands])
            .current_dir(directory)
            .env(
                "PATH",
                format!("{}:{}:{path}", shims.display(), programs.display()),
            )
            .env("HOME", directory)
            .env("PGCONNECT_TIMEOUT", "10")
            .stdin(Stdio::null())
            .output()
            .expect("bash is there");
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        if output.status.success() {
            Ok(text)
        } else {
            Err(text)
        }
    }

    /// Runs a block until it says what it should: what is to be expected may take its time, here as for people.
    #[track_caller]
    fn run(&self, heading: &str, block: &Block) {
        let commands = self.translate(&block.commands);
        let start = Instant::now();
        loop {
            let said = self.type_in(&commands);
            let wrong = match &said {
                Ok(said) => match missing(&block.says, said) {
                    None => return,
                    Some(line) => format!("it does not say {line:?}, but\n{said}"),
                },
                Err(said) => format!("it fails:\n{said}"),
            };
            assert!(
                start.elapsed() < PATIENCE,
                "in section {heading:?},\n{commands}\n{wrong}"
            );
            thread::sleep(Duration::from_millis(100));
        }
    }
}

fn alerts(pooler: &Pooler) -> String {
    support::process::run(
        pooler
            .psql("postgres", "pgweir")
            .args(["-c", "SHOW ALERTS"]),
    )
}

/// The first line that is not said, in its order.
fn missing(expected: &[String], said: &str) -> Option<String> {
    let mut said = said.lines();
    let is_missing = |line: &&String| !said.any(|said| fits(line, said));
    expected.iter().find(is_missing).cloned()
}

/// Whether a line is as expected, white space apart; `...` is anything.
fn fits(expected: &str, said: &str) -> bool {
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (expected, said) = (words(expected), words(said));
    let pieces: Vec<_> = expected.split("...").collect();
    let (first, last) = (pieces[0].trim(), pieces[pieces.len() - 1].trim());
    if pieces.len() == 1 {
        return expected == said;
    }
    let Some(rest) = said.strip_prefix(first) else {
        return false;
    };
    let Some(mut rest) = rest.strip_suffix(last) else {
        return false;
    };
    for piece in &pieces[1..pieces.len() - 1] {
        let Some((_, after)) = rest.split_once(piece.trim()) else {
            return false;
        };
        rest = after;
    }
    true
}

fn situation(heading: &str) -> Situation {
    match heading {
        "service_servers, service_clients"
        | "PgweirSupersededDeploymentStays"
        | "PgweirClientSocketsNearTheLimit"
        | "Afterwards" => Situation::leftovers(),
        "headroom, total_servers" => Situation::crowded(),
        "waiters" => Situation::held_up(),
        "too_many_connections" => Situation::full(),
        "unreachable" => Situation::unreachable(),
        "login_failures" => Situation::strangers(),
        "PgweirReloadRefused" => Situation::broken_file(),
        "First look"
        | "PgweirWebhookFails"
        | "PgweirNotScraped"
        | "To restart pgweir"
        | "Postgres is full, or gone" => Situation::quiet(),
        other => panic!(
            "the runbook has commands under {other:?}, and nobody knows the situation they are for"
        ),
    }
}

/// The alerts that a heading names.
fn causes(heading: &str) -> Vec<&'static str> {
    let words: Vec<_> = heading.split(", ").collect();
    let all = Cause::ALL.map(Cause::as_str).into_iter();
    all.filter(|cause| words.contains(cause)).collect()
}

#[test]
fn every_command_works_in_its_situation() {
    let page = fs::read_to_string(PAGE).expect("the runbook");
    let mut count = 0;
    for section in sections(&page) {
        if section.blocks.is_empty() {
            continue;
        }
        let mut situation = situation(&section.heading);
        let causes = causes(&section.heading);
        if !causes.is_empty() {
            eventually(&format!("{causes:?} is raised"), || {
                let raised = alerts(&situation.pooler);
                causes.iter().any(|cause| {
                    raised
                        .lines()
                        .any(|line| line.starts_with(&format!("{cause}|")))
                })
            });
        }
        for block in &section.blocks {
            situation.run(&section.heading, block);
            count += 1;
        }
        if section.heading == "To restart pgweir" {
            situation.pooler.await_end(Duration::from_secs(30));
        }
        for served in situation.waiting.drain(..) {
            served
                .join()
                .expect("who waited was served once the commands were given");
        }
    }
    assert!(count > 30, "only {count} blocks were found");
}

#[test]
fn the_command_that_an_alert_names_can_be_typed() {
    let situation = Situation::leftovers();
    let command = until("an alert", PATIENCE, || {
        let sql = "SELECT command FROM alerts WHERE alert = 'service_clients'";
        let text = support::process::run(
            situation
                .pooler
                .psql("postgres", "pgweir")
                .args(["-c", sql]),
        );
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    });
    let (psql, commands) = command
        .split_once(", then ")
        .expect("a program and what to type");
    let typed = format!("{psql} -h 127.0.0.1 -c '{commands}'");
    let said = situation.type_in(&typed).expect("it works");
    assert!(
        said.contains("superseded") && said.contains("v41"),
        "{said}"
    );
}

#[test]
fn every_alert_has_a_section() {
    let page = fs::read_to_string(PAGE).expect("the runbook");
    let headings: Vec<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .collect();
    for cause in Cause::ALL.map(Cause::as_str) {
        let has = headings
            .iter()
            .any(|heading| heading.split(", ").any(|word| word == cause));
        assert!(has, "no heading names the alert {cause}");
    }
    let rules = fs::read_to_string(RULES).expect("the rules");
    for rule in rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
    {
        let named = page.contains(&format!("`{rule}`")) || headings.contains(&rule);
        assert!(named, "the runbook does not name the rule {rule}");
    }
}

#[test]
fn what_is_expected_may_have_gaps() {
    for (expected, said, does) in [
        ("a | b", " a  |  b ", true),
        ("a", "ab", false),
        ("a ... c", "a b c", true),
        ("... c", "b c", true),
        ("a ... b ... c", "a 1 b 2 c", true),
        ("a ... b ... c", "a 1 2 c", false),
        ("...", "", true),
    ] {
        assert_eq!(fits(expected, said), does, "{expected} and {said}");
    }
    assert_eq!(missing(&["b".into(), "a".into()], "a\nb"), Some("a".into()));
}
