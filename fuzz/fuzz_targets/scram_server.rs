//! A client that logs in: its first and its final message.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgweir::wire::scram::{ChannelBinding, ScramSecret, ServerExchange};

fuzz_target!(|lines: &[u8]| {
    let mut lines = lines.splitn(3, |byte| *byte == b'\n');
    let mut line = || lines.next().unwrap_or_default();
    let binding = match line() {
        b"not offered" => ChannelBinding::NotOffered,
        b"declined" => ChannelBinding::Declined,
        hash => ChannelBinding::Chosen(hash),
    };
    let (client_first, client_final) = (line(), line());
    let secret = ScramSecret {
        iterations: 4096,
        salt: b"salt".to_vec(),
        stored_key: [1; 32],
        server_key: [2; 32],
    };
    if let Ok((exchange, _)) = ServerExchange::begin(client_first, "ours", &secret, binding) {
        // Nobody knows a key whose hash is all ones.
        assert!(exchange.finish(client_final).is_err());
    }
});
