//! One client's life after login.

pub mod adopt;
pub mod relay;
pub mod run;
pub mod translate;

#[cfg(test)]
mod fake;
