//! A Postgres that listens, a data thread, and clients.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::{JoinHandle, spawn_local};

use crate::client::directory::{Ask, Directory, Entry, Who};
use crate::client::end::ClientEnd;
use crate::client::patience::{Activity, Doing, Patience};
use crate::client::view::ClientRow;
use crate::config::checked::{Errors, Host, Mode};
use crate::net::listen::Peer;
use crate::net::packet::{Packet, Packets};
use crate::net::stream::{Stream, unix_path};
use crate::policy::reaper::{Reason, Sentence};
use crate::pool::book::{PoolLimits, PoolView, ServiceId, ServiceLimits, ThreadId};
use crate::pool::errand::Errand;
use crate::pool::pools::{Member, Pool, PoolSettings, Pools};
use crate::server::dial::Target;
use crate::session::fake::Fake;
use crate::session::run::{End, Session, Terms};
use crate::wire::reply::{
    Report, Severity, SqlState, authentication, backend_key_data, parameter_status, query,
    ready_for_query,
};
use crate::wire::startup::{Initial, NEWEST_MINOR, body_len, parse};

/// How long a test waits for what must happen at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest message of a client.
const LIMIT: u32 = 1_000_000;

/// A Postgres on a unix socket.
pub(super) struct House {
    directory: TempDir,
    servers: RefCell<Vec<Rc<Server>>>,
    /// Sockets of servers that were told to end, and of cancel requests, are closed only while this is raised.
    closes: Cell<bool>,
    cancels: Cell<bool>,
    /// The signal is sent only then, too.
    late: Cell<bool>,
    may_go: Notify,
    /// It refuses newer minor protocol versions.
    minor: Cell<u16>,
}

/// One connection to it.
pub(super) struct Server {
    /// Its process id.
    pub(super) pid: u32,
    /// The queries that it heard, in order, and `cancel` for each cancel request.
    heard: RefCell<Vec<String>>,
    /// The queries that a signal has stopped.
    hit: RefCell<Vec<String>>,
    fake: RefCell<Fake>,
    canceled: Notify,
    finishes: Notify,
    dies: Notify,
    terminated: Notify,
    /// What it says although nobody asked.
    unasked: RefCell<Vec<u8>>,
    speaks: Notify,
    /// It was told to end, or lost its client.
    pub(super) is_leaving: Cell<bool>,
    /// Its socket is closed.
    pub(super) is_closed: Cell<bool>,
}

impl Server {
    /// The queries that it heard so far.
    pub(super) fn heard(&self) -> Vec<String> {
        self.heard.borrow().clone()
    }

    /// The queries that a signal has stopped so far.
    pub(super) fn hit(&self) -> Vec<String> {
        self.hit.borrow().clone()
    }

    /// Ends the query that it runs, if it runs one.
    pub(super) fn finish(&self) {
        if self.is_running() {
            self.finishes.notify_one();
        }
    }

    /// Says something although nobody asked.
    pub(super) fn say(&self, bytes: &[u8]) {
        self.unasked.borrow_mut().extend(bytes);
        self.speaks.notify_one();
    }

    /// Whether it has said everything.
    pub(super) fn has_said(&self) -> bool {
        self.unasked.borrow().is_empty()
    }

    /// Closes its socket although nobody asked.
    pub(super) fn die(&self) {
        self.dies.notify_one();
    }

    /// Stops the query that it runs.
    pub(super) fn times_out(&self) {
        self.canceled.notify_one();
    }

    /// Ends its session amid the query that it runs, and says so.
    pub(super) fn is_terminated(&self) {
        self.terminated.notify_one();
    }

    /// Whether it runs a query until it is cancelled.
    pub(super) fn is_running(&self) -> bool {
        self.fake.borrow().is_running()
    }
}

