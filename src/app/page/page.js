// The status page: asks for status.json every two seconds and shows it. Read-only.
//
// What stands in the numbers may come from clients (names, above all). It is set as text, never as HTML: `node` is the only
// place that makes elements.
"use strict";

const PERIOD = 2000;      // between two questions
const PATIENCE = 6000;    // for one answer
const HOLD = 10000;       // a problem that has ended stays on the page, greyed, so that one that flickers moves nothing
const WAIT_WARN = 1000;   // a wait that deserves a word, in ms
const WAIT_BAD = 5000;    // and one that deserves a colour
const SLOTS = 6;          // services with a colour of their own in the chart

const told = { now: Date.now() };   // pgweir's time, as it was last told

// --- Small things -----------------------------------------------------------------------------------------------------

const $ = id => document.getElementById(id);

function node(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children.filter(child => child !== null && child !== undefined));
  return made;
}

function svg(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

/// Sets what has changed only: a selection survives, and nothing is drawn anew for nothing.
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function dress(element, className) {
  if (element.className !== className) element.className = className;
}

/// Names are isolated: one that is written from right to left must not turn the numbers beside it around.
const name = text => node("bdi", "", text);

const count = n => n.toLocaleString("en");
const many = (n, one, more) => `${count(n)} ${n === 1 ? one : more}`;
const sum = list => list.reduce((a, b) => a + b, 0);
const share = (part, whole) => whole > 0 ? Math.min(1, part / whole) : 0;

function duration(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 10000) return `${(Math.floor(ms / 100) / 10).toFixed(1)} s`;
  const s = Math.floor(ms / 1000);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor(s / 60) % 60} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor(s / 3600) % 24} h`;
}

function rate(n) {
  return n < 10 && n > 0 ? n.toFixed(1) : count(Math.round(n));
}

/// A sentence begins with a capital letter; a host's name stays as it is.
const sentence = text => /^[a-z]+ /.test(text) ? text.charAt(0).toUpperCase() + text.slice(1) : text;

const two = n => String(n).padStart(2, "0");

/// The time of day where the reader is; with the day if it is not today.
function clock(ms, seconds = true) {
  const at = new Date(ms);
  const time = `${two(at.getHours())}:${two(at.getMinutes())}${seconds ? `:${two(at.getSeconds())}` : ""}`;
  const today = at.toDateString() === new Date(told.now).toDateString();
  return today ? time : `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${time}`;
}

function moment(ms, text) {
  const made = node("time", "", text ?? clock(ms));
  made.dateTime = new Date(ms).toISOString();
  made.title = made.dateTime;
  return made;
}

// --- What is wrong ----------------------------------------------------------------------------------------------------

const taken = host => host.leased + host.idle + host.dialing + host.closing;
const isSpent = host => host.budget !== null && taken(host) >= host.budget;

/// What each alert is called, and how bad it is.
const ALERTS = {
  service_servers: ["warn", subject => `Service ${subject} has more server connections than its alert`],
  service_clients: ["warn", subject => `Service ${subject} has more clients than its alert`],
  total_servers: ["warn", () => "There are more server connections than the alert"],
  headroom: ["bad", subject => `Postgres at ${subject} has few connections left`],
  waiters: ["bad", subject => `The budget of ${subject} is spent, clients wait`],
  login_failures: ["warn", () => "Many logins fail"],
  unreachable: ["bad", subject => `Postgres at ${subject} cannot be reached`],
  too_many_connections: ["bad", subject => `Postgres at ${subject} refuses connections (53300)`],
};
const alertLevel = kind => ALERTS[kind]?.[0] ?? "warn";
const alertTitle = (kind, subject) => ALERTS[kind]?.[1](subject) ?? kind;

/// Everything that an operator should hear of, the worst first: { key, level, title, text }.
function problems(data) {
  const found = [];
  const add = (key, level, title, text) => found.push({ key, level, title, text });
  const longest = row => `the longest ${duration(row.longest_wait_ms)}`;

  // What is said below in other words, with newer numbers, is not said twice.
  const isSaid = raised => raised.kind === "unreachable" && data.hosts.some(host => host.name === raised.subject && host.fault)
    || raised.kind === "waiters" && data.services.rows.some(row => row.longest_wait_ms >= WAIT_WARN);
  for (const raised of data.alerts.rows.filter(raised => !isSaid(raised))) {
    const title = alertTitle(raised.kind, raised.subject);
    add(`alert ${raised.kind} ${raised.subject}`, alertLevel(raised.kind), title, `${title}.`);
  }
  for (const host of data.hosts) {
    if (host.fault) {
      add(`fault ${host.name}`, "bad", "Postgres does not let pgweir in", `${host.name}: ${host.fault}`);
    } else if (host.budget !== null && host.leased >= 0.9 * host.budget) {
      add(`near ${host.name}`, "warn", "The budget is nearly spent",
        `${host.name}: ${count(host.leased)} of ${count(host.budget)} server connections are in use.`);
    }
  }
  for (const row of data.services.rows) {
    if (row.longest_wait_ms < WAIT_WARN) continue;
    const level = row.longest_wait_ms >= WAIT_BAD ? "bad" : "warn";
    const who = `${many(row.waiters, "client waits", "clients wait")}, ${longest(row)}`;
    if (row.cap > 0 && row.servers >= row.cap) {
      add(`cap ${row.name}`, level, `Service ${row.name} is at its cap, its clients wait`,
        `${row.name} has all of its ${many(row.cap, "server connection", "server connections")}: ${who}. No other service is held up by that.`);
    } else if (data.hosts.some(isSpent)) {
      add(`wait ${row.name}`, level, "The budget is spent, clients wait", `${row.name}: ${who}; the budget is spent.`);
    } else {
      add(`wait ${row.name}`, level, "Clients wait", `${row.name}: ${who}.`);
    }
  }
  const lately = column => sum(data.history[column].slice(-2));
  const [refused, closed] = [lately("refusals"), lately("closings")];
  const last = list => list.length > 0 ? `, the last for ${list[0].reason}` : "";
  if (refused > 0) {
    add("refusals", "warn", "Clients are refused",
      `${many(refused, "client was", "clients were")} refused in the last two minutes${last(data.refusals)}.`);
  }
  if (closed > 0) {
    add("closings", "warn", "Sessions are cut off",
      `${many(closed, "session was", "sessions were")} ended from this side in the last two minutes${last(data.closings)}.`);
  }
  if (data.state === "draining") {
    add("draining", "warn", "pgweir is shutting down",
      `No new client is let in; ${many(data.clients.sessions, "session has", "sessions have")} yet to leave.`);
  }
  return found.sort((a, b) => (b.level === "bad") - (a.level === "bad"));
}

const held = new Map();   // problems by key, with when they were last seen
let announced = "";

function showVerdict(data) {
  const now = Date.now();
  const current = problems(data);
  for (const problem of current) held.set(problem.key, { ...problem, seen: now });
  for (const [key, problem] of held) if (now - problem.seen > HOLD) held.delete(key);
  const over = [...held.values()].filter(problem => problem.seen !== now);

  const level = current.length === 0 ? "good" : current[0].level;
  const title = current.length === 0 ? "All quiet" : current[0].title;
  dress($("verdict"), level);
  say($("verdict-title"), title);
  const servers = sum(data.hosts.map(taken));
  say($("verdict-more"), data.clients.sessions === 0
    ? "No client is connected."
    : `${many(data.clients.sessions, "client shares", "clients share")} ${many(servers, "server connection", "server connections")}; nobody waits for long.`);

  const line = (problem, word, className) =>
    node("li", className, node("span", "level", word), node("span", "", problem.text));
  const words = { bad: "urgent", warn: "look" };
  const lines = current.map(problem => line(problem, words[problem.level], problem.level));
  $("problems").replaceChildren(...lines, ...over.map(problem => line(problem, "over", "over")));

  // Read out when the kinds of trouble change, not with each number.
  const summary = current.map(problem => problem.title).join(". ");
  if (summary !== announced) {
    announced = summary;
    $("announce").textContent = summary || title;
  }
  const colour = { good: "%231b7a4b", warn: "%23d98a00", bad: "%23d0342c" }[level];
  const icon = `data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'><circle cx='8' cy='8' r='7' fill='${colour}'/></svg>`;
  if ($("icon").href !== icon) $("icon").href = icon;
  document.title = level === "good" ? "pgweir" : `${title} · pgweir`;
}

