//! The Postgres protocol, as values: bytes in, events and bytes out. No socket, no clock, no task.

pub mod edit;
pub mod exchange;
pub mod ldap;
pub mod md5;
pub mod parameters;
pub mod proxy;
pub mod reply;
pub mod scan;
pub mod scram;
pub mod sql;
pub mod startup;
pub mod statement;

/// What a peer did that the protocol does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The length field counts itself, so it is at least four.
    #[error("message {tag:?} has the impossible length {length}")]
    Length {
        /// The message's type byte.
        tag: char,
        /// The length field as sent.
        length: u32,
    },
    /// Longer than this side accepts.
    #[error("message {tag:?} of {length} bytes is longer than the limit of {limit} bytes")]
    TooLong {
        /// The message's type byte.
        tag: char,
        /// The length field as sent.
        length: u32,
        /// The limit that it breaks.
        limit: u32,
    },
    /// A type byte that no message of this direction has.
    #[error("unknown message type {0:?}")]
    UnknownTag(char),
    /// A message whose body does not have the shape that its type asks for.
    #[error("malformed {0} message")]
    Malformed(&'static str),
}
