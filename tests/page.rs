//! The status page in a real browser: it lives, it says what is wrong, and nothing that clients say becomes more than text.

mod support;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use support::{Browser, Pooler, Postgres, Raw, Screen};

/// Numbers of a bad night: Postgres gone, a service at its cap, what an old deployment left, refusals.
const TROUBLE: &str = include_str!("page/trouble.json");

const IS_LIVE: &str = "document.body.classList.contains('live')";

fn trouble() -> Value {
    serde_json::from_str(TROUBLE).expect("the fixture is JSON")
}

/// A browser that shows the page of `pooler`.
fn open(pooler: &Pooler, screen: Screen) -> Browser {
    let mut browser = Browser::start(screen);
    browser.open(&format!("http://127.0.0.1:{}/", pooler.http_port()));
    browser.until("the page is live", IS_LIVE);
    browser
}

/// A browser that shows the page with these numbers.
fn open_with(pooler: &Pooler, screen: Screen, numbers: Value) -> Browser {
    let mut browser = Browser::start(screen);
    browser.answer_with(numbers);
    browser.open(&format!("http://127.0.0.1:{}/", pooler.http_port()));
    browser.until("the page is live", IS_LIVE);
    browser
}

/// Somebody who is not let in.
#[track_caller]
fn refuse(pooler: &Pooler, user: &str, database: &str) {
    assert!(Raw::try_login(pooler.port(), user, database, None).is_err());
}

/// The cells of a table, row by row, as they are shown.
fn rows(browser: &mut Browser, table: &str) -> Vec<Vec<String>> {
    let script = format!(
        "[...document.querySelectorAll('#{table} tbody tr')].map(row => [...row.querySelectorAll('bdi')].map(cell => cell.textContent))"
    );
    serde_json::from_value(browser.value(&script)).expect("rows of texts")
}

/// The numbers as pgweir tells them.
fn numbers(pooler: &Pooler) -> Value {
    let (status, body) = pooler.http("/status.json");
    assert_eq!(status, 200);
    serde_json::from_str(&body).expect("JSON")
}

#[track_caller]
fn assert_no_complaints(browser: &mut Browser) {
    let complaints = browser.complaints();
    assert!(complaints.is_empty(), "{complaints:#?}");
}

#[test]
fn it_loads_without_a_complaint_and_says_that_all_is_quiet() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, "");
    let mut browser = open(&pooler, Screen::WIDE);
    assert_eq!(
        browser.text("document.getElementById('verdict-title').textContent"),
        "All quiet"
    );
    let is_shown = "document.getElementById('alerts').checkVisibility()";
    assert_eq!(browser.value(is_shown), json!(false));
    for (section, text) in [
        ("deployments", "No session names one."),
        ("incidents", "None was recorded."),
    ] {
        let said = browser.text(&format!("document.getElementById('{section}').innerText"));
        assert!(said.contains(text), "{said}");
    }
    assert_no_complaints(&mut browser);
}

#[test]
fn its_headers_keep_everything_else_out() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, "");
    let (status, head, page) = pooler.http_with("/", "");
    assert_eq!(status, 200);
    assert!(page.starts_with("<!doctype html>"));
    let head = head.to_lowercase();
    for line in [
        "content-type: text/html; charset=utf-8",
        "content-security-policy: default-src 'none'; ",
        "x-content-type-options: nosniff",
        "x-frame-options: deny",
        "referrer-policy: no-referrer",
        "cross-origin-resource-policy: same-origin",
        "cache-control: no-store",
    ] {
        assert!(head.contains(line), "{line} is not in\n{head}");
    }
    assert!(!head.contains("unsafe-inline"), "{head}");
}

#[test]
fn a_script_that_is_not_its_own_does_not_run() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, "");
    let mut browser = open(&pooler, Screen::WIDE);
    browser.value(
        "{ const foreign = document.createElement('script'); foreign.textContent = 'window.ran = true'; \
         document.body.append(foreign); 0 }",
    );
    assert_eq!(browser.value("window.ran === undefined"), json!(true));
    let complaints = browser.complaints();
    assert!(
        complaints
            .iter()
            .any(|one| one.contains("Content Security Policy")),
        "{complaints:?}"
    );
}

