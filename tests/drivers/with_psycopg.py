"""psycopg 3 without its own prepared statements, as behind any pooler in transaction mode."""

import asyncio
import datetime
import decimal
import threading
import uuid

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb


def connect(**options):
    return psycopg.connect("", prepare_threshold=None, **options)


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
        cursor = connection.execute("select 1; select 2")
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


def many_threads():
    failures = []

    def work(name):
        try:
            for n in range(15):
                with connect() as connection:
                    word = f"{name}/{n}"
                    assert connection.execute("select %s", (word,)).fetchone() == (word,)
                    connection.execute(sql.SQL("set local my.word = {}").format(word))
                    assert connection.execute("select current_setting('my.word')").fetchone() == (word,)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


async def asynchronously():
    async def work(name):
        connection = await psycopg.AsyncConnection.connect("", prepare_threshold=None, autocommit=True)
        async with connection:
            for n in range(20):
                async with connection.transaction():
                    cursor = await connection.execute("select %s::text, pg_sleep(0.001)", (f"{name}/{n}",))
                    assert (await cursor.fetchone())[0] == f"{name}/{n}"

    await asyncio.gather(*(work(name) for name in range(30)))


simple_things()
errors_and_transactions()
many_rows_and_copy()
pipelines()
many_threads()
asyncio.run(asynchronously())
