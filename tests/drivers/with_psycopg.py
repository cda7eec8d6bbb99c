"""psycopg 3: everything with its default (a statement is prepared at its fifth use), with everything prepared at the
first use, and with nothing prepared."""

import asyncio
import datetime
import decimal
import os
import threading
import uuid

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb


THRESHOLDS = {"default": {}, "at once": {"prepare_threshold": 0}, "never": {"prepare_threshold": None}}
SESSIONS = os.environ["PGWEIR_MODE"] != "transaction"
preparing = {}


def connect(**options):
    return psycopg.connect("", **preparing, **options)


def at_once(work, count):
    """Runs work(0), work(1), ... each in its own thread."""
    failures = []

    def run(number):
        try:
            work(number)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def simple_things():
    with connect() as connection:
        assert connection.execute("select 1").fetchone() == (1,)
        assert connection.info.server_version >= 130000
        row = connection.execute(
            "select %s::int, %s::text, %s::timestamptz, %s::numeric, %s::uuid, %s::bytea, %s::jsonb, %s::int[]",
            (
                7,
                "sieben",
                datetime.datetime(2024, 2, 29, tzinfo=datetime.timezone.utc),
                decimal.Decimal("1.50"),
                uuid.UUID(int=7),
                b"\0\1\2",
                Jsonb({"a": [1, None]}),
                [1, 2, 3],
            ),
        ).fetchone()
        assert row[0] == 7 and row[1] == "sieben" and row[3] == decimal.Decimal("1.50")
        assert row[4] == uuid.UUID(int=7) and row[5] == b"\0\1\2" and row[6] == {"a": [1, None]} and row[7] == [1, 2, 3]
        binary = connection.execute("select %b::int8, %b::text", (1 << 40, "x"), binary=True).fetchone()
        assert binary == (1 << 40, "x")
        cursor = connection.cursor(row_factory=dict_row)
        assert cursor.execute("select 1 as one").fetchone() == {"one": 1}
        # Several statements without parameters go by the simple protocol.
        cursor = connection.execute("select 1; select 2", prepare=False)
        assert cursor.fetchone() == (1,) and cursor.nextset() and cursor.fetchone() == (2,)


def errors_and_transactions():
    with connect(autocommit=True) as connection:
        connection.execute("create table if not exists items (n int primary key, t text)")
        connection.execute("truncate items")
        with connection.transaction():
            connection.execute("insert into items values (1, 'one')")
            try:
                with connection.transaction():
                    connection.execute("insert into items values (1, 'again')")
            except psycopg.errors.UniqueViolation as error:
                assert error.sqlstate == "23505"
                assert error.diag.constraint_name == "items_pkey"
            connection.execute("insert into items values (2, 'two')")
        try:
            with connection.transaction():
                connection.execute("insert into items values (3, 'three')")
                raise KeyError("undone")
        except KeyError:
            pass
        assert connection.execute("select array_agg(n order by n) from items").fetchone() == ([1, 2],)
        for wrong, code in [
            ("select 1/0", "22012"),
            ("select nothing", "42703"),
            ("selekt", "42601"),
        ]:
            try:
                connection.execute(wrong)
            except psycopg.Error as error:
                assert error.sqlstate == code, error
            else:
                raise AssertionError(wrong)
        with connection.transaction():
            connection.execute("set transaction isolation level serializable")
            assert connection.execute("show transaction_isolation").fetchone() == ("serializable",)


