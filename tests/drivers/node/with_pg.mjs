// node-postgres: named and unnamed queries, its pool, cursors, streams, COPY, cancel.

import assert from "node:assert/strict";
import { once } from "node:events";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import pg from "pg";
import Cursor from "pg-cursor";
import QueryStream from "pg-query-stream";
import { from as copyFrom, to as copyTo } from "pg-copy-streams";

const SESSIONS = process.env.PGWEIR_MODE !== "transaction";

async function connected(work, options = {}) {
  const client = new pg.Client(options);
  await client.connect();
  try {
    return await work(client);
  } finally {
    await client.end();
  }
}

const fails = (promise, code) => assert.rejects(promise, (error) => assert.equal(error.code, code) ?? true);

async function simpleThings() {
  await connected(async (client) => {
    assert.equal((await client.query("select 1 as one")).rows[0].one, 1);
    const several = await client.query("select 1 as n; select 2 as n");
    assert.deepEqual(several.map((result) => result.rows[0].n), [1, 2]);
    const { rows } = await client.query(
      "select $1::int as i, $2::text as t, $3::timestamptz as w, $4::numeric as d, $5::bytea as b, $6::jsonb as j, $7::int[] as a, $8::bool as o",
      [7, "sieben ä€😀", new Date("2024-02-29T12:00:00Z"), "1.50", Buffer.from([0, 1, 2]), { a: [1, null] }, [1, 2, 3], null],
    );
    const [row] = rows;
    assert.deepEqual([row.i, row.t, row.w.toISOString(), row.d, [...row.b], row.j, row.a, row.o],
      [7, "sieben ä€😀", "2024-02-29T12:00:00.000Z", "1.50", [0, 1, 2], { a: [1, null] }, [1, 2, 3], null]);
    const binary = await client.query({ text: "select $1::int4 as i", values: [42], binary: true });
    assert.equal(binary.rows[0].i, 42);
    assert.equal((await client.query({ text: "select $1::text", values: ["x".repeat(300000)], rowMode: "array" })).rows[0][0].length, 300000);
    assert.equal((await client.query("")).rows.length, 0);
    await client.query("create table if not exists node_items (n int primary key, t text)");
    await client.query("truncate node_items");
  });
}

async function errorsAndTransactions() {
  await connected(async (client) => {
    for (const [wrong, code] of [["select 1/0", "22012"], ["selekt", "42601"], ["select nothing", "42703"]]) {
      await fails(client.query(wrong), code);
      await fails(client.query(wrong, []), code);
      await fails(client.query({ name: `wrong ${code}`, text: wrong }), code);
    }
    await client.query("begin");
    await client.query("insert into node_items values ($1, $2)", [1, "one"]);
    await client.query("savepoint s");
    await fails(client.query("insert into node_items values ($1, $2)", [1, "again"]), "23505");
    await fails(client.query("select 1"), "25P02");
    await client.query("rollback to s");
    await client.query("commit");
    await client.query("begin");
    await client.query({ name: "insert", text: "insert into node_items values ($1, $2)", values: [2, "two"] });
    await client.query("rollback");
    await client.query({ name: "insert", text: "insert into node_items values ($1, $2)", values: [3, "three"] });
    assert.deepEqual((await client.query("select n from node_items order by n")).rows.map((row) => row.n), [1, 3]);
    // Queries that are queued, one of them wrong.
    const queued = await Promise.allSettled(
      [5, 0, 2, 0, 1].map((n) => client.query({ name: "divide", text: "select 10 / $1::int as n", values: [n] })));
    assert.deepEqual(queued.map((one) => one.value?.rows[0].n ?? one.reason.code), [2, "22012", 5, "22012", 10]);
  });
}

// More clients than server connections; the same names and texts, the same names for other texts, again and again.
async function statementsOnManyConnections() {
  await Promise.all(Array.from({ length: 8 }, (_, number) => connected(async (client) => {
    for (let n = 0; n < 60; n++) {
      const same = await client.query({ name: "sum", text: "select $1::int + $2::int as sum", values: [n, number] });
      assert.equal(same.rows[0].sum, n + number);
      const own = await client.query({ name: "own", text: `select $1::text || ' of ${number}' as word`, values: [n] });
      assert.equal(own.rows[0].word, `${n} of ${number}`);
      if (n % 7 === 0) {
        await client.query("begin");
        await client.query({ name: "sum", text: "select $1::int + $2::int as sum", values: [n, number] });
        const inside = await client.query({ name: `own ${n}`, text: `select $1::text || ' in ${number}' as word`, values: [n] });
        assert.equal(inside.rows[0].word, `${n} in ${number}`);
        await client.query("commit");
      }
      if (n % 11 === 0) {
        await fails(client.query({ name: "zero", text: "select 1 / $1::int", values: [0] }), "22012");
      }
    }
  })));
}

async function pools() {
  const pool = new pg.Pool({ max: 12 });
  await Promise.all(Array.from({ length: 300 }, async (_, n) => {
    const { rows } = await pool.query({ name: "in the pool", text: "select $1::int as n", values: [n] });
    assert.equal(rows[0].n, n);
    const client = await pool.connect();
    try {
      await client.query("begin");
      await client.query("select set_config('my.word', $1, true)", [String(n)]);
      assert.equal((await client.query("select current_setting('my.word') as word")).rows[0].word, String(n));
      await client.query("commit");
    } finally {
      client.release();
    }
  }));
  await pool.end();
}

