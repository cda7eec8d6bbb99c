//! A Postgres that pgweir logs in to: its challenge and its signature.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgweir::wire::scram::{ClientAuth, ClientBinding, ClientExchange, ClientKeys, ScramKeys};

fuzz_target!(|lines: &[u8]| {
    let mut lines = lines.splitn(2, |byte| *byte == b'\n');
    let mut line = || lines.next().unwrap_or_default();
    let (server_first, server_final) = (line(), line());
    // Keys and no password: nothing is derived, however many iterations are asked for.
    let auth = ClientAuth::Keys(ScramKeys {
        keys: ClientKeys {
            client_key: [1; 32],
            server_key: [2; 32],
        },
        salt: b"salt".to_vec(),
        iterations: 4096,
    });
    let (exchange, _) =
        ClientExchange::begin("ours".to_owned(), auth, ClientBinding::EndPoint(b"hash"));
    if let Ok((answered, _)) = exchange.answer(server_first) {
        let _ = answered.verify(server_final);
    }
});