// --- Totals and budgets -----------------------------------------------------------------------------------------------

const totals = new Map();

function showTotal(label, value, rest, level) {
  if (!totals.has(label)) {
    const parts = { box: node("div"), value: node("span", "value"), rest: node("dd", "rest") };
    parts.box.append(node("dt", "", label), node("dd", "", parts.value), parts.rest);
    $("totals").append(parts.box);
    totals.set(label, parts);
  }
  const parts = totals.get(label);
  dress(parts.box, level);
  say(parts.value, value);
  say(parts.rest, rest);
}

function showTotals(data) {
  const { clients, hosts, history } = data;
  const servers = sum(hosts.map(taken));
  const known = hosts.length > 0 && hosts.every(host => host.budget !== null);
  const budget = sum(hosts.map(host => host.budget ?? 0));
  showTotal("Server connections", count(servers),
    `${known ? `of ${count(budget)}, ` : ""}${count(sum(hosts.map(host => host.leased)))} in use`, "");
  showTotal("Clients", count(clients.sockets), clients.limit > 0 ? `of ${count(clients.limit)}` : "no limit",
    clients.limit > 0 && clients.sockets >= clients.limit ? "bad" : "");
  const wait = Math.max(0, ...data.services.rows.map(row => row.longest_wait_ms));
  showTotal("Waiting", count(clients.waiting), clients.waiting > 0 ? `longest ${duration(wait)}` : "nobody",
    wait >= WAIT_BAD ? "bad" : wait >= WAIT_WARN ? "warn" : "");
  showTotal("Transactions per second", rate(data.transactions_per_second), `${rate(data.queries_per_second)} queries`, "");
  const p99 = history.p99_ms.at(-1);
  showTotal("Wait, p99", p99 === null ? "–" : `${duration(p99)}`, "this minute",
    p99 >= WAIT_BAD ? "bad" : p99 >= WAIT_WARN ? "warn" : "");
}

/// The parts of a Postgres' bar: how many, word, class of the colour, and whether it is left out while there is none.
const PARTS = [
  [host => host.leased, "in use", "used", false],
  [host => host.idle, "idle", "idle", false],
  [host => host.dialing, "dialling", "passing", true],
  [host => host.closing, "closing", "passing", true],
  [host => host.measured?.monitor, "for the monitor", "monitor", true],
  [host => host.measured?.siblings, "of other pgweirs", "siblings", true],
  [host => host.measured?.foreign, "not through pgweir", "foreign", false],
  [host => host.measured?.reserved, "kept by Postgres", "reserved", true],
];