#[test]
fn numbers_move_while_a_load_runs() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, "[pool]\nsize = 3\n");
    let mut browser = open(&pooler, Screen::WIDE);
    let (over, port) = (AtomicBool::new(false), pooler.port());
    thread::scope(|scope| {
        let _end = EndOnDrop(&over);
        for user in ["alice", "bob", "alice", "bob"] {
            postgres_role(&postgres, user);
            let over = &over;
            scope.spawn(move || {
                let mut client = Raw::login(port, user, "postgres");
                while !over.load(Ordering::Relaxed) {
                    client.value("select 1 from pg_sleep(0.01)");
                }
            });
        }
        let rate = "document.querySelectorAll('#totals .value')[3].textContent";
        browser.until(
            "transactions are counted",
            &format!("Number({rate}.replace(',', '')) > 20"),
        );
        let first = browser.text(rate);
        browser.until("the number moves", &format!("{rate} !== '{first}'"));
        browser.until(
            "both services have clients",
            "['alice', 'bob'].every(user => [...document.querySelectorAll('#services tbody tr')].some(row => \
                row.textContent.includes(user)))",
        );
        let pools = rows(&mut browser, "pools");
        let mut users: Vec<_> = pools.iter().map(|row| &*row[1]).collect();
        users.sort_unstable();
        assert_eq!(users, ["alice", "bob"]);
    });
    browser.until(
        "the load is over, and the page knows",
        "document.querySelector('#totals .value').textContent !== '0' && \
         [...document.querySelectorAll('#services tbody tr')].every(row => !row.textContent.includes('Clients2'))",
    );
    assert_no_complaints(&mut browser);
}

#[test]
fn who_waits_is_shown_with_its_age_and_goes_again() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(
        &postgres,
        "[pool]\nsize = 1\n\n[services.site]\nmatch = { application_name = \"site*\" }\nmax_servers = 1\n",
    );
    let mut browser = open(&pooler, Screen::WIDE);
    let mut holder = Raw::login_as(pooler.port(), "postgres", "postgres", "site@v1");
    holder.query("begin").expect("a transaction");
    let mut waiter = Raw::login_as(pooler.port(), "postgres", "postgres", "site@v1");
    waiter.send(&support::Batch::new().query("select 1"));
    browser.until(
        "the waiter is there",
        "document.querySelectorAll('#waiters tbody tr').length === 1",
    );
    let row = rows(&mut browser, "waiters").remove(0);
    assert_eq!(row[0], "site");
    assert!(
        row[1].starts_with("postgres@postgres, 127.0.0.1:"),
        "{row:?}"
    );
    assert!(row[2].ends_with('s'), "{row:?}");
    browser.until(
        "it is told that the service is at its cap",
        "document.getElementById('verdict-title').textContent === 'Service site is at its cap, its clients wait'",
    );
    browser.until(
        "the chart tells it too",
        "document.getElementById('reading').textContent.includes('1 waiting')",
    );
    holder.query("commit").expect("its end");
    browser.until(
        "nobody waits any more",
        "document.querySelectorAll('#waiters tbody tr').length === 0",
    );
    browser.until(
        "and all is quiet",
        "document.getElementById('verdict-title').textContent === 'All quiet'",
    );
    assert_no_complaints(&mut browser);
}

#[test]
fn refusals_and_closings_are_shown_with_their_reason() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(
        &postgres,
        "[pool]\nsize = 1\n\n[timeouts]\nquery_wait = \"200ms\"\n\n[databases.postgres]\nurl = \"postgres://127.0.0.1:{postgres}\"\n",
    );
    let mut browser = open(&pooler, Screen::WIDE);
    for _ in 0..3 {
        refuse(&pooler, "postgres", "nowhere");
    }
    browser.until(
        "the refusals are one line",
        "document.querySelectorAll('#refusals-list li').length === 1 && \
         document.querySelector('#refusals-list li').textContent.includes('no_database × 3')",
    );
    let mut holder = Raw::login(pooler.port(), "postgres", "postgres");
    let mut waiter = Raw::login(pooler.port(), "postgres", "postgres");
    holder.query("begin").expect("a transaction");
    waiter.error("select 1");
    browser.until(
        "the closing is there",
        "document.querySelector('#closings-list .what')?.textContent === 'query_wait'",
    );
    browser.until(
        "both are worth a look",
        "['refused', 'ended'].every(word => document.getElementById('problems').textContent.includes(word))",
    );
    // Who leaves by itself is no news.
    waiter = Raw::login(pooler.port(), "postgres", "postgres");
    waiter.goodbye();
    holder.goodbye();
    let closings = numbers(&pooler)["closings"].clone();
    assert_eq!(closings.as_array().map(Vec::len), Some(1), "{closings}");
    assert_no_complaints(&mut browser);
}

