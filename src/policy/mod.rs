//! Choices without a socket or a task: which service and deployment a session belongs to, which deployments count, and which
//! sessions have outlived theirs.

pub mod deployment;
pub mod reaper;
pub mod service;
