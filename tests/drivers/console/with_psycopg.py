"""psycopg 3 on the console: both protocols, its own types, parameters, pipelines and errors."""

import psycopg
from psycopg.rows import dict_row

with psycopg.connect("", autocommit=True, row_factory=dict_row) as conn:
    pools = {row["database"]: row for row in conn.execute("SHOW POOLS")}
    assert pools["pgbouncer"]["cl_active"] >= 1, pools
    assert isinstance(pools["pgbouncer"]["maxwait"], int)
    for row in conn.execute("SHOW STATS", prepare=True):
        # numeric is a Decimal, which adds to whole numbers.
        assert row["total_query_count"] + 0 >= 0
    for binary in (False, True):
        found = conn.execute(
            "SELECT name, port, pool_mode FROM databases WHERE name = %s AND port > %s", ("pgbouncer", 0), binary=binary
        ).fetchall()
        assert [row["name"] for row in found] == ["pgbouncer"], found
        total = conn.execute("SELECT sum(value) AS total, count(*) AS n FROM totals", binary=binary).fetchone()
        assert total["n"] == 24 and total["total"] > 0, total
    with conn.transaction():
        assert conn.execute("SELECT 1 AS one").fetchone() == {"one": 1}
    with conn.pipeline():
        answers = [conn.execute("SHOW VERSION") for _ in range(5)]
        assert all("pgweir" in answer.fetchone()["version"] for answer in answers)
    try:
        conn.execute("SHOW NONSENSE %s", ("x",))
        raise AssertionError("it was accepted")
    except psycopg.errors.ProtocolViolation as error:
        assert "invalid command" in str(error), error
    assert conn.execute("SELECT count(*) AS n FROM clients").fetchone()["n"] >= 1

# Outside of autocommit it says BEGIN first.
with psycopg.connect("") as conn:
    cursor = conn.execute("SHOW LISTS")
    assert [column.name for column in cursor.description] == ["list", "items"]
    conn.commit()
