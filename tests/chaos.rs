//! Faults under load: a bad network on both sides of pgweir, and a crowd of clients of every kind in between.
//!
//! Every reply that arrives must belong to the query that was asked: each query carries a word that no other one has.
//! After each round, pgweir and Postgres must agree on how many connections there are, with nothing in use; during it,
//! the budget must hold and nobody may hang.
//!
//! `PGWEIR_CHAOS_SECONDS` says for how long (60), `PGWEIR_CHAOS_SEED` repeats the choices of a run (not its timing).

mod support;

use std::cell::Cell;
use std::collections::{BTreeSet, VecDeque};
use std::env;
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use support::wait::until_else;
use support::{Batch, Fault, Pooler, Postgres, Proxy, Raw, ServerError, Side, Watch, eventually};

const CLIENTS: usize = 14;
const BUDGET: usize = 5;
const ROUND: Duration = Duration::from_secs(3);
/// Within this time an operation ends, well or badly, unless something was swallowed.
const NO_HANG: Duration = Duration::from_secs(20);
/// Within this time after the last client all is free again: pgweir gives up after ten seconds what a network holds back.
const FREE: Duration = Duration::from_secs(15);
/// How long a client waits where a network may swallow what was sent.
const SOON: Duration = Duration::from_secs(1);

#[test]
fn whatever_the_network_does_replies_and_counts_are_right() {
    let seconds = number("PGWEIR_CHAOS_SECONDS").unwrap_or(60);
    let seed = number("PGWEIR_CHAOS_SEED").unwrap_or_else(|| rand::rng().random());
    println!("PGWEIR_CHAOS_SEED={seed}");
    let scene = Scene::set();
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut answers = 0;
    for round in 0.. {
        if Instant::now() > end {
            break;
        }
        answers += scene.round(round, &mut StdRng::seed_from_u64(seed.wrapping_add(round)));
    }
    println!("{answers} answers");
    assert!(answers > 0);
}

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok()?.parse().ok()
}

/// What a round is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Trouble {
    clients: bool,
    servers: bool,
    swallows: bool,
}

impl Trouble {
    const fn of(round: u64) -> Self {
        Self {
            clients: round % 4 != 1,
            servers: !round.is_multiple_of(4),
            swallows: round % 4 == 3,
        }
    }

    fn patience(self) -> Duration {
        if self.swallows { SOON } else { NO_HANG }
    }
}

struct Scene {
    /// Between the clients and pgweir.
    front: Proxy,
    pooler: Pooler,
    /// Between pgweir and Postgres.
    back: Proxy,
    postgres: Postgres,
}

impl Scene {
    fn set() -> Self {
        let postgres = Postgres::start();
        postgres.sql("create role alice login");
        postgres.sql("create table words (word text); create table pairs (word text)");
        postgres.sql("grant all on words, pairs to public");
        let back = Proxy::to(postgres.port());
        let pooler = Pooler::serve_port(
            back.port(),
            &format!(
                "[runtime]\nthreads = 2\n\n[pool]\nsize = 4\nmax_prepared_statements = 5\n\n\
                 [budget]\nmax_servers = {BUDGET}\ncheck_every = 0\n\n\
                 [timeouts]\nserver_login_retry = \"20ms\"\nserver_connect = \"2s\"\ncancel = \"1s\"\n"
            ),
        );
        Self {
            front: Proxy::to(pooler.port()),
            pooler,
            back,
            postgres,
        }
    }

