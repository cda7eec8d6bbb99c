//! What is read of single messages and texts: errors, parameters, rows, names of statements, secrets, userlist.txt.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgweir::config::users_file;
use pgweir::server::state::parameter;
use pgweir::wire::md5::Md5Secret;
use pgweir::wire::parameters::row;
use pgweir::wire::reply::{Message, ServerError};
use pgweir::wire::scram::ScramSecret;
use pgweir::wire::statement::{Head, mentioned, of_bind, of_describe_or_close, of_parse};

fuzz_target!(|data: &[u8]| {
    let error = ServerError::parse(data);
    assert_eq!(error.to_bytes(), Message::new(b'E').bytes(data).done());
    let _ = (error.to_string(), parameter(data), row(data));

    for whole in [false, true] {
        let (portal, bind) = of_bind(data, whole);
        assert!(portal <= data.len());
        for head in [
            of_parse(data, whole),
            bind,
            of_describe_or_close(data, whole),
        ] {
            match head {
                Head::Cut => assert!(!whole),
                Head::Named(name, end) => assert!(data[..end - 1].ends_with(name)),
                Head::Malformed | Head::Unnamed | Head::Portal => {}
            }
        }
    }
    if let Some((_, at)) = mentioned(data) {
        assert!(at.end <= data.len());
    }

    let text = String::from_utf8_lossy(data);
    let _ = users_file::parse(&text);
    if let Some(secret) = ScramSecret::parse(&text) {
        assert_eq!(secret.to_string(), text);
    }
    if let Some(secret) = Md5Secret::parse(&text) {
        assert_eq!(secret.to_string(), text);
    }
});
