"""asyncpg: everything with its statement cache and without."""

import asyncio
import datetime
import decimal
import io
import os

import asyncpg

SESSIONS = os.environ["PGWEIR_MODE"] != "transaction"
caching = {}


def connect(**options):
    return asyncpg.connect(**caching, **options)


async def simple_things():
    connection = await connect()
    assert await connection.fetchval("select 1") == 1
    row = await connection.fetchrow(
        "select $1::int as i, $2::text as t, $3::timestamptz as w, $4::numeric as d, $5::bytea as b, $6::int[] as a",
        7,
        "sieben",
        datetime.datetime(2024, 2, 29, tzinfo=datetime.timezone.utc),
        decimal.Decimal("1.50"),
        b"\0\1",
        [1, 2, 3],
    )
    assert dict(row)["t"] == "sieben" and row["a"] == [1, 2, 3] and row["d"] == decimal.Decimal("1.50")
    assert await connection.execute("create table if not exists items (n int primary key, t text)") == "CREATE TABLE"
    await connection.execute("truncate items; select 1")
    await connection.executemany("insert into items values ($1, $2)", [(n, str(n)) for n in range(1000)])
    assert await connection.fetchval("select count(*) from items") == 1000
    # A type that the driver must look up first.
    await connection.execute("drop type if exists mood; create type mood as enum ('fine', 'foul')")
    assert await connection.fetchval("select $1::mood", "fine") == "fine"
    assert [r[0] for r in await connection.fetch("select unnest($1::mood[])", ["fine", "foul"])] == ["fine", "foul"]
    await connection.close()


async def errors_and_transactions():
    connection = await connect()
    for wrong, kind in [
        ("select 1/0", asyncpg.DivisionByZeroError),
        ("selekt", asyncpg.PostgresSyntaxError),
        ("insert into items values (1, 'again')", asyncpg.UniqueViolationError),
    ]:
        for ask in (connection.execute, connection.fetch):
            try:
                await ask(wrong)
            except kind:
                pass
            else:
                raise AssertionError(wrong)
    async with connection.transaction(isolation="serializable"):
        await connection.execute("insert into items values (5000, 'kept')")
        try:
            async with connection.transaction():
                await connection.execute("insert into items values (5001, 'undone')")
                raise KeyError
        except KeyError:
            pass
        assert await connection.fetchval("select count(*) from items where n >= 5000") == 1
        async for row in connection.cursor("select n from items order by n", prefetch=50):
            pass
        assert row["n"] == 5000
        statement = await connection.prepare("select $1::int + 1")
        assert await statement.fetchval(41) == 42
    await connection.close()


async def copy():
    connection = await connect()
    await connection.execute("create table if not exists wide (n int, t text); truncate wide")
    await connection.copy_records_to_table("wide", records=[(n, "x" * (n % 300)) for n in range(20000)])
    target = io.BytesIO()
    await connection.copy_from_query("select n from wide order by n", output=target)
    assert target.getvalue().split() == [str(n).encode() for n in range(20000)]
    try:
        await connection.copy_to_table("wide", source=io.BytesIO(b"1\tx\nnot a number\tx\n"))
    except asyncpg.InvalidTextRepresentationError:
        pass
    else:
        raise AssertionError("a bad row was copied")
    assert await connection.fetchval("select count(*) from wide") == 20000
    await connection.close()


async def a_pool_of_pools():
    async with asyncpg.create_pool(min_size=10, max_size=50, **caching) as pool:

        async def work(name):
            for n in range(20):
                async with pool.acquire() as connection:
                    word = f"{name}/{n}"
                    assert await connection.fetchval("select $1::text", word) == word
                    async with connection.transaction():
                        await connection.execute(f"set local my.word = '{word}'")
                        assert await connection.fetchval("select current_setting('my.word')") == word

        await asyncio.gather(*(work(name) for name in range(100)))