#[test]
fn what_clients_call_themselves_stays_text() {
    const EVIL: &str = "<img src=x onerror=\"window.ran = 1\">";
    let postgres = Postgres::start();
    let user = "<b onclick=alert(1)>bob</b>";
    let database = "<script>window.ran = 2</script>";
    postgres.sql(&format!("create role \"{user}\" login"));
    postgres.create_database(database);
    let pooler = Pooler::serve_with_users(
        &postgres,
        "[pool]\nsize = 1\n\n[services.\"*\"]\nalert_clients = 1\n\n\
         [services.\"*\".deployments]\npattern = \"^(?<service>.+)@(?<deployment>.+)$\"\n\n\
         [budget]\nmax_servers = 9\ncheck_every = \"100ms\"\n",
        &format!("\"{user}\" \"\"\n\"postgres\" \"\"\n"),
    );
    let mut browser = open(&pooler, Screen::WIDE);
    let deployment = "<i onclick=alert(1)>v1</i>";
    let name = format!("{EVIL}\u{202e}@{deployment}");
    let mut holder = Raw::login_as(pooler.port(), user, database, &name);
    holder.query("begin").expect("a transaction");
    let mut waiter = Raw::login_as(pooler.port(), user, database, &name);
    waiter.send(&support::Batch::new().query("select 1"));
    refuse(&pooler, EVIL, database);
    let _direct = Raw::login_as(postgres.port(), "postgres", "postgres", EVIL);
    browser.until(
        "it is an incident",
        "document.querySelector('#incidents-list button')",
    );
    browser.value("document.querySelector('#incidents-list button').click()");
    for (place, text) in [
        ("services", EVIL),
        ("pools", user),
        ("pools", database),
        ("waiters", EVIL),
        ("refusals-list", EVIL),
        ("hosts", EVIL),
        ("deployments", deployment),
        ("alerts", EVIL),
        ("alerts", deployment),
        ("incidents", EVIL),
        ("story", EVIL),
        ("story", deployment),
    ] {
        let text = json!(text);
        browser.until(
            &format!("{text} is in {place}"),
            &format!("document.getElementById('{place}').textContent.includes({text})"),
        );
    }
    assert_eq!(browser.value("window.ran === undefined"), json!(true));
    assert_eq!(
        browser.value("document.querySelectorAll('img, [onclick], script').length"),
        json!(1),
        "the page's own script"
    );
    assert_eq!(
        browser.value("document.body.textContent.includes('\\u202e')"),
        json!(false)
    );
    assert_no_complaints(&mut browser);
}

#[test]
fn a_table_is_sorted_by_keyboard() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, "");
    let mut browser = open_with(&pooler, Screen::WIDE, trouble());
    let names = |browser: &mut Browser| -> Vec<String> {
        rows(browser, "services")
            .into_iter()
            .map(|mut row| row.remove(0))
            .collect()
    };
    assert_eq!(
        names(&mut browser)[..2],
        ["site", "bot"],
        "who waits comes first"
    );
    let focused =
        "document.activeElement.closest('#services') && document.activeElement.textContent";
    for _ in 0..50 {
        if browser.value(focused) == json!("Service") {
            break;
        }
        browser.press("Tab");
    }
    assert_eq!(browser.text(focused), "Service", "Tab leads to it");
    let outline = "getComputedStyle(document.activeElement).outlineStyle";
    assert_ne!(browser.text(outline), "none", "the focus is seen");
    let sort = "document.querySelector('#services th').getAttribute('aria-sort')";
    let mut sorted = names(&mut browser);
    sorted.sort();
    browser.press("Enter");
    assert_eq!(browser.text(sort), "ascending");
    assert_eq!(names(&mut browser), sorted);
    browser.press("Enter");
    assert_eq!(browser.text(sort), "descending");
    sorted.reverse();
    assert_eq!(names(&mut browser), sorted);
    assert_eq!(browser.text(focused), "Service", "the focus stays");
}