    /// Everybody at work for a while, then a look at what is left. Gives the number of answers.
    fn round(&self, round: u64, random: &mut StdRng) -> usize {
        let trouble = Trouble::of(round);
        let mut plan = |wanted: bool| {
            let mut random = StdRng::from_rng(random);
            move || fault(&mut random, wanted, trouble.swallows)
        };
        self.front.each(plan(trouble.clients));
        self.back.each(plan(trouble.servers));
        // The connections that the last round has left meet the new faults too.
        self.back.close_all();
        let watch = Watch::start(&self.postgres);
        let end = Instant::now() + ROUND;
        let answers = thread::scope(|scope| {
            let work = |number| {
                let random = StdRng::from_rng(&mut *random);
                scope.spawn(move || self.client(round, number, random, trouble, end))
            };
            let clients: Vec<_> = (0..CLIENTS).map(work).collect();
            let ended = clients.into_iter().map(thread::ScopedJoinHandle::join);
            ended.map(|ended| ended.expect("see above")).sum()
        });
        let last = Instant::now();
        self.settle();
        let free = last.elapsed();
        println!("round {round}, {trouble:?}: {answers} answers, all is free after {free:?}");
        assert!(free < FREE, "{free:?}");
        let seen = watch.finish();
        // What a bad network keeps open at Postgres, pgweir cannot know of.
        assert!(trouble.servers || seen.total <= BUDGET, "{seen:?}");
        answers
    }

    /// A client that logs in again whenever it was thrown out.
    fn client(
        &self,
        round: u64,
        number: usize,
        mut random: StdRng,
        trouble: Trouble,
        end: Instant,
    ) -> usize {
        let mut answers = 0;
        let mut turn = 0;
        while Instant::now() < end {
            let name = format!("{round}-{number}-{turn}");
            turn += 1;
            let start = Instant::now();
            let logged_in = Client::log_in(self.front.port(), &name, number, trouble.patience());
            let ended = logged_in.and_then(|mut client| {
                while Instant::now() < end {
                    let start = Instant::now();
                    let answered = client.operation(&mut random);
                    hangs_not(start, trouble, &answered);
                    answers += answered?;
                }
                client.raw.goodbye();
                Ok(())
            });
            if let Err(error) = ended {
                hangs_not(start, trouble, &Err(error));
            }
        }
        answers
    }

    /// The network is good again: all is free, and everybody counts the same.
    fn settle(&self) {
        self.front.set(Fault::None);
        self.back.set(Fault::None);
        self.front.close_all();
        eventually("no session is left", || {
            self.count("pgweir_clients{") == 0 && self.count("pgweir_client_sockets ") == 0
        });
        eventually("nothing is in use", || {
            self.count("pgweir_server_connections{") == self.idle() && self.postgres.busy() == 0
        });
        let halves = "select word from pairs group by word having count(*) <> 2";
        assert_eq!(self.postgres.sql(halves), [] as [Vec<_>; 0], "half done");
        self.postgres.sql("truncate words, pairs");
        // As many as there may be are of use. Those that died while they were idle are found out by this.
        let mut all: Vec<Raw> = (0..BUDGET)
            .map(|n| Raw::login(self.pooler.port(), user(n), "postgres"))
            .collect();
        for client in &mut all {
            client.query("begin").expect("there is room for it");
        }
        for client in all {
            client.goodbye();
        }
        self.agree();
    }

    /// Both sides count the same.
    fn agree(&self) {
        let counts = Cell::new((0, 0, 0, 0));
        let told = || {
            let (idle, all, theirs, busy) = counts.get();
            format!(
                "pgweir has {all} connections, {idle} of them idle; Postgres has {theirs}, {busy} of them busy"
            )
        };
        until_else(told, FREE, || {
            let idle = self.idle();
            let all = self.count("pgweir_server_connections{");
            let (theirs, busy) = (self.postgres.connections(), self.postgres.busy());
            counts.set((idle, all, theirs, busy));
            ((all, theirs, busy) == (idle, idle, 0)).then_some(())
        });
    }

    /// Server connections that rest.
    fn idle(&self) -> usize {
        self.count_all(&["pgweir_server_connections{", "state=\"idle\""])
    }

    /// Sum of the series of `/metrics` whose line contains `part`.
    fn count(&self, part: &str) -> usize {
        self.count_all(&[part])
    }

