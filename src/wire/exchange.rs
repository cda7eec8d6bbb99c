//! What is outstanding between one client and the server connection it holds.
//!
//! [`Exchange`] sees the type of every message in both directions and answers one question: does the server owe
//! nothing, outside a transaction? Where the two directions race and the answer cannot be known, it says no: the
//! connection then stays with this client, which is always safe. (Postgres manual, "Message Flow".)

/// The status byte of ReadyForQuery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// `I`: outside a transaction.
    Idle,
    /// `T`: inside a transaction block.
    InTransaction,
    /// `E`: inside a failed transaction block.
    Failed,
}

impl Status {
    fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            b'I' => Some(Self::Idle),
            b'T' => Some(Self::InTransaction),
            b'E' => Some(Self::Failed),
            _ => None,
        }
    }
}

/// The sub-protocol that a COPY switches to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Copy {
    /// None is running.
    No,
    /// The server reads CopyData. `syncs`: Syncs were sent meanwhile, which it ignores, unless it has failed already.
    In { syncs: bool },
    /// CopyDone or CopyFail is on its way; the server has not answered yet.
    Ending { syncs: bool },
    /// Streaming replication: both read and write until the end of the connection.
    Both,
}

/// State of the conversation over one lease. Begins settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exchange {
    /// ReadyForQuery owed for Query and FunctionCall messages.
    owed_simple: u32,
    /// ReadyForQuery owed for Sync messages.
    owed_sync: u32,
    /// Extended-protocol messages were sent since the last Sync: the server waits for one.
    batch_open: bool,
    /// The COPY that runs, if any.
    copy: Copy,
    /// As of the last ReadyForQuery.
    status: Status,
    /// The directions raced so that the count may be off: never settled again.
    lost_count: bool,
}

impl Default for Exchange {
    fn default() -> Self {
        Self {
            owed_simple: 0,
            owed_sync: 0,
            batch_open: false,
            copy: Copy::No,
            status: Status::Idle,
            lost_count: false,
        }
    }
}

impl Exchange {
    /// Whether the server owes nothing and is outside a transaction.
    pub fn is_settled(&self) -> bool {
        self.is_answered() && self.status == Status::Idle
    }

    /// Whether every request was answered, inside a transaction or not.
    pub fn is_answered(&self) -> bool {
        self.owed_simple == 0
            && self.owed_sync == 0
            && !self.batch_open
            && self.copy == Copy::No
            && !self.lost_count
    }

    /// Whether every request was answered and a transaction block is open.
    pub fn is_in_transaction(&self) -> bool {
        self.is_answered() && self.status != Status::Idle
    }

    /// The transaction status of the last ReadyForQuery.
    pub fn status(&self) -> Status {
        self.status
    }

    /// Whether the server answers nothing more until it gets a Sync.
    pub fn needs_sync(&self) -> bool {
        self.batch_open
    }

    /// Whether the server waits for CopyData.
    pub fn in_copy_in(&self) -> bool {
        matches!(self.copy, Copy::In { .. })
    }

    /// Notes a message that the client sent to the server.
    pub fn client_sent(&mut self, tag: u8) {
        match tag {
            b'Q' | b'F' => self.owed_simple += 1,
            b'S' => self.sync(),
            b'P' | b'B' | b'D' | b'E' | b'C' => self.batch_open = true,
            // Flush alone opens nothing, but inside a batch the batch goes on; inside COPY IN it is ignored.
            b'c' | b'f' => {
                if let Copy::In { syncs } = self.copy {
                    self.copy = Copy::Ending { syncs };
                }
            }
            _ => {}
        }
    }

    fn sync(&mut self) {
        // Sync inside COPY IN gets no reply, so nothing is owed for it, unless the server has failed meanwhile.
        if let Copy::In { syncs } = &mut self.copy {
            *syncs = true;
            return;
        }
        self.owed_sync += 1;
        self.batch_open = false;
    }

    /// Notes a message that the server sent to the client. `body` begins the message's body: one byte of
    /// ReadyForQuery's is enough.
    pub fn server_sent(&mut self, tag: u8, body: &[u8]) {
        match tag {
            b'Z' => self.ready(body),
            b'G' => self.copy_in_begins(),
            b'W' => self.copy = Copy::Both,
            b'C' => self.copy_ended(false),
            b'E' => self.copy_ended(true),
            _ => {}
        }
    }

    fn ready(&mut self, body: &[u8]) {
        match body.first().and_then(|byte| Status::from_byte(*byte)) {
            Some(status) => self.status = status,
            None => self.lost_count = true,
        }
        // With both kinds in flight it may be the wrong one. The sum is right, and the kind matters only when a COPY
        // begins, where a mixture gives the count up.
        if self.owed_sync > 0 {
            self.owed_sync -= 1;
        } else if self.owed_simple > 0 {
            self.owed_simple -= 1;
        } else {
            self.lost_count = true;
        }
    }