async function cursorsAndStreams() {
  await connected(async (client) => {
    // Portals with a row limit; outside a transaction they last until the Sync, which pg-cursor sends at the end.
    const cursor = client.query(new Cursor("select generate_series(1, $1::int) as n", [1000]));
    let sum = 0;
    for (let rows = await cursor.read(90); rows.length > 0; rows = await cursor.read(90)) {
      sum += rows.length;
    }
    assert.equal(sum, 1000);
    await cursor.close();
    const early = client.query(new Cursor("select generate_series(1, 1000000) as n"));
    assert.equal((await early.read(10)).length, 10);
    await early.close();
    assert.equal((await client.query("select 'after' as word")).rows[0].word, "after");
    let last = 0;
    for await (const row of client.query(new QueryStream("select generate_series(1, $1::int) as n", [5000], { batchSize: 100 }))) {
      assert.equal(row.n, ++last);
    }
    assert.equal(last, 5000);
    const broken = client.query(new Cursor("select 10 / (5 - n) from generate_series(1, 10) n"));
    await fails((async () => { while ((await broken.read(2)).length > 0); })(), "22012");
    for await (const row of client.query(new QueryStream("select generate_series(1, 100000) as n"))) {
      if (row.n === 50) break;
    }
    await client.query("begin");
    const inside = client.query(new Cursor("select generate_series(1, 10) as n"));
    assert.equal((await inside.read(4)).length, 4);
    await inside.close();
    await client.query("commit");
  });
  // Many at once.
  await Promise.all(Array.from({ length: 8 }, () => connected(async (client) => {
    let count = 0;
    for await (const _ of client.query(new QueryStream("select generate_series(1, $1::int) as n", [3000]))) count++;
    assert.equal(count, 3000);
  })));
}

async function copying() {
  await connected(async (client) => {
    await client.query("create table if not exists node_wide (n int, t text)");
    await client.query("truncate node_wide");
    const lines = function* () { for (let n = 0; n < 20000; n++) yield `${n}\tline ${"x".repeat(n % 200)}\n`; };
    await pipeline(Readable.from(lines()), client.query(copyFrom("copy node_wide from stdin")));
    let size = 0;
    for await (const chunk of client.query(copyTo("copy (select n from node_wide order by n) to stdout"))) size += chunk.length;
    assert.equal(size, Array.from({ length: 20000 }, (_, n) => `${n}\n`.length).reduce((a, b) => a + b));
    await fails(pipeline(Readable.from(["1\tx\n", "not a number\tx\n"]), client.query(copyFrom("copy node_wide from stdin"))), "22P02");
    const given = client.query(copyFrom("copy node_wide from stdin"));
    given.write("1\tx\n");
    const closed = once(given, "close").catch(() => {});
    given.destroy(new Error("changed my mind"));
    await closed;
    assert.equal((await client.query("select count(*)::int as n from node_wide")).rows[0].n, 20000);
  });
}

async function cancelling() {
  await connected(async (client) => {
    const query = new pg.Query("select pg_sleep(20)");
    const failed = once(query, "error");
    client.query(query);
    setTimeout(() => new pg.Client().cancel(client, query), 1000);
    const [error] = await failed;
    assert.equal(error.code, "57014");
    assert.equal((await client.query("select 'alive' as word")).rows[0].word, "alive");
  });
}

async function settingsFollowTheirClient() {
  const zones = ["Europe/Berlin", "Asia/Tokyo", "America/Lima", "UTC", "Africa/Cairo", "Asia/Kolkata", "Pacific/Apia", "Iran"];
  await Promise.all(zones.map((zone, number) => connected(async (client) => {
    const show = async (name) => (await client.query(`show ${name}`)).rows[0][name === "timezone" ? "TimeZone" : name];
    for (let n = 0; n < 25; n++) {
      assert.equal(await show("timezone"), zone);
      assert.equal(await show("application_name"), `client ${number}`);
      assert.equal(await show("statement_timeout"), `${9001 + number}ms`);
      assert.equal(await show("client_encoding"), "UTF8");
    }
    await client.query("set datestyle to 'ISO, YMD'");
    for (let n = 0; n < 10; n++) assert.equal((await client.query("show datestyle")).rows[0].DateStyle, "ISO, YMD");
  }, {
    application_name: `client ${number}`,
    statement_timeout: 9001 + number,
    options: `-c timezone=${zone}`,
    client_encoding: "UTF8",
  })));
}

// What lives in the server's session: in transaction mode such a client keeps its server connection.
async function sessionThings() {
  await connected(async (client) => {
    await client.query("listen news");
    const heard = once(client, "notification");
    await connected(async (other) => {
      await other.query("select pg_notify('news', 'hello')");
      const [note] = await heard;
      assert.equal(note.payload, "hello");
      if (SESSIONS) assert.equal(note.processId, other.processID);
    });
    await client.query("create temp table mine as select 1 as n");
    assert.equal((await client.query("select n from mine")).rows[0].n, 1);
  });
}

await simpleThings();
await errorsAndTransactions();
await statementsOnManyConnections();
await pools();
await cursorsAndStreams();
await copying();
await cancelling();
await settingsFollowTheirClient();
await sessionThings();