#[test]
fn the_chart_is_read_by_keyboard() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, "");
    let mut browser = open_with(&pooler, Screen::WIDE, trouble());
    browser.value("document.getElementById('chart').focus()");
    let reading = "document.getElementById('reading').textContent";
    let now = browser.text(reading);
    assert!(
        now.starts_with("This minute · 53 of 79 servers · 30 waiting"),
        "{now}"
    );
    browser.press("ArrowLeft");
    let before = browser.text(reading);
    assert!(before.contains(" · 25 waiting"), "{before}");
    let spoken = "document.getElementById('chart').getAttribute('aria-valuetext')";
    assert_eq!(browser.text(spoken), before);
    browser.press("Home");
    assert!(browser.text(reading).ends_with("pgweir was not running"));
    browser.press("Escape");
    assert_eq!(browser.text(reading), now);
}

#[test]
fn a_phone_shows_it_without_scrolling_sideways() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, "");
    let mut all = trouble();
    let long = "x".repeat(63);
    for table in [
        "services",
        "deployments",
        "pools",
        "waiters",
        "servers_closed",
    ] {
        for key in [
            "name",
            "user",
            "database",
            "service",
            "deployment",
            "superseded_by",
            "postgres",
        ] {
            if let Some(name) = all[table]["rows"][0].get_mut(key) {
                *name = json!(long);
            }
        }
    }
    all["hosts"][0]["name"] = json!(format!("{long}.internal:5432"));
    all["refusals"][0]["user"] = json!(long);
    let mut browser = open_with(&pooler, Screen::PHONE, all);
    for width in [360, 320, 700, 1024, 1280] {
        browser.show_on(Screen {
            width,
            ..Screen::PHONE
        });
        browser.until(
            "the page has the new width",
            &format!("innerWidth === {width}"),
        );
        assert_eq!(
            browser.value("document.documentElement.scrollWidth <= innerWidth"),
            json!(true),
            "{width}: {}",
            browser.value(
                "[...document.querySelectorAll('*')].filter(one => one.getBoundingClientRect().right > innerWidth + 1)\
                 .map(one => `${one.tagName}#${one.id}.${one.className}`).join(' ')"
            )
        );
    }
    // A finger needs some room.
    browser.show_on(Screen::PHONE);
    browser.until("the phone is back", "innerWidth === 360");
    let smallest = browser.value(
        "Math.min(...[...document.querySelectorAll('th button')].map(one => one.getBoundingClientRect().height))",
    );
    assert!(smallest.as_f64() >= Some(24.0), "{smallest}");
}

/// The contrast of every text with what is behind it (WCAG 2), the texts that have less than 4.5.
const FAINT: &str = r"(() => {
  const parse = colour => colour.match(/[\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(c => c / 255).map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, at) => sum + c * [.2126, .7152, .0722][at], 0);
  const ground = one => {
    for (let at = one; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const faint = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const one = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !one.checkVisibility() || ['SCRIPT', 'STYLE'].includes(one.tagName)) continue;
    const style = getComputedStyle(one);
    const ink = parse(one.namespaceURI.endsWith('svg') ? style.fill : style.color);
    const [a, b] = [light(ink), light(ground(one))].sort((a, b) => b - a);
    const contrast = (a + .05) / (b + .05);
    if (contrast < 4.5) faint.push(`${contrast.toFixed(2)} ${one.tagName}.${one.className}: ${walk.currentNode.data}`);
  }
  return faint;
})()";

#[test]
fn light_and_dark_are_both_easy_to_read() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, "");
    let mut browser = open_with(&pooler, Screen::WIDE, trouble());
    let ground = "getComputedStyle(document.body).backgroundColor";
    let light = browser.text(ground);
    assert_eq!(browser.value(FAINT), json!([]));
    browser.show_on(Screen::WIDE.dark());
    browser.until("it is dark", &format!("{ground} !== '{light}'"));
    assert_eq!(browser.value(FAINT), json!([]));
}

