//! A client's first packet.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgweir::wire::startup::{Initial, cancel_request, parse};

fuzz_target!(|body: &[u8]| match parse(body) {
    Ok(Initial::Startup(startup)) => {
        assert!(!startup.user.is_empty() && !startup.database.is_empty());
        let _ = (startup.negotiate(), startup.parameter("options"));
    }
    Ok(Initial::Cancel(key)) => assert_eq!(cancel_request(&key)[4..], *body),
    Ok(Initial::SslRequest | Initial::GssEncRequest) | Err(_) => {}
});
