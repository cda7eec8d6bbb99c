//! What a load balancer says in front of a client.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgweir::wire::proxy::parse;

fuzz_target!(|bytes: &[u8]| if let Ok(Some((_, length))) = parse(bytes) {
    assert!(length <= bytes.len());
    assert_eq!(parse(&bytes[..length - 1]), Ok(None));
});