#[test]
fn a_bad_night_is_told_in_all_its_parts() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, "");
    let mut browser = open_with(&pooler, Screen::WIDE, trouble());
    for (place, text) in [
        ("verdict", "Service site has more clients than its alert"),
        (
            "alerts",
            "Service site has 326 clients, the alert is at 250; most clients are of deployment v42 (180)",
        ),
        ("alerts", "SHOW DEPLOYMENTS; KILL STALE site"),
        ("deployments", "superseded by v42"),
        ("incidents", "The budget of 90 at db.internal:5432 is spent"),
        ("incidents", "lasted 5 min 12 s"),
        ("hosts", "55 of 79 · Postgres takes 100"),
        ("hosts", "9 not through pgweir"),
        ("hosts", "6 of other pgweirs"),
        ("hosts", "4 × pg_dump as backup from 10.0.7.2"),
        ("hosts", "and 3 others"),
        ("hosts", "26 free"),
        ("closings-list", "stale × 49"),
        ("closings-list", "site@v41"),
        ("servers-closed-list", "made_room × 3"),
        ("servers-closed-list", "Somebody else needed the room."),
    ] {
        let place_shows = format!(
            "(one => one.checkVisibility() && one.textContent.includes({}))(document.getElementById('{place}'))",
            json!(text)
        );
        assert_eq!(
            browser.value(&place_shows),
            json!(true),
            "{text} in {place}"
        );
    }
    // Postgres that is gone is said once.
    let said = browser.text("document.getElementById('problems').textContent");
    assert_eq!(said.matches("reports.internal").count(), 2, "{said}");
    assert_no_complaints(&mut browser);
}

/// Sessions of a deployment that has become current.
fn roll_out(pooler: &Pooler, deployment: &str, sessions: usize) -> Vec<Raw> {
    let name = format!("site@{deployment}");
    let sessions = (0..sessions)
        .map(|_| Raw::login_as(pooler.port(), "postgres", "postgres", &name))
        .collect();
    pooler.await_log("it is current", |log| {
        log.lines().any(|line| {
            line.contains("deployment is current")
                && line.contains(&format!("deployment={deployment} "))
        })
    });
    sessions
}

/// A console command.
fn type_in(pooler: &Pooler, command: &str) {
    let status = pooler
        .psql("postgres", "pgweir")
        .args(["-q", "-c", command])
        .status();
    assert!(status.expect("psql starts").success(), "{command}");
}

/// What opens the first incident of the list.
const BUTTON: &str = "document.querySelector('#incidents-list button')";

/// The story of the incident that is open.
const STORY: &str = "document.getElementById('story').innerText";