def many_rows_and_copy():
    with connect() as connection:
        with connection.cursor() as cursor:
            cursor.execute("create table if not exists wide (n int, t text)")
            cursor.execute("truncate wide")
            # executemany uses a pipeline.
            cursor.executemany("insert into wide values (%s, %s)", [(n, "x" * (n % 200)) for n in range(3000)])
            cursor.executemany(
                "insert into wide values (%s, 'r') returning n", [(n,) for n in range(3000, 3010)], returning=True
            )
            with cursor.copy("copy wide from stdin") as copy:
                for n in range(3010, 20000):
                    copy.write_row((n, "copied\t\n\\" + str(n)))
            with cursor.copy("copy (select n, t from wide order by n) to stdout") as copy:
                copy.set_types(["int4", "text"])
                for expected, (n, t) in enumerate(copy.rows()):
                    assert n == expected
                    assert expected < 3010 or t == "copied\t\n\\" + str(n)
            assert expected == 19999
        connection.commit()
        # A cursor on the server lives inside a transaction.
        with connection.cursor(name="on the server") as cursor:
            cursor.itersize = 500
            cursor.execute("select n from wide order by n")
            assert [n for (n,) in cursor] == list(range(20000))
        for row in connection.cursor().stream("select n from wide where n < 50"):
            assert row[0] < 50
        try:
            with connection.cursor().copy("copy wide from stdin") as copy:
                copy.write(b"1\tfine\nnot a number\tx\n")
        except psycopg.errors.InvalidTextRepresentation:
            connection.rollback()
        assert connection.execute("select count(*) from wide").fetchone() == (20000,)


def pipelines():
    with connect(autocommit=True) as connection:
        with connection.pipeline() as pipeline:
            cursors = [connection.execute("select %s::int", (n,)) for n in range(200)]
            pipeline.sync()
            assert [cursor.fetchone()[0] for cursor in cursors] == list(range(200))
            more = connection.execute("select 'more'")
            try:
                connection.execute("select 1/0")
                pipeline.sync()
            except psycopg.errors.DivisionByZero:
                pass
        with connection.pipeline():
            assert connection.execute("select 'after'").fetchone() == ("after",)
        assert more.fetchone() == ("more",)
        with connection.pipeline(), connection.transaction():
            connection.execute("create temp table passing (n int unique) on commit drop")
            cursor = connection.cursor()
            cursor.executemany("insert into passing values (%s) returning n", [(n,) for n in range(50)], returning=True)
            assert sum(1 for _ in cursor.results()) == 50
        for _ in range(12):
            try:
                with connection.pipeline():
                    connection.execute("select %s::int", (1,))
                    connection.execute("select 1 / %s::int", (0,))
                    connection.execute("select %s::int", (2,))
            except psycopg.errors.DivisionByZero:
                pass
        assert connection.execute("select %s::int", (3,)).fetchone() == (3,)


def statements_on_many_connections():
    """More clients than server connections; the same texts and different ones, again and again."""

    def work(name):
        with connect(autocommit=True) as connection:
            for n in range(60):
                assert connection.execute("select %s::int + %s::int", (n, name)).fetchone() == (n + name,)
                own = f"select %s::text || ' of {name}'"
                assert connection.execute(own, (n,)).fetchone() == (f"{n} of {name}",)
                if n % 7 == 0:
                    with connection.transaction():
                        connection.execute("select %s::int", (n,))
                        assert connection.execute(own, (n,)).fetchone() == (f"{n} of {name}",)
                if n % 11 == 0:
                    try:
                        connection.execute("select 1 / %s::int", (0,))
                    except psycopg.errors.DivisionByZero:
                        pass
            # More statements than psycopg keeps: it closes the oldest.
            for n in range(150):
                for _ in range(2):
                    assert connection.execute(f"select %s::int + {n}", (name,), prepare=True).fetchone() == (name + n,)

    at_once(work, 8)


def statements_after_changes():
    """DDL below a statement, and its own clean-up."""
    with connect(autocommit=True) as connection:
        connection.execute("drop table if exists changing")
        connection.execute("create table changing (n int)")
        for _ in range(8):
            connection.execute("insert into changing values (%s)", (1,))
            connection.execute("select * from changing where n = %s", (1,)).fetchall()
        connection.execute("create index on changing (n)")
        connection.execute("alter table changing add m int default 7")
        assert connection.execute("select n, m from changing where n = %s limit 1", (1,)).fetchone() == (1, 7)
        connection.execute("deallocate all")
        for _ in range(8):
            connection.execute("insert into changing (n) values (%s)", (2,))
        assert connection.execute("select count(*) from changing").fetchone() == (16,)


