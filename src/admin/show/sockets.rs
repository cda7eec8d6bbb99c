//! Connections of clients and to Postgres, one by one.

use std::collections::HashMap;
use std::net::SocketAddr;

use super::{Rows, hosts, is_own, port, written};
use crate::admin::command::{Call, Run};
use crate::admin::table::{Cell, Column, Row, int4, int8, text, time};
use crate::client::patience::Activity;
use crate::client::view::{ClientRow, link};
use crate::net::line::TlsInUse;
use crate::net::listen::Peer;
use crate::pool::pools::Purpose;
use crate::pool::view::{ServerRow, ServerState, held};
use crate::row;

/// The columns of a connection.
macro_rules! columns {
    ($($more:expr),*) => {
        &[
            text("type"),
            text("user"),
            text("database"),
            text("replication"),
            text("state"),
            text("addr"),
            int4("port"),
            text("local_addr"),
            int4("local_port"),
            time("connect_time"),
            time("request_time"),
            int4("wait"),
            int4("wait_us"),
            int4("close_needed"),
            text("ptr"),
            text("link"),
            int4("remote_pid"),
            text("tls"),
            text("application_name"),
            int4("prepared_statements"),
            int4("id"),
            $($more),*
        ]
    };
}

/// With those of its buffers. A connection here has none while nothing is in flight, so these are always 0.
const BUFFERED: &[Column] = columns![
    int4("recv_pos"),
    int4("pkt_pos"),
    int4("pkt_remain"),
    int4("send_pos"),
    int4("send_remain"),
    int4("pkt_avail"),
    int4("send_avail")
];

/// SHOW CLIENTS.
pub const CLIENTS: Run = Run::Show {
    columns: columns![],
    rows: |call| {
        let (clients, _) = connections(call);
        Ok(clients.iter().map(|client| client.row("")).collect())
    },
};

/// SHOW SERVERS.
pub const SERVERS: Run = Run::Show {
    columns: columns![],
    rows: |call| {
        let (_, servers) = connections(call);
        Ok(servers
            .iter()
            .map(|server| server_row(server, ""))
            .collect())
    },
};

/// SHOW SOCKETS: both.
pub const SOCKETS: Run = Run::Show {
    columns: BUFFERED,
    rows: |call| Ok(sockets(call, |_| true, |_| true)),
};

/// SHOW ACTIVE_SOCKETS: both, without those that rest.
pub const ACTIVE_SOCKETS: Run = Run::Show {
    columns: BUFFERED,
    rows: |call| {
        let is_busy = |client: &Client| client.row.activity != Activity::Idle;
        Ok(sockets(call, is_busy, |server| {
            server.state != ServerState::Idle
        }))
    },
};

/// SHOW FDS: what would be handed to the next process. That is done in another way than by reading it here, so there are no
/// descriptors, and no secrets ever.
pub const FDS: Run = Run::Show {
    columns: &[
        int4("fd"),
        text("task"),
        text("user"),
        text("database"),
        text("addr"),
        int4("port"),
        int8("cancel"),
        int4("link"),
        text("client_encoding"),
        text("std_strings"),
        text("datestyle"),
        text("timezone"),
        text("password"),
        text("scram_client_key"),
        text("scram_server_key"),
    ],
    rows: fds,
};

/// Sessions and server connections, in the order of their numbers.
fn connections(call: &Call) -> (Vec<Client>, Vec<ServerRow>) {
    let mut servers = call.process.pools().servers();
    let mut clients = call.process.directory().rows();
    servers.sort_unstable_by_key(|row| row.number);
    clients.sort_unstable_by_key(|row| row.id);
    let held = held(&servers);
    link(&mut clients, |id| held.get(&id).copied());
    let of_clients = servers.iter();
    let replications: HashMap<u32, &'static str> = of_clients
        .filter_map(|row| Some((row.client?, replication(row))))
        .collect();
    let config = call.process.config();
    let port = config.listen.addresses.first().map_or(0, SocketAddr::port);
    let client = |row: ClientRow| Client {
        replication: replications.get(&row.id).copied().unwrap_or("none"),
        port,
        row,
    };
    (clients.into_iter().map(client).collect(), servers)
}

/// Those of both that are to be shown, with the columns of their buffers.
fn sockets(
    call: &Call,
    is_shown: impl Fn(&Client) -> bool,
    is_server_shown: impl Fn(&ServerRow) -> bool,
) -> Vec<Row> {
    let (clients, servers) = connections(call);
    let clients = clients.iter().filter(|client| is_shown(client));
    let servers = servers.iter().filter(|server| is_server_shown(server));
    let rows = clients.map(|client| client.row("cl_"));
    let rows = rows.chain(servers.map(|server| server_row(server, "sv_")));
    rows.map(|mut row| {
        row.extend((0..7).map(|_| 0u8.into()));
        row
    })
    .collect()
}