/// It is opened by keyboard, tells what was, and fits on a phone.
fn open_the_incident(browser: &mut Browser) {
    browser.until("the incident is listed", BUTTON);
    browser.value(&format!("{BUTTON}.focus()"));
    browser.press("Enter");
    browser.until(
        "its story is told",
        &format!("document.getElementById('incident').open && {STORY}.includes('It began')"),
    );
    let text = browser.text(STORY);
    for part in [
        "service site has 5 clients, the alert is at 4",
        "Who held server connections at its worst",
        "idle in transaction",
        "select ?",
        "pgweir incident export 1",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    assert!(!text.contains("secret"), "{text}");
    assert_eq!(
        browser.text("location.hash"),
        "#incident-1",
        "it can be sent"
    );
    browser.show_on(Screen::PHONE);
    browser.until("it is a phone", "innerWidth === 360");
    assert_eq!(
        browser
            .value("(one => one.scrollWidth <= one.clientWidth)(document.getElementById('story'))"),
        json!(true)
    );
    assert_eq!(browser.value(FAINT), json!([]));
    browser.show_on(Screen::WIDE);
}

/// What the alert says helps, and the page tells that, with the story open.
fn kill_the_stale(pooler: &Pooler, browser: &mut Browser) {
    type_in(pooler, "KILL STALE site");
    browser.until(
        "the closings have their reason",
        "(text => text.includes('kill_stale') && text.includes('site@v1') && text.includes('superseded by'))\
         (document.getElementById('closings-list').textContent)",
    );
    browser.until(
        "the leftovers are gone",
        "document.querySelectorAll('#deployments tbody tr').length === 1",
    );
    browser.until(
        "the story goes on and ends",
        &format!("['Asked session', 'It is over that', 'It ended', 'lasted '].every(part => {STORY}.includes(part))"),
    );
    browser.press("Escape");
    browser.until(
        "it is closed",
        "!document.getElementById('incident').open && location.hash === ''",
    );
    assert_eq!(
        browser.value(&format!("document.activeElement === {BUTTON}")),
        json!(true)
    );
    browser.until(
        "all is quiet: a rollout is no alarm",
        "document.getElementById('verdict-title').textContent === 'All quiet' && \
         !document.getElementById('alerts').checkVisibility()",
    );
}

#[test]
fn a_rollout_its_leftovers_the_alert_and_the_incident_are_told() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(
        &postgres,
        "[services.site]\nmatch = { application_name = \"site@*\" }\nalert_clients = 4\n\n\
         [services.site.deployments]\npromote_after = \"300ms\"\nstale_grace = \"1h\"\nstale_idle_transaction = \"1h\"\n\n\
         [budget]\nmax_servers = 20\ncheck_every = \"100ms\"\n\n[incidents]\nsnapshot_every = \"1s\"\n",
    );
    let mut browser = open(&pooler, Screen::WIDE);
    // What comes within promote_after of the start has no order.
    drop(roll_out(&pooler, "v0", 1));
    let mut first = roll_out(&pooler, "v1", 2);
    first[0].query("begin").expect("a transaction");
    first[0].query("select 'a secret'").expect("a row");
    browser.until(
        "it is seen in its transaction",
        "[...document.querySelectorAll('#deployments tbody tr')].some(row => \
            [...row.querySelectorAll('bdi')].slice(4).map(cell => cell.textContent).slice(0, 3).join() === '2,1,1')",
    );
    let _second = roll_out(&pooler, "v2", 2);
    let mut third = roll_out(&pooler, "v3", 1);

    browser.until(
        "all three deployments are there",
        "document.querySelectorAll('#deployments tbody tr').length === 3",
    );
    browser.until(
        "the newest one is current",
        "document.querySelector('#deployments tbody tr').textContent.includes('current')",
    );
    let deployments = rows(&mut browser, "deployments");
    let told: Vec<_> = deployments
        .iter()
        .map(|row| (&*row[0], &*row[1], &*row[2], &*row[4]))
        .collect();
    assert_eq!(
        told,
        [
            ("site", "v3", "current", "1"),
            ("site", "v2", "superseded by v3", "2"),
            ("site", "v1", "superseded by v2", "2"),
        ]
    );
    browser.until(
        "the alert says whom it is about and what to type",
        "(text => ['Service site has more clients than its alert', 'SHOW DEPLOYMENTS; KILL STALE site', 'psql -p '].every(\
            part => text.includes(part)))(document.getElementById('alerts').innerText)",
    );
    browser.until(
        "the verdict has it",
        "document.getElementById('verdict-title').textContent === 'Service site has more clients than its alert'",
    );

    open_the_incident(&mut browser);

    kill_the_stale(&pooler, &mut browser);
    assert_eq!(third[0].value("select 1"), "1");
    assert_no_complaints(&mut browser);

    // An address that leads nowhere says so.
    browser.value("{ location.hash = 'incident-99'; 0 }");
    browser.until(
        "it says so",
        &format!("{STORY}.includes('It is not kept any more, or never was.')"),
    );
}

#[test]
fn who_is_connected_around_pgweir_is_in_the_bar() {
    let postgres = Postgres::setup().max_connections(40).start();
    let pooler = Pooler::serve(
        &postgres,
        "[budget]\nmax_servers = \"auto\"\ncheck_every = \"100ms\"\n",
    );
    let mut client = Raw::login(pooler.port(), "postgres", "postgres");
    client.value("select 1");
    let mut browser = open(&pooler, Screen::WIDE);
    let hosts = "document.getElementById('hosts').textContent";
    browser.until(
        "Postgres is measured",
        &format!(
            "{hosts}.includes('Postgres takes 40') && {hosts}.includes('0 not through pgweir')"
        ),
    );
    let free = |browser: &mut Browser| {
        let text = browser.text(hosts);
        let (before, _) = text.split_once(" free").expect("it says what is free");
        let digits = before.rsplit(|c: char| !c.is_ascii_digit()).next();
        let digits = digits.expect("a number").to_owned();
        digits.parse::<u32>().expect("a number")
    };
    let before = free(&mut browser);
    let direct: Vec<_> = (0..7)
        .map(|_| Raw::login_as(postgres.port(), "postgres", "postgres", "<i>cron</i>"))
        .collect();
    browser.until(
        "they are told",
        &format!(
            "{hosts}.includes('7 not through pgweir') && {hosts}.includes('7 × <i>cron</i> as postgres from 127.0.0.1')"
        ),
    );
    assert_eq!(free(&mut browser), before - 7);
    drop(direct);
    browser.until(
        "they are gone",
        &format!("{hosts}.includes('0 not through pgweir') && !{hosts}.includes('cron')"),
    );
    assert_no_complaints(&mut browser);
}

