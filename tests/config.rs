//! The configuration as its users meet it: files in, settings or all mistakes out.

use std::time::Duration;

use pgweir::config::change::{self, Effect};
use pgweir::config::checked::{AuthMethod, Config, Host, MaxServers, Mode, Secret};
use pgweir::config::{self, Mistakes};

/// The smallest file.
const SMALLEST: &str = "[databases.\"*\"]\nurl = \"postgres://127.0.0.1:5432\"\n";

fn environment(name: &str) -> Option<String> {
    match name {
        "PASSWORD" => Some("hunter2".to_owned()),
        "URL" => Some("postgres://ada:hunter2@db:nowhere".to_owned()),
        "SIZE" => Some("7".to_owned()),
        "WAIT" => Some("9s".to_owned()),
        "YES" => Some("true".to_owned()),
        "ADDRESS" => Some("[::1]:7000".to_owned()),
        "BREAKOUT" => Some("x\"\n[pool]\nsize = 1\n".to_owned()),
        _ => None,
    }
}

fn parse(text: &str) -> Result<Config, Mistakes> {
    config::parse(text, "f", &environment)
}

fn right(text: &str) -> Config {
    parse(text).unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

/// A right file with more behind it, which begins on line 3.
fn with(more: &str) -> Result<Config, Mistakes> {
    parse(&format!("{SMALLEST}{more}"))
}

#[test]
fn the_smallest_file_means_the_shipped_one() {
    let shipped = include_str!("../pooler.toml");
    assert_eq!(right(SMALLEST), right(shipped));
}

#[test]
fn the_defaults_are_what_they_are() {
    let config = right(SMALLEST);
    assert_eq!(
        config.listen.addresses,
        ["127.0.0.1:6432".parse().expect("an address")]
    );
    assert_eq!(config.listen.unix_socket_dir, None);
    assert_eq!(config.listen.unix_socket_mode, 0o777);
    assert_eq!(config.pool.mode, Mode::Transaction);
    assert_eq!(config.pool.size, 20);
    assert_eq!(config.budget.max_servers, MaxServers::Auto);
    assert_eq!(config.limits.max_message_size, 1 << 30);
    assert_eq!(config.timeouts.client_idle, None);
    assert_eq!(config.timeouts.query_wait, Some(Duration::from_mins(2)));
    assert_eq!(config.auth.method, AuthMethod::ScramSha256);
    assert_eq!(config.auth.query, None);
    assert_eq!(config.services.limits.weight, 1);
    assert_eq!(config.alerts.webhook, None);
    assert!(config.runtime.threads >= 1);
}

#[test]
fn durations_sizes_and_lists_are_read() {
    let config = right(concat!(
        "[listen]\naddresses = [\"[::1]:7000\", \"0.0.0.0:0\"]\nproxy_protocol_from = [\"10.0.0.0/8\", \"::1\"]\n",
        "unix_socket_dir = \"@pgweir\"\nunix_socket_mode = \"0700\"\nhttp = \"\"\n",
        "[limits]\nmax_message_size = \"16KiB\"\n",
        "[timeouts]\nclient_login = 0\nquery = \"250ms\"\ntransaction = \"5m\"\nserver_lifetime = \"2d\"\nserver_connect = 0\n",
        "client_idle = \"0\"\n[budget]\nmax_servers = 1_0\ncheck_every = 0\n",
        "[databases.site]\nurl = \"postgres://db\"\n",
    ));
    assert_eq!(config.listen.addresses.len(), 2);
    assert_eq!(config.listen.proxy_protocol_from[1].to_string(), "::1/128");
    assert_eq!(config.listen.unix_socket_dir.as_deref(), Some("@pgweir"));
    assert_eq!(config.listen.unix_socket_mode, 0o700);
    assert_eq!(config.listen.http, None);
    assert_eq!(config.limits.max_message_size, 16 << 10);
    assert_eq!(config.timeouts.client_login, None);
    assert_eq!(config.timeouts.client_idle, None);
    assert_eq!(config.timeouts.query, Some(Duration::from_millis(250)));
    assert_eq!(config.timeouts.transaction, Some(Duration::from_mins(5)));
    assert_eq!(
        config.timeouts.server_lifetime,
        Some(Duration::from_hours(48))
    );
    assert_eq!(config.timeouts.server_connect, Duration::ZERO);
    assert_eq!(config.budget.max_servers, MaxServers::Exactly(10));
    assert_eq!(config.budget.check_every, None);
    assert!(config.any_database.is_none());
}

#[test]
fn databases_are_found_by_url_or_by_key() {
    let config = right(concat!(
        "[databases.a]\nurl = \"postgres://ada:l%40ve@one:1,[::2]:2/site\"\npool_size = 3\nmode = \"session\"\n",
        "[databases.b]\nhost = \"one, two\"\nport = \"1,2\"\ndbname = \"site\"\nuser = \"ada\"\npassword = \"l@ve\"\n",
        "[databases.c]\nhost = \"/run/postgresql\"\nport = 7\n",
    ));
    let (a, b, c) = (
        &config.databases["a"],
        &config.databases["b"],
        &config.databases["c"],
    );
    assert_eq!(
        a.hosts,
        [Host::Tcp("one".into(), 1), Host::Tcp("::2".into(), 2)]
    );
    assert_eq!((a.pool_size, a.mode), (Some(3), Some(Mode::Session)));
    assert_eq!(
        b.hosts,
        [Host::Tcp("one".into(), 1), Host::Tcp("two".into(), 2)]
    );
    assert_eq!(
        (&a.dbname, &a.user, &a.password),
        (&b.dbname, &b.user, &b.password)
    );
    assert_eq!(b.password, Some(Secret::new("l@ve")));
    assert_eq!(c.hosts, [Host::Unix("/run/postgresql".into(), 7)]);
    assert_eq!(c.dbname, None);
}

#[test]
fn services_keep_their_order_and_override_the_defaults_key_by_key() {
    let config = right(&format!(
        "{SMALLEST}{}",
        concat!(
            "[services.zebra.deployments]\ndry_run = true\n",
            "[services.\"*\"]\nweight = 3\nmax_clients = 50\ndeployments.stale_idle = \"7s\"\n",
            "[services.zebra]\nmatch = { user = \"z*\", address = \"10.0.0.0/8\" }\nweight = 5\n",
            "[services.ant]\nmatch.address = [\"10.0.0.0/8\", \"::1\"]\n",
        )
    ));
    let names: Vec<_> = config
        .services
        .listed
        .iter()
        .map(|service| service.name.as_str())
        .collect();
    assert_eq!(names, ["zebra", "ant"]);
    let [zebra, ant] = config.services.listed.as_slice() else {
        panic!("two are listed")
    };
    assert_eq!((zebra.limits.weight, zebra.limits.max_clients), (5, 50));
    assert_eq!((ant.limits.weight, ant.limits.max_clients), (3, 50));
    assert_eq!(
        (zebra.deployments.dry_run, ant.deployments.dry_run),
        (true, false)
    );
    assert_eq!(zebra.deployments.stale_idle, Duration::from_secs(7));
    assert_eq!(zebra.deployments.stale_grace, Duration::from_mins(5));
    assert_eq!(zebra.matches.user.as_deref(), Some("z*"));
    assert_eq!(
        (zebra.matches.address.len(), ant.matches.address.len()),
        (1, 2)
    );
    assert_eq!(config.services.limits.weight, 3);
}

#[test]
fn the_environment_can_give_any_value_and_change_no_other() {
    let config = right(concat!(
        "[listen]\naddresses = [\"${ADDRESS}\"]\n[pool]\nsize = \"${SIZE}\"\nmin_size = \"${NONE:-3}\"\n",
        "server_reset_query = \"${BREAKOUT}\"\n[timeouts]\nquery_wait = \"${WAIT}\"\nclient_idle = \"${NONE:-0}\"\n",
        "[budget]\nmax_servers = \"${SIZE}\"\n[log]\nconnections = \"${YES}\"\n",
        "[databases.site]\nurl = \"postgres://ada:${PASSWORD}@db\"\n[users.ada]\npassword = \"$${PASSWORD}\"\n",
    ));
    assert_eq!(
        config.listen.addresses,
        ["[::1]:7000".parse().expect("an address")]
    );
    assert_eq!((config.pool.size, config.pool.min_size), (7, 3));
    assert_eq!(config.pool.server_reset_query, "x\"\n[pool]\nsize = 1\n");
    assert_eq!(config.timeouts.query_wait, Some(Duration::from_secs(9)));
    assert_eq!(config.timeouts.client_idle, None);
    assert_eq!(config.budget.max_servers, MaxServers::Exactly(7));
    assert_eq!(
        config.databases["site"].password,
        Some(Secret::new("hunter2"))
    );
    assert_eq!(
        config.users["ada"].password,
        Some(Secret::new("${PASSWORD}"))
    );
}

/// A right file with these lines behind it, of which the first is line 3: the mistakes, one on a line.
#[track_caller]
fn assert_mistakes(more: &str, expected: &[&str]) {
    let found = with(more).expect_err(more).to_string();
    let expected: Vec<_> = expected
        .iter()
        .map(|mistake| format!("f:{mistake}"))
        .collect();
    assert_eq!(found, expected.join("\n"), "{more}");
}

/// Lines, and the one mistake in them.
const WRONG_VALUES: &[(&str, &str)] = &[
    (
        "[pool]\nsize = \"20\"",
        "4:8: size must be a whole number from 1, not \"20\"",
    ),
    (
        "[pool]\nsize = 0",
        "4:8: size must be a whole number from 1, not 0",
    ),
    (
        "[pool]\nsize = -1",
        "4:8: size must be a whole number from 1, not -1",
    ),
    (
        "[pool]\nmin_size = 4294967296",
        "4:12: min_size must be a whole number from 0, not 4294967296",
    ),
    (
        "[pool]\nmin_size = 99999999999999999999",
        "4:12: min_size must be a whole number from 0; this number is too large",
    ),
    (
        "[pool]\nsize = 1.5",
        "4:8: size must be a whole number from 1, not a float",
    ),
    (
        "[pool]\nsize = [1]",
        "4:8: size must be a whole number from 1, not a list",
    ),
    (
        "[pool]\nmode = true",
        "4:8: mode must be one of \"transaction\", \"session\", \"statement\", not true",
    ),
    (
        "[pool]\n  mode = 'tx'",
        "4:10: mode must be one of \"transaction\", \"session\", \"statement\", not \"tx\"",
    ),
    (
        "[pool]\nserver_reset_query = 5",
        "4:22: server_reset_query must be a string, not an integer",
    ),
    (
        "[timeouts]\nquery = 5",
        "4:9: query must have a unit: \"5s\" or \"5ms\", not 5",
    ),
    (
        "[timeouts]\nquery = \"5 s\"",
        "4:9: query must be a duration such as \"250ms\", \"30s\", \"5m\" or \"1h\", or 0, not \"5 s\"",
    ),
    (
        "[timeouts]\nquery = \"99999999999999999h\"",
        "4:9: query must be a duration such as \"250ms\", \"30s\", \"5m\" or \"1h\", or 0, not \"99999999999999999h\"",
    ),
    (
        "[timeouts]\nserver_login_retry = 0",
        "4:22: server_login_retry must be more than 0",
    ),
    (
        "[limits]\nmax_message_size = \"1GB\"",
        "4:20: max_message_size must be a size such as \"64MiB\" or \"1GiB\", not \"1GB\"",
    ),
    (
        "[budget]\nmax_servers = 0",
        "4:15: max_servers must be \"auto\" or a whole number from 1, not 0",
    ),
    (
        "[budget]\nmax_servers = \"all\"",
        "4:15: max_servers must be \"auto\" or a whole number from 1, not \"all\"",
    ),
    (
        "[listen]\naddresses = \"x\"",
        "4:13: addresses must be a list, not a string",
    ),
    (
        "[listen]\nunix_socket_mode = \"0888\"",
        "4:20: unix_socket_mode must be an octal file mode in quotes, such as \"0777\", not \"0888\"",
    ),
    (
        "[listen]\nproxy_protocol_from = [\"10.0.0.0/8\", \"10.0.0.0/33\"]",
        "4:38: proxy_protocol_from must be a network such as \"10.0.0.0/8\", not \"10.0.0.0/33\"",
    ),
    (
        "[listen]\nproxy_protocol_from = [\"10.0.0.1/8\"]",
        "4:24: proxy_protocol_from must be a network such as \"10.0.0.0/8\", not \"10.0.0.1/8\" (its host bits are not 0)",
    ),
    (
        "[log]\nconnections = \"yes\"",
        "4:15: connections must be true or false, not \"yes\"",
    ),
    (
        "[runtime]\nthreads = 5000",
        "4:11: threads must be a whole number from 0 to 1024, not 5000",
    ),
    (
        "[alerts]\nwebhook = \"ftp://hunter2\"",
        "4:11: webhook must be a url that begins with http:// or https://",
    ),
    (
        "[services.a]\nweight = 0",
        "4:10: weight must be a whole number from 1, not 0",
    ),
    (
        "[services.a]\nmatch = \"x\"",
        "4:9: match must be a table, not a string",
    ),
    (
        "[services.a]\nmatch.address = [\"x\"]",
        "4:18: address must be a network such as \"10.0.0.0/8\", not \"x\"",
    ),
    (
        "[services.a.deployments]\npattern = \"(\"",
        "4:11: pattern is not a regular expression: unclosed group",
    ),
    (
        "[services.a.deployments]\npattern = \"(?<service>.*)\"",
        "4:11: pattern must have a group `(?<deployment>...)`",
    ),
    (
        "[[pool]]\nsize = 1",
        "3:1: pool must be a table, not a list",
    ),
    (
        "[databases]\nsite = \"postgres://db\"",
        "4:8: \"site\" must be a table, not a string",
    ),
];

#[test]
fn each_wrong_value_is_named_at_its_place() {
    for (more, expected) in WRONG_VALUES {
        assert_mistakes(more, &[expected]);
    }
}

#[test]
fn unknown_keys_are_named_with_what_may_have_been_meant() {
    for (more, expected) in [
        (
            "[pool]\nsizes = 1",
            "4:1: [pool] has no key \"sizes\"; did you mean \"size\"?",
        ),
        (
            "[pool]\npasword = \"hunter2\"",
            "4:1: [pool] has no key \"pasword\"",
        ),
        (
            "[polo]\nsize = 1",
            "3:2: pooler.toml has no key \"polo\"; did you mean \"pool\"?",
        ),
        (
            "[tls.clent]\nca = \"x\"",
            "3:6: [tls] has no key \"clent\"; did you mean \"client\"?",
        ),
        (
            "[tls.client]\nsslmode = \"x\"",
            "4:1: [tls.client] has no key \"sslmode\"",
        ),
        (
            "[users.a]\npasword = \"hunter2\"",
            "4:1: [users.a] has no key \"pasword\"; did you mean \"password\"?",
        ),
        (
            "[services.\"a b\"]\nwieght = 1",
            "4:1: [services.\"a b\"] has no key \"wieght\"; did you mean \"weight\"?",
        ),
        (
            "[services.a]\nmatch = { usr = \"x\" }",
            "4:11: [services.a.match] has no key \"usr\"; did you mean \"user\"?",
        ),
        (
            "[services.\"*\"]\nmatch = { user = \"x\" }",
            "4:1: [services.\"*\"] has no key \"match\"",
        ),
        (
            "[services.\"*\"]\nweihgt = 2\n[services.a]\n[services.b]",
            "4:1: [services.\"*\"] has no key \"weihgt\"; did you mean \"weight\"?",
        ),
    ] {
        assert_mistakes(more, &[expected]);
    }
}

/// Lines, and the one mistake in them.
const CONTRADICTIONS: &[(&str, &str)] = &[
    (
        "[listen]\naddresses = []",
        "4:13: there is nothing to listen on: give an address or unix_socket_dir",
    ),
    (
        "[listen]\naddresses = [\"[::]:5\", \"[::]:5\"]",
        "4:13: addresses names the same address twice",
    ),
    (
        "[listen]\naddresses = [\"127.0.0.1:9930\"]",
        "4:13: http is one of the addresses for clients",
    ),
    (
        "[pool]\nmin_size = 21",
        "4:12: min_size is more than size, 20",
    ),
    (
        "[budget]\ncheck_every = 0",
        "4:15: max_servers = \"auto\" needs to watch Postgres: give check_every, or a number",
    ),
    (
        "[tls.client]\nkey = \"k\"",
        "4:7: key needs its certificate",
    ),
    (
        "[tls.server]\ncertificate = \"c\"",
        "4:15: certificate needs its key",
    ),
    (
        "[tls.client]\nmode = \"require\"",
        "4:8: this mode needs certificate and key",
    ),
    (
        "[tls.server]\nmode = \"verify-ca\"",
        "4:8: this mode needs ca, the authorities to trust",
    ),
    (
        "[tls.client]\nca = \"system\"",
        "4:6: ca = \"system\" is for [tls.server]: everybody can have such a certificate",
    ),
    (
        "[tls.server]\nca = \"system\"\nmode = \"verify-ca\"",
        "5:8: ca = \"system\" needs the mode \"verify-full\"",
    ),
    (
        "[databases.a]\nurl = \"postgres://db?sslmode=verify-full\"",
        "4:7: this sslmode needs ca in [tls.server]",
    ),
    (
        "[databases.a]\nhost = \"db\"\nsslnegotiation = \"direct\"",
        "5:18: sslnegotiation=direct needs sslmode=require or more",
    ),
    (
        "[databases.a]\nurl = \"postgres://db\"\nsslmode = \"require\"",
        "5:11: sslmode cannot stand beside url, which says it all",
    ),
    (
        "[auth]\nmethod = \"hba\"",
        "4:10: method = \"hba\" needs hba_file",
    ),
    (
        "[auth]\nmethod = \"cert\"",
        "4:10: method = \"cert\" needs [tls.client] with mode \"verify-full\" (or \"verify-ca\") and its files",
    ),
    (
        "[auth]\nquery = \"select 1\"",
        "4:9: query needs query_user, who runs the query",
    ),
    (
        "[databases.pgbouncer]\nhost = \"a\"",
        "3:12: \"pgbouncer\" is the name of the console, and can be no database",
    ),
    (
        "[databases.pgweir]\nhost = \"a\"",
        "3:12: \"pgweir\" is the name of the console, and can be no database",
    ),
    (
        "[databases.\"\"]\nhost = \"a\"",
        "3:12: a name must have letters, and no control characters",
    ),
    (
        "[databases.a]\npool_size = 3",
        "3:12: says nowhere where the database is: url or host is needed",
    ),
    (
        "[databases.a]\nhost = \"h\"\npool_size = 3\nmin_size = 4",
        "6:12: min_size is more than pool_size, 3",
    ),
    (
        "[databases.a]\nurl = \"postgres://h\"\nuser = \"u\"",
        "5:8: user cannot stand beside url, which says it all",
    ),
    (
        "[databases.a]\nhost = \"h\"\npassword = \"hunter2\"",
        "5:12: password needs a user: together they are the login that all clients share",
    ),
    (
        "[databases.a]\nhost = \"h\"\nport = \"1,2\"",
        "4:8: host must name one port, or as many ports as there are hosts",
    ),
    (
        "[users.\"*\"]",
        "3:8: [users] has no \"*\": what holds for every user stands in [limits] and [pool]",
    ),
    (
        "[services.a]\nmin_servers = 3\nmax_servers = 2",
        "4:15: min_servers is more than max_servers, 2",
    ),
    (
        "[budget]\nmax_servers = 9\n[services.a]\nmin_servers = 5\n[services.b]\nmin_servers = 5",
        "4:15: max_servers is 9, but the min_servers of all services come to 10",
    ),
];

#[test]
fn contradictions_are_named_at_what_is_written() {
    for (more, expected) in CONTRADICTIONS {
        assert_mistakes(more, &[expected]);
    }
    let empty = parse("").expect_err("no database").to_string();
    assert_eq!(
        empty,
        "f:1:1: no database is given: the least is [databases.\"*\"] with its url"
    );
}

#[test]
fn all_mistakes_are_listed_once_and_in_order() {
    let more = concat!(
        "# é\n",
        "[pool]\n",
        "  sice = 1\n",
        "  mode = \"é\"; \n",
        "[timeouts]\n",
    );
    // A syntax error ends what can be judged.
    assert_mistakes(
        more,
        &[
            "5:3: [pool] has no key \"sice\"; did you mean \"size\"?",
            "6:13: unexpected key or value, expected newline, `#`",
        ],
    );
    assert_mistakes(
        concat!(
            "[services.\"*\"]\nweight = 0\nmin_servers = 3\nmax_servers = 2\n",
            "[services.b]\n[services.a]\nmax_servers = 1\ncolour = 5\n",
            "[pool]\nsize = \"é\"\nsize = 3\nmin_size = 50\n",
            "[log]\nlevel = \"é\" # é\nformat = \"${NONE}\"\n",
        ),
        &[
            "4:10: weight must be a whole number from 1, not 0",
            "10:1: [services.a] has no key \"colour\"",
            "12:8: size must be a whole number from 1, not \"é\"",
            "13:1: duplicate key",
            "16:9: level must be one of \"error\", \"warn\", \"info\", \"debug\", \"trace\", not \"é\"",
            "17:10: format: the environment variable NONE is not set",
        ],
    );
    assert_mistakes(
        "[services.\"*\"]\nmin_servers = 3\nmax_servers = 2\n[services.a]\n[services.b]\nmin_servers = 4",
        &[
            "4:15: min_servers is more than max_servers, 2",
            "8:15: min_servers is more than max_servers, 2",
        ],
    );
}

#[test]
fn a_broken_value_contradicts_nothing() {
    for (more, expected) in [
        (
            "[pool]\nsize = \"x\"\nmin_size = 50",
            "4:8: size must be a whole number from 1, not \"x\"",
        ),
        (
            "[services.\"*\"]\nmax_servers = 2\n[services.a]\nmax_servers = true\nmin_servers = 3",
            "6:15: max_servers must be a whole number from 0, not true",
        ),
        (
            "[databases.a]\nurl = \"x\"",
            "4:7: url must begin with postgres:// or postgresql://",
        ),
    ] {
        assert_mistakes(more, &[expected]);
    }
}

#[test]
fn a_value_from_the_environment_is_never_shown() {
    for (more, expected) in [
        (
            "[pool]\nsize = \"${PASSWORD}\"",
            "4:8: size must be a whole number from 1, which \"${PASSWORD}\" is not",
        ),
        (
            "[log]\nformat = \"x${PASSWORD}\"",
            "4:10: format must be one of \"text\", \"json\", \"pgbouncer\", which \"x${PASSWORD}\" is not",
        ),
        (
            "[databases.a]\nurl = \"${URL}\"",
            "4:7: url has a port that is not a number from 1 to 65535",
        ),
        (
            "[databases.a]\nurl = \"mysql://u:hunter2@db\"",
            "4:7: url must begin with postgres:// or postgresql://",
        ),
        (
            "[databases.a]\nurl = \"postgres://u:hunter2@db?x=1\"",
            "4:7: url has an unknown parameter; host, port, user, password, dbname, sslmode and sslnegotiation are understood",
        ),
        (
            "[databases.a]\nhost = \"${PASSWORD} \\u0001\"",
            "4:8: host must name hosts: a name, an address, a directory (unix socket) or @name, without the port",
        ),
        (
            "[users.a]\npassword = 12345",
            "4:12: password must be a string, not an integer",
        ),
        (
            "[users.a]\npassword = \"${hunter2 x}\"",
            "4:12: password: what stands in `${...}` is not the name of an environment variable",
        ),
    ] {
        assert_mistakes(more, &[expected]);
    }
}

#[test]
fn secrets_do_not_show_in_debug() {
    let config = right(concat!(
        "[databases.a]\nurl = \"postgres://ada:hunter2@db\"\n[users.ada]\npassword = \"hunter2\"\n",
        "[alerts]\nwebhook = \"https://hooks.example/hunter2\"\n",
    ));
    assert_eq!(
        config.users["ada"].password.as_ref().map(Secret::expose),
        Some("hunter2")
    );
    assert!(!format!("{config:?} {config:#?}").contains("hunter2"));
}

#[test]
fn a_file_that_cannot_be_read_is_a_mistake_of_the_whole() {
    let missing =
        config::load(std::path::Path::new("/nowhere/pooler.toml")).expect_err("no such file");
    assert!(
        missing
            .to_string()
            .starts_with("/nowhere/pooler.toml: cannot be read: "),
        "{missing}"
    );
}

#[test]
fn users_are_looked_up_in_a_database_that_there_is() {
    let file = |name| {
        format!(
            "[auth]\nquery_user = \"a\"\nquery_database = \"{name}\"\n[databases.site]\nurl = \"postgres://db\"\n"
        )
    };
    let read = |name| config::parse(&file(name), "file", &|_| None);
    assert!(read("site").is_ok());
    let mistake = read("other").expect_err("no such database").to_string();
    assert_eq!(mistake, "file:3:18: query_database is not in [databases]");
}

#[test]
fn a_url_is_a_configuration() {
    let listen = ["0.0.0.0:6432".to_owned()];
    let config =
        config::from_url("postgres://ada:hunter2@db:7/site", &listen).expect("all is right");
    let any = config.any_database.as_ref().expect("any database");
    assert_eq!(
        (any.hosts.as_slice(), &any.dbname, &any.user),
        (&[Host::Tcp("db".into(), 7)][..], &None, &None)
    );
    assert_eq!(config.users["ada"].password, Some(Secret::new("hunter2")));
    let auth = &config.auth;
    assert_eq!(
        (auth.query_user.as_deref(), auth.query_database.as_deref()),
        (Some("ada"), Some("site"))
    );
    assert_eq!(
        config.listen.addresses,
        ["0.0.0.0:6432".parse().expect("an address")]
    );

    let plain = config::from_url("postgres://127.0.0.1:5432", &[]).expect("all is right");
    assert_eq!(plain, right(SMALLEST));

    let mistakes = config::from_url("ada:hunter2@db", &["here".to_owned()])
        .expect_err("both are wrong")
        .to_string();
    let lines: Vec<_> = mistakes.lines().collect();
    assert_eq!(lines.len(), 2);
    assert!(
        lines[0].starts_with("command line: --listen must be an address and port such as"),
        "{mistakes}"
    );
    assert_eq!(
        lines[1],
        "command line: --to must begin with postgres:// or postgresql://"
    );
}

#[test]
fn changes_are_named_with_what_they_need_and_without_values() {
    let old = right(concat!(
        "[pool]\nsize = 5\n[databases.a]\nurl = \"postgres://ada:hunter2@db\"\n[databases.gone]\nhost = \"x\"\n",
        "[users.ada]\npassword = \"hunter2\"\n[services.one]\nmatch.user = \"a\"\n[services.two]\n[log]\nformat = \"text\"\n",
    ));
    let new = right(concat!(
        "[pool]\nsize = 6\n[databases.a]\nurl = \"postgres://ada:hunter3@db2\"\n[databases.\"a new\"]\nhost = \"x\"\n",
        "[users.ada]\npassword = \"hunter3\"\n[services.two]\ndeployments.dry_run = true\n[services.one]\nmatch.user = \"b\"\n",
        "[log]\nformat = \"json\"\n[listen]\nhttp = \"\"\n[runtime]\nthreads = 77\n[services.\"*\"]\nweight = 2\n",
    ));
    let changes = change::between(&old, &new);
    let named = |effect: Effect| -> Vec<_> {
        changes
            .iter()
            .filter(|change| change.effect == effect)
            .map(|change| change.name.as_str())
            .collect()
    };
    assert_eq!(
        named(Effect::Restart),
        ["listen.http", "log.format", "runtime.threads"]
    );
    assert_eq!(
        named(Effect::Live),
        [
            "pool.size",
            "databases.a.host",
            "databases.a.password",
            "databases.gone",
            "databases.\"a new\"",
            "users.ada.password",
            "services.\"*\".weight",
            "services.one.match.user",
            "services.one.weight",
            "services.two.weight",
            "services.two.deployments.dry_run",
            "services",
        ]
    );
    assert_eq!(change::between(&new, &new), []);
    assert!(!format!("{changes:?}").contains("hunter"));
    assert_eq!(
        changes[0].to_string(),
        "listen.http changed, and needs a restart"
    );
}

#[test]
fn threads_are_chosen_from_the_cores() {
    for (cores, threads) in [(0, 1), (1, 1), (2, 1), (4, 2), (64, 8)] {
        assert_eq!(config::default_threads(cores), threads);
    }
}

mod whatever_the_text {
    use proptest::prelude::*;

    use super::*;

    const SHIPPED: &str = include_str!("../pooler.toml");

    /// Reads a text, and takes everything apart that came of it.
    fn survive(text: &str) {
        match parse(text) {
            Ok(config) => assert_eq!(change::between(&config, &config), []),
            Err(mistakes) => {
                assert!(
                    mistakes
                        .iter()
                        .all(|m| m.line >= 1 && m.column >= 1 && !m.message.is_empty())
                );
                assert!(
                    mistakes
                        .iter()
                        .all(|m| m.line <= text.matches('\n').count() + 1),
                    "{mistakes}"
                );
                assert_eq!(
                    mistakes.to_string().lines().count(),
                    mistakes.iter().count(),
                    "{mistakes}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn reading_deep_nesting_never_panics(open in "\\[|\\{a=|a\\.|\\[a\\.", depth in 1..20_000_usize) {
            survive(&format!("a = {}", open.repeat(depth)));
            survive(&open.repeat(depth));
        }

        #[test]
        fn reading_never_panics(text in any::<String>()) {
            survive(&text);
        }

        #[test]
        fn reading_what_looks_like_toml_never_panics(text in "(\\[{0,2}(pool|databases|services|tls|\\*|a|\"\"|match|\\.){0,4}\\]{0,2}\n?|(size|url|host|match|a)( ?= ?|\\.)|\"(postgres://|[@:/?%\\[\\]\\${},=a-c0-2]){0,12}\"\n?|[{}\\[\\],0-9]{0,4}\n?){0,20}") {
            survive(&text);
        }

        #[test]
        fn reading_a_damaged_file_never_panics(
            cuts in prop::collection::vec((any::<prop::sample::Index>(), 0..30_usize, "[\\[\\]{}\"'=.,#\\n\\\\$0-9a-zé*-]{0,3}"), 1..6)
        ) {
            let mut text: Vec<char> = SHIPPED.chars().collect();
            for (at, length, instead) in cuts {
                let start = at.index(text.len());
                let end = (start + length).min(text.len());
                text.splice(start..end, instead.chars());
            }
            survive(&text.into_iter().collect::<String>());
        }

        #[test]
        fn a_damaged_url_shows_no_password(damage in "[@:/?%#&=,\\[\\] a]{0,4}", at in 0..40_usize) {
            let mut url: Vec<char> = "postgres://user:hunter2@db:5432/site?port=5432".chars().collect();
            let at = at.min(url.len());
            url.splice(at..at, damage.chars());
            let url: String = url.into_iter().collect();
            let from_file = with(&format!("[databases.a]\nurl = \"{url}\"")).err().map(|mistakes| mistakes.to_string());
            let from_line = config::from_url(&url, &[]).err().map(|mistakes| mistakes.to_string());
            for message in [from_file, from_line].into_iter().flatten() {
                prop_assert!(!message.contains("hunter2"), "{}", message);
            }
        }
    }
}

mod the_manual {
    use std::collections::BTreeMap;

    use super::*;

    const MANUAL: &str = include_str!("../docs/configuration.md");
    const SHIPPED: &str = include_str!("../pooler.toml");

    /// Each documented setting with the default that the manual gives.
    fn documented() -> BTreeMap<String, String> {
        let mut settings = BTreeMap::new();
        let mut table = String::new();
        for line in MANUAL.lines() {
            if let Some(heading) = line.strip_prefix("## ") {
                heading.trim_matches(['[', ']']).clone_into(&mut table);
            } else if let Some(row) = line.strip_prefix("| `") {
                let (key, rest) = row.split_once("` | ").expect("a key in backquotes");
                let default = rest
                    .split(" | ")
                    .nth(1)
                    .expect("a third column")
                    .trim_matches('`');
                settings.insert(format!("{table}.{key}"), default.to_owned());
            }
        }
        settings
    }

    /// The default that the shipped file gives.
    fn shipped(setting: &str) -> String {
        let file: toml::Table = SHIPPED.parse().expect("the shipped file is TOML");
        let mut value = &toml::Value::Table(file);
        for key in setting.replace("services.NAME", "services.*").split('.') {
            match value.get(key) {
                Some(inside) => value = inside,
                None => return "none".to_owned(),
            }
        }
        match value {
            toml::Value::String(text) => format!("\"{text}\""),
            other => other.to_string(),
        }
    }

    #[test]
    fn names_every_setting_and_no_other() {
        let mut known: Vec<_> = config::settings()
            .iter()
            .map(|name| name.replace("services.\"*\"", "services.NAME"))
            .collect();
        known.sort();
        known.dedup();
        assert_eq!(documented().into_keys().collect::<Vec<_>>(), known);
    }

    #[test]
    fn gives_the_defaults_of_the_shipped_file() {
        for (setting, default) in documented() {
            assert_eq!(default, shipped(&setting), "{setting}");
        }
    }
}

/// Right files of each kind beside the configuration.
const USERLIST: &str = "; who may log in\n\"ann\" \"wonder\"\n\"bo \"\"b\" \"md5d41d8cd98f00b204e9800998ecf8427e\" more\n\
    \"carl\" \"\"\n\"dave\" \"SCRAM-SHA-256$4096:c2FsdA==$AAAA:BBBB\"\n";
const HBA: &str = "# who may come in\nlocal all ann,\"bo b\" peer map=os\nhostssl shop , sameuser carl 10.0.0.0/8 cert map=names\n\
    host all all ::1/128 scram-sha-256\nhostnossl replication dave 127.0.0.1 255.255.255.255 reject\n\
    host all all 10.0.0.0/8 ldap ldapserver=a ldapprefix=\"uid=\" ldapsuffix=\",dc=x\"\nhost all eve all pam\n";
const IDENTS: &str =
    "# map name user\nos root ann\nnames \"a \"\"b\" carl\nnames /^(.*)@site$ \\1\nos all all\n";

mod one_change {
    use std::path::Path;

    use pgweir::config::{Mistakes, hba_file, ident_file, users_file};
    use proptest::prelude::*;

    /// All mistakes have a place in the file, and a reason on one line.
    fn have_a_place(mistakes: &Mistakes, text: &str) {
        let lines = text.lines().count();
        let mut count = 0;
        for mistake in mistakes.iter() {
            count += 1;
            assert!(
                (1..=lines).contains(&mistake.line),
                "{mistakes}\nin\n{text}"
            );
            assert!(mistake.column > 0, "{mistakes}\nin\n{text}");
            assert!(
                !mistake.message.is_empty() && !mistake.message.contains('\n'),
                "{mistakes}"
            );
        }
        assert!(count > 0, "nothing is wrong");
        assert_eq!(mistakes.to_string().lines().count(), count, "{mistakes}");
    }

    fn changed(text: &str, at: prop::sample::Index, length: usize, put: &str) -> String {
        let begin = at.index(text.len());
        let end = text.len().min(begin + length);
        format!("{}{put}{}", &text[..begin], &text[end..])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn of_a_users_file_is_read_or_told(at in any::<prop::sample::Index>(), length in 0usize..5, put in "[ -~\n]{0,3}|\"|é") {
            let text = changed(super::USERLIST, at, length, &put);
            if let Err(mistakes) = users_file::parse(&text) {
                have_a_place(&mistakes, &text);
                prop_assert!(!mistakes.to_string().contains("wonder"));
            }
        }

        #[test]
        fn of_an_hba_file_is_read_or_told(at in any::<prop::sample::Index>(), length in 0usize..5, put in "[ -~\n]{0,3}|\"|,|#|@|é") {
            let text = changed(super::HBA, at, length, &put);
            let (_, mistakes) = hba_file::parse(&text, Path::new("/nonexistent/hba"));
            if let Some(mistakes) = mistakes {
                have_a_place(&mistakes, &text);
            }
        }

        #[test]
        fn of_an_ident_file_is_read_or_told(at in any::<prop::sample::Index>(), length in 0usize..5, put in "[ -~\n]{0,3}|\"|\\(|é") {
            let text = changed(super::IDENTS, at, length, &put);
            if let Err(mistakes) = ident_file::parse(&text) {
                have_a_place(&mistakes, &text);
            }
        }
    }

    #[test]
    fn the_files_themselves_are_right() {
        assert!(users_file::parse(super::USERLIST).is_ok());
        assert_eq!(hba_file::parse(super::HBA, Path::new("hba")).1, None);
        assert!(ident_file::parse(super::IDENTS).is_ok());
    }
}
