//! Whole sessions, through real pools, with a fake Postgres behind a unix socket.

mod cancels;
mod house;
mod leases;
mod patience;
mod reaped;
mod size;
mod threads;
mod vanishing;
mod views;
