"""asyncpg without its statement cache, as behind any pooler in transaction mode."""

import asyncio
import datetime
import decimal
import io

import asyncpg


def connect(**options):
    return asyncpg.connect(statement_cache_size=0, **options)


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
    async with asyncpg.create_pool(min_size=10, max_size=50, statement_cache_size=0) as pool:

        async def work(name):
            for n in range(20):
                async with pool.acquire() as connection:
                    word = f"{name}/{n}"
                    assert await connection.fetchval("select $1::text", word) == word
                    async with connection.transaction():
                        await connection.execute(f"set local my.word = '{word}'")
                        assert await connection.fetchval("select current_setting('my.word')") == word

        await asyncio.gather(*(work(name) for name in range(100)))


async def main():
    await simple_things()
    await errors_and_transactions()
    await copy()
    await a_pool_of_pools()


asyncio.run(main())
