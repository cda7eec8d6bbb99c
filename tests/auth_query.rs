//! Users who are listed nowhere are looked up at Postgres, and pgweir logs in as them with what their own logins have shown.

mod support;

use std::thread;

use support::process::run;
use support::{Method, Pooler, Postgres, Raw, ServerError, eventually};

with_one_and_two_threads!(
    every_role_of_postgres_comes_in_under_its_own_name,
    a_role_with_an_md5_secret_comes_in_too,
    a_password_in_clear_teaches_the_keys_as_well,
    who_may_not_read_secrets_is_told_what_to_grant,
    an_expired_password_and_a_role_without_login_are_refused,
    the_search_path_of_a_client_has_no_influence,
    nobody_becomes_the_role_that_looks_up,
    a_name_is_never_a_part_of_the_query,
    a_function_may_look_users_up,
    a_database_may_have_a_query_of_its_own,
    a_listed_user_is_not_looked_up,
    many_logins_at_once_share_a_query,
    a_changed_password_works_at_once_and_the_old_one_no_more,
    keys_that_postgres_refuses_are_forgotten,
    looking_up_counts_in_the_budget,
    an_unknown_database_is_told_by_postgres,
    a_reload_forgets_what_was_looked_up,
);

/// Asks by SCRAM, with `alice`, `bob` and the role that looks up users; that one may not read secrets yet.
fn postgres() -> Postgres {
    let postgres = Postgres::setup().method(Method::Scram).start();
    for (role, password) in [
        ("alice", "wonder land"),
        ("bob", "builder"),
        ("pgweir_auth", "lookup"),
    ] {
        postgres.create_role(role, password);
    }
    postgres
}

/// The same, and it may.
fn open_postgres() -> Postgres {
    let postgres = postgres();
    postgres.sql(
        "grant select (rolname, rolpassword, rolvaliduntil, rolcanlogin) on pg_catalog.pg_authid to pgweir_auth",
    );
    postgres
}

fn url(postgres: &Postgres) -> String {
    format!(
        "postgres://pgweir_auth:lookup@127.0.0.1:{}",
        postgres.port()
    )
}

/// A file that says who looks up users, and more of `[auth]` and other tables.
fn serve(postgres: &Postgres, threads: usize, more: &str) -> Pooler {
    let users = "\"pgweir_auth\" \"lookup\"\n\"carol\" \"listed\"\n";
    Pooler::serve_with_users(postgres, &config(threads, more), users)
}

fn config(threads: usize, more: &str) -> String {
    format!(
        "[runtime]\nthreads = {threads}\n\n[auth]\nusers_file = \"{{dir}}/users.txt\"\nquery_user = \"pgweir_auth\"\n{more}"
    )
}

fn login(pooler: &Pooler, user: &str, password: &str) -> Result<Raw, ServerError> {
    Raw::try_login(pooler.port(), user, "postgres", Some(password))
}

#[track_caller]
fn comes_in(pooler: &Pooler, user: &str, password: &str) -> Raw {
    let mut raw =
        login(pooler, user, password).unwrap_or_else(|error| panic!("{user} is refused: {error}"));
    assert_eq!(raw.value("select current_user"), user);
    raw
}

#[track_caller]
fn is_refused(pooler: &Pooler, user: &str, password: &str) -> ServerError {
    let refusal = login(pooler, user, password)
        .err()
        .unwrap_or_else(|| panic!("{user} comes in"));
    assert_eq!(refusal.code(), "28P01", "{user}: {refusal}");
    refusal
}

fn every_role_of_postgres_comes_in_under_its_own_name(_threads: usize) {
    let postgres = open_postgres();
    postgres.create_database("other");
    let pooler = Pooler::serve_to(&url(&postgres));
    for _ in 0..2 {
        let mut alice = comes_in(&pooler, "alice", "wonder land");
        let mut bob = comes_in(&pooler, "bob", "builder");
        comes_in(&pooler, "pgweir_auth", "lookup");
        let wrong = is_refused(&pooler, "alice", "builder");
        let unknown = is_refused(&pooler, "nobody", "builder");
        assert_eq!(wrong.text().replace("alice", "nobody"), unknown.text());
        is_refused(&pooler, "bob", "");
        assert_eq!(alice.value("select 1") + &bob.value("select 2"), "12");
    }
    let mut elsewhere =
        Raw::try_login(pooler.port(), "alice", "other", Some("wonder land")).expect("any database");
    assert_eq!(
        elsewhere.value("select current_user || '@' || current_database()"),
        "alice@other"
    );
    for secret in ["wonder land", "builder", "lookup", "SCRAM-SHA-256$"] {
        assert!(!pooler.log().contains(secret), "{secret} is in the log");
    }
    // libpq asks for SCRAM itself.
    let psql = || {
        let mut psql = pooler.psql("bob", "postgres");
        psql.env("PGPASSWORD", "builder");
        psql
    };
    assert_eq!(run(psql().args(["-c", "select current_user"])), "bob\n");
}