    /// The same, of those that contain all parts.
    fn count_all(&self, parts: &[&str]) -> usize {
        let (_, metrics) = self.pooler.http("/metrics");
        let lines = metrics.lines().filter(|line| !line.starts_with('#'));
        lines
            .filter(|line| parts.iter().all(|part| line.contains(part)))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok())
            .sum()
    }
}

#[track_caller]
fn hangs_not(start: Instant, trouble: Trouble, ended: &Result<usize, ServerError>) {
    if let Err(error) = ended {
        let is_loss = matches!(error.code(), "LOST" | "08006" | "08P01" | "57P01" | "57P03");
        assert!(is_loss, "no failure of a network: {error}");
    }
    assert!(
        trouble.swallows || start.elapsed() < NO_HANG || ended.is_ok(),
        "it hangs: {ended:?}"
    );
}

/// What goes wrong with one connection.
fn fault(random: &mut StdRng, wanted: bool, swallows: bool) -> Fault {
    if !wanted {
        return Fault::None;
    }
    let side = if random.random() {
        Side::Client
    } else {
        Side::Server
    };
    // Few in the login, most in the first hundred messages, some in long results.
    let bytes = match random.random_range(0..10) {
        0 => random.random_range(0..500),
        1..7 => random.random_range(500..10_000),
        _ => random.random_range(10_000..1_000_000),
    };
    match random.random_range(0..10) {
        0..2 => Fault::None,
        2 => Fault::Delay(Duration::from_millis(random.random_range(1..20))),
        3..5 => Fault::CloseAfter(side, bytes),
        5..7 => Fault::ResetAfter(side, bytes),
        7 => Fault::HalfCloseAfter(side, bytes),
        _ if swallows => Fault::SwallowAfter(side, bytes),
        _ => Fault::CloseAfter(side, bytes),
    }
}

fn user(number: usize) -> &'static str {
    ["postgres", "alice"][number % 2]
}

/// What the server must say next.
#[derive(Debug)]
enum Expected {
    /// So many rows that begin with this word, and the end of the statement.
    Rows(String, usize),
    /// The end of a statement without rows.
    Done,
    /// An error with this code. What follows up to the Sync is skipped.
    Error(&'static str),
    /// ReadyForQuery.
    Ready,
}

struct Client {
    raw: Raw,
    /// Nobody else's.
    name: String,
    asked: usize,
    /// Named statements that were prepared.
    prepared: BTreeSet<u8>,
}

impl Client {
    fn log_in(
        port: u16,
        name: &str,
        number: usize,
        patience: Duration,
    ) -> Result<Self, ServerError> {
        let mut raw = Raw::connect(port);
        raw.set_patience(patience);
        raw.log_in(
            &[
                ("user", user(number)),
                ("database", "postgres"),
                ("application_name", name),
            ],
            None,
        )?;
        Ok(Self {
            raw,
            name: name.to_owned(),
            asked: 0,
            prepared: BTreeSet::new(),
        })
    }

    /// A word that was never used before.
    fn word(&mut self) -> String {
        self.asked += 1;
        format!("{}-{}", self.name, self.asked)
    }

    /// Does one of the things that clients do. Gives the number of answers.
    fn operation(&mut self, random: &mut StdRng) -> Result<usize, ServerError> {
        match random.random_range(0..13) {
            0 => self.simple_queries(random),
            1 => self.an_extended_query(random),
            2 => self.a_pipeline(),
            3..6 => self.named_statements(random),
            6 => self.a_transaction(random),
            7 => self.a_failed_transaction(),
            8 => self.copy_in(),
            9 => self.copy_out(),
            10 => self.a_big_result(),
            11 => self.a_parameter(),
            _ => self.vanish(random),
        }
    }

    fn simple_queries(&mut self, random: &mut StdRng) -> Result<usize, ServerError> {
        let (one, two) = (self.word(), self.word());
        let long = random.random_range(0..5_000);
        let sql = format!("select '{one}', repeat('x', {long}); select '{two}', pg_sleep(0.002)");
        self.ask(
            &Batch::new().query(&sql),
            [
                Expected::Rows(one, 1),
                Expected::Rows(two, 1),
                Expected::Ready,
            ],
        )
    }