impl House {
    /// Opens it, in a directory of its own. Must be called inside a `LocalRuntime`.
    pub(super) fn open() -> Rc<Self> {
        let directory = tempfile::tempdir().expect("a directory");
        let path = unix_path(directory.path().to_str().expect("a plain name"), 5432);
        let listener = UnixListener::bind(path).expect("a socket");
        let house = Rc::new(Self {
            directory,
            servers: RefCell::default(),
            closes: Cell::new(true),
            cancels: Cell::new(true),
            late: Cell::new(false),
            may_go: Notify::new(),
            minor: Cell::new(NEWEST_MINOR),
        });
        let host = Rc::clone(&house);
        spawn_local(async move {
            while let Ok((socket, _)) = listener.accept().await {
                spawn_local(Rc::clone(&host).attend(socket));
            }
        });
        house
    }

    /// Every connection that it has or had.
    pub(super) fn servers(&self) -> Vec<Rc<Server>> {
        self.servers.borrow().clone()
    }

    /// Its only connection.
    pub(super) fn server(&self) -> Rc<Server> {
        let servers = self.servers();
        assert_eq!(servers.len(), 1, "connections so far");
        Rc::clone(&servers[0])
    }

    /// Whether it closes the sockets of those who were told to end.
    pub(super) fn closes(&self, does: bool) {
        self.closes.set(does);
        self.may_go.notify_waiters();
    }

    /// Whether it closes the sockets of cancel requests, which says that the signal was sent.
    pub(super) fn finishes_cancels(&self, does: bool) {
        self.cancels.set(does);
        self.may_go.notify_waiters();
    }

    /// The newest minor protocol version that it does not refuse.
    pub(super) fn knows_minor(&self, minor: u16) {
        self.minor.set(minor);
    }

    /// Whether signals are sent as late as they may be: when the socket of the cancel request is closed.
    pub(super) fn signals_late(&self, does: bool) {
        self.late.set(does);
    }

    /// Where it listens, for pools of this mode and size.
    pub(super) fn settings(&self, mode: Mode, size: u32) -> PoolSettings {
        let directory = self.directory.path().to_str().expect("a plain name");
        PoolSettings {
            is_probe: false,
            target: Target {
                limit: PATIENCE,
                ..Target::sample(vec![Arc::new(Host::Unix(directory.to_owned(), 5432))])
            },
            mode,
            errors: Errors::Postgres,
            limits: PoolLimits {
                size,
                min_size: 0,
                reserve_size: 0,
                reserve_after: Duration::ZERO,
                server_idle: None,
                in_turn: false,
            },
            query_wait: None,
            server_lifetime: None,
            server_login_retry: Duration::from_millis(10),
            is_auto: false,
            resets_always: false,
            check: None,
            closes_fast: false,
            forget_after: None,
            lines: crate::server::told::Lines::default(),
            server_reset_query: "DISCARD ALL".into(),
            max_prepared_statements: 100,
            recover_limit: PATIENCE,
            cancel_limit: PATIENCE,
            budget: Some(100),
            headroom: 0,
            is_watched: false,
            database_cap: 0,
            user_cap: 0,
        }
    }

    async fn attend(self: Rc<Self>, socket: UnixStream) {
        let mut packets = Packets::new(socket);
        let Ok(initial) = startup(&mut packets).await else {
            return;
        };
        match initial {
            Initial::Cancel(key) => {
                let servers = self.servers();
                let server = servers.iter().find(|server| server.pid == key.pid);
                let server = server.expect("a cancel names a server");
                assert_eq!(*key.secret, server.pid.to_be_bytes(), "its secret");
                server.heard.borrow_mut().push("cancel".into());
                let late = self.late.get();
                if !late {
                    server.canceled.notify_one();
                }
                while !self.cancels.get() {
                    self.may_go.notified().await;
                }
                if late {
                    server.canceled.notify_one();
                }
            }
            Initial::Startup(startup) if startup.minor > self.minor.get() => {
                let refusal = Report::new(SqlState::PROTOCOL_VIOLATION, "what is this?");
                let _ = packets.write(&refusal.error(Severity::Fatal)).await;
            }
            Initial::Startup(_) => {
                let pid = 100 + u32::try_from(self.servers.borrow().len()).expect("a few");
                let server = Rc::new(Server {
                    pid,
                    heard: RefCell::default(),
                    hit: RefCell::default(),
                    fake: RefCell::default(),
                    canceled: Notify::new(),
                    finishes: Notify::new(),
                    dies: Notify::new(),
                    terminated: Notify::new(),
                    unasked: RefCell::default(),
                    speaks: Notify::new(),
                    is_leaving: Cell::new(false),
                    is_closed: Cell::new(false),
                });
                self.servers.borrow_mut().push(Rc::clone(&server));
                tokio::select! {
                    _ = server.serve(&mut packets) => {
                        server.is_leaving.set(true);
                        while !self.closes.get() {
                            self.may_go.notified().await;
                        }
                    }
                    () = server.dies.notified() => {}
                }
                drop(packets);
                server.is_closed.set(true);
            }
            other => panic!("{other:?} from a pooler"),
        }
    }
}

