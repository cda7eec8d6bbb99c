//! What a directory answers, and the filters and names that it is asked for.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgweir::wire::ldap::{escaped, filter, first_message, parse};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(Some(length)) = first_message(bytes) {
        assert!(length <= bytes.len());
        let _ = parse(&bytes[..length]);
    }
    let _ = parse(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = filter::parse(text);
        let _ = escaped(text);
        // Whatever a user is called, it is a value and no part of the filter.
        assert!(filter::parse(&format!("(uid={})", filter::escaped(text))).is_ok());
    }
});