    fn an_extended_query(&mut self, random: &mut StdRng) -> Result<usize, ServerError> {
        let word = self.word();
        let long = "y".repeat(random.random_range(0..50_000));
        let batch = Batch::new()
            .parse("", "select $1::text, $2::text")
            .bind("", "", &[&word, &long])
            .describe_portal("")
            .execute("")
            .sync();
        self.ask(&batch, [Expected::Rows(word, 1), Expected::Ready])
    }

    /// Four Syncs in one go, with an error in the middle.
    fn a_pipeline(&mut self) -> Result<usize, ServerError> {
        let (mut batch, mut expected) = (Batch::new(), vec![]);
        for step in 0..4 {
            let word = self.word();
            let sql = match step {
                2 => "select 1/0, $1::text",
                _ => "select $1::text",
            };
            batch = batch
                .parse("", sql)
                .bind("", "", &[&word])
                .execute("")
                .sync();
            expected.push(match step {
                2 => Expected::Error("22012"),
                _ => Expected::Rows(word, 1),
            });
            expected.push(Expected::Ready);
        }
        self.ask(&batch, expected)
    }

    /// Every client has its own statements under the same names, and more than a server connection keeps.
    fn named_statements(&mut self, random: &mut StdRng) -> Result<usize, ServerError> {
        let (mut batch, mut expected) = (Batch::new(), vec![]);
        let mut prepared = self.prepared.clone();
        for _ in 0..random.random_range(1..4) {
            let (number, word) = (random.random_range(0..4), self.word());
            let name = format!("s{number}");
            // Some are the same for many clients, some are not.
            let text = match number {
                0 => "select $1::text".to_owned(),
                _ => format!("select $1::text || '-{number}' as \"{}\"", self.name),
            };
            if prepared.insert(number) {
                batch = batch.parse(&name, &text);
            }
            batch = batch.bind("", &name, &[&word]).execute("");
            expected.push(Expected::Rows(
                match number {
                    0 => word,
                    _ => format!("{word}-{number}"),
                },
                1,
            ));
            if random.random_range(0..4) == 0 {
                batch = batch.message(b'C', format!("S{name}\0").as_bytes());
                prepared.remove(&number);
            }
        }
        expected.push(Expected::Ready);
        let answers = self.ask(&batch.sync(), expected)?;
        self.prepared = prepared;
        Ok(answers)
    }

    /// All or nothing of it, and all on one server connection.
    fn a_transaction(&mut self, random: &mut StdRng) -> Result<usize, ServerError> {
        let word = self.word();
        self.done("begin")?;
        let insert = format!("insert into pairs values ('{word}') returning word");
        let once = || [Expected::Rows(word.clone(), 1), Expected::Ready];
        self.ask(&Batch::new().query(&insert), once())?;
        self.done(&format!("set local work_mem = '{}kB'", 64 + self.asked))?;
        let batch = Batch::new().parse("", &insert).bind("", "", &[]);
        self.ask(&batch.execute("").sync(), once())?;
        let sql = format!(
            "select '{word}' where current_setting('work_mem') = '{}kB'",
            64 + self.asked
        );
        self.ask(&Batch::new().query(&sql), once())?;
        self.done(["commit", "rollback"][random.random_range(0..2)])?;
        Ok(3)
    }

    fn a_failed_transaction(&mut self) -> Result<usize, ServerError> {
        self.done("begin")?;
        for code in ["22012", "25P02"] {
            self.ask(
                &Batch::new().query("select 1/0"),
                [Expected::Error(code), Expected::Ready],
            )?;
        }
        self.done("rollback")?;
        Ok(0)
    }

