//! Choices without a socket or a task: which service a session belongs to, how many server connections a Postgres may have from
//! us, when somebody is told.

pub mod alert;
pub mod budget;
pub mod service;