const hostBoxes = new Map();

function showHosts(hosts) {
  if (hosts.length === 0) return;
  for (const host of hosts) {
    if (!hostBoxes.has(host.name)) hostBoxes.set(host.name, hostBox(host));
    fillHost(hostBoxes.get(host.name), host);
  }
  for (const [key, box] of hostBoxes) if (!hosts.some(host => host.name === key)) hostBoxes.delete(key), box.root.remove();
  const roots = hosts.map(host => hostBoxes.get(host.name).root);
  if ($("hosts").childElementCount !== roots.length || roots.some((root, at) => $("hosts").children[at] !== root)) {
    $("hosts").replaceChildren(...roots);
  }
}

function fillHost(box, host) {
  const { measured } = host;
  const counts = PARTS.map(([of]) => of(host));
  const all = sum(counts.map(n => n ?? 0));
  const whole = Math.max(all, measured?.max_connections ?? host.budget ?? 0);
  const budget = host.budget === null ? ", budget not known yet" : ` of ${count(host.budget)}`;
  say(box.sums, `${count(taken(host))}${budget}${measured === null ? "" : ` · Postgres takes ${count(measured.max_connections)}`}`);
  PARTS.forEach(([, , , isRare], at) => {
    const n = counts[at];
    const part = box.parts[at];
    part.segment.style.width = `${100 * share(n ?? 0, whole)}%`;
    say(part.number, count(n ?? 0));
    part.key.hidden = n === undefined || (n === 0 && isRare);
  });
  // Where the budget ends: what is ours is on the left of it.
  const isShort = host.budget !== null && host.budget < whole;
  box.mark.hidden = box.markKey.hidden = !isShort;
  box.mark.style.left = `${100 * share(host.budget ?? 0, whole)}%`;
  const free = measured?.free ?? (host.budget === null ? null : Math.max(0, host.budget - taken(host)));
  say(box.free, free === null ? "?" : count(free));
  box.who.hidden = !(measured?.foreign > 0);
  const who = (measured?.who.rows ?? []).map(row =>
    `${count(row.connections)} × ${row.application_name || "(no name)"}${row.user ? ` as ${row.user}` : ""}${row.address ? ` from ${row.address}` : ""}`);
  const more = measured?.who.left_off > 0 ? `, and ${count(measured.who.left_off)} others` : "";
  say(box.names, `${who.join(", ")}${more}`);
  box.full.hidden = !host.is_full;
  box.fault.hidden = !host.fault;
  say(box.fault, host.fault ?? "");
}

function hostBox(host) {
  const box = {
    sums: node("span"), free: node("b"), mark: node("i", "mark"), names: name(""),
    fault: node("p", "fault"), full: node("p", "fault", "Postgres refuses more connections at the moment (53300)."),
  };
  const bar = node("div", "bar");
  bar.ariaHidden = "true";   // the line below says the same
  const keys = node("p", "keys");
  box.parts = PARTS.map(([, word, className]) => {
    const part = { segment: node("i", className), number: node("b") };
    part.key = node("span", "", node("i", className), part.number, ` ${word}`);
    bar.append(part.segment);
    keys.append(part.key);
    return part;
  });
  box.markKey = node("span", "", node("i", "mark"), "end of the budget");
  keys.append(node("span", "", node("i", "free"), box.free, " free"), box.markKey);
  box.who = node("p", "who", "Not through pgweir: ", box.names);
  box.root = node("div", "host", node("p", "name", node("span", "", name(host.name)), box.sums),
    node("div", "scale", bar, box.mark), keys, box.who, box.full, box.fault);
  return box;
}

// --- Tables -----------------------------------------------------------------------------------------------------------

// What a cell can show: its text, its class, and by what it is sorted.
const text = key => ({ text: row => row[key], by: row => row[key], className: "text" });
const number = key => ({ text: row => count(row[key]), by: row => row[key], zero: row => row[key] === 0, className: "number" });
const wait = key => ({
  text: row => row[key] > 0 ? duration(row[key]) : "–", by: row => row[key], className: "number",
  level: row => row[key] >= WAIT_BAD ? "bad" : row[key] >= WAIT_WARN ? "warn" : row[key] === 0 ? "zero nothing" : "",
});
/// How long ago it was.
const passed = key => ({ text: row => duration(Math.max(0, told.now - row[key])), by: row => -row[key], className: "number" });
/// So many of at most so many, with a bar; `full` is what to make of a full one.
const gauge = (key, cap, full) => ({
  text: row => row[cap] > 0 ? `${count(row[key])} of ${count(row[cap])}` : count(row[key]),
  by: row => row[key], className: "number",
  share: row => row[cap] > 0 ? share(row[key], row[cap]) : null,
  level: row => row[cap] > 0 ? "gauged" : "",
  full: row => row[cap] > 0 && row[key] >= row[cap] ? full(row) : "",
});
const fullIsBad = row => row.waiters > 0 && row.longest_wait_ms >= WAIT_WARN ? "bad" : "warn";