fn a_role_with_an_md5_secret_comes_in_too(threads: usize) {
    let postgres = Postgres::setup()
        .method(Method::Scram)
        .hba("host all hashed 127.0.0.1/32 md5")
        .start();
    postgres.create_role("pgweir_auth", "lookup");
    postgres.sql("alter role pgweir_auth superuser");
    postgres.sql("set password_encryption = 'md5'; create role hashed login password 'browns'");
    let secret = postgres.value("select rolpassword from pg_authid where rolname = 'hashed'");
    assert!(secret.starts_with("md5"));
    for pooler in [
        Pooler::serve_to(&url(&postgres)),
        serve(&postgres, threads, "method = \"md5\"\n"),
        serve(&postgres, threads, "method = \"password\"\n"),
    ] {
        comes_in(&pooler, "hashed", "browns");
        is_refused(&pooler, "hashed", "brown");
        is_refused(&pooler, "hashed", &secret);
        comes_in(&pooler, "pgweir_auth", "lookup");
    }
}

fn a_password_in_clear_teaches_the_keys_as_well(threads: usize) {
    let postgres = open_postgres();
    let pooler = serve(&postgres, threads, "method = \"password\"\n");
    is_refused(&pooler, "alice", "builder");
    comes_in(&pooler, "alice", "wonder land");
}

fn who_may_not_read_secrets_is_told_what_to_grant(_threads: usize) {
    let postgres = postgres();
    let pooler = Pooler::serve_to(&url(&postgres));
    let refusal = login(&pooler, "alice", "wonder land")
        .err()
        .expect("no right to read");
    assert_eq!(refusal.code(), "42501", "{refusal}");
    assert_eq!(refusal.severity(), "FATAL");
    assert!(refusal.text().contains("permission denied"), "{refusal}");
    let (place, grant) = refusal.fields[&'H']
        .split_once(": ")
        .expect("where and what");
    assert!(place.contains("database \"postgres\""), "{place}");
    assert!(pooler.log().contains(grant), "the log says so too");
    postgres.sql(grant);
    comes_in(&pooler, "alice", "wonder land");
}

fn an_expired_password_and_a_role_without_login_are_refused(threads: usize) {
    let postgres = open_postgres();
    postgres.sql("create role expired login password 'browns' valid until 'yesterday'");
    postgres.sql("create role lasting login password 'browns' valid until 'tomorrow'");
    postgres.sql("create role eternal login password 'browns' valid until 'infinity'");
    postgres.sql("create role grouped password 'browns'");
    postgres.sql("create role silent login");
    let pooler = serve(&postgres, threads, "");
    for user in ["expired", "grouped", "silent"] {
        is_refused(&pooler, user, "browns");
        is_refused(&pooler, user, "");
    }
    for user in ["lasting", "eternal"] {
        comes_in(&pooler, user, "browns");
    }
}

/// CVE-2025-12819.
fn the_search_path_of_a_client_has_no_influence(threads: usize) {
    let postgres = open_postgres();
    let alice = postgres.value("select rolpassword from pg_authid where rolname = 'alice'");
    // Whoever is asked for has the password of alice.
    for schema in ["evil", "public"] {
        postgres.sql(&format!(
            "create schema if not exists {schema}; grant all on schema {schema} to public; \
             create function {schema}.find(text) returns table (n text, p text) language sql as $$ select $1, '{alice}' $$; \
             create table {schema}.pg_authid as select 'pgweir_auth'::name as rolname, '{alice}' as rolpassword, \
             null::timestamptz as rolvaliduntil, true as rolcanlogin; grant all on {schema}.pg_authid to public; \
             create function {schema}.eq(name, name) returns bool language sql as 'select true'; \
             create operator {schema}.= (function = {schema}.eq, leftarg = name, rightarg = name)"
        ));
    }
    postgres.sql("alter role pgweir_auth set search_path = evil, pg_catalog");
    let unqualified = "query = \"select * from find($1)\"\n";
    for more in ["", unqualified] {
        let pooler = serve(&postgres, threads, more);
        for path in ["evil", "evil, pg_catalog", "public"] {
            for user in ["bob", "postgres", "nobody"] {
                let mut raw = Raw::connect(pooler.port());
                let options = format!("-c search_path={}", path.replace(' ', ""));
                let startup = [
                    ("user", user),
                    ("database", "postgres"),
                    ("search_path", path),
                    ("options", options.as_str()),
                ];
                assert!(
                    raw.log_in(&startup, Some("wonder land")).is_err(),
                    "{user} with {path} and {more:?}"
                );
            }
        }
        if more.is_empty() {
            comes_in(&pooler, "alice", "wonder land");
            comes_in(&pooler, "bob", "builder");
        } else {
            let refusal = login(&pooler, "alice", "wonder land")
                .err()
                .expect("a query without a schema");
            assert_eq!(refusal.code(), "42883", "{refusal}");
            assert!(refusal.fields[&'H'].contains("schema"), "{refusal}");
        }
    }
}