/// A session with what else its row needs.
struct Client {
    row: ClientRow,
    replication: &'static str,
    /// Where the process listens: PgBouncer shows it for unix sockets.
    port: u16,
}

impl Client {
    /// Its row. `prefix`: of its state.
    fn row(&self, prefix: &str) -> Row {
        let Self {
            row,
            replication,
            port,
        } = self;
        let remote = match row.peer {
            Peer::Tcp(address) => Some(address),
            Peer::Unix(_) => None,
        };
        let (address, remote_port) = ends(remote, *port);
        let (local, local_port) = ends(row.line.local, *port);
        let wait = row.wait();
        row![
            "C",
            row.who.user.clone(),
            row.who.database.clone(),
            *replication,
            format!("{prefix}{}", row.state()),
            address,
            remote_port,
            local,
            local_port,
            written(row.connected),
            written(row.requested),
            wait.as_secs(),
            wait.subsec_micros(),
            u8::from(row.close_needed),
            client_pointer(row.id),
            row.server
                .map_or_else(String::new, |server| server_pointer(server.number)),
            match row.peer {
                Peer::Unix(pid) => pid.unwrap_or(0),
                Peer::Tcp(_) => 0,
            },
            tls(row.line.tls),
            row.who.application_name.clone(),
            row.statements,
            row.id,
        ]
    }
}

/// The row of a server connection. `prefix`: of its state.
fn server_row(row: &ServerRow, prefix: &str) -> Row {
    let settings = row.pool.settings();
    let configured = settings.target.hosts.first();
    let session = row.session.as_ref();
    let host = session.map(|session| &session.host).or(configured);
    let port_of_host = host.map_or(0, |host| port(host));
    let (address, remote_port) = match session {
        Some(session) => ends(session.address, port_of_host),
        None => (
            host.map_or_else(String::new, |host| hosts(&[(**host).clone()])),
            port_of_host,
        ),
    };
    let (local, local_port) = match session {
        Some(session) => ends(session.local, port_of_host),
        None => (String::new(), 0),
    };
    let state = match row.state {
        ServerState::New if !prefix.is_empty() => "login",
        state => state.as_str(),
    };
    row![
        "S",
        row.pool.role.to_string(),
        row.pool.database.clone(),
        replication(row),
        format!("{prefix}{state}"),
        address,
        remote_port,
        local,
        local_port,
        session.map_or(Cell::Null, |session| written(session.connected)),
        row.requested.map_or(Cell::Null, written),
        0u8,
        0u8,
        u8::from(row.close_needed),
        server_pointer(row.number),
        row.client.map_or_else(String::new, client_pointer),
        session.map_or(0, |session| session.pid),
        tls(session.and_then(|session| session.tls)),
        session.map_or_else(String::new, |session| session.application_name.clone()),
        session.map_or(0, |session| session.prepared),
        row.number,
    ]
}

#[expect(clippy::unnecessary_wraps, reason = "tables may fail")]
fn fds(call: &Call) -> Rows {
    let (clients, servers) = connections(call);
    let clients = clients.iter().filter(|client| !is_own(&client.row.who));
    let rows = clients.map(|client| ("client", client.row("")));
    let rows = rows.chain(servers.iter().map(|row| ("server", server_row(row, ""))));
    let row = |(task, row): (&'static str, Row)| {
        let of = |index: usize| row[index].clone();
        let mut fds = row![Cell::Null, task, of(1), of(2), of(5), of(6), 0u8, 0u8];
        fds.extend((0..7).map(|_| Cell::Null));
        fds
    };
    Ok(rows.map(row).collect())
}

/// What kind of replication a server connection is for.
fn replication(row: &ServerRow) -> &'static str {
    if !matches!(row.pool.purpose, Purpose::Replication(_)) {
        return "none";
    }
    let settings = row.pool.settings();
    let asked = settings.target.identity.parameters.iter();
    let is_logical = asked
        .filter(|(name, _)| name == "replication")
        .any(|(_, value)| value == "database");
    if is_logical { "logical" } else { "physical" }
}

/// An address, or what PgBouncer says of a unix socket.
fn ends(address: Option<SocketAddr>, port: u16) -> (String, u16) {
    match address {
        Some(address) => (address.ip().to_canonical().to_string(), address.port()),
        None => ("unix".to_owned(), port),
    }
}

/// Where PgBouncer shows an address in its memory there is the number, marked as a client's.
fn client_pointer(id: u32) -> String {
    format!("0xc{id:08x}")
}

/// The same of a server connection.
fn server_pointer(number: u32) -> String {
    format!("0x5{number:08x}")
}

fn tls(tls: Option<TlsInUse>) -> String {
    tls.map_or_else(String::new, |tls| tls.to_string())
}