#[test]
fn server_connections_that_were_closed_are_shown_with_their_reason() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, "");
    let mut browser = open(&pooler, Screen::WIDE);
    let mut client = Raw::login(pooler.port(), "postgres", "postgres");
    let list = "document.getElementById('servers-closed-list').innerText";
    for times in 1..=2 {
        client.value("select 1");
        postgres.await_all_idle();
        type_in(&pooler, "RECONNECT");
        let count = if times > 1 { " × 2" } else { "" };
        browser.until(
            "the closing is told, and what repeats is one line",
            &format!(
                "{list}.startsWith('reconnect{count}') && {list}.includes('postgres@postgres at 127.0.0.1:{}') && \
                 document.querySelectorAll('#servers-closed-list li').length === 1",
                postgres.port()
            ),
        );
    }
    assert_no_complaints(&mut browser);
}

#[test]
fn rows_that_look_alike_are_all_shown() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, "");
    let mut all = trouble();
    let mut login = all["waiters"]["rows"][0].clone();
    login["id"] = json!(0);
    all["waiters"]["rows"] = json!([login, login, login]);
    let mut browser = open_with(&pooler, Screen::WIDE, all);
    assert_eq!(rows(&mut browser, "waiters").len(), 3);
}

#[test]
fn a_lost_connection_is_said_plainly_and_healed_without_reloading() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, "");
    let mut browser = open(&pooler, Screen::WIDE);
    browser.answer_nothing();
    browser.until(
        "the loss is told",
        "document.getElementById('lost').checkVisibility() && \
         /No answer from pgweir since \\d\\d:\\d\\d:\\d\\d/.test(document.getElementById('lost').textContent)",
    );
    assert_eq!(browser.value(IS_LIVE), json!(false));
    browser.answer_with(trouble());
    browser.until("it is live again", IS_LIVE);
    assert_eq!(
        browser.value("document.getElementById('lost').checkVisibility()"),
        json!(false)
    );
}

#[test]
fn a_tab_that_nobody_sees_asks_for_nothing() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, "");
    let mut browser = open(&pooler, Screen::WIDE);
    let see = |hidden: bool| {
        format!(
            "Object.defineProperty(document, 'hidden', {{ configurable: true, get: () => {hidden} }}); \
             document.dispatchEvent(new Event('visibilitychange'))"
        )
    };
    browser.value(&see(true));
    browser.until(
        "it pauses",
        "document.getElementById('link-text').textContent === 'paused'",
    );
    let asked = browser.asked();
    // As long as the page would wait before it asks three times.
    browser.value("new Promise(done => setTimeout(done, 6500))");
    assert_eq!(browser.asked(), asked);
    browser.value(&see(false));
    browser.until("it is live again", IS_LIVE);
    assert!(browser.asked() > asked);
}

