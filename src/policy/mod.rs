//! Choices without a socket or a task: which service a session belongs to.

pub mod service;
