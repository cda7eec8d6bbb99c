//! Who may have which server connection.

pub mod book;
pub mod errand;
pub mod lease;
pub mod pools;
pub mod postgres;
pub mod stats;
pub mod view;