const TABLES = [
  {
    id: "services", key: row => row.name, empty: "No client has come yet.", sort: ["waiting", false],
    columns: [
      { id: "name", label: "Service", ...text("name") },
      { id: "servers", label: "Server connections", ...gauge("servers", "cap", fullIsBad) },
      { id: "used", label: "In use", ...number("leased") },
      { id: "clients", label: "Clients", ...gauge("clients", "client_cap", () => "bad") },
      { id: "waiting", label: "Waiting", ...number("waiters") },
      { id: "wait", label: "Longest wait", ...wait("longest_wait_ms") },
    ],
  },
  {
    id: "deployments", key: row => `${row.service} ${row.deployment}`, empty: "No session names one.", sort: ["service", true],
    then: (a, b) => b.first_seen - a.first_seen,
    columns: [
      { id: "service", label: "Service", ...text("service") },
      { id: "deployment", label: "Deployment", ...text("deployment"), className: "text short" },
      {
        id: "state", label: "State", className: "text short", by: row => ["current", "new", "superseded"].indexOf(row.state),
        text: row => row.superseded_by === null ? row.state : `superseded by ${row.superseded_by}`,
        level: row => row.state === "superseded" ? "warn" : "",
      },
      { id: "since", label: "For", ...passed("since") },
      { id: "sessions", label: "Sessions", ...number("sessions") },
      { id: "transactions", label: "Idle in transaction", ...number("idle_in_transaction") },
      { id: "servers", label: "Server connections", ...number("servers") },
      { id: "age", label: "Age", ...passed("first_seen") },
    ],
  },
  {
    id: "pools", key: row => `${row.database} ${row.user}`, empty: "No pool was needed yet.", sort: ["waiting", false],
    columns: [
      { id: "database", label: "Database", ...text("database") },
      { id: "user", label: "User", ...text("user"), className: "text short" },
      { id: "servers", label: "Server connections", ...gauge("servers", "size", fullIsBad) },
      { id: "used", label: "In use", ...number("leased") },
      { id: "waiting", label: "Waiting", ...number("waiters") },
      { id: "wait", label: "Longest wait", ...wait("longest_wait_ms") },
      { id: "rate", label: "Trans./s", text: row => rate(row.transactions_per_second), by: row => row.transactions_per_second, zero: row => row.transactions_per_second === 0, className: "number" },
    ],
  },
  {
    id: "waiters", key: row => String(row.id), empty: "Nobody waits.", sort: ["wait", false],
    columns: [
      { id: "service", label: "Service", ...text("service") },
      { id: "who", label: "Who", text: row => `${row.user}@${row.database}, ${row.peer}`, by: row => row.user, className: "text" },
      { id: "wait", label: "Waits", ...wait("wait_ms") },
    ],
  },
];

/// A table that keeps its rows: what is focused or selected in one stays so when the numbers move on.
class Table {
  constructor(spec) {
    Object.assign(this, { spec, rows: new Map(), order: spec.sort, data: [] });
    this.more = node("span", "more");
    this.body = node("tbody");
    this.none = node("p", "none", spec.empty);
    const head = node("tr");
    // Said in full, because a row that is laid out as a card (on a phone) is no row to some browsers otherwise.
    head.role = "row";
    for (const column of spec.columns) {
      const button = node("button", "", column.label);
      button.type = "button";
      button.addEventListener("click", () => this.sortBy(column));
      column.head = node("th", column.className.split(" ")[0], button);
      column.head.scope = "col";
      column.head.role = "columnheader";
      head.append(column.head);
    }
    const section = $(spec.id);
    const title = section.querySelector("h2");
    title.append(" ", this.more);
    this.table = node("table", "", node("thead", "", head), this.body);
    this.table.setAttribute("role", "table");
    this.table.setAttribute("aria-labelledby", title.id);
    section.append(node("div", "rows", this.table, this.none));
  }

  sortBy(column) {
    const [id, up] = this.order;
    const first = column.className.startsWith("text");   // names from A, numbers from the largest
    this.order = [column.id, id === column.id ? !up : first];
    this.show(this.data);
  }

  show(data) {
    this.data = data;
    const [id, up] = this.order;
    for (const column of this.spec.columns) {
      if (column.id === id) column.head.ariaSort = up ? "ascending" : "descending";
      else column.head.removeAttribute("aria-sort");
    }
    const { by } = this.spec.columns.find(column => column.id === id);
    const compare = (a, b) => typeof a === "number" ? a - b : a < b ? -1 : a > b ? 1 : 0;
    const sorted = [...data.rows].sort((a, b) => (up ? 1 : -1) * compare(by(a), by(b))
      || (this.spec.then?.(a, b) ?? (b.servers ?? 0) - (a.servers ?? 0)) || compare(this.spec.key(a), this.spec.key(b)));

    const seen = new Set();
    sorted.forEach((row, at) => {
      let key = this.spec.key(row);
      // Clients that are logging in have no number yet, and long names that were cut may look alike.
      while (seen.has(key)) key += "+";
      seen.add(key);
      if (!this.rows.has(key)) this.rows.set(key, this.newRow());
      const shown = this.rows.get(key);
      this.fill(shown, row);
      if (this.body.children[at] !== shown.root) this.body.insertBefore(shown.root, this.body.children[at] ?? null);
    });
    for (const [key, shown] of this.rows) if (!seen.has(key)) this.rows.delete(key), shown.root.remove();
    const empty = sorted.length === 0;
    this.none.hidden = !empty;
    this.table.hidden = empty;
    say(this.more, data.left_off > 0 ? `${count(sorted.length)} of ${count(sorted.length + data.left_off)}, the neediest` : "");
  }

