//! sqlx: its pool, its statement cache, transactions, streams, COPY.

use std::error::Error;

use futures_util::TryStreamExt;
use futures_util::future::try_join_all;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPool, PgPoolCopyExt, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, Executor, Row};

type Outcome = Result<(), Box<dyn Error>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome {
    let pool = pool(options()).await?;
    simple_things(&pool).await?;
    errors_and_transactions(&pool).await?;
    statements_on_many_connections(&pool).await?;
    statements_after_changes(&pool).await?;
    copying(&pool).await?;
    pool.close().await;
    settings_follow_their_client().await?;
    session_things().await
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

/// The statement cache has its default size: 100.
fn options() -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass()
        .host(&variable("PGHOST"))
        .port(variable("PGPORT").parse().expect("a port"))
        .username(&variable("PGUSER"))
        .password(&variable("PGPASSWORD"))
        .database(&variable("PGDATABASE"))
        .ssl_mode(sqlx::postgres::PgSslMode::Disable)
}

async fn pool(options: PgConnectOptions) -> Result<PgPool, sqlx::Error> {
    PgPoolOptions::new()
        .max_connections(8)
        .min_connections(8)
        .connect_with(options)
        .await
}

fn code(error: &sqlx::Error) -> String {
    let code = error.as_database_error().and_then(|error| error.code());
    code.map_or_else(|| error.to_string(), |code| code.into_owned())
}

async fn simple_things(pool: &PgPool) -> Outcome {
    let row = sqlx::query("select $1::int4, $2::text, $3::bytea, $4::int4[], $5::int8")
        .bind(7_i32)
        .bind("sieben ä€😀")
        .bind(&b"\x00\x01"[..])
        .bind(vec![1_i32, 2, 3])
        .bind(None::<i64>)
        .fetch_one(pool)
        .await?;
    assert_eq!(row.get::<i32, _>(0), 7);
    assert_eq!(row.get::<String, _>(1), "sieben ä€😀");
    assert_eq!(row.get::<Vec<u8>, _>(2), b"\x00\x01");
    assert_eq!(row.get::<Vec<i32>, _>(3), [1, 2, 3]);
    assert_eq!(row.get::<Option<i64>, _>(4), None);
    pool.execute(
        "drop table if exists sqlx_items; create table sqlx_items (n int primary key, t text);
         drop table if exists sqlx_wide; create table sqlx_wide (n int, t text)",
    )
    .await?;
    let rows = sqlx::query("select generate_series(1, $1::int4)").bind(5000_i32);
    let sum = rows
        .fetch(pool)
        .try_fold(0, async |count, _| Ok(count + 1))
        .await?;
    assert_eq!(sum, 5000);
    Ok(())
}

async fn errors_and_transactions(pool: &PgPool) -> Outcome {
    for (wrong, expected) in [
        ("select 1/0", "22012"),
        ("selekt", "42601"),
        ("select nothing", "42703"),
    ] {
        assert_eq!(code(&pool.execute(wrong).await.expect_err(wrong)), expected);
        assert_eq!(
            code(&sqlx::query(wrong).execute(pool).await.expect_err(wrong)),
            expected
        );
    }
    let insert = |n: i32| {
        sqlx::query("insert into sqlx_items values ($1, $2)")
            .bind(n)
            .bind(n.to_string())
    };
    let mut transaction = pool.begin().await?;
    insert(1).execute(&mut *transaction).await?;
    let mut savepoint = transaction.begin().await?;
    let error = insert(1).execute(&mut *savepoint).await.expect_err("twice");
    assert_eq!(code(&error), "23505");
    savepoint.rollback().await?;
    insert(2).execute(&mut *transaction).await?;
    transaction.commit().await?;
    let mut dropped = pool.begin().await?;
    insert(3).execute(&mut *dropped).await?;
    drop(dropped);
    let numbers: Vec<i32> = sqlx::query_scalar("select n from sqlx_items order by n")
        .fetch_all(pool)
        .await?;
    assert_eq!(numbers, [1, 2]);
    Ok(())
}

