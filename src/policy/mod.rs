//! Choices without a socket or a task: which service and deployment a session belongs to, which deployments count, which
//! sessions have outlived theirs, how many server connections a Postgres may have from us, when somebody is told.

pub mod alert;
pub mod budget;
pub mod deployment;
pub mod reaper;
pub mod service;