  newRow() {
    const root = node("tr");
    root.role = "row";
    const cells = this.spec.columns.map(column => {
      const value = name("");
      const cell = { root: node("td", "", node("span", "label", column.label), value), value };
      cell.root.role = "cell";
      if (column.share) {
        cell.fill = node("i");
        cell.gauge = node("span", "gauge", cell.fill);
        value.before(cell.gauge);
      }
      root.append(cell.root);
      return cell;
    });
    return { root, cells };
  }

  fill(shown, row) {
    this.spec.columns.forEach((column, at) => {
      const cell = shown.cells[at];
      say(cell.value, column.text(row));
      const level = column.level?.(row) || (column.zero?.(row) ? "zero" : "");
      dress(cell.root, `${column.className} ${level}`.trim());
      if (cell.gauge) {
        const part = column.share(row);   // null: there is no cap
        cell.gauge.hidden = part === null;
        cell.fill.style.width = `${100 * (part ?? 0)}%`;
        dress(cell.gauge, `gauge ${column.full(row)}`.trim());
      }
    });
  }
}

// --- Events -----------------------------------------------------------------------------------------------------------

const shownEvents = new Map();

/// Fills a list of events, if it has changed.
function showEvents(id, events, one, none) {
  const same = JSON.stringify(events);
  if (shownEvents.get(id) === same) return;
  shownEvents.set(id, same);
  $(`${id}-list`).replaceChildren(...events.map(one));
  if (events.length === 0) $(`${id}-list`).append(node("li", "none", none));
}

/// Why a server connection was closed, in words.
const CLOSED = {
  server_idle: "Nobody needed it for timeouts.server_idle.",
  server_lifetime: "It was older than timeouts.server_lifetime.",
  made_room: "Somebody else needed the room.",
  over_budget: "The budget was lowered.",
  over_limit: "A cap was lowered.",
  reconnect: "The configuration leads elsewhere, or RECONNECT.",
  paused: "PAUSE, KILL or a shutdown.",
  died: "Postgres closed it.",
  abandoned: "Its client left it in a state from which there is no way back.",
  probe: "It was made to try a password.",
  replication: "Its client, for whose replication it was made, has left.",
  reset_failed: "server_reset_query failed.",
  check_failed: "server_check_query failed.",
  move_failed: "It could not be moved to another thread.",
};

function happened(event) {
  const service = event.service ? `${event.service}${event.deployment ? `@${event.deployment}` : ""}` : "";
  const place = [event.user && event.database ? `${event.user}@${event.database}` : "", service];
  const who = [...new Set(place.filter(part => part !== ""))].join(", ");
  const from = event.peer ? `from ${event.peer}` : event.postgres ? `at ${event.postgres}` : "";
  const why = event.text ?? CLOSED[event.reason] ?? "";
  return node("li", "",
    node("p", "first",
      node("span", "what", event.reason, event.count > 1 ? node("span", "count", ` × ${count(event.count)}`) : null),
      moment(event.at)),
    node("p", "", name(who), who && from ? " " : "", name(from)),
    why ? node("p", "", name(why)) : null);
}

function alert(event) {
  const [shell, statements] = event.command.split(", then ");
  const { holder } = event;
  // Most texts name it already.
  const held = holder === null || event.text.includes(String(holder.count)) ? "" : `Most is held by ${holder.service}${holder.deployment ? `, deployment ${holder.deployment}` : ""}: ${count(holder.count)}.`;
  return node("li", alertLevel(event.kind),
    node("p", "first", node("span", "what", name(alertTitle(event.kind, event.subject))), node("span", "", "since ", moment(event.since))),
    node("p", "", name(sentence(event.text))),
    held ? node("p", "", name(held)) : null,
    event.command ? node("p", "", "Type ", node("code", "", shell), statements ? " and there " : null, statements ? node("code", "", statements) : null) : null);
}

// --- Incidents --------------------------------------------------------------------------------------------------------

// The list keeps its buttons, so that the focus stays where it is. A story is asked for when it is opened, and again when there
// is more to tell. #incident-7 in the address opens it: what is in the address can be sent to somebody.
const incidents = { shown: new Map(), open: null, loaded: "" };

function lasted(row) {
  return row.closed === null ? `goes on, for ${duration(Math.max(0, told.now - row.opened))} now` : `lasted ${duration(Math.max(0, row.closed - row.opened))}`;
}

function showIncidents(data) {
  const list = $("incidents-list");
  for (const row of data.rows) {
    if (!incidents.shown.has(row.number)) incidents.shown.set(row.number, incidentItem(row));
    const item = incidents.shown.get(row.number);
    dress(item.root, row.closed === null ? "bad" : "");
    say(item.text, sentence(row.text));
    say(item.lasted, lasted(row));
  }
  for (const [key, item] of incidents.shown) if (!data.rows.some(row => row.number === key)) incidents.shown.delete(key), item.root.remove();
  data.rows.forEach((row, at) => {
    const { root } = incidents.shown.get(row.number);
    if (list.children[at] !== root) list.insertBefore(root, list.children[at] ?? null);
  });
  $("incidents-none").hidden = data.rows.length > 0;
  say($("incidents-more"), data.left_off > 0 ? `the last ${count(data.rows.length)} of ${count(data.rows.length + data.left_off)}` : "");

  const open = data.rows.find(row => row.number === incidents.open);
  if (open && JSON.stringify(open) !== incidents.loaded) loadIncident(open.number, JSON.stringify(open));
}

