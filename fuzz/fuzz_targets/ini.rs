//! PgBouncer's files: whatever stands in them, they are read, and what is written from them is read again.
#![no_main]

use std::io;
use std::net::IpAddr;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use pgweir::config::ini::{Surroundings, import};
use pgweir::config::{hba_file, ident_file, parse};

/// One file, which may include itself.
struct One<'a>(&'a [u8]);

impl Surroundings for One<'_> {
    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        match path {
            "f" => Ok(self.0.to_vec()),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        host.parse().map(|ip| vec![ip]).map_err(io::Error::other)
    }

    fn home(&self) -> Option<String> {
        None
    }
}

fuzz_target!(|data: &[u8]| {
    if let Ok(imported) = import("f", &One(data)) {
        let again = parse(&imported.toml, "f", &|_| panic!("no variable is looked up"));
        assert_eq!(again, Ok(imported.config));
    }
    let text = String::from_utf8_lossy(data);
    let _ = hba_file::parse(&text, Path::new("/nonexistent/hba"));
    let _ = ident_file::parse(&text);
});
