"""SQLAlchemy on the console: what its dialect asks at connect, then tables."""

from sqlalchemy import create_engine, text

for driver in ("psycopg", "asyncpg"):
    if driver == "psycopg":
        # It would ask pg_type for the type hstore.
        with create_engine("postgresql+psycopg://", use_native_hstore=False).connect() as conn:
            found = conn.execute(text("SELECT database FROM pools WHERE user = :user"), {"user": "pgbouncer"}).all()
            assert found == [("pgbouncer",)], found
    else:
        import asyncio

        from sqlalchemy.ext.asyncio import create_async_engine

        async def main():
            async with create_async_engine("postgresql+asyncpg://").connect() as conn:
                found = (await conn.execute(text("SHOW LISTS"))).all()
                assert len(found) == 14, found

        asyncio.run(main())