function incidentItem(row) {
  const item = { text: name(""), lasted: node("span"), button: node("button", "", `Incident ${row.number}`) };
  item.button.type = "button";
  item.button.addEventListener("click", () => { location.hash = `incident-${row.number}`; });
  item.root = node("li", "",
    node("p", "first", node("span", "what", item.button), moment(row.opened)),
    node("p", "", item.text),
    node("p", "", item.lasted));
  return item;
}

/// Opens or closes the story as the address says.
function follow() {
  const dialog = $("incident");
  const number = /^#incident-(\d{1,15})$/.exec(location.hash)?.[1];
  if (number === undefined) return dialog.close();
  incidents.open = Number(number);
  incidents.loaded = "";
  say($("incident-title"), `Incident ${incidents.open}`);
  $("story").replaceChildren(node("p", "none", "Looking …"));
  if (!dialog.open) dialog.showModal();
  loadIncident(incidents.open, "");
}

async function loadIncident(number, as) {
  incidents.loaded = as || incidents.loaded;
  try {
    const abort = AbortSignal.timeout(PATIENCE);
    const answer = await fetch(new URL(`incidents/${number}`, NUMBERS), { signal: abort, cache: "no-store", credentials: "same-origin" });
    if (!answer.ok) throw new Error(answer.status === 404 ? "It is not kept any more, or never was." : `It answers ${answer.status}.`);
    const story = await answer.json();
    if (incidents.open === number) tellStory(story);
  } catch (error) {
    if (incidents.open === number) $("story").replaceChildren(node("p", "fault", error.name === "Error" ? error.message : "pgweir does not answer."));
  }
}

function tellStory(story) {
  const box = $("story"), at = box.scrollTop;
  const { worst, timeline } = story;
  say($("incident-title"), `Incident ${story.number}: ${sentence(story.text)}`);
  const lines = part => part.map(line => node("li", "", moment(line.at), node("span", "", name(sentence(line.text)))));
  const gap = timeline.left_off > 0 ? node("li", "more", node("span"), node("span", "", `${count(timeline.left_off)} lines are left out here.`)) : null;
  const timelineList = node("ol", "timeline");
  timelineList.append(...lines(timeline.first), ...(gap ? [gap] : []), ...lines(timeline.last));
  const service = { label: "Service", ...text("service") }, deployment = { label: "Deployment", ...text("deployment"), className: "text short" };
  const state = { label: "State", ...text("state"), className: "text short" }, statement = { label: "Last statement", ...text("statement"), className: "text code" };
  const seconds = key => ({ text: row => row[key] === null ? "–" : duration(1000 * row[key]), className: "number" });
  box.replaceChildren(
    node("p", "", "Began ", moment(story.opened), `, ${lasted(story)}. `, sentence(story.about.join("; ")), "."),
    ...worst ? [node("p", "", "At its worst, ", moment(worst.at), ": ", name(worst.text), ".")] : [],
    heading("What happened"), timelineList,
    ...grid("Whom it hurt", story.hurt, "No service was seen waiting, and none was refused.", [
      service, { label: "Refused", ...number("refused") }, { label: "Waiting, most at once", ...number("waiting") },
      { label: "Longest wait seen", ...wait("longest_wait_ms") },
    ]),
    ...worst ? [
      ...grid("Who held server connections at its worst", worst.holders, "Nobody.", [
        service, deployment, { label: "From", ...text("address") }, state, { label: "Server connections", ...number("count") },
        { label: "Oldest", ...seconds("oldest") }, statement,
      ]),
      ...grid("Clients", worst.clients, "Nobody.", [service, deployment, { label: "Clients", ...number("count") }]),
      ...grid("Oldest transactions", worst.transactions, "None.", [
        service, deployment, { label: "User", ...text("user"), className: "text short" }, { label: "Process", text: row => String(row.pid), className: "number" }, state,
        { label: "Age", ...seconds("seconds") }, statement,
      ]),
      ...grid("Not through pgweir", worst.foreign, "Nobody.", [
        { label: "Name", ...text("application_name") }, { label: "User", ...text("user"), className: "text short" }, { label: "From", ...text("address"), className: "text short" }, state,
        { label: "Connections", ...number("count") }, { label: "Oldest", ...seconds("oldest") },
      ]),
    ] : [],
    node("p", "hint", "For a post-mortem: ", node("code", "", `pgweir incident export ${story.number}`), ", or ", node("code", "", `SHOW INCIDENT ${story.number}`), " on the console."));
  box.scrollTop = at;
}

const heading = words => node("h3", "", words);

/// A table that stays as it is: its title, then it, or words where it is empty.
function grid(title, data, none, columns) {
  if (data.rows.length === 0) return [heading(title), node("p", "none", none)];
  const cell = (tag, column, ...inside) => node(tag, column.className, ...inside);
  const head = node("tr", "", ...columns.map(column => cell("th", column, column.label)));
  const rows = data.rows.map(row => node("tr", "", ...columns.map(column =>
    cell("td", column, node("span", "label", column.label), name(column.text(row))))));
  const more = data.left_off > 0 ? [node("p", "none", `And ${count(data.left_off)} more.`)] : [];
  const table = node("table", "grid", node("thead", "", head), node("tbody", "", ...rows));
  table.ariaLabel = title;
  return [heading(title), table, ...more];
}

function startIncidents() {
  const dialog = $("incident");
  $("incident-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => {
    const item = incidents.shown.get(incidents.open);
    incidents.open = null;
    if (location.hash) history.replaceState(null, "", location.pathname + location.search);
    item?.button.focus();
  });
  addEventListener("hashchange", follow);
  if (location.hash) follow();
}

