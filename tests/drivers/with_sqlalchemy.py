"""SQLAlchemy over psycopg and over asyncpg, with its own pool: pre-ping, caches, autocommit, sessions, streams."""

import asyncio
import datetime
import decimal
import os
import threading

import sqlalchemy
from sqlalchemy import ForeignKey, func, select, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, insert
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, selectinload

URL = sqlalchemy.URL.create(
    "postgresql",
    os.environ["PGUSER"],
    os.environ["PGPASSWORD"],
    os.environ["PGHOST"],
    int(os.environ["PGPORT"]),
    os.environ["PGDATABASE"],
)


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "alchemy_authors"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    books: Mapped[list["Book"]] = relationship(back_populates="author", cascade="all, delete-orphan")


class Book(Base):
    __tablename__ = "alchemy_books"
    id: Mapped[int] = mapped_column(primary_key=True)
    author_id: Mapped[int] = mapped_column(ForeignKey(Author.id))
    author: Mapped[Author] = relationship(back_populates="books")
    title: Mapped[str]
    price: Mapped[decimal.Decimal] = mapped_column(sqlalchemy.Numeric(8, 2))
    published: Mapped[datetime.datetime] = mapped_column(sqlalchemy.DateTime(timezone=True))
    about: Mapped[dict] = mapped_column(JSONB, default=dict)
    tags: Mapped[list[str]] = mapped_column(ARRAY(sqlalchemy.Text), default=list)


MOMENT = datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.timezone.utc)


def book(author, title):
    return Book(author=author, title=title, price=decimal.Decimal("9.50"), published=MOMENT, about={"a": [1]}, tags=["x", "y"])


def with_psycopg(prepare_threshold):
    engine = sqlalchemy.create_engine(
        URL.set(drivername="postgresql+psycopg"),
        pool_size=8,
        max_overflow=2,
        pool_pre_ping=True,
        connect_args={"prepare_threshold": prepare_threshold, "application_name": "alchemy"},
    )
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    names = sqlalchemy.inspect(engine).get_table_names()
    assert {"alchemy_authors", "alchemy_books"} <= set(names)
    with Session(engine) as session:
        ada = Author(name="Ada")
        session.add_all([ada, *(book(ada, f"Volume {n}") for n in range(1500))])
        session.commit()
        found = session.scalars(select(Book).where(Book.title == "Volume 7")).one()
        assert (found.price, found.published, found.about, found.tags) == (decimal.Decimal("9.50"), MOMENT, {"a": [1]}, ["x", "y"])
        # A cursor on the server.
        rows = session.scalars(select(Book).order_by(Book.id).execution_options(yield_per=100))
        assert sum(1 for _ in rows) == 1500
        session.add(Author(name="Ada"))
        try:
            session.commit()
        except IntegrityError:
            session.rollback()
        with session.begin_nested() as savepoint:
            session.add(Author(name="Charles"))
            session.flush()
            savepoint.rollback()
        assert session.scalar(select(func.count()).select_from(Author)) == 1
        session.rollback()

    failures = []

    def work(name):
        try:
            for n in range(25):
                with engine.begin() as connection:
                    statement = insert(Author).values(name=f"{name}").on_conflict_do_nothing()
                    connection.execute(statement)
                    assert connection.scalar(select(Author.name).where(Author.name == f"{name}")) == f"{name}"
                with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                    assert connection.scalar(text("select :n * 2"), {"n": n}) == n * 2
                    assert connection.scalar(text("show application_name")) == "alchemy"
                with engine.connect().execution_options(isolation_level="SERIALIZABLE") as connection:
                    assert connection.scalar(text("show transaction_isolation")) == "serializable"
                if n % 6 == 0:
                    try:
                        with engine.connect() as connection:
                            connection.execute(text("select 1 / :zero"), {"zero": 0})
                    except DBAPIError as error:
                        assert error.orig.sqlstate == "22012"
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    engine.dispose()


async def with_asyncpg(**caching):
    engine = create_async_engine(
        URL.set(drivername="postgresql+asyncpg"),
        pool_size=8,
        max_overflow=2,
        pool_pre_ping=True,
        connect_args={"server_settings": {"application_name": "alchemy", "timezone": "Asia/Tokyo"}, **caching},
    )
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)
    make = async_sessionmaker(engine, expire_on_commit=False)
    async with make() as session:
        ada = Author(name="Ada")
        session.add_all([ada, *(book(ada, f"Volume {n}") for n in range(1500))])
        await session.commit()
        found = (await session.scalars(select(Author).options(selectinload(Author.books)))).one()
        assert len(found.books) == 1500 and found.books[7].published == MOMENT
        rows = await session.stream_scalars(select(Book).order_by(Book.id).execution_options(yield_per=100))
        assert len([row async for row in rows]) == 1500
        session.add(Author(name="Ada"))
        try:
            await session.commit()
        except IntegrityError:
            await session.rollback()

    async def work(name):
        for n in range(25):
            async with make() as session, session.begin():
                await session.execute(insert(Author).values(name=f"{name}").on_conflict_do_nothing())
                assert await session.scalar(select(Author.name).where(Author.name == f"{name}")) == f"{name}"
            async with engine.connect() as connection:
                connection = await connection.execution_options(isolation_level="AUTOCOMMIT")
                assert await connection.scalar(text("select cast(:n as int) * 2"), {"n": n}) == n * 2
                assert await connection.scalar(text("show timezone")) == "Asia/Tokyo"
            if n % 6 == 0:
                try:
                    async with engine.connect() as connection:
                        await connection.execute(text("select 1 / cast(:zero as int)"), {"zero": 0})
                except DBAPIError as error:
                    assert error.orig.sqlstate == "22012"

    await asyncio.gather(*(work(name) for name in range(8)))
    await engine.dispose()


# psycopg's default is 5.
for threshold in (5, 0):
    with_psycopg(threshold)
for caching in ({}, {"prepared_statement_cache_size": 0}):
    asyncio.run(with_asyncpg(**caching))