    fn copy_in(&mut self) -> Result<usize, ServerError> {
        let word = self.word();
        let rows = format!("{word}\n").repeat(50);
        let batch = Batch::new()
            .query("copy words from stdin")
            .copy_data(rows.as_bytes())
            .copy_data(rows.as_bytes())
            .copy_done()
            .query(&format!("select word from words where word = '{word}'"));
        self.ask(
            &batch,
            [
                Expected::Done,
                Expected::Ready,
                Expected::Rows(word, 100),
                Expected::Ready,
            ],
        )
    }

    fn copy_out(&mut self) -> Result<usize, ServerError> {
        let word = self.word();
        let sql = format!("copy (select '{word}' from generate_series(1, 300)) to stdout");
        self.ask(
            &Batch::new().query(&sql),
            [Expected::Rows(word, 300), Expected::Ready],
        )
    }

    fn a_big_result(&mut self) -> Result<usize, ServerError> {
        let word = self.word();
        let sql = format!("select '{word}', repeat('z', 1000) from generate_series(1, 300)");
        self.ask(
            &Batch::new().query(&sql),
            [Expected::Rows(word, 300), Expected::Ready],
        )
    }

    /// What was set is there in the next transaction, wherever that runs.
    fn a_parameter(&mut self) -> Result<usize, ServerError> {
        let word = self.word();
        self.done(&format!("set application_name = '{word}'"))?;
        self.ask(
            &Batch::new().query("select current_setting('application_name')"),
            [Expected::Rows(word, 1), Expected::Ready],
        )
    }

    /// Goes away in the middle of something.
    fn vanish(&mut self, random: &mut StdRng) -> Result<usize, ServerError> {
        let batch = match random.random_range(0..5) {
            0 => Batch::new().query("begin"),
            1 => Batch::new().query("select pg_sleep(60)"),
            2 => Batch::new()
                .query("copy words from stdin")
                .copy_data(b"half"),
            3 => Batch::new().query("select repeat('x', 1000) from generate_series(1, 100000)"),
            _ => Batch::new().parse("", "select 1").bind("", "", &[]).flush(),
        };
        self.raw.write(batch.bytes())?;
        let pause = Duration::from_millis(random.random_range(0..20));
        self.raw.hears_within(pause.max(Duration::from_millis(1)));
        match random.random_range(0..3) {
            0 => self.raw.write(Batch::new().terminate().bytes())?,
            1 => self.raw.reset_on_close(),
            _ => {}
        }
        Err(ServerError::gone())
    }

    fn done(&mut self, sql: &str) -> Result<usize, ServerError> {
        self.ask(&Batch::new().query(sql), [Expected::Done, Expected::Ready])
    }

    /// Sends it, and reads what is expected. Anything else is somebody else's answer; an error that was not expected ends
    /// the session.
    fn ask(
        &mut self,
        batch: &Batch,
        expected: impl IntoIterator<Item = Expected>,
    ) -> Result<usize, ServerError> {
        let mut expected: VecDeque<Expected> = expected.into_iter().collect();
        let mut answers = 0;
        self.raw.write(batch.bytes())?;
        while let Some(next) = expected.front_mut() {
            let message = self.raw.receive()?;
            match (message.tag, next) {
                ('D', Expected::Rows(word, left)) if *left > 0 => {
                    assert_eq!(
                        message.row()[0].as_deref(),
                        Some(word.as_str()),
                        "another's answer"
                    );
                    *left -= 1;
                    answers += 1;
                }
                ('d', Expected::Rows(word, left)) if *left > 0 => {
                    assert_eq!(message.body, format!("{word}\n").as_bytes());
                    *left -= 1;
                }
                ('C', Expected::Rows(_, 0) | Expected::Done) | ('Z', Expected::Ready) => {
                    expected.pop_front();
                }
                ('E', Expected::Error(code)) if message.error().code() == *code => {
                    expected.pop_front();
                }
                ('E', _) => return Err(message.error()),
                ('1' | '2' | '3' | 'T' | 'n' | 'G' | 'H' | 'c' | 'N' | 'S', _) => {}
                (tag, next) => panic!("{tag} where {next:?} was expected: {message:?}"),
            }
        }
        Ok(answers)
    }
}
