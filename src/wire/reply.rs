//! Messages that pgweir writes itself, and the reading of errors.

/// Builds one message; its length is filled in by [`Message::done`].
#[derive(Debug)]
pub struct Message(Vec<u8>);

/// Room for most messages: a dozen of them go into every login, and one that grows byte by byte costs more than all the rest.
const USUAL_MESSAGE: usize = 64;

impl Message {
    /// Begins a message of type `tag`.
    pub fn new(tag: u8) -> Self {
        let mut bytes = Vec::with_capacity(USUAL_MESSAGE);
        bytes.extend([tag, 0, 0, 0, 0]);
        Self(bytes)
    }

    /// Appends a byte.
    #[must_use]
    pub fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    /// Appends a 16-bit integer.
    #[must_use]
    pub fn u16(mut self, value: u16) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    /// Appends a 32-bit integer.
    #[must_use]
    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    /// Appends bytes as they are.
    #[must_use]
    pub fn bytes(mut self, value: &[u8]) -> Self {
        self.0.extend(value);
        self
    }

    /// Appends a zero-terminated string; zero bytes within it are left out.
    #[must_use]
    pub fn text(mut self, value: &str) -> Self {
        put_text(&mut self.0, value);
        self
    }

    /// The finished message.
    pub fn done(mut self) -> Vec<u8> {
        put_length(&mut self.0);
        self.0
    }
}

fn put_text(out: &mut Vec<u8>, value: &str) {
    out.reserve(value.len() + 1);
    if value.as_bytes().contains(&0) {
        out.extend(value.bytes().filter(|byte| *byte != 0));
    } else {
        out.extend_from_slice(value.as_bytes());
    }
    out.push(0);
}

/// Writes the length of the one message that `message` is.
fn put_length(message: &mut [u8]) {
    let length = u32::try_from(message.len() - 1).expect("own messages are short");
    message[1..5].copy_from_slice(&length.to_be_bytes());
}

/// A condition code (Postgres manual, "PostgreSQL Error Codes").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SqlState(pub [u8; 5]);

impl SqlState {
    /// protocol_violation
    pub const PROTOCOL_VIOLATION: Self = Self(*b"08P01");
    /// connection_failure
    pub const CONNECTION_FAILURE: Self = Self(*b"08006");
    /// sqlclient_unable_to_establish_sqlconnection
    pub const UNABLE_TO_CONNECT: Self = Self(*b"08001");
    /// feature_not_supported
    pub const NOT_SUPPORTED: Self = Self(*b"0A000");
    /// invalid_authorization_specification
    pub const INVALID_AUTHORIZATION: Self = Self(*b"28000");
    /// invalid_password
    pub const INVALID_PASSWORD: Self = Self(*b"28P01");
    /// invalid_catalog_name
    pub const INVALID_CATALOG_NAME: Self = Self(*b"3D000");
    /// too_many_connections
    pub const TOO_MANY_CONNECTIONS: Self = Self(*b"53300");
    /// out_of_memory
    pub const OUT_OF_MEMORY: Self = Self(*b"53200");
    /// configuration_limit_exceeded
    pub const CONFIGURATION_LIMIT_EXCEEDED: Self = Self(*b"53400");
    /// syntax_error
    pub const SYNTAX_ERROR: Self = Self(*b"42601");
    /// undefined_object
    pub const UNDEFINED_OBJECT: Self = Self(*b"42704");
    /// cant_change_runtime_param
    pub const CANNOT_CHANGE_PARAMETER: Self = Self(*b"55P02");
    /// query_canceled
    pub const QUERY_CANCELED: Self = Self(*b"57014");
    /// successful_completion
    pub const SUCCESSFUL_COMPLETION: Self = Self(*b"00000");
    /// idle_in_transaction_session_timeout
    pub const IDLE_IN_TRANSACTION_TIMEOUT: Self = Self(*b"25P03");
    /// transaction_timeout
    pub const TRANSACTION_TIMEOUT: Self = Self(*b"25P04");
    /// idle_session_timeout
    pub const IDLE_SESSION_TIMEOUT: Self = Self(*b"57P05");
    /// admin_shutdown
    pub const ADMIN_SHUTDOWN: Self = Self(*b"57P01");
    /// config_file_error
    pub const CONFIG_FILE_ERROR: Self = Self(*b"F0000");
    /// internal_error
    pub const INTERNAL_ERROR: Self = Self(*b"XX000");
    /// object_not_in_prerequisite_state
    pub const NOT_IN_PREREQUISITE_STATE: Self = Self(*b"55000");
    /// cannot_connect_now
    pub const CANNOT_CONNECT_NOW: Self = Self(*b"57P03");

    /// The code as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("XX000")
    }
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The statement failed; the session goes on.
    Error,
    /// The session ends.
    Fatal,
}

/// An error or notice that pgweir itself has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Its code.
    pub code: SqlState,
    /// What happened.
    pub message: String,
    /// Numbers and names behind it.
    pub detail: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Report {
    /// A report without detail or hint.
    pub fn new(code: SqlState, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            detail: None,
            hint: None,
        }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the numbers behind it.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// The same as PgBouncer puts it: with its one code, and in its words where they are others.
    #[must_use]
    pub fn as_pgbouncer(mut self, words: Option<String>) -> Self {
        self.code = SqlState::PROTOCOL_VIOLATION;
        if let Some(words) = words {
            self.message = words;
        }
        self
    }

    /// The ErrorResponse message.
    pub fn error(&self, severity: Severity) -> Vec<u8> {
        let severity = match severity {
            Severity::Error => "ERROR",
            Severity::Fatal => "FATAL",
        };
        self.fields(b'E', severity)
    }

    /// The NoticeResponse message.
    pub fn notice(&self) -> Vec<u8> {
        self.fields(b'N', "NOTICE")
    }

    fn fields(&self, tag: u8, severity: &str) -> Vec<u8> {
        let mut message = Message::new(tag)
            .u8(b'S')
            .text(severity)
            .u8(b'V')
            .text(severity);
        message = message
            .u8(b'C')
            .text(self.code.as_str())
            .u8(b'M')
            .text(&self.message);
        for (field, text) in [(b'D', &self.detail), (b'H', &self.hint)] {
            if let Some(text) = text {
                message = message.u8(field).text(text);
            }
        }
        message.u8(0).done()
    }
}

