//! `pooler.toml`: read, checked as a whole, compared with the one before.

pub mod checked;
