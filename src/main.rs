//! The command line of pgweir.

fn main() {}