async fn startup(packets: &mut Packets<UnixStream>) -> io::Result<Initial> {
    let length = packets.array().await?;
    let body = packets
        .bytes(body_len(length).expect("a startup packet"))
        .await?;
    Ok(parse(&body).expect("a startup packet"))
}

impl Server {
    /// Returns when the client has gone.
    async fn serve(&self, packets: &mut Packets<UnixStream>) -> io::Result<()> {
        let hello = [
            authentication::request(authentication::OK, &[]),
            parameter_status("server_version", "17.0"),
            backend_key_data(self.pid, &self.pid.to_be_bytes()),
            ready_for_query(),
        ];
        packets.write(&hello.concat()).await?;
        'talk: loop {
            let packet = tokio::select! {
                biased;
                () = self.speaks.notified() => None,
                packet = packets.read(1 << 20) => Some(packet?),
            };
            let Some(Packet { tag, body }) = packet else {
                let said = self.unasked.take();
                packets.write(&said).await?;
                continue;
            };
            if tag == b'X' {
                return Ok(());
            }
            if tag == b'Q' {
                let sql = String::from_utf8_lossy(&body[..body.len() - 1]).into_owned();
                self.heard.borrow_mut().push(sql);
            }
            let said = self.fake.borrow_mut().hear(tag, &body);
            packets.write(&said).await?;
            if self.fake.borrow().is_dead() {
                return Ok(());
            }
            while self.is_running() {
                let said = tokio::select! {
                    biased;
                    () = self.canceled.notified() => {
                        let heard = self.heard();
                        let running = heard.into_iter().rfind(|said| said != "cancel");
                        self.hit.borrow_mut().extend(running);
                        self.fake.borrow_mut().cancel()
                    }
                    () = self.finishes.notified() => self.fake.borrow_mut().finish(),
                    () = self.terminated.notified() => self.fake.borrow_mut().die(),
                };
                packets.write(&said).await?;
                if self.fake.borrow().is_dead() {
                    return Ok(());
                }
                if self.fake.borrow().is_idle() {
                    // What comes of a signal from now on comes to the next query.
                    continue 'talk;
                }
            }
            // A signal that came meanwhile has hit what was just answered.
            tokio::select! {
                biased;
                () = self.canceled.notified() => {}
                () = std::future::ready(()) => {}
            }
        }
    }
}

/// A data thread of pgweir: its errands are run, and its sessions live there.
#[derive(Clone)]
pub(super) struct Thread {
    pools: Arc<Pools>,
    pub(super) pool: Arc<Pool>,
    service: ServiceId,
    id: ThreadId,
}

impl Thread {
    /// Threads that share one pool, and where each takes its errands from.
    pub(super) fn several(
        count: u16,
        settings: PoolSettings,
    ) -> Vec<(Self, UnboundedReceiver<Errand>)> {
        let (senders, inboxes): (Vec<_>, Vec<_>) = (0..count).map(|_| unbounded_channel()).unzip();
        let pools = Pools::new(senders);
        let pool = pools.pool("site", "ann", || settings);
        let limits = ServiceLimits {
            max_servers: 0,
            min_servers: 0,
            weight: 1,
            kept_servers: 0,
        };
        let service = pools.service("site", true, limits);
        let threads = (0..count).map(|id| Self {
            pools: Arc::clone(&pools),
            pool: Arc::clone(&pool),
            service,
            id: ThreadId(id),
        });
        threads.zip(inboxes).collect()
    }

