//! One client's life after login.

pub mod relay;
pub mod run;

#[cfg(test)]
mod fake;