// --- The chart --------------------------------------------------------------------------------------------------------

// Three tracks over one axis of minutes, as bars: a minute without data is a gap, and a short peak is not smoothed away.
const chart = { history: null, at: null, slots: new Map() };
const LEFT = 54, RIGHT = 4;

/// A round number at or above `n`.
function ceiling(n) {
  const unit = 10 ** Math.floor(Math.log10(Math.max(1, n)));
  return [1, 2, 3, 4, 5, 6, 8, 10].map(factor => factor * unit).find(round => round >= n);
}

/// The services of the chart with the class of their colour, the largest over the hour first. A service keeps its colour as
/// long as it is among them.
function coloured(history) {
  const largest = history.services
    .map(service => ({ ...service, total: sum(service.counts.map(n => n ?? 0)) }))
    .sort((a, b) => b.total - a.total || (a.name < b.name ? -1 : 1));
  const own = largest.slice(0, SLOTS);
  for (const key of chart.slots.keys()) if (!own.some(service => service.name === key)) chart.slots.delete(key);
  for (const service of own) {
    if (chart.slots.has(service.name)) continue;
    const used = new Set(chart.slots.values());
    chart.slots.set(service.name, [...Array(SLOTS).keys()].find(slot => !used.has(slot)));
  }
  const series = own.map(service => ({ ...service, className: `s${chart.slots.get(service.name)}` }));
  const rest = largest.slice(SLOTS);
  const others = history.others.map((n, at) => n === null ? null : n + sum(rest.map(service => service.counts[at] ?? 0)));
  if (others.some(n => n > 0)) series.push({ name: "others", counts: others, className: "others" });
  return series;
}

function drawChart() {
  const { history } = chart;
  const box = $("chart");
  const width = box.clientWidth, height = box.clientHeight;
  if (!history || width === 0) return;
  const minutes = history.waiters.length;
  const step = (width - LEFT - RIGHT) / minutes;
  const x = at => LEFT + at * step;
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });

  const tracks = [0.56, 0.2, 0.24].map(part => part * (height - 18 - 3 * 18));
  let top = 18;
  const track = (title, tall) => {
    root.append(svg("text", { x: LEFT, y: top - 5, class: "title" }, title));
    const bottom = top + tall;
    root.append(svg("line", { x1: LEFT, x2: width - RIGHT, y1: bottom + .5, y2: bottom + .5, class: "grid" }));
    top = bottom + 18;
    return bottom;
  };
  const mark = (y, label) => {
    root.append(svg("line", { x1: LEFT, x2: width - RIGHT, y1: Math.round(y) + .5, y2: Math.round(y) + .5, class: "grid" }));
    root.append(svg("text", { x: LEFT - 6, y: y + 4, "text-anchor": "end" }, label));
  };
  const bar = (at, foot, tall, className) => {
    if (tall > 0) root.append(svg("rect", { x: x(at) + .5, width: Math.max(1, step - 1), y: foot - tall, height: tall, class: className }));
  };

  // Server connections, stacked by service, under the budget.
  const series = coloured(history);
  const totals = history.waiters.map((_, at) => sum(series.map(service => service.counts[at] ?? 0)));
  const most = ceiling(Math.max(4, ...totals, ...history.budget.map(n => n ?? 0)));
  let bottom = track("Server connections, by service", tracks[0]);
  let scale = n => n / most * tracks[0];
  mark(bottom - scale(most), count(most));
  mark(bottom - scale(most / 2), count(most / 2));
  for (let at = 0; at < minutes; at++) {
    let foot = bottom;
    for (const service of series) {
      const tall = scale(service.counts[at] ?? 0);
      bar(at, foot, tall, service.className);
      foot -= tall;
    }
  }
  const line = history.budget.map((n, at) => n === null ? ""
    : `${at > 0 && history.budget[at - 1] !== null ? "V" : `M${x(at)} `}${bottom - scale(n)}h${step}`).join("");
  if (line) root.append(svg("path", { d: line, class: "budget" }));

  // Waiters, the most at once.
  const mostWaiters = ceiling(Math.max(4, ...history.waiters.map(n => n ?? 0)));
  bottom = track("Waiting, most at once", tracks[1]);
  mark(bottom - tracks[1], count(mostWaiters));
  history.waiters.forEach((n, at) => bar(at, bottom, (n ?? 0) / mostWaiters * tracks[1], "waited"));

  // Waits span five orders of magnitude: 1 ms to 100 s, each decade as high as the next.
  bottom = track("Wait, p99", tracks[2]);
  scale = ms => Math.min(1, Math.log10(Math.max(1, ms)) / 5) * tracks[2];
  for (const [ms, label] of [[100, "100 ms"], [10000, "10 s"]]) mark(bottom - scale(ms), label);
  history.p99_ms.forEach((ms, at) => bar(at, bottom, Math.max(ms > 0 ? 1.5 : 0, scale(ms ?? 0)), "p99"));

  // The time of day, as often as there is room.
  const every = step * 10 > 52 ? 10 : 20;
  for (let at = 0; at < minutes; at++) {
    const begin = history.start + at * 60000;
    if (new Date(begin).getMinutes() % every === 0 && x(at) < width - 30) {
      root.append(svg("text", { x: x(at), y: height - 3, "text-anchor": "middle" }, clock(begin, false).slice(-5)));
    }
  }
  if (chart.at !== null) root.append(svg("rect", { x: x(chart.at), width: step, y: 4, height: height - 20, class: "pointer" }));
  box.replaceChildren(root);
  readChart(series, totals);
}