def many_threads():
    def work(name):
        for n in range(15):
            with connect() as connection:
                word = f"{name}/{n}"
                assert connection.execute("select %s", (word,)).fetchone() == (word,)
                connection.execute(sql.SQL("set local my.word = {}").format(word))
                assert connection.execute("select current_setting('my.word')").fetchone() == (word,)

    at_once(work, 16)


def settings_follow_their_client():
    zones = ["Europe/Berlin", "Asia/Tokyo", "America/Lima", "UTC", "Africa/Cairo", "Asia/Kolkata", "Pacific/Apia", "Iran"]

    def work(number):
        zone, name = zones[number], f"client {number}"
        with connect(application_name=name, options=f"-c timezone={zone} -c statement_timeout={9001 + number}") as connection:
            connection.autocommit = True
            for n in range(25):
                assert connection.execute("show timezone").fetchone() == (zone,)
                assert connection.execute("show application_name").fetchone() == (name,)
                assert connection.execute("show statement_timeout").fetchone() == (f"{9001 + number}ms",)
                moment = connection.execute("select '2024-07-01 12:00+00'::timestamptz").fetchone()[0]
                assert str(moment.tzinfo) == str(connection.info.timezone) == zone
            connection.execute("set client_encoding to 'latin1'")
            connection.execute("set datestyle to 'German'")
            for n in range(10):
                assert connection.execute("select 'ä' || chr(252)").fetchone() == ("äü",)
                assert connection.execute("show datestyle").fetchone() == ("German, DMY",)
                assert connection.info.encoding == "iso8859-1"

    at_once(work, 8)


def cancelling():
    with connect(autocommit=True) as connection:
        for cancel in (connection.cancel, connection.cancel_safe):
            timer = threading.Timer(1, cancel)
            timer.start()
            try:
                connection.execute("select pg_sleep(20)")
            except psycopg.errors.QueryCanceled:
                pass
            else:
                raise AssertionError("it was not cancelled")
            timer.join()
            assert connection.execute("select 'alive'").fetchone() == ("alive",)


def session_things():
    """What lives in the server's session: in transaction mode such a client keeps its server connection."""
    with connect(autocommit=True) as connection, connect(autocommit=True) as other:
        connection.execute("listen news")
        other.execute("select pg_notify('news', 'hello')")
        other.execute("notify news, 'again'")
        notes = list(connection.notifies(timeout=10, stop_after=2))
        assert [note.payload for note in notes] == ["hello", "again"]
        if SESSIONS:
            assert {note.pid for note in notes} == {other.info.backend_pid}
        connection.execute("create temp table mine as select 1 as n")
        assert connection.execute("select n from mine").fetchone() == (1,)
        connection.execute("set work_mem = '1MB'")
        assert connection.execute("show work_mem").fetchone() == ("1MB",)
        cursor = connection.cursor("held", withhold=True)
        cursor.execute("select generate_series(1, 10)")
        assert len(cursor.fetchmany(3)) == 3 and len(cursor.fetchall()) == 7
        cursor.close()


async def asynchronously():
    async def work(name):
        connection = await psycopg.AsyncConnection.connect("", **preparing, autocommit=True)
        async with connection:
            for n in range(20):
                async with connection.transaction():
                    cursor = await connection.execute("select %s::text, pg_sleep(0.001)", (f"{name}/{n}",))
                    assert (await cursor.fetchone())[0] == f"{name}/{n}"

    await asyncio.gather(*(work(name) for name in range(30)))


for name, preparing in THRESHOLDS.items():
    simple_things()
    errors_and_transactions()
    many_rows_and_copy()
    pipelines()
    statements_on_many_connections()
    statements_after_changes()
    many_threads()
    asyncio.run(asynchronously())
cancelling()
settings_follow_their_client()
session_things()