#[test]
fn the_password_is_asked_for_everywhere_but_at_the_health() {
    let postgres = Postgres::start();
    let listen = "[listen]\naddresses = [\"127.0.0.1:{port}\"]\nhttp = \"127.0.0.1:{http}\"\n";
    let pooler = Pooler::serve(
        &postgres,
        &format!("{listen}http_password = \"Sesame-42\"\n\n[log]\nlevel = \"debug\"\n"),
    );
    let authorization = |credentials: &str| {
        use base64::Engine as _;
        let credentials = base64::engine::general_purpose::STANDARD.encode(credentials);
        format!("Authorization: Basic {credentials}\r\n")
    };
    for path in ["/", "/status.json", "/incidents/1", "/metrics"] {
        let (status, head, _) = pooler.http_with(path, "");
        assert_eq!(status, 401, "{path}");
        assert!(
            head.to_lowercase().contains("www-authenticate: basic "),
            "{head}"
        );
        // There is no incident, but who may ask is told so.
        let answer = if path == "/incidents/1" { 404 } else { 200 };
        for (credentials, expected) in
            [("x:sesame-42", 401), ("x:", 401), ("ops:Sesame-42", answer)]
        {
            let (status, _, _) = pooler.http_with(path, &authorization(credentials));
            assert_eq!(status, expected, "{path} {credentials}");
        }
    }
    for path in ["/healthz", "/readyz"] {
        assert_eq!(pooler.http(path).0, 200, "{path}");
    }
    // A browser keeps what its user typed, also when it stood in the address.
    let mut browser = Browser::start(Screen::WIDE);
    browser.open(&format!(
        "http://ops:Sesame-42@127.0.0.1:{}/",
        pooler.http_port()
    ));
    browser.until("the page is live", IS_LIVE);
    assert_no_complaints(&mut browser);
    // Another one counts after a reload, and the page says that its own does not any more.
    pooler.rewrite(&format!("{listen}http_password = \"other\"\n"));
    pooler.reload();
    browser.until(
        "the page says so",
        "document.getElementById('lost').textContent.includes('the password is not accepted any more')",
    );
    assert!(!pooler.log().to_lowercase().contains("sesame"));
}

#[test]
fn a_crowd_of_readers_costs_one_reading() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, "");
    let times: Vec<_> = (0..50).map(|_| numbers(&pooler)["now"].clone()).collect();
    let mut different = times.clone();
    different.dedup();
    assert!(different.len() < times.len() / 2, "{different:?}");
}

#[test]
fn the_fixture_is_shaped_like_what_pgweir_says() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(
        &postgres,
        "[pool]\nsize = 1\n\n[services.site]\nmatch = { application_name = \"site@*\" }\nalert_clients = 1\n\n\
         [budget]\nmax_servers = 9\ncheck_every = \"100ms\"\n",
    );
    let login = || Raw::login_as(pooler.port(), "postgres", "postgres", "site@v1");
    let mut holder = login();
    holder.value("select 1");
    postgres.await_all_idle();
    type_in(&pooler, "RECONNECT");
    holder.query("begin").expect("a transaction");
    let mut waiter = login();
    waiter.send(&support::Batch::new().query("select 1"));
    let _foreign = Raw::login(postgres.port(), "postgres", "postgres");
    refuse(&pooler, "nobody", "postgres");
    let real = support::until("everything has a row", Duration::from_secs(30), || {
        let numbers = numbers(&pooler);
        let waits = numbers["waiters"]["rows"][0].is_object();
        let drawn = numbers["history"]["services"][0].is_object();
        let lists = ["alerts", "deployments", "incidents", "servers_closed"];
        let listed = lists
            .iter()
            .all(|list| numbers[list]["rows"][0].is_object());
        let foreign = numbers["hosts"][0]["measured"]["who"]["rows"][0].is_object();
        (waits && drawn && listed && foreign).then_some(numbers)
    });
    let (mut real, mut fixture) = (real, trouble());
    // Both are the same kind of row, and nothing was closed here.
    for numbers in [&mut real, &mut fixture] {
        numbers["closings"] = json!([]);
    }
    assert_eq!(shape(&real, ""), shape(&fixture, ""));
}

/// Every key there is, with the first element of each list standing for all.
fn shape(value: &Value, at: &str) -> Vec<String> {
    match value {
        Value::Object(object) => {
            let mut keys: Vec<_> = object
                .iter()
                .flat_map(|(key, value)| shape(value, &format!("{at}.{key}")))
                .collect();
            keys.sort();
            keys
        }
        Value::Array(list) => list
            .first()
            .map_or_else(|| vec![at.to_owned()], |one| shape(one, &format!("{at}[]"))),
        _ => vec![at.to_owned()],
    }
}

/// Makes the picture of the README: `make screenshot`.
#[test]
#[ignore = "writes into docs/; make screenshot runs it"]
fn the_picture_in_the_docs() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, "");
    let mut browser = open_with(&pooler, Screen::WIDE, trouble());
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/status-page.png");
    browser.screenshot(&file, 1280, 2130);
}

fn postgres_role(postgres: &Postgres, name: &str) {
    let known = postgres.value(&format!(
        "select count(*) from pg_roles where rolname = '{name}'"
    ));
    if known == "0" {
        postgres.sql(&format!("create role {name} login"));
    }
}

struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