/// CVE-2015-6817.
fn nobody_becomes_the_role_that_looks_up(threads: usize) {
    let postgres = open_postgres();
    postgres.sql(
        "create function public.nulls(text) returns table (n text, p text) language sql as 'select null::text, null::text'",
    );
    let secret = postgres.value("select rolpassword from pg_authid where rolname = 'pgweir_auth'");
    postgres.sql(&format!(
        "create function public.own(text) returns table (n text, p text) language sql as $$ select 'pgweir_auth', '{secret}' $$"
    ));
    for query in ["default", "select * from public.nulls($1)"] {
        let pooler = serve(&postgres, threads, &format!("query = \"{query}\"\n"));
        for password in ["lookup", ""] {
            is_refused(&pooler, "nobody", password);
        }
    }
    for method in ["trust", "scram-sha-256"] {
        let query = "query = \"select * from public.own($1)\"";
        let pooler = serve(
            &postgres,
            threads,
            &format!("{query}\nmethod = \"{method}\"\n"),
        );
        assert!(login(&pooler, "nobody", "lookup").is_err(), "{method}");
    }
}

fn a_name_is_never_a_part_of_the_query(threads: usize) {
    let postgres = open_postgres();
    let odd = [
        "o'hara",
        "x' or '1'='1",
        "\"quoted\"",
        "$1",
        "sm\u{f8}rrebr\u{f8}d",
        "a b\\c",
        "' || pg_sleep(10) || '",
    ];
    for name in odd {
        postgres.sql(&format!(
            "create role \"{}\" login password 'browns'",
            name.replace('"', "\"\"")
        ));
    }
    let pooler = serve(&postgres, threads, "");
    for name in odd {
        comes_in(&pooler, name, "browns");
        is_refused(&pooler, &format!("{name} "), "browns");
    }
    // A name that Postgres would cut is nobody's.
    let long = "l".repeat(63);
    postgres.create_role(&long, "browns");
    comes_in(&pooler, &long, "browns");
    is_refused(&pooler, &format!("{long}l"), "browns");
}

/// As PgBouncer's manual has it: no right on pg_authid for the role itself.
fn a_function_may_look_users_up(threads: usize) {
    let postgres = postgres();
    postgres.sql(
        "create schema pgbouncer authorization postgres; \
         create function pgbouncer.get_auth(p_usename text) returns table (username text, password text) \
         language sql security definer set search_path = pg_catalog as $$ \
         select rolname::text, case when rolvaliduntil < now() then null else rolpassword end \
         from pg_authid where rolname = p_usename and rolcanlogin $$; \
         revoke all on function pgbouncer.get_auth(text) from public; \
         grant usage on schema pgbouncer to pgweir_auth; grant execute on function pgbouncer.get_auth(text) to pgweir_auth",
    );
    let query = "query = \"select username, password from pgbouncer.get_auth($1)\"\nquery_database = \"postgres\"\n";
    let pooler = serve(&postgres, threads, query);
    comes_in(&pooler, "alice", "wonder land");
    is_refused(&pooler, "alice", "builder");
    is_refused(&pooler, "nobody", "builder");
}

fn a_database_may_have_a_query_of_its_own(threads: usize) {
    let postgres = open_postgres();
    postgres.create_database("site");
    postgres.sql_in(
        "site",
        "create function public.nobody(text) returns table (n text, p text) language sql as 'select null::text, null::text'",
    );
    let databases = "[databases.postgres]\nurl = \"postgres://127.0.0.1:{postgres}\"\n\
                     [databases.site]\nurl = \"postgres://127.0.0.1:{postgres}\"\n\
                     auth_query = \"select * from public.nobody($1)\"\n";
    let pooler = serve(&postgres, threads, databases);
    comes_in(&pooler, "alice", "wonder land");
    let refusal = Raw::try_login(pooler.port(), "alice", "site", Some("wonder land"))
        .err()
        .expect("nobody is known there");
    assert_eq!(refusal.code(), "28P01", "{refusal}");
}

fn a_listed_user_is_not_looked_up(threads: usize) {
    let postgres = open_postgres();
    postgres.create_role("carol", "at postgres");
    let pooler = serve(&postgres, threads, "");
    // What the file says counts, be it wrong.
    is_refused(&pooler, "carol", "at postgres");
    assert_eq!(postgres.connections(), 0);
    comes_in(&pooler, "pgweir_auth", "lookup");
}