async def statements_on_many_connections():
    """More clients than server connections; the same texts and different ones, again and again."""

    async def work(name):
        connection = await connect()
        kept = await connection.prepare("select $1::text || ' by ' || $2::text as word")
        assert [column.name for column in kept.get_attributes()] == ["word"]
        for n in range(60):
            assert await connection.fetchval("select $1::int + $2::int", n, name) == n + name
            own = f"select $1::text || ' of {name}'"
            assert await connection.fetchval(own, str(n)) == f"{n} of {name}"
            assert await kept.fetchval(str(n), str(name)) == f"{n} by {name}"
            if n % 7 == 0:
                async with connection.transaction():
                    await connection.execute("select $1::int", n)
                    assert await connection.fetchval(own, str(n)) == f"{n} of {name}"
            if n % 11 == 0:
                try:
                    await connection.fetchval("select 1 / $1::int", 0)
                except asyncpg.DivisionByZeroError:
                    pass
        # More statements than asyncpg caches: it closes the oldest.
        for n in range(150):
            assert await connection.fetchval(f"select $1::int + {n}", name) == name + n
        await connection.close()

    await asyncio.gather(*(work(name) for name in range(8)))


async def statements_after_changes():
    connection = await connect()
    await connection.execute("drop table if exists changing_async; create table changing_async (n int)")
    for n in range(8):
        await connection.execute("insert into changing_async values ($1)", 1)
        assert len(await connection.fetch("select * from changing_async where n = $1", 1)) == n + 1
    await connection.execute("alter table changing_async add m int default 7")
    # asyncpg has its own cure for a plan whose result has changed.
    assert dict(await connection.fetchrow("select * from changing_async where n = $1", 1)) == {"n": 1, "m": 7}
    await connection.reload_schema_state()
    assert dict(await connection.fetchrow("select * from changing_async where n = $1", 1)) == {"n": 1, "m": 7}
    # What its pool does when a connection comes back.
    await connection.reset()
    assert await connection.fetchval("select count(*) from changing_async where n = $1", 1) == 8
    await connection.close()


async def settings_follow_their_client():
    zones = ["Europe/Berlin", "Asia/Tokyo", "America/Lima", "UTC", "Africa/Cairo", "Asia/Kolkata", "Pacific/Apia", "Iran"]

    async def work(number):
        zone, name = zones[number], f"client {number}"
        settings = {"timezone": zone, "application_name": name, "statement_timeout": str(9001 + number)}
        connection = await connect(server_settings=settings)
        assert connection.get_settings().TimeZone == zone
        for n in range(25):
            assert await connection.fetchval("show timezone") == zone
            assert await connection.fetchval("show application_name") == name
            assert await connection.fetchval("show statement_timeout") == f"{9001 + number}ms"
            # asyncpg knows no other encoding than the one it has asked for.
            assert await connection.fetchval("select $1 || chr(252)", "ä") == "äü"
        await connection.execute("set datestyle to 'German'")
        assert connection.get_settings().DateStyle == "German, DMY"
        for n in range(10):
            assert await connection.fetchval("show datestyle") == "German, DMY"
        await connection.reset()
        assert await connection.fetchval("show application_name") == name
        await connection.close()

    await asyncio.gather(*(work(number) for number in range(8)))


async def cancelling():
    connection = await connect()
    try:
        await connection.fetchval("select pg_sleep(20)", timeout=1)
    except asyncio.TimeoutError:
        pass
    else:
        raise AssertionError("it was not cancelled")
    assert await connection.fetchval("select 'alive'") == "alive"
    task = asyncio.create_task(connection.fetchval("select pg_sleep(20)"))
    await asyncio.sleep(1)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        pass
    assert await connection.fetchval("select 'alive'") == "alive"
    await connection.close()


async def session_things():
    """What lives in the server's session: in transaction mode such a client keeps its server connection."""
    connection, other = await connect(), await connect()
    heard = asyncio.Queue()
    await connection.add_listener("news", lambda _, pid, channel, payload: heard.put_nowait((pid, channel, payload)))
    await other.execute("select pg_notify('news', 'hello')")
    pid, channel, payload = await asyncio.wait_for(heard.get(), 10)
    assert (channel, payload) == ("news", "hello")
    if SESSIONS:
        assert pid == other.get_server_pid()
    await connection.execute("create temp table mine as select 1 as n")
    assert await connection.fetchval("select n from mine") == 1
    await connection.execute("set work_mem = '1MB'")
    assert await connection.fetchval("show work_mem") == "1MB"
    await connection.close()
    await other.close()


async def main():
    global caching
    for caching in ({}, {"statement_cache_size": 0}):
        await simple_things()
        await errors_and_transactions()
        await copy()
        await a_pool_of_pools()
        await statements_on_many_connections()
        await statements_after_changes()
        await cancelling()
    await settings_follow_their_client()
    await session_things()


asyncio.run(main())
