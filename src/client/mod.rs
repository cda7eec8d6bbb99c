//! From accept to "logged in", and who is connected.

pub mod credentials;
pub mod directory;
pub mod end;
pub mod greet;
pub mod ldap;
pub mod login;
#[cfg(feature = "pam")]
pub mod pam;
pub mod patience;
pub mod reaped;
pub mod statements;
pub mod view;
