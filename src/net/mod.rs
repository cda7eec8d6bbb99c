//! Sockets and buffers. Knows nothing of Postgres.

pub mod end;
pub mod line;
pub mod listen;
pub mod names;
pub mod packet;
pub mod side;
pub mod stream;
pub mod tls;
