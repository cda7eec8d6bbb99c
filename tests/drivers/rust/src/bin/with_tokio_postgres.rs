//! tokio-postgres: prepared statements, pipelines, portals, COPY, cancel.

use std::error::Error;
use std::io::Cursor;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use futures_util::{SinkExt, StreamExt, TryStreamExt};
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, Config, NoTls, SimpleQueryMessage};

type Outcome = Result<(), Box<dyn Error>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome {
    simple_things().await?;
    errors_and_transactions().await?;
    statements_on_many_connections().await?;
    pipelines().await?;
    portals().await?;
    copying().await?;
    cancelling().await?;
    settings_follow_their_client().await?;
    session_things().await
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

fn config() -> Config {
    let mut config = Config::new();
    config
        .host(variable("PGHOST"))
        .port(variable("PGPORT").parse().expect("a port"))
        .user(variable("PGUSER"))
        .password(variable("PGPASSWORD"))
        .dbname(variable("PGDATABASE"));
    config
}

async fn connect(config: &Config) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn simple_things() -> Outcome {
    let client = connect(&config()).await?;
    let row = client
        .query_one(
            "select $1::int4, $2::text, $3::bytea, $4::int4[], $5::int8, $6::float8, $7::bool",
            &[
                &7_i32,
                &"sieben ä€😀",
                &&b"\x00\x01"[..],
                &vec![1_i32, 2, 3],
                &None::<i64>,
                &1.5_f64,
                &true,
            ],
        )
        .await?;
    assert_eq!(row.get::<_, i32>(0), 7);
    assert_eq!(row.get::<_, String>(1), "sieben ä€😀");
    assert_eq!(row.get::<_, &[u8]>(2), b"\x00\x01");
    assert_eq!(row.get::<_, Vec<i32>>(3), [1, 2, 3]);
    assert_eq!(row.get::<_, Option<i64>>(4), None);
    let messages = client.simple_query("select 1; select 2").await?;
    let rows = messages
        .iter()
        .filter(|message| matches!(message, SimpleQueryMessage::Row(_)));
    assert_eq!(rows.count(), 2);
    client
        .batch_execute(
            "drop table if exists rust_items; create table rust_items (n int primary key, t text);
             drop type if exists mood; create type mood as enum ('fine', 'foul')",
        )
        .await?;
    // A type that the driver must look up first, by statements of its own.
    let statement = client.prepare("select $1::mood, 'foul'::mood").await?;
    assert_eq!(statement.params()[0].name(), "mood");
    assert_eq!(statement.columns()[1].type_().name(), "mood");
    let large = "x".repeat(300_000);
    let row = client.query_one("select $1::text", &[&large]).await?;
    assert_eq!(row.get::<_, &str>(0), large);
    Ok(())
}

async fn errors_and_transactions() -> Outcome {
    let mut client = connect(&config()).await?;
    for (wrong, code) in [
        ("select 1/0", SqlState::DIVISION_BY_ZERO),
        ("selekt", SqlState::SYNTAX_ERROR),
        ("select nothing", SqlState::UNDEFINED_COLUMN),
    ] {
        let error = client.query(wrong, &[]).await.expect_err(wrong);
        assert_eq!(error.code(), Some(&code));
        let error = client.batch_execute(wrong).await.expect_err(wrong);
        assert_eq!(error.code(), Some(&code));
    }
    let insert = client
        .prepare("insert into rust_items values ($1, $2)")
        .await?;
    let mut transaction = client.transaction().await?;
    transaction.execute(&insert, &[&1_i32, &"one"]).await?;
    let savepoint = transaction.transaction().await?;
    let error = savepoint.execute(&insert, &[&1_i32, &"again"]).await;
    assert_eq!(
        error.expect_err("twice").code(),
        Some(&SqlState::UNIQUE_VIOLATION)
    );
    savepoint.rollback().await?;
    transaction.execute(&insert, &[&2_i32, &"two"]).await?;
    transaction.commit().await?;
    let dropped = client.transaction().await?;
    dropped.execute(&insert, &[&3_i32, &"undone"]).await?;
    drop(dropped);
    client.execute(&insert, &[&4_i32, &"four"]).await?;
    let rows = client
        .query("select n from rust_items order by n", &[])
        .await?;
    let numbers: Vec<i32> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(numbers, [1, 2, 4]);
    Ok(())
}

/// More clients than server connections; the same texts and different ones, again and again.
async fn statements_on_many_connections() -> Outcome {
    let work = |number: i32| async move {
        let mut client = connect(&config()).await?;
        let sum = client.prepare("select $1::int4 + $2::int4").await?;
        let own = client
            .prepare(&format!("select $1::int4::text || ' of {number}'"))
            .await?;
        let zero = client.prepare("select 1 / $1::int4").await?;
        for n in 0..60_i32 {
            assert_eq!(
                client
                    .query_one(&sum, &[&n, &number])
                    .await?
                    .get::<_, i32>(0),
                n + number
            );
            let word: String = client.query_one(&own, &[&n]).await?.get(0);
            assert_eq!(word, format!("{n} of {number}"));
            // Prepared, used and closed.
            let passing = client
                .query_one(&format!("select $1::int4 + {number}"), &[&n])
                .await?;
            assert_eq!(passing.get::<_, i32>(0), n + number);
            if n % 7 == 0 {
                let transaction = client.transaction().await?;
                transaction.query_one(&sum, &[&n, &number]).await?;
                let inside = transaction.prepare("select $1::int4 * 2").await?;
                let twice: i32 = transaction.query_one(&inside, &[&n]).await?.get(0);
                assert_eq!(twice, 2 * n);
                transaction.commit().await?;
            }
            if n % 11 == 0 {
                let error = client
                    .query_one(&zero, &[&0_i32])
                    .await
                    .expect_err("by zero");
                assert_eq!(error.code(), Some(&SqlState::DIVISION_BY_ZERO));
            }
        }
        Ok::<_, tokio_postgres::Error>(())
    };
    try_join_all((0..8).map(work)).await?;
    Ok(())
}

/// Futures polled together go out together.
async fn pipelines() -> Outcome {
    let client = connect(&config()).await?;
    let divide = client.prepare("select 100 / $1::int4").await?;
    let divisors: Vec<i32> = (0..200).map(|n| n % 10).collect();
    let results = join_all(divisors.iter().map(async |divisor| {
        client
            .query_one(&divide, &[divisor])
            .await
            .map(|row| row.get::<_, i32>(0))
    }))
    .await;
    for (divisor, result) in divisors.iter().zip(results) {
        match result {
            Ok(quotient) => assert_eq!(quotient, 100 / divisor),
            Err(error) => {
                assert_eq!(*divisor, 0, "{error}");
                assert_eq!(error.code(), Some(&SqlState::DIVISION_BY_ZERO));
            }
        }
    }
    let prepared = try_join_all((0..50).map(async |n| {
        let statement = client.prepare(&format!("select {n}::int4")).await?;
        client
            .query_one(&statement, &[])
            .await
            .map(|row| row.get::<_, i32>(0))
    }))
    .await?;
    assert_eq!(prepared, (0..50).collect::<Vec<i32>>());
    Ok(())
}

async fn portals() -> Outcome {
    let mut client = connect(&config()).await?;
    let transaction = client.transaction().await?;
    let portal = transaction
        .bind("select generate_series(1, $1::int4)", &[&250_i32])
        .await?;
    let mut count = 0;
    loop {
        let rows = transaction.query_portal(&portal, 100).await?;
        count += rows.len();
        if rows.len() < 100 {
            break;
        }
    }
    assert_eq!(count, 250);
    drop(portal);
    transaction.commit().await?;
    let rows = client
        .query_raw("select generate_series(1, $1::int4)", [5000_i32])
        .await?;
    assert_eq!(
        rows.try_fold(0, async |count, _| Ok(count + 1)).await?,
        5000
    );
    // A stream that is not read to its end.
    let rows = client
        .query_raw("select generate_series(1, $1::int4)", [50_000_i32])
        .await?;
    assert!(pin!(rows).next().await.is_some());
    client.query_one("select 1", &[]).await?;
    Ok(())
}

async fn copying() -> Outcome {
    let client = connect(&config()).await?;
    client
        .batch_execute("drop table if exists rust_wide; create table rust_wide (n int, t text)")
        .await?;
    let mut sink = pin!(
        client
            .copy_in::<_, Cursor<Vec<u8>>>("copy rust_wide from stdin")
            .await?
    );
    for n in 0..20_000 {
        let line = format!("{n}\t{}\n", "x".repeat(n % 200));
        sink.send(Cursor::new(line.into())).await?;
    }
    assert_eq!(sink.finish().await?, 20_000);
    let stream = client
        .copy_out("copy (select n from rust_wide order by n) to stdout")
        .await?;
    let size = stream
        .try_fold(0, async |size, chunk| Ok(size + chunk.len()))
        .await?;
    assert_eq!(
        size,
        (0..20_000).map(|n| format!("{n}\n").len()).sum::<usize>()
    );
    let mut sink = pin!(
        client
            .copy_in::<_, Cursor<Vec<u8>>>("copy rust_wide from stdin")
            .await?
    );
    sink.send(Cursor::new(b"1\tx\nnot a number\tx\n".into()))
        .await?;
    let error = sink.finish().await.expect_err("not a number");
    assert_eq!(error.code(), Some(&SqlState::INVALID_TEXT_REPRESENTATION));
    // Given up half-way: the driver sends CopyFail.
    {
        let mut sink = pin!(
            client
                .copy_in::<_, Cursor<Vec<u8>>>("copy rust_wide from stdin")
                .await?
        );
        sink.send(Cursor::new(b"1\tx\n".into())).await?;
    }
    let row = client
        .query_one("select count(*) from rust_wide", &[])
        .await?;
    assert_eq!(row.get::<_, i64>(0), 20_000);
    Ok(())
}

async fn cancelling() -> Outcome {
    let client = connect(&config()).await?;
    let token = client.cancel_token();
    let (outcome, cancelled) = tokio::join!(client.query("select pg_sleep(20)", &[]), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        token.cancel_query(NoTls).await
    });
    cancelled?;
    let error = outcome.expect_err("it was cancelled");
    assert_eq!(error.code(), Some(&SqlState::QUERY_CANCELED));
    client.query_one("select 'alive'", &[]).await?;
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
        let mut config = config();
        config
            .application_name(format!("client {number}"))
            .options(format!(
                "-c timezone={zone} -c statement_timeout={}",
                9001 + number
            ));
        let client = connect(&config).await?;
        let show = async |name: &str| -> Result<String, tokio_postgres::Error> {
            Ok(client.query_one(&format!("show {name}"), &[]).await?.get(0))
        };
        for _ in 0..25 {
            assert_eq!(show("timezone").await?, zone);
            assert_eq!(show("application_name").await?, format!("client {number}"));
            assert_eq!(
                show("statement_timeout").await?,
                format!("{}ms", 9001 + number)
            );
            assert_eq!(show("client_encoding").await?, "UTF8");
        }
        client.batch_execute("set datestyle to 'German'").await?;
        for _ in 0..10 {
            assert_eq!(show("datestyle").await?, "German, DMY");
        }
        Ok::<_, tokio_postgres::Error>(())
    };
    try_join_all(zones.into_iter().enumerate().map(work)).await?;
    Ok(())
}

/// What lives in the server's session: in transaction mode such a client keeps its server connection.
async fn session_things() -> Outcome {
    let (client, mut connection) = config().connect(NoTls).await?;
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
            if let AsyncMessage::Notification(note) = message {
                let _ = told.send(note);
            }
        }
    });
    client.batch_execute("listen news").await?;
    let other = connect(&config()).await?;
    other
        .execute("select pg_notify('news', 'hello')", &[])
        .await?;
    let note = heard.recv().await.expect("a notification");
    assert_eq!((note.channel(), note.payload()), ("news", "hello"));
    client
        .batch_execute("create temp table mine as select 1 as n")
        .await?;
    client.query_one("select n from mine", &[]).await?;
    Ok(())
}
