//! The relay between scripted peers, over pipes so narrow that every message is cut.

mod conversation;
mod peers;
mod sends;
mod traps;