/// Counts how often it is asked.
const COUNTING: &str = "create sequence asked; create function public.counting(text) returns table (n text, p text) \
    language sql security definer set search_path = pg_catalog as $$ \
    select rolname::text, rolpassword from pg_authid where rolname = $1 and nextval('public.asked') > 0 $$";

fn many_logins_at_once_share_a_query(threads: usize) {
    let postgres = open_postgres();
    postgres.sql(COUNTING);
    let query = "query = \"select * from public.counting($1)\"\n";
    let pooler = serve(&postgres, threads, query);
    let start = std::time::Instant::now();
    let asked = || -> u64 {
        let value =
            postgres.value("select case when is_called then last_value else 0 end from asked");
        value.parse().expect("a number")
    };
    thread::scope(|scope| {
        for _ in 0..40 {
            scope.spawn(|| comes_in(&pooler, "alice", "wonder land"));
        }
    });
    // One for each second that this took.
    let most = start.elapsed().as_secs() + 1;
    assert!((1..=most).contains(&asked()), "asked {} times", asked());
    assert!(postgres.connections() <= 22, "one connection looks up");
}

fn a_changed_password_works_at_once_and_the_old_one_no_more(threads: usize) {
    let postgres = open_postgres();
    let pooler = serve(&postgres, threads, "");
    let mut before = comes_in(&pooler, "alice", "wonder land");
    postgres.sql("alter role alice password 'looking glass'");
    // A client whose proof fails makes pgweir ask again: the next try is measured against the new secret.
    eventually("the new one works", || {
        login(&pooler, "alice", "looking glass").is_ok()
    });
    is_refused(&pooler, "alice", "wonder land");
    postgres.terminate_connections();
    eventually("they are gone", || postgres.connections() == 0);
    // Who is logged in goes on, with the keys that another login has taught.
    assert_eq!(before.value("select current_user"), "alice");
    postgres.sql("alter role alice nologin");
    eventually("it may not log in any more", || {
        login(&pooler, "alice", "looking glass").is_err()
    });
}

fn keys_that_postgres_refuses_are_forgotten(threads: usize) {
    let postgres = open_postgres();
    let pooler = serve(&postgres, threads, "");
    let mut before = comes_in(&pooler, "alice", "wonder land");
    let mut other = comes_in(&pooler, "alice", "wonder land");
    postgres.sql("alter role alice password 'looking glass'");
    postgres.terminate_connections();
    eventually("they are gone", || postgres.connections() == 0);
    let refusal = before
        .query("select 1")
        .expect_err("the keys are out of date");
    assert_eq!(refusal.code(), "28P01", "{refusal}");
    eventually("the new one works", || {
        login(&pooler, "alice", "looking glass").is_ok()
    });
    assert_eq!(other.value("select current_user"), "alice");
}

fn looking_up_counts_in_the_budget(threads: usize) {
    let postgres = open_postgres();
    let pooler = serve(
        &postgres,
        threads,
        "[budget]\nmax_servers = 1\ncheck_every = 0\n",
    );
    for _ in 0..2 {
        comes_in(&pooler, "alice", "wonder land");
        assert_eq!(postgres.connections(), 1);
        comes_in(&pooler, "bob", "builder");
        assert_eq!(postgres.connections(), 1);
    }
}

fn an_unknown_database_is_told_by_postgres(threads: usize) {
    let postgres = open_postgres();
    for more in ["", "query_database = \"postgres\"\n"] {
        let pooler = serve(&postgres, threads, more);
        let refusal = Raw::try_login(pooler.port(), "alice", "nosuch", Some("wonder land"))
            .err()
            .expect("no such database");
        assert_eq!(refusal.code(), "3D000", "{refusal}");
        comes_in(&pooler, "alice", "wonder land");
    }
}

fn a_reload_forgets_what_was_looked_up(threads: usize) {
    let postgres = open_postgres();
    let pooler = serve(&postgres, threads, "");
    let mut alice = comes_in(&pooler, "alice", "wonder land");
    postgres.sql("create role other_auth login superuser password 'lookup 2'");
    postgres.sql("revoke all on pg_authid from pgweir_auth; alter role pgweir_auth nologin");
    pooler.write_users("\"other_auth\" \"lookup 2\"\n");
    pooler.rewrite(&config(threads, "").replace("pgweir_auth", "other_auth"));
    pooler.reload();
    eventually("it has reloaded", || pooler.log().contains("reloaded"));
    comes_in(&pooler, "bob", "builder");
    comes_in(&pooler, "alice", "wonder land");
    assert_eq!(alice.value("select current_user"), "alice");
}
