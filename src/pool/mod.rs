//! Who may have which server connection.

pub mod book;
