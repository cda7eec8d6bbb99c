"""asyncpg on the console: prepared statements, typed parameters, a pool with its reset query."""

import asyncio

import asyncpg


async def main():
    conn = await asyncpg.connect()
    rows = await conn.fetch("SHOW POOLS")
    assert "pgbouncer" in [row["database"] for row in rows]
    rows = await conn.fetch("SELECT database, cl_active FROM pools WHERE cl_active > $1 AND user = $2 LIMIT $3", 0, "pgbouncer", 5)
    assert [row["database"] for row in rows] == ["pgbouncer"], rows
    assert isinstance(rows[0]["cl_active"], int)
    rows = await conn.fetch("SELECT name FROM totals WHERE value >= $1", 0)
    assert len(rows) == 24, rows
    stats = await conn.fetchrow("SHOW STATS_TOTALS")
    assert stats["query_count"] >= 0
    async with conn.transaction():
        assert await conn.fetchval("SELECT 1") == 1
    assert "PostgreSQL" in await conn.fetchval("SELECT version()")
    try:
        await conn.fetch("SELECT * FROM pg_class")
        raise AssertionError("it was accepted")
    except asyncpg.UndefinedTableError:
        pass
    assert await conn.execute("SHOW VERSION") == "SHOW"
    await conn.reset()
    await conn.close()

    async with asyncpg.create_pool(min_size=1, max_size=2) as pool:
        for _ in range(3):
            async with pool.acquire() as conn:
                assert await conn.fetchval("SELECT count(*) FROM lists") == 14


asyncio.run(main())
