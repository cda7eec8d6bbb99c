//! A Postgres that pgweir logs in to: all that it says.
#![no_main]

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use libfuzzer_sys::fuzz_target;
use pgweir::net::packet::Packets;
use pgweir::server::login::{Identity, ServerLogin, login};
use pgweir::wire::scram::{ClientKeys, ScramKeys};

fuzz_target!(|said: &[u8]| {
    let identity = Identity {
        user: "user".to_owned(),
        database: "database".to_owned(),
        proof: ServerLogin::Keys(ScramKeys {
            keys: ClientKeys {
                client_key: [1; 32],
                server_key: [2; 32],
            },
            salt: b"salt".to_vec(),
            iterations: 4096,
        }),
        application_name: String::new(),
        parameters: vec![],
        minor: 2,
    };
    let mut packets = Packets::new(tokio::io::join(said, tokio::io::sink()));
    let mut dialogue = pin!(login(&mut packets, &identity, Some(b"hash")));
    let ended = dialogue
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(ended, Poll::Ready(_)), "neither side blocks");
});