/// More clients than server connections; the same texts and different ones, again and again.
async fn statements_on_many_connections(pool: &PgPool) -> Outcome {
    let work = |number: i32| async move {
        for n in 0..60_i32 {
            let sum: i32 = sqlx::query_scalar("select $1::int4 + $2::int4")
                .bind(n)
                .bind(number)
                .fetch_one(pool)
                .await?;
            assert_eq!(sum, n + number);
            let own = format!("select $1::int4::text || ' of {number}'");
            let word: String = sqlx::query_scalar(AssertSqlSafe(own))
                .bind(n)
                .fetch_one(pool)
                .await?;
            assert_eq!(word, format!("{n} of {number}"));
            if n % 7 == 0 {
                let mut transaction = pool.begin().await?;
                let twice: i32 = sqlx::query_scalar("select $1::int4 * 2")
                    .bind(n)
                    .fetch_one(&mut *transaction)
                    .await?;
                assert_eq!(twice, 2 * n);
                transaction.commit().await?;
            }
            if n % 11 == 0 {
                let divided = sqlx::query("select 1 / $1::int4")
                    .bind(0_i32)
                    .execute(pool)
                    .await;
                assert_eq!(code(&divided.expect_err("by zero")), "22012");
            }
        }
        // More statements than the cache holds: sqlx closes the oldest.
        for n in 0..250_i32 {
            let text = format!("select $1::int4 + {n}");
            let sum: i32 = sqlx::query_scalar(AssertSqlSafe(text))
                .bind(number)
                .fetch_one(pool)
                .await?;
            assert_eq!(sum, number + n);
            let once: i32 = sqlx::query_scalar("select 7")
                .persistent(false)
                .fetch_one(pool)
                .await?;
            assert_eq!(once, 7);
        }
        Ok::<_, sqlx::Error>(())
    };
    try_join_all((0..8).map(work)).await?;
    let mut connection = pool.acquire().await?;
    connection.ping().await?;
    connection.clear_cached_statements().await?;
    let one: i32 = sqlx::query_scalar("select 1")
        .fetch_one(&mut *connection)
        .await?;
    assert_eq!(one, 1);
    Ok(())
}

async fn statements_after_changes(pool: &PgPool) -> Outcome {
    pool.execute("drop table if exists sqlx_changing; create table sqlx_changing (n int)")
        .await?;
    for _ in 0..20 {
        sqlx::query("insert into sqlx_changing (n) values ($1)")
            .bind(1_i32)
            .execute(pool)
            .await?;
    }
    pool.execute("alter table sqlx_changing add m int default 7")
        .await?;
    for _ in 0..20 {
        sqlx::query("insert into sqlx_changing (n) values ($1)")
            .bind(1_i32)
            .execute(pool)
            .await?;
    }
    let count: i64 = sqlx::query_scalar("select count(*) from sqlx_changing")
        .fetch_one(pool)
        .await?;
    assert_eq!(count, 40);
    Ok(())
}

async fn copying(pool: &PgPool) -> Outcome {
    let mut copy = pool.copy_in_raw("copy sqlx_wide from stdin").await?;
    for n in 0..20_000 {
        copy.send(format!("{n}\t{}\n", "x".repeat(n % 200)).as_bytes())
            .await?;
    }
    assert_eq!(copy.finish().await?, 20_000);
    let out = pool
        .copy_out_raw("copy (select n from sqlx_wide order by n) to stdout")
        .await?;
    let size = out
        .try_fold(0, async |size, chunk| Ok(size + chunk.len()))
        .await?;
    assert_eq!(
        size,
        (0..20_000).map(|n| format!("{n}\n").len()).sum::<usize>()
    );
    let mut copy = pool.copy_in_raw("copy sqlx_wide from stdin").await?;
    copy.send(&b"1\tx\n"[..]).await?;
    copy.abort("changed my mind").await?;
    let mut copy = pool.copy_in_raw("copy sqlx_wide from stdin").await?;
    copy.send(&b"not a number\tx\n"[..]).await?;
    assert_eq!(
        code(&copy.finish().await.expect_err("not a number")),
        "22P02"
    );
    let count: i64 = sqlx::query_scalar("select count(*) from sqlx_wide")
        .fetch_one(pool)
        .await?;
    assert_eq!(count, 20_000);
    Ok(())
}

async fn settings_follow_their_client() -> Outcome {
    let zones = [
        "Europe/Berlin",
        "Asia/Tokyo",
        "America/Lima",
        "UTC",
        "Africa/Cairo",
        "Asia/Kolkata",
        "Pacific/Apia",
        "Iran",
    ];
    let work = |(number, zone): (usize, &'static str)| async move {
        let options = options()
            .application_name(&format!("client {number}"))
            .options([("statement_timeout", (9001 + number).to_string())]);
        let mut connection = sqlx::PgConnection::connect_with(&options).await?;
        let mut set = false;
        for n in 0..35 {
            for (name, expected) in [
                // sqlx asks for UTC when it connects.
                (
                    "timezone",
                    if set {
                        zone.to_owned()
                    } else {
                        "UTC".to_owned()
                    },
                ),
                ("application_name", format!("client {number}")),
                ("statement_timeout", format!("{}ms", 9001 + number)),
                ("client_encoding", "UTF8".to_owned()),
            ] {
                let shown: String = sqlx::query_scalar(AssertSqlSafe(format!("show {name}")))
                    .fetch_one(&mut connection)
                    .await?;
                assert_eq!(shown, expected);
            }
            if n == 10 {
                connection
                    .execute(AssertSqlSafe(format!("set timezone to '{zone}'")))
                    .await?;
                set = true;
            }
        }
        connection.close().await
    };
    try_join_all(zones.into_iter().enumerate().map(work)).await?;
    Ok(())
}

/// What lives in the server's session: in transaction mode such a client keeps its server connection.
async fn session_things() -> Outcome {
    let pool = PgPool::connect_with(options()).await?;
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.listen("news").await?;
    pool.execute("select pg_notify('news', 'hello')").await?;
    assert_eq!(listener.recv().await?.payload(), "hello");
    drop(listener);
    pool.close().await;
    Ok(())
}
