//! The status page in a real browser: it lives, it says what is wrong, and nothing that clients say becomes more than text.

mod support;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use support::{Browser, Pooler, Postgres, Raw, Screen};

/// Numbers of a bad night: Postgres gone, a service at its cap, refusals.
const TROUBLE: &str = include_str!("page/trouble.json");

/// What the page shows as soon as there are such numbers: alerts, deployments, incidents.
const LATER: &str = include_str!("page/later.json");

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
    for section in ["alerts", "deployments", "incidents"] {
        let hidden = format!("document.getElementById('{section}').hidden");
        assert_eq!(browser.value(&hidden), json!(true), "{section}");
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
        "[pool]\nsize = 1\n",
        &format!("\"{user}\" \"\"\n\"postgres\" \"\"\n"),
    );
    let mut browser = open(&pooler, Screen::WIDE);
    let name = format!("{EVIL}\u{202e}@v1");
    let mut holder = Raw::login_as(pooler.port(), user, database, &name);
    holder.query("begin").expect("a transaction");
    let mut waiter = Raw::login_as(pooler.port(), user, database, &name);
    waiter.send(&support::Batch::new().query("select 1"));
    refuse(&pooler, EVIL, database);
    for (place, text) in [
        ("services", EVIL),
        ("pools", user),
        ("pools", database),
        ("waiters", EVIL),
        ("refusals-list", EVIL),
    ] {
        let text = json!(text);
        browser.until(
            &format!("{text} is in {place}"),
            &format!("document.getElementById('{place}').textContent.includes({text})"),
        );
    }
    assert_eq!(browser.value("window.ran === undefined"), json!(true));
    assert_eq!(
        browser.value("document.querySelectorAll('img, b[onclick], script').length"),
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
        now.starts_with("This minute · 53 of 90 servers · 30 waiting"),
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
    merge(&mut all, later());
    let long = "x".repeat(63);
    for table in ["services", "pools", "waiters"] {
        for key in ["name", "user", "database", "service"] {
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
    let mut all = trouble();
    merge(&mut all, later());
    let mut browser = open_with(&pooler, Screen::WIDE, all);
    let ground = "getComputedStyle(document.body).backgroundColor";
    let light = browser.text(ground);
    assert_eq!(browser.value(FAINT), json!([]));
    browser.show_on(Screen::WIDE.dark());
    browser.until("it is dark", &format!("{ground} !== '{light}'"));
    assert_eq!(browser.value(FAINT), json!([]));
}

#[test]
fn what_there_is_to_say_later_has_its_place() {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, "");
    let mut all = trouble();
    merge(&mut all, later());
    all["hosts"][0]["foreign"] = json!(9);
    all["hosts"][0]["limit"] = json!(100);
    let mut browser = open_with(&pooler, Screen::WIDE, all);
    for (place, text) in [
        ("alerts", "KILL STALE site"),
        ("deployments", "superseded"),
        ("incidents", "Budget spent on db.internal:5432"),
        ("hosts", "9 not through pgweir"),
        ("hosts", "Postgres takes 100"),
        ("verdict", "site holds 57 sessions of deployment v41"),
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
    for path in ["/", "/status.json", "/metrics"] {
        let (status, head, _) = pooler.http_with(path, "");
        assert_eq!(status, 401, "{path}");
        assert!(
            head.to_lowercase().contains("www-authenticate: basic "),
            "{head}"
        );
        for (credentials, expected) in [("x:sesame-42", 401), ("x:", 401), ("ops:Sesame-42", 200)] {
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
    let pooler = Pooler::serve(&postgres, "[pool]\nsize = 1\n");
    let mut holder = Raw::login(pooler.port(), "postgres", "postgres");
    holder.query("begin").expect("a transaction");
    let mut waiter = Raw::login(pooler.port(), "postgres", "postgres");
    waiter.send(&support::Batch::new().query("select 1"));
    refuse(&pooler, "nobody", "postgres");
    let real = support::until("everything has a row", Duration::from_secs(30), || {
        let numbers = numbers(&pooler);
        let waits = numbers["waiters"]["rows"][0].is_object();
        let drawn = numbers["history"]["services"][0].is_object();
        (waits && drawn).then_some(numbers)
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
    browser.screenshot(&file, 1280, 960);
}

fn later() -> Value {
    serde_json::from_str(LATER).expect("the fixture is JSON")
}

fn merge(into: &mut Value, more: Value) {
    let into = into.as_object_mut().expect("an object");
    if let Value::Object(more) = more {
        into.extend(more);
    }
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
