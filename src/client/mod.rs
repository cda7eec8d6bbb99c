//! From accept to "logged in", and who is connected.

pub mod credentials;
