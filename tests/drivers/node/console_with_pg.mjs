// node-postgres on the console: texts and numbers, parameters, a named statement, an error.

import assert from "node:assert/strict";
import pg from "pg";

const client = new pg.Client();
await client.connect();
const pools = (await client.query("SHOW POOLS")).rows;
const own = pools.find((row) => row.database === "pgbouncer");
assert.equal(typeof own.cl_active, "number");
assert.ok(own.cl_active >= 1);
const found = await client.query("SELECT database FROM pools WHERE cl_active >= $1 AND user = $2", [1, "pgbouncer"]);
assert.deepEqual(found.rows, [{ database: "pgbouncer" }]);
for (let round = 0; round < 3; round++) {
  const lists = await client.query({ name: "lists", text: "SHOW LISTS" });
  assert.equal(lists.rows.length, 14);
}
await assert.rejects(client.query("SHOW NONSENSE"), { code: "08P01", message: /invalid command/ });
assert.equal((await client.query("SELECT 1 AS one")).rows[0].one, 1);
await client.end();
