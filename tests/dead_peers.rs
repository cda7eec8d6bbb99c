//! Peers that are gone without a word: no FIN, no RST, nothing. A pod deleted by force is one.
//!
//! The options of sockets are checked beside the code (`net::listen`); here a client's network interface is taken away, in a network
//! namespace of its own. That needs root and `ip`; where they are missing, the test says so.

mod support;

use std::io::Write;
use std::process::{Command, Stdio};

use support::{Pooler, Postgres, eventually};

/// A network of two, one of them in a namespace; gone on drop.
struct Network {
    name: String,
    here: String,
}

fn ip(arguments: &str) -> bool {
    let output = Command::new("ip").args(arguments.split(' ')).output();
    output.is_ok_and(|output| output.status.success())
}

impl Network {
    fn new() -> Option<Self> {
        let number = std::process::id();
        let name = format!("pgweir{number}");
        let [first, second] = [number / 256 % 256, number % 256];
        let one = Self {
            here: format!("10.{first}.{second}.1"),
            name,
        };
        let (name, here) = (&one.name, &one.here);
        let there = format!("10.{first}.{second}.2");
        let made = [
            format!("netns add {name}"),
            format!("link add {name} type veth peer name v0 netns {name}"),
            format!("addr add {here}/30 dev {name}"),
            format!("link set {name} up"),
            format!("-n {name} addr add {there}/30 dev v0"),
            format!("-n {name} link set v0 up"),
        ];
        made.iter().all(|arguments| ip(arguments)).then_some(one)
    }

    /// A program at the far end.
    fn command(&self, program: &Command) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]);
        command.arg(program.get_program()).args(program.get_args());
        command
    }

    fn cut(&self) {
        assert!(ip(&format!("-n {} link set v0 down", self.name)));
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        ip(&format!("link del {}", self.name));
        ip(&format!("netns del {}", self.name));
    }
}

#[test]
fn a_client_whose_network_is_gone_is_noticed_and_its_transaction_rolled_back() {
    let Some(network) = Network::new() else {
        eprintln!("not run: no network namespace can be made here");
        return;
    };
    let postgres = Postgres::start();
    let config = format!(
        "[listen]\naddresses = [\"127.0.0.1:{{port}}\", \"{}:{{port}}\"]\nhttp = \"127.0.0.1:{{http}}\"\n\n\
         [tcp]\nkeepalive_idle = \"1s\"\nkeepalive_interval = \"1s\"\nkeepalive_count = 2\nuser_timeout = \"2s\"\n",
        network.here
    );
    let pooler = Pooler::serve(&postgres, &config);
    let psql = support::postgres::program("psql");
    let mut client = network.command(&psql);
    client.args([
        "-X",
        "-h",
        &network.here,
        "-p",
        &pooler.port().to_string(),
        "-U",
        "postgres",
        "-d",
        "postgres",
    ]);
    let mut client = client
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("psql starts");
    let mut typed = client.stdin.take().expect("a pipe");
    typed
        .write_all(b"begin; select 'gone';\n")
        .expect("it reads");
    let in_transaction = || {
        let sql = "select count(*) from pg_stat_activity where state = 'idle in transaction'";
        postgres.value(sql) == "1"
    };
    eventually("it has a transaction", in_transaction);

    network.cut();
    eventually("it is rolled back", || !in_transaction());
    pooler.await_log("its session is over", |line| {
        line.contains("session ended") && line.contains("client_gone")
    });
    let pids =
        "select count(*) from pg_stat_activity where application_name = 'psql' and state = 'idle'";
    eventually("its server connection is kept", || {
        postgres.value(pids) == "1"
    });
    // By its own number: `ip` becomes psql.
    client.kill().expect("it runs");
    client.wait().expect("it ends");
}