    /// Runs errands on the thread that calls.
    pub(super) fn run_errands(mut inbox: UnboundedReceiver<Errand>) {
        spawn_local(async move {
            while let Some(errand) = inbox.recv().await {
                spawn_local(errand.run());
            }
        });
    }

    /// All pools.
    pub(super) fn pools(&self) -> &Arc<Pools> {
        &self.pools
    }

    /// What the pool has.
    pub(super) fn view(&self) -> PoolView {
        self.pool.view().expect("the pool is there").0
    }

    /// A client that is logged in, and its session.
    pub(super) fn client(&self) -> Client {
        self.client_with(&[])
    }

    /// The same, of a client whose sessions are to have these parameters.
    pub(super) fn client_with(&self, parameters: &[(&str, &str)]) -> Client {
        let (near, far) = UnixStream::pair().expect("two sockets");
        let directory = Arc::new(Directory::default());
        let who = Who {
            user: "ann".into(),
            database: "site".into(),
            service: "site".into(),
            ..Who::default()
        };
        let listed = directory.list(Peer::Unix(None), who, 4);
        let entry = Arc::clone(listed.entry());
        let terms = Terms {
            pool: Member::of(Arc::clone(&self.pool)),
            service: self.service,
            thread: self.id,
            mode: self.pool.settings().mode,
            listed,
            seats: Box::default(),
            startup: Arc::new(parameters.iter().copied().collect()),
            prepared: 100,
            simple: true,
        };
        let mut session = Session::new(ClientEnd::new(Stream::Unix(near), LIMIT), terms, None, &[]);
        let attending = Arc::clone(&entry);
        let session = spawn_local(async move {
            std::future::poll_fn(|cx| {
                attending.attend(cx.waker());
                std::pin::Pin::new(&mut session).poll(cx)
            })
            .await
        });
        Client {
            packets: Packets::new(far),
            directory,
            entry,
            session,
        }
    }
}

/// A client, and the session that looks after it.
pub(super) struct Client {
    packets: Packets<UnixStream>,
    directory: Arc<Directory>,
    entry: Arc<Entry>,
    session: JoinHandle<End>,
}

impl Client {
    /// Sends bytes.
    pub(super) async fn send(&mut self, bytes: &[u8]) {
        self.packets.write(bytes).await.expect("pgweir reads");
    }

    /// Sends a query.
    pub(super) async fn query(&mut self, sql: &str) {
        self.send(&query(sql)).await;
    }

    /// Sends a query and waits for the answer.
    pub(super) async fn ask(&mut self, sql: &str) -> String {
        self.query(sql).await;
        self.answer().await
    }

    /// The types of the messages up to ReadyForQuery, and the status.
    pub(super) async fn answer(&mut self) -> String {
        let mut answer = String::new();
        loop {
            let packet = self.packet().await;
            answer.push(packet.tag as char);
            if packet.tag == b'Z' {
                answer.push(packet.body[0] as char);
                return answer;
            }
        }
    }

    /// The next message.
    pub(super) async fn packet(&mut self) -> Packet {
        let packet = tokio::time::timeout(PATIENCE, self.packets.read(1 << 20)).await;
        packet.expect("it comes at once").expect("it comes")
    }

    /// The types of the messages that have come, without waiting for more.
    pub(super) async fn news(&mut self) -> String {
        let mut news = String::new();
        let soon = Duration::from_millis(1);
        while let Ok(packet) = tokio::time::timeout(soon, self.packets.read(1 << 20)).await {
            news.push(packet.expect("it is open").tag as char);
        }
        news
    }

    /// The session as others see it.
    pub(super) fn row(&self) -> ClientRow {
        let row = self.directory.row_of(self.entry.id());
        row.expect("it is listed")
    }

    /// Asks the session something from outside.
    pub(super) fn is_asked(&self, ask: Ask) {
        self.entry.ask(ask);
    }

    /// The janitor comes by at this second.
    pub(super) fn hurry_at(&self, second: u64, patience: Patience) {
        self.directory.set_clock(Duration::from_secs(second));
        self.directory.hurry(&patience, |_| patience);
    }