/// Says in words what the chosen minute holds, or the one that is running.
function readChart(series, totals) {
  const { history } = chart;
  const last = history.waiters.length - 1;
  const at = chart.at ?? last;
  const parts = [];
  if (history.waiters[at] === null) {
    parts.push("pgweir was not running");
  } else {
    const budget = history.budget[at];
    parts.push(`${count(totals[at])}${budget === null ? "" : ` of ${count(budget)}`} servers`);
    parts.push(`${count(history.waiters[at])} waiting`);
    if (history.p99_ms[at] !== null) parts.push(`p99 wait ${duration(history.p99_ms[at])}`);
    if (history.refusals[at] > 0) parts.push(`${count(history.refusals[at])} refused`);
    if (history.closings[at] > 0) parts.push(`${count(history.closings[at])} cut off`);
  }
  const when = at === last ? "This minute" : clock(history.start + at * 60000, false);
  $("reading").replaceChildren(node("b", "", when), ` · ${parts.join(" · ")}`);
  $("chart").ariaValueNow = String(at - last);
  $("chart").ariaValueText = $("reading").textContent;
  $("legend").replaceChildren(...series.map(service => node("li", "",
    node("i", service.className), name(service.name), " ", node("b", "", count(service.counts[at] ?? 0)))));
}

function startChart() {
  const box = $("chart");
  const choose = at => {
    const last = (chart.history?.waiters.length ?? 60) - 1;
    chart.at = at === null || at >= last ? null : Math.max(0, at);
    drawChart();
  };
  const under = event => {
    const minutes = chart.history?.waiters.length ?? 60;
    const left = event.clientX - box.getBoundingClientRect().left - LEFT;
    choose(Math.floor(left / ((box.clientWidth - LEFT - RIGHT) / minutes)));
  };
  box.addEventListener("pointermove", under);
  box.addEventListener("pointerdown", under);
  box.addEventListener("pointerleave", () => choose(null));
  box.addEventListener("blur", () => choose(null));
  box.addEventListener("keydown", event => {
    const last = (chart.history?.waiters.length ?? 60) - 1;
    const at = chart.at ?? last;
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, PageUp: at - 10, PageDown: at + 10, Home: 0, End: null, Escape: null }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    choose(to);
  });
  new ResizeObserver(drawChart).observe(box);
}

// --- Asking -----------------------------------------------------------------------------------------------------------

const tables = TABLES.map(spec => new Table(spec));

function show(data) {
  told.now = data.now;
  say($("about"), `${data.version} · up ${duration(data.now - data.started)}`);
  showVerdict(data);
  showEvents("alerts", data.alerts.rows, alert, "No alert is raised.");
  $("alerts").hidden = data.alerts.rows.length === 0;
  showTotals(data);
  showHosts(data.hosts);
  chart.history = data.history;
  document.body.classList.remove("starting");
  drawChart();
  for (const table of tables) table.show(data[table.spec.id]);
  showIncidents(data.incidents);
  showEvents("refusals", data.refusals, happened, "None since the start.");
  showEvents("closings", data.closings, happened, "None since the start.");
  showEvents("servers-closed", data.servers_closed.rows, happened, "None since the start.");
}

// Without the name and password that the page's own address may have: with them nothing may be asked for.
const NUMBERS = new URL("status.json", location.origin + location.pathname);

const link = { timer: 0, abort: null, answered: null, lost: false };

async function ask() {
  clearTimeout(link.timer);
  if (document.hidden) return;
  const abort = link.abort = new AbortController();
  const late = setTimeout(() => abort.abort(), PATIENCE);
  try {
    const answer = await fetch(NUMBERS, { signal: abort.signal, cache: "no-store", credentials: "same-origin" });
    if (!answer.ok) throw new Error(answer.status === 401 ? "the password is not accepted any more: load this page again" : `it answers ${answer.status}`);
    const data = await answer.json();
    link.answered = Date.now();
    setLink("live");
    show(data);
  } catch (error) {
    // Given up because the page was hidden: nothing is wrong.
    if (abort.signal.aborted && document.hidden) return;
    setLink("lost", error.name === "Error" ? error.message : "");
  } finally {
    clearTimeout(late);
  }
  if (link.abort === abort) link.timer = setTimeout(ask, PERIOD);
}

function setLink(state, why = "") {
  document.body.classList.toggle("live", state === "live");
  document.body.classList.toggle("lost", state === "lost");
  $("lost").hidden = state !== "lost";
  if (state === "live") {
    say($("link-text"), "live");
  } else if (state === "lost") {
    say($("link-text"), "lost");
    // The time is said once, so that a screen reader does not repeat it with every try.
    const since = link.answered === null ? "pgweir does not answer"
      : `No answer from pgweir since ${clock(link.answered)}: the numbers below are from then`;
    say($("lost"), `${since}. ${why ? `(${why}) ` : ""}Trying again every ${PERIOD / 1000} seconds.`);
  } else {
    say($("link-text"), state);
  }
}

// A tab that nobody sees asks for nothing.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    clearTimeout(link.timer);
    link.abort?.abort();
    if (!document.body.classList.contains("lost")) setLink("paused");
  } else {
    ask();
  }
});

startChart();
startIncidents();
ask();