/// What Postgres said in an ErrorResponse, with the bytes to pass on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({})", code.as_str())]
pub struct ServerError {
    /// Its code; `XX000` if it sent none.
    pub code: SqlState,
    /// Its message.
    pub message: String,
    /// The body of the message as it came.
    pub body: Box<[u8]>,
}

impl ServerError {
    /// Reads the body of an ErrorResponse. Whatever is missing or malformed is left empty.
    pub fn parse(body: &[u8]) -> Self {
        let (mut code, mut message) = (SqlState(*b"XX000"), String::new());
        for field in body.split(|byte| *byte == 0) {
            match field.split_first() {
                Some((b'C', text)) => code = SqlState(text.try_into().unwrap_or(*b"XX000")),
                Some((b'M', text)) => message = String::from_utf8_lossy(text).into_owned(),
                _ => {}
            }
        }
        Self {
            code,
            message,
            body: body.into(),
        }
    }

    /// The function of Postgres' source that it comes from: what its message says in any language.
    pub fn routine(&self) -> Option<String> {
        let mut fields = self.body.split(|byte| *byte == 0);
        let routine = fields.find_map(|field| field.strip_prefix(b"R"))?;
        Some(String::from_utf8_lossy(routine).into_owned())
    }

    /// The name that its message mentions first, in double quotes.
    pub fn quoted_name(&self) -> Option<String> {
        self.message.split('"').nth(1).map(str::to_owned)
    }

    /// The message to pass on to a client whose session ends with it.
    pub fn to_fatal(&self) -> Vec<u8> {
        let mut message = Message::new(b'E');
        for field in self.body.split(|byte| *byte == 0) {
            message = match field.split_first() {
                Some((b'S', _)) => message.u8(b'S').text("FATAL"),
                Some((b'V', _)) => message.u8(b'V').text("FATAL"),
                Some(_) => message.bytes(field).u8(0),
                None => message,
            };
        }
        message.u8(0).done()
    }

    /// The message to pass on to a client.
    pub fn to_bytes(&self) -> Vec<u8> {
        Message::new(b'E').bytes(&self.body).done()
    }
}

/// AuthenticationRequest codes (Postgres manual, "Message Formats").
pub mod authentication {
    use super::Message;

    /// AuthenticationOk.
    pub const OK: u32 = 0;
    /// AuthenticationCleartextPassword.
    pub const CLEARTEXT: u32 = 3;
    /// AuthenticationMD5Password.
    pub const MD5: u32 = 5;
    /// AuthenticationSASL.
    pub const SASL: u32 = 10;
    /// AuthenticationSASLContinue.
    pub const SASL_CONTINUE: u32 = 11;
    /// AuthenticationSASLFinal.
    pub const SASL_FINAL: u32 = 12;

    /// An authentication request with its data.
    pub fn request(code: u32, data: &[u8]) -> Vec<u8> {
        Message::new(b'R').u32(code).bytes(data).done()
    }
}

/// ParameterStatus.
pub fn parameter_status(name: &str, value: &str) -> Vec<u8> {
    let mut message = Vec::new();
    parameter_status_into(name, value, &mut message);
    message
}

/// Appends a ParameterStatus. Each login has a dozen of them.
pub fn parameter_status_into(name: &str, value: &str, out: &mut Vec<u8>) {
    let from = out.len();
    out.extend_from_slice(&[b'S', 0, 0, 0, 0]);
    put_text(out, name);
    put_text(out, value);
    put_length(&mut out[from..]);
}

/// BackendKeyData.
pub fn backend_key_data(pid: u32, secret: &[u8]) -> Vec<u8> {
    Message::new(b'K').u32(pid).bytes(secret).done()
}

/// ReadyForQuery, outside a transaction.
pub fn ready_for_query() -> Vec<u8> {
    Message::new(b'Z').u8(b'I').done()
}

/// Query (simple protocol).
pub fn query(sql: &str) -> Vec<u8> {
    Message::new(b'Q').text(sql).done()
}

/// Terminate.
pub const TERMINATE: [u8; 5] = [b'X', 0, 0, 0, 4];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_error_names_severity_twice_code_and_message() {
        let bytes = Report::new(SqlState::TOO_MANY_CONNECTIONS, "full")
            .hint("wait")
            .error(Severity::Fatal);
        assert_eq!(
            bytes,
            b"E\0\0\0\x26SFATAL\0VFATAL\0C53300\0Mfull\0Hwait\0\0"
        );
    }

    proptest! {
        #[test]
        fn an_error_survives_the_trip(message in "[^\0]{0,30}", code in proptest::array::uniform5(b'0'..=b'9')) {
            let bytes = Report::new(SqlState(code), message.clone()).error(Severity::Error);
            let error = ServerError::parse(&bytes[5..]);
            prop_assert_eq!((error.code, &error.message), (SqlState(code), &message));
            prop_assert_eq!(error.to_bytes(), bytes);
        }

        #[test]
        fn arbitrary_errors_never_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = format!("{}", ServerError::parse(&body));
        }
    }
}