    /// The reaper passes a sentence on the session, for what it was seen to do.
    pub(super) fn is_condemned(&self, doing: (Activity, u64)) {
        let sentence = Sentence {
            reason: Reason::Stale,
            service: "site".into(),
            deployment: Some("v1".into()),
            by: Some("v2".into()),
            since: Some(SystemTime::UNIX_EPOCH),
            rested: Duration::ZERO,
        };
        let (activity, second) = doing;
        let since = second * 1000;
        self.directory
            .condemn(&self.entry, Doing { activity, since }, sentence);
    }

    /// What the session is seen to do, since which second.
    pub(super) fn doing(&self) -> (Activity, u64) {
        let Doing { activity, since } = self.entry.doing();
        (activity, since / 1000)
    }

    /// Waits until the session is seen to do this.
    pub(super) async fn does(&self, activity: Activity) {
        until("it does it", || self.doing().0 == activity).await;
    }

    /// The one error that it is told at last, and why the session ended.
    pub(super) async fn last_words(mut self) -> (String, &'static str) {
        let packet = self.packet().await;
        assert_eq!(packet.tag as char, 'E');
        let error = crate::wire::reply::ServerError::parse(&packet.body);
        let more = tokio::time::timeout(PATIENCE, self.packets.array::<1>()).await;
        more.expect("it is closed")
            .expect_err("nothing more is said");
        let end = self.end().await;
        (error.code.as_str().to_owned(), end)
    }

    /// Reads to the end, which must come behind whole messages or within one that Postgres began; why the session ended.
    pub(super) async fn rest(mut self) -> &'static str {
        let reading = async {
            while let Ok(packet) = self.packets.read(1 << 20).await {
                let tag = packet.tag as char;
                assert!(matches!(tag, 'D' | 'E'), "{tag} is no message");
            }
        };
        let read = tokio::time::timeout(PATIENCE, reading).await;
        read.expect("it is closed");
        self.end().await
    }

    /// Why the session ended.
    pub(super) async fn end(self) -> &'static str {
        let end = tokio::time::timeout(PATIENCE, self.session).await;
        end.expect("it ends at once")
            .expect("it does not panic")
            .as_str()
    }

    /// Closes the socket, and the janitor comes by.
    pub(super) async fn leaves_and_is_looked_for(self) {
        let Self {
            packets,
            directory,
            session,
            ..
        } = self;
        drop(packets);
        directory.hurry(&Patience::default(), |_| Patience::default());
        let end = tokio::time::timeout(PATIENCE, session).await;
        let end = end.expect("it ends at once").expect("it does not panic");
        assert_eq!(end.as_str(), "client_gone");
    }

    /// Closes the socket without a word.
    pub(super) async fn vanish(self) -> &'static str {
        let Self {
            packets, session, ..
        } = self;
        drop(packets);
        let end = tokio::time::timeout(PATIENCE, session).await;
        end.expect("it ends at once")
            .expect("it does not panic")
            .as_str()
    }
}

/// Waits for `condition`, which comes to pass without anybody doing anything more.
pub(super) async fn until(what: &str, condition: impl Fn() -> bool) {
    let patience = tokio::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(
            tokio::time::Instant::now() < patience,
            "{what} in {PATIENCE:?}"
        );
        // Long enough for the sockets to be looked at.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Lets everybody go on who can, so many times. For what must not happen there is no condition to wait for.
pub(super) async fn turns(count: u32) {
    for _ in 0..count {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Runs `test` on a data thread's kind of runtime.
pub(super) fn on_a_thread<T>(test: impl Future<Output = T>) -> T {
    let mut runtime = Builder::new_current_thread();
    let runtime = runtime.enable_all().build_local(LocalOptions::default());
    runtime.expect("a runtime").block_on(test)
}

/// Runs `test` with a Postgres and one data thread, whose pool has this mode and size.
pub(super) fn with_pool<F: Future<Output = ()>>(
    mode: Mode,
    size: u32,
    test: impl FnOnce(Rc<House>, Thread) -> F,
) {
    on_a_thread(async {
        let house = House::open();
        let mut threads = Thread::several(1, house.settings(mode, size));
        let (thread, inbox) = threads.pop().expect("one");
        Thread::run_errands(inbox);
        test(house, thread).await;
    });
}
