//! A client's first packet.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgweir::wire::parameters::Parameters;
use pgweir::wire::startup::{Initial, cancel_request, parse};

fuzz_target!(|body: &[u8]| match parse(body) {
    Ok(Initial::Startup(startup)) => {
        assert!(!startup.user.is_empty() && !startup.database.is_empty());
        let _ = startup.negotiate();
        if let Ok(parameters) = Parameters::of_startup(&startup, &[]) {
            assert!(parameters.change_from(&parameters).is_none());
            let _ = parameters.change_from(&Parameters::default());
        }
    }
    Ok(Initial::Cancel(key)) => assert_eq!(cancel_request(&key)[4..], *body),
    Ok(Initial::SslRequest | Initial::GssEncRequest) | Err(_) => {}
});
