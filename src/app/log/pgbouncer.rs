//! Lines as PgBouncer writes them, for whoever searches its log by machine:
//! `2026-11-27 19:12:00.123 UTC [4711] LOG C-0x2a: shop/alice@10.0.0.1:50123 closing because: client close request (age=3s)`.

use std::fmt::{self, Debug, Write};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Writes such lines.
#[derive(Debug)]
pub(super) struct Lines {
    /// That of the unix socket, which stands behind clients who came by it.
    pub(super) port: u16,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut to: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut said = Said {
            port: self.port,
            ..Said::default()
        };
        event.record(&mut said);
        let now = Timestamp::now()
            .to_zoned_datetime(TimeZone::system())
            .strftime("%Y-%m-%d %H:%M:%S%.3f %Z")
            .to_string();
        let level = level(*event.metadata().level());
        writeln!(to, "{now} [{}] {level} {}", std::process::id(), said.line())
    }
}

/// PgBouncer's word for a level.
fn level(level: Level) -> &'static str {
    match level {
        Level::ERROR => "ERROR",
        Level::WARN => "WARNING",
        Level::INFO => "LOG",
        Level::DEBUG => "DEBUG",
        Level::TRACE => "NOISE",
    }
}

/// What a line has to say.
#[derive(Debug, Default)]
struct Said {
    message: String,
    /// The whole of it in PgBouncer's words, where it has any.
    words: Option<String>,
    id: u64,
    user: Option<String>,
    database: Option<String>,
    peer: Option<String>,
    /// Where a server connection leads.
    server: Option<String>,
    others: String,
    /// Of the unix socket.
    port: u16,
}

impl Said {
    fn line(&self) -> String {
        let mut line = String::new();
        let client = self.peer.as_ref().map(|peer| ('C', peer));
        let whose = client.or(self.server.as_ref().map(|server| ('S', server)));
        if let Some((kind, place)) = whose {
            let database = self.database.as_deref().unwrap_or("(nodb)");
            let user = self.user.as_deref().unwrap_or("(nouser)");
            line = format!("{kind}-{:#x}: {database}/{user}@{place}", self.id);
            // The process id, if there is one, tells no two of its clients apart.
            if kind == 'C' && place.starts_with("unix") {
                let _ = write!(line, ":{}", self.port);
            }
            line.push(' ');
        }
        if let Some(words) = &self.words {
            line.push_str(words);
        } else {
            line.push_str(&self.message);
            line.push_str(&self.others);
        }
        // A name may hold anything, and a line is a line.
        line.replace(['\n', '\r'], " ")
    }

    fn take(&mut self, field: &Field, value: String) {
        match field.name() {
            "message" => self.message = value,
            "said" => self.words = Some(value),
            "user" => self.user = Some(value),
            "database" => self.database = Some(value),
            "peer" => self.peer = Some(value),
            "server" => self.server = Some(value),
            name => {
                let _ = write!(self.others, " {name}={value}");
            }
        }
    }
}

impl Visit for Said {
    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "id" {
            self.id = value;
        } else {
            self.take(field, value.to_string());
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.take(field, format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_of_the_unix_socket_has_its_port() {
        let said = Said {
            message: "login".to_owned(),
            peer: Some("unix(4711)".to_owned()),
            port: 6432,
            ..Said::default()
        };
        assert_eq!(said.line(), "C-0x0: (nodb)/(nouser)@unix(4711):6432 login");
    }

    #[test]
    fn a_line_about_a_client_begins_with_who_it_is() {
        let mut said = Said {
            message: "login".to_owned(),
            others: " service=site".to_owned(),
            ..Said::default()
        };
        assert_eq!(said.line(), "login service=site");
        said.peer = Some("10.0.0.1:4711".to_owned());
        assert_eq!(
            said.line(),
            "C-0x0: (nodb)/(nouser)@10.0.0.1:4711 login service=site"
        );
        let server = Said {
            server: said.peer.take(),
            ..Said::default()
        };
        assert_eq!(server.line(), "S-0x0: (nodb)/(nouser)@10.0.0.1:4711 ");
        said.peer = server.server;
        (said.id, said.user) = (42, Some("alice\nROOT".to_owned()));
        said.database = Some("shop".to_owned());
        said.words = Some("closing because: client close request (age=3s)".to_owned());
        assert_eq!(
            said.line(),
            "C-0x2a: shop/alice ROOT@10.0.0.1:4711 closing because: client close request (age=3s)"
        );
    }
}
