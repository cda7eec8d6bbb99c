//! What operators do with a running pgweir: pause, resume, kill, set, end. By signal and on the console.

mod support;

use std::time::Duration;

use support::{Batch, Pooler, Postgres, Raw, eventually};

with_one_and_two_threads!(
    sigusr1_pauses_and_sigusr2_resumes,
    sigquit_ends_at_once_and_tells_clients_why,
);

fn config(threads: usize, rest: &str) -> String {
    format!("[runtime]\nthreads = {threads}\n\n{rest}")
}

fn login(pooler: &Pooler) -> Raw {
    Raw::login(pooler.port(), "postgres", "postgres")
}

fn sigusr1_pauses_and_sigusr2_resumes(threads: usize) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, &config(threads, "[pool]\nsize = 5\n"));
    let (mut open, mut other) = (login(&pooler), login(&pooler));
    open.query("begin").expect("a transaction");
    assert_eq!(other.value("select 1"), "1");
    pooler.signal("USR1");
    eventually("the idle one is closed", || postgres.connections() == 1);
    other.send(&Batch::new().query("select 2"));
    assert!(!other.hears_within(Duration::from_millis(200)));
    assert_eq!(open.value("select 3"), "3");
    open.query("commit").expect("its end");
    eventually("none is left", || postgres.connections() == 0);
    open.send(&Batch::new().query("select 4"));
    assert!(!open.hears_within(Duration::from_millis(200)));
    pooler.signal("USR2");
    for (client, value) in [(&mut other, "2"), (&mut open, "4")] {
        let rows = client.rows().expect("it goes on");
        assert_eq!(rows, [[Some(value.to_owned())]]);
    }
    postgres.await_all_idle();
}

fn sigquit_ends_at_once_and_tells_clients_why(threads: usize) {
    let postgres = Postgres::start();
    let mut pooler = Pooler::serve(&postgres, &config(threads, "[pool]\nsize = 5\n"));
    let mut open = login(&pooler);
    open.query("begin").expect("a transaction");
    pooler.signal("QUIT");
    let status = pooler.await_end(Duration::from_secs(5));
    assert_eq!(status.code(), Some(0));
    let goodbye = open.read_to_end();
    assert_eq!(goodbye.last().expect("last words").error().code(), "57P01");
    eventually("no server connection is left", || {
        postgres.connections() == 0
    });
}
