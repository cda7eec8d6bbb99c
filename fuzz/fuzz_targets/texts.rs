//! What is read outside of a dialogue: errors, parameters, secrets, userlist.txt.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgweir::config::users_file;
use pgweir::server::login::parameter;
use pgweir::wire::md5::Md5Secret;
use pgweir::wire::reply::{Message, ServerError};
use pgweir::wire::scram::ScramSecret;

fuzz_target!(|data: &[u8]| {
    let error = ServerError::parse(data);
    assert_eq!(error.to_bytes(), Message::new(b'E').bytes(data).done());
    let _ = (error.to_string(), parameter(data));

    let text = String::from_utf8_lossy(data);
    let _ = users_file::parse(&text);
    if let Some(secret) = ScramSecret::parse(&text) {
        assert_eq!(secret.to_string(), text);
    }
    if let Some(secret) = Md5Secret::parse(&text) {
        assert_eq!(secret.to_string(), text);
    }
});