    fn copy_in_begins(&mut self) {
        if self.owed_sync > 0 {
            // The Syncs sent behind this Execute reach a server in COPY IN, which ignores them; the batch is open
            // until the client sends another. Queries pipelined behind them would make the copy fail: count lost.
            self.lost_count |= self.owed_simple > 0 || self.owed_sync > 1;
            self.owed_sync = 0;
            self.batch_open = true;
        } else {
            self.lost_count |= self.owed_simple > 1;
        }
        self.copy = Copy::In { syncs: false };
    }

    fn copy_ended(&mut self, failed: bool) {
        match self.copy {
            Copy::In { syncs } | Copy::Ending { syncs } => {
                // A Sync sent before the failure was seen: ignored by the copy, or answered after it? Unknown.
                self.lost_count |= failed && syncs;
                self.copy = Copy::No;
            }
            Copy::No | Copy::Both => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays `script`: client messages as their letter, server messages after `<`, ReadyForQuery as `<ZI`.
    fn play(script: &str) -> Exchange {
        let mut exchange = Exchange::default();
        for step in script.split_whitespace() {
            match step.as_bytes() {
                [b'<', tag, body @ ..] => exchange.server_sent(*tag, body),
                tags => tags.iter().for_each(|tag| exchange.client_sent(*tag)),
            }
        }
        exchange
    }

    #[test]
    fn settled_and_not() {
        let cases = [
            ("", true, "nothing was asked"),
            ("Q", false, "a query is running"),
            ("Q <T <D <C <ZI", true, "it is answered"),
            ("Q <C <ZT", false, "a transaction is open"),
            ("Q <C <ZT Q <E <ZE", false, "it failed, and is still open"),
            ("Q <C <ZT Q <C <ZI", true, "it was committed"),
            ("QQQ <C <ZI <C <ZI", false, "the third query is still owed"),
            ("PBES", false, "Sync is owed"),
            ("PBES <1 <2 <C <ZI", true, "extended query answered"),
            ("P", false, "a Parse without Sync keeps the lease"),
            ("PBEH <1 <2 <C", false, "Flush is no Sync"),
            ("PBEH <1 <2 <C S <ZI", true, "the late Sync is answered"),
            ("PBESPBES <1 <2 <C <ZI", false, "two Syncs in flight"),
            ("PBESPBES <E <ZI <E <ZI", true, "both answered, with errors"),
            ("H", true, "a Flush alone opens nothing"),
            ("F <V <ZI", true, "function call"),
            ("Q <G", false, "COPY IN runs"),
            ("Q <G dddc <C <ZI", true, "COPY IN, simple"),
            ("Q <G ddf <E <ZI", true, "CopyFail"),
            (
                "Q <G dd <E <ZI dd c",
                true,
                "failed half-way; what is still sent is ignored by the server",
            ),
            (
                "Q <G S dc <C <ZI",
                true,
                "Sync inside COPY IN is not answered",
            ),
            (
                "PBES <1 <2 <G",
                false,
                "COPY IN, extended; the Sync was swallowed",
            ),
            ("PBES <1 <2 <G ddc", false, "it must be sent again"),
            ("PBES <1 <2 <G ddc S <C <ZI", true, "and is answered"),
            (
                "PBES <1 <2 <G dd <E",
                false,
                "failed; the server skips to the next Sync",
            ),
            ("PBES <1 <2 <G dd <E c S <ZI", true, "which is answered"),
            (
                "PBES <1 <2 <G ddc S <E <ZI",
                true,
                "the error and the end crossed",
            ),
            ("PBEH <1 <2 <G ddc S <C <ZI", true, "tokio-postgres' way"),
            ("Q <H <d <d <c <C <ZI", true, "COPY OUT"),
            ("Q <W", false, "replication never settles"),
            ("Q <W c <c <C", false, "not even so"),
        ];
        for (script, settled, why) in cases {
            assert_eq!(play(script).is_settled(), settled, "{script}: {why}");
        }
    }

    #[test]
    fn where_the_directions_race_it_never_settles() {
        for script in [
            "<ZI",
            "Q <ZI <ZI",
            "Q <G S <E <ZI",
            "Q <Z?",
            "Q <Z",
            "PBESPBES <1 <2 <G c S <C <ZI",
            "QQ <G dc <C <ZI <C <ZI",
        ] {
            let exchange = play(script);
            assert!(!exchange.is_settled(), "{script}");
            let mut later = exchange;
            later.client_sent(b'Q');
            later.server_sent(b'Z', b"I");
            assert!(!later.is_settled(), "{script}, and one query later");
        }
    }
}
