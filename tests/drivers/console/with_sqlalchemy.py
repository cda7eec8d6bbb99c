"""SQLAlchemy on the console, with the engines that it makes by default: what its dialects ask at connect (settings, versions, and
pg_type for the type hstore), then tables."""

import asyncio

import psycopg
import psycopg.types
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.ext.asyncio import create_async_engine

POOLS = text('SELECT database FROM pools WHERE "user" = :user')

for driver in ("psycopg", "psycopg2"):
    engine = create_engine(f"postgresql+{driver}://")
    with engine.connect() as conn:
        found = conn.execute(POOLS, {"user": "pgbouncer"}).all()
        assert found == [("pgbouncer",)], found
        assert len(conn.execute(text("SHOW LISTS")).all()) == 14
        conn.rollback()
        # Nothing of it is a table of a database.
        assert not inspect(conn).has_table("customers")
    engine.dispose()


async def main():
    engine = create_async_engine("postgresql+asyncpg://")
    async with engine.connect() as conn:
        assert len((await conn.execute(text("SHOW LISTS"))).all()) == 14
        found = (await conn.execute(POOLS, {"user": "pgbouncer"})).all()
        assert found == [("pgbouncer",)], found
    await engine.dispose()


asyncio.run(main())

# The look-up itself: there is no such type, which is an answer and no error.
with psycopg.connect("") as conn:
    assert psycopg.types.TypeInfo.fetch(conn, "hstore") is None
    assert conn.execute("SELECT 1").fetchone() == (1,)
    # A time is one: with a zone, in both formats, and as a parameter.
    for binary in (False, True):
        (now,) = conn.execute("SELECT now()", binary=binary).fetchone()
        assert now.tzinfo is not None, now
        (later,) = conn.execute("SELECT now() >= %b", (now,), binary=binary).fetchone()
        assert later
