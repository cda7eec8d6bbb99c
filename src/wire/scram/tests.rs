use std::cell::Cell;
use std::sync::Arc;

use postgres_protocol::authentication::sasl;
use proptest::prelude::*;

use super::*;

thread_local! {
    /// How often this test thread has run PBKDF2.
    pub(super) static PBKDF2_RUNS: Cell<u32> = const { Cell::new(0) };
}

const SERVER_NONCE: &str = "3rfcNHYJY1ZVvWVs7j";
const CLIENT_NONCE: &str = "fyko+d2lbbFgONRv9q";
const FIRST: &[u8] = b"n,,n=,r=fyko+d2lbbFgONRv9q";

/// How often `work` runs PBKDF2.
pub(crate) fn pbkdf2_runs<T>(work: impl FnOnce() -> T) -> u32 {
    let before = PBKDF2_RUNS.get();
    let _ = work();
    PBKDF2_RUNS.get() - before
}

/// Few iterations: the tests that use it are about messages.
fn secret(password: &[u8]) -> ScramSecret {
    ScramSecret::derive(password, b"0123456789abcdef", 2)
}

fn begin(client_first: &[u8]) -> Result<(ServerExchange, Vec<u8>), ScramError> {
    let binding = ChannelBinding::NotOffered;
    ServerExchange::begin(client_first, SERVER_NONCE, &secret(b"pencil"), binding)
}

fn password(password: impl AsRef<[u8]>) -> ClientAuth {
    ClientAuth::Password(Arc::new(KeyCache::new(password)))
}

/// A whole login; gives the client key that the server learned.
fn log_in(auth: ClientAuth, secret: &ScramSecret) -> Result<[u8; 32], ScramError> {
    let (client, first) = ClientExchange::begin(CLIENT_NONCE.into(), auth, ClientBinding::Unable);
    let (server, challenge) =
        ServerExchange::begin(&first, SERVER_NONCE, secret, ChannelBinding::Declined)?;
    let (client, last) = client.answer(&challenge)?;
    let verified = server.finish(&last)?;
    client.verify(&verified.server_final)?;
    Ok(verified.client_key)
}

/// An exchange before its last client message, and that message.
fn before_finish() -> (ServerExchange, String) {
    let (client, first) = ClientExchange::begin(
        CLIENT_NONCE.into(),
        password("pencil"),
        ClientBinding::Unable,
    );
    let (server, challenge) = begin(&first).unwrap();
    let (_, last) = client.answer(&challenge).unwrap();
    (server, String::from_utf8(last).unwrap())
}

#[test]
fn the_exchange_of_rfc_7677_is_reproduced() {
    let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
    let secret = ScramSecret::derive(b"pencil", &salt, 4096);
    let (server, challenge) = ServerExchange::begin(
        b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO",
        "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0",
        &secret,
        ChannelBinding::NotOffered,
    )
    .unwrap();
    assert_eq!(
        challenge,
        b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    );
    let verified = server
        .finish(
            b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
              p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
        )
        .unwrap();
    assert_eq!(
        verified.server_final,
        b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
    );
    let keys = ClientKeys::derive(b"pencil", &salt, 4096);
    assert_eq!(verified.client_key, keys.client_key);
}

/// Secrets that a Postgres 15 made: `CREATE ROLE .. PASSWORD ..`, then `pg_authid.rolpassword`.
#[test]
fn passwords_become_the_secrets_that_postgres_makes_of_them() {
    let of_postgres = [
        // ASCII; with a control character
        (
            "pencil",
            "Csh4NksNtmvb+auqdt1RGg==$KUzftBfGgeZ1Tfk5PwHQImzqyIvrgja2jkEIPpm1G8c=:n2rdSnc1gB1bJHZrbahx2xqXm/m9n9WKbwPulPttww4=",
        ),
        (
            "tab\tx",
            "+sYTeuykRJqGl0q3LzahiA==$dRm1STDqLKsuWkqb+PC6ConrV+bG0VWJ7UM/vEgQlj0=:JgvGLmordCjoXL9KyJhkbpp1pazi5UrwNRUyQInmvns=",
        ),
        // Normalized; with what Unicode 3.2 did not know; with a control character
        (
            "pa\u{308}ss",
            "Y1M13V6XX8VyQManEc6uBQ==$67ZX/74G3YBiOZGqplVUSQHVVtifs+8zUfywfvjMTCs=:TemDRCn6a/q6nEVv7wrhtCyLI14t9q9lAUk76C+GgGM=",
        ),
        (
            "pa\u{308}ss\u{1f600}",
            "yY2r2hPqtqUae5qy+Ul4Zg==$VOpGlST1x1F+/AB9xTLLOyjvKWEuq4thgtibF6WhKRk=:nL7BpmXrP5qMPUgIH6GMZwriSmh4+k01sDD7Cz/cB2M=",
        ),
        (
            "a\u{308}\u{7}",
            "l1wLUBfm31kMJdmIM4QM3g==$cvcNMwED633PkgFVgllHhEosGDVq3/3YPI1hSmFqutc=:LW0R73xQdKVTLEQeQnreofTLdyrP1XDjC6MmlwRpIsY=",
        ),
        // Mapped to nothing at all; to spaces; in part
        (
            "\u{ad}",
            "SE4G98lsT7EpO+WRXXnC5A==$zutUIziKhHlM1EJEwPL9MqqvJSqHdubEYkVdbwfenxc=:X4PaEKWdT3d5msd94VRBHEv4lovU0jt1gH6p40kj2/8=",
        ),
        (
            "a\u{a0}b\u{200b}c",
            "HIs5LJvP6t4JEZ9zs5/1LQ==$25dTpXaBEBdvh8vsiWxdz8YVo7n6bB7JIY58leCJcgk=:0rsPZed7RPwEmRJ0JUQkDWLdzFGS/0IhgqiE/BKE/Hc=",
        ),
        (
            "I\u{ad}X",
            "TwiG5B034X/HKSQaaKx16w==$NdQSPfjQke4Vd4eI9COt93gYqkONBM7ICWGpxanJbJQ=:siQvjcrtnzDvijSbQ/eVjnp/o5m3Y0Ewqm1+hLXRNGw=",
        ),
        // A space of no width alone; a letter that Unicode 3.2 did not know, with a compatibility form that it did
        (
            "\u{200b}",
            "o3lGOjgVvoYYA+XzwRomDA==$QPUNb+gQWc2kF8Qer/bqwqWe6jc7aHtP23zRl/fOoEY=:4hhgcV4sv2sYpcMzmIWfTAeOY+RKVB5RPb0V+I0VIIY=",
        ),
        (
            "a\u{2c7c}",
            "H4X3bVZkB1Fi/51eSKdDjA==$8PMQNtH03D3rpU/qWfddVMXaII5fleoJC5Bb579nCP8=:njFMTiKjl7soBiUXOWaO+Il3JFg4U8pOQDjQmyP/Yv8=",
        ),
        // Right to left, mixed and alone
        (
            "\u{5d0}a",
            "BaAq84aQBQSH90k4rSvhHw==$kRJwjPrMUqzDb4kGvJn0uTno6RFydtMpNCqsSqTwavE=:Vk0aTKbp9vyp7u1Y3rEHZ71GOsNlGKEXT5qAGxCTox4=",
        ),
        (
            "\u{5d0}\u{5d1}",
            "rOl6JHakND19gdU+XL/wNw==$wL6EYs8s1EEOaq//4vH8/g1xuQ7AZsx8t3OyiPIk0DE=:a6TYwjNE9//j1JwAue7wHs8w3RIg5Vk5V+ZDFcigFIE=",
        ),
        // Forbidden before, allowed after the normalization; compatibility forms
        (
            "x\u{340}y\u{fb01}",
            "8VgdjvwqX/rqGbPz/PgmZw==$+dDD1jnoUtObCrnkHDAlxyrHRq/mc5qv4TEp57JSQPc=:86bQzvFPFFrUsWA5z4ClpBx2aeoaeP6nmyVLCClrq5c=",
        ),
        (
            "\u{aa}\u{2168}",
            "aA+VnB6aAK6POnPLAsKnFA==$0bazacawTDOnp0cOqYN10tK/Cnbg3WTxJbpU0opy+fM=:U1lmwSS/jRjkxIomxdDVjPr7upC4Gn8ZxUHTStsTJr0=",
        ),
    ];
    for (password, text) in of_postgres {
        let text = format!("SCRAM-SHA-256$4096:{text}");
        let theirs = ScramSecret::parse(&text).unwrap();
        let ours = ScramSecret::derive(password.as_bytes(), &theirs.salt, 4096);
        assert_eq!(ours.to_string(), text, "{password:?}");
        assert!(theirs.matches_password(password.as_bytes()));
        assert!(!theirs.matches_password(b"other"));
    }
}

#[test]
fn what_is_no_secret_is_not_read_as_one() {
    let good = secret(b"pencil").to_string();
    assert!(ScramSecret::parse(&good).is_some());
    let (salt, keys) = ("MDEyMw==", good.rsplit_once('$').unwrap().1);
    let key = keys.split_once(':').unwrap().0;
    let others = [
        String::new(),
        "SCRAM-SHA-256".into(),
        "SCRAM-SHA-256$".into(),
        format!("SCRAM-SHA-1$2:{salt}${keys}"),
        format!("scram-sha-256$2:{salt}${keys}"),
        format!("SCRAM-SHA-256$0:{salt}${keys}"),
        format!("SCRAM-SHA-256$+2:{salt}${keys}"),
        format!("SCRAM-SHA-256$02:{salt}${keys}"),
        format!("SCRAM-SHA-256$-2:{salt}${keys}"),
        format!("SCRAM-SHA-256$4294967296:{salt}${keys}"),
        format!("SCRAM-SHA-256$2:${keys}"),
        format!("SCRAM-SHA-256$2:MDEyMw=${keys}"),
        format!("SCRAM-SHA-256$2:MDEyMx==${keys}"),
        format!("SCRAM-SHA-256$2:{salt}${key}"),
        format!("SCRAM-SHA-256$2:{salt}${key}:"),
        format!("SCRAM-SHA-256$2:{salt}$:{key}"),
        format!("SCRAM-SHA-256$2:{salt}${keys}:{key}"),
        format!("SCRAM-SHA-256$2:{salt}${key}:MDEyMw=="),
        format!("SCRAM-SHA-256$2:{salt}${keys} "),
        format!(" SCRAM-SHA-256$2:{salt}${keys}"),
    ];
    for other in others {
        assert_eq!(ScramSecret::parse(&other), None, "{other}");
    }
}

#[test]
fn a_malformed_first_message_is_refused() {
    use ScramError::{Malformed, TooLong, Unsupported};
    let header = Malformed("incomplete GS2 header");
    let missing = Malformed("an attribute is missing");
    let extension = Unsupported("mandatory SCRAM extensions");
    let unprintable = Malformed("nonce is not printable");
    let flag = Malformed("unknown channel binding flag");
    let cases: &[(&[u8], ScramError)] = &[
        (b"", header.clone()),
        (b"n", header.clone()),
        (b"n,", header),
        (b"n,,", missing.clone()),
        (b"n,,n=", Malformed("too short")),
        (b"n,,n=,", missing.clone()),
        (b"n,,r=abc", missing.clone()),
        (b"n,,r=abc,n=", missing),
        (b"n,,n=,r=", unprintable.clone()),
        (b"n,,n=,r=a b", unprintable.clone()),
        (b"n,,n=,r=a\x7f", unprintable.clone()),
        (b"n,,n=,r=\xc3\xa4", unprintable),
        (b"n,,n=,r=abc,", Malformed("not an attribute")),
        (b"n,,n=,r=abc,x", Malformed("not an attribute")),
        (b"n,,n=,r=abc,1=x", Malformed("not an attribute")),
        (b"n,,n=,r=abc,m=x", extension.clone()),
        (b"n,,m=x,n=,r=abc", extension),
        (
            b"n,a=root,n=,r=abc",
            Unsupported("SCRAM authorization identity"),
        ),
        (b"n,root,n=,r=abc", Malformed("authorization identity")),
        (b",,n=,r=abc", flag.clone()),
        (b"x,,n=,r=abc", flag.clone()),
        (b"N,,n=,r=abc", flag.clone()),
        (b"p,,n=,r=abc", flag),
        (b"n,,n=\0,r=abc", Malformed("zero byte")),
        (b"n,,n=\xff,r=abc", Malformed("not UTF-8")),
        (&[b'n'; MAX_MESSAGE + 1], TooLong),
    ];
    for (message, error) in cases {
        let text = message.escape_ascii();
        assert_eq!(begin(message).err().as_ref(), Some(error), "{text}");
    }
}

#[test]
fn a_first_message_is_read_with_any_user_name_and_with_extensions() {
    for first in [
        "n,,n=,r=abc",
        "n,,n=*,r=abc",
        "n,,n=J=C3=BCrgen=2C=3D,r=abc",
        "n,,n=Jürgen,r=abc",
        "n,,n=user,r=abc,x=1,y=",
        "n,,n==,r=a=b",
    ] {
        let (_, challenge) = begin(first.as_bytes()).expect(first);
        assert!(challenge.starts_with(b"r=a"), "{first}");
    }
    let mut longest = b"n,,n=,r=abc,x=".to_vec();
    longest.resize(MAX_MESSAGE, b'x');
    assert!(begin(&longest).is_ok());
}

#[test]
fn channel_binding_must_fit_to_what_was_offered_and_chosen() {
    use ChannelBinding::{Chosen, Declined, NotOffered};
    const PLUS: &str = "p=tls-server-end-point,,n=,r=abc";
    let cases = [
        ("n,,n=,r=abc", NotOffered, true),
        ("n,,n=,r=abc", Declined, true),
        ("n,,n=,r=abc", Chosen(b"hash"), false),
        ("y,,n=,r=abc", NotOffered, true),
        ("y,,n=,r=abc", Declined, false),
        ("y,,n=,r=abc", Chosen(b"hash"), false),
        (PLUS, NotOffered, false),
        (PLUS, Declined, false),
        (PLUS, Chosen(b"hash"), true),
        ("p=tls-unique,,n=,r=abc", NotOffered, false),
        ("p=tls-unique,,n=,r=abc", Chosen(b"hash"), false),
    ];
    for (first, binding, accepted) in cases {
        let begun = ServerExchange::begin(first.as_bytes(), "xyz", &secret(b""), binding);
        match begun {
            Ok(_) => assert!(accepted, "{first} {binding:?}"),
            Err(ScramError::ChannelBinding(_)) => assert!(!accepted, "{first} {binding:?}"),
            Err(other) => panic!("{first} {binding:?}: {other}"),
        }
    }
}

/// Logs in as the client whose first message begins with `header`, and repeats `repeated` in `c=`.
fn finish_bound(
    binding: ChannelBinding<'_>,
    header: &str,
    repeated: &[u8],
) -> Result<Verified, ScramError> {
    let secret = secret(b"pencil");
    let keys = ClientKeys::derive(b"pencil", &secret.salt, secret.iterations);
    let first = format!("{header}n=,r={CLIENT_NONCE}");
    let (server, challenge) =
        ServerExchange::begin(first.as_bytes(), SERVER_NONCE, &secret, binding)?;
    let challenge = String::from_utf8(challenge).unwrap();
    let repeated = STANDARD.encode(repeated);
    let without_proof = format!("c={repeated},r={CLIENT_NONCE}{SERVER_NONCE}");
    let auth_message = format!("n=,r={CLIENT_NONCE},{challenge},{without_proof}");
    let signature = hmac(&secret.stored_key, &[auth_message.as_bytes()]);
    let proof = STANDARD.encode(xor(&keys.client_key, &signature));
    server.finish(format!("{without_proof},p={proof}").as_bytes())
}

#[test]
fn a_client_must_repeat_its_header_and_see_our_certificate() {
    use ChannelBinding::{Chosen, NotOffered};
    const PLUS: &str = "p=tls-server-end-point,,";
    let ours = Chosen(b"hash");
    assert!(finish_bound(NotOffered, "n,,", b"n,,").is_ok());
    assert!(finish_bound(NotOffered, "y,,", b"y,,").is_ok());
    assert!(finish_bound(ours, PLUS, b"p=tls-server-end-point,,hash").is_ok());
    for (binding, header, repeated) in [
        (NotOffered, "n,,", &b"y,,"[..]),
        (NotOffered, "y,,", b"n,,"),
        (NotOffered, "n,,", b""),
        (ours, PLUS, b"p=tls-server-end-point,,"),
        (ours, PLUS, b"p=tls-server-end-point,,hush"),
        (ours, PLUS, b"n,,"),
    ] {
        let error = finish_bound(binding, header, repeated).err();
        assert!(
            matches!(error, Some(ScramError::ChannelBinding(_))),
            "{header}"
        );
    }
}

#[test]
fn a_malformed_final_message_is_refused() {
    use ScramError::{ChannelBinding, Malformed, Nonce, TooLong, Unsupported, WrongProof};
    let (_, last) = before_finish();
    let (without_proof, proof) = last.rsplit_once(",p=").unwrap();
    let missing = Malformed("an attribute is missing");
    let no_key = Malformed("proof is not 32 bytes");
    let cases = [
        (String::new(), Malformed("no proof")),
        (without_proof.into(), Malformed("no proof")),
        (format!("p={proof}"), Malformed("no proof")),
        (format!(",p={proof}"), missing.clone()),
        (format!("c=biws,p={proof}"), Malformed("too short")),
        (last.replace("c=biws,", ""), missing.clone()),
        (last.replace("r=", "x="), missing),
        (last.replace("biws", "eSws"), ChannelBinding("")),
        (last.replace("biws", ""), ChannelBinding("")),
        (last.replace(CLIENT_NONCE, ""), Nonce),
        (last.replace(SERVER_NONCE, ""), Nonce),
        (last.replace(SERVER_NONCE, "3rfcNHYJY1ZVvWVs7k"), Nonce),
        (format!("{without_proof}x,p={proof}"), Nonce),
        (
            format!("{without_proof},m=x,p={proof}"),
            Unsupported("mandatory SCRAM extensions"),
        ),
        (
            format!("{without_proof},,p={proof}"),
            Malformed("not an attribute"),
        ),
        (format!("{without_proof},x=1,p={proof}"), WrongProof),
        (format!("{without_proof},p="), no_key.clone()),
        (format!("{without_proof},p=!"), no_key.clone()),
        (format!("{without_proof},p=AAAA"), no_key.clone()),
        (format!("{without_proof},p={proof}A"), no_key.clone()),
        (format!("{without_proof},p={proof},x=1"), no_key.clone()),
        (
            format!("{without_proof},p={}", proof.trim_end_matches('=')),
            no_key,
        ),
        (
            format!("{without_proof},p={}", STANDARD.encode([0; 32])),
            WrongProof,
        ),
        (format!("{last}\0"), Malformed("zero byte")),
        ("x".repeat(MAX_MESSAGE + 1), TooLong),
    ];
    for (message, expected) in cases {
        let (server, _) = before_finish();
        let error = server.finish(message.as_bytes()).err();
        let same = match (&error, &expected) {
            (Some(ChannelBinding(_)), ChannelBinding(_)) => true,
            (error, expected) => error.as_ref() == Some(expected),
        };
        assert!(same, "{message}: {error:?}, not {expected:?}");
    }
    let (server, _) = before_finish();
    assert_eq!(server.finish(b"c=\xff").err(), Some(Malformed("not UTF-8")));
}

#[test]
fn a_final_message_verifies_only_untouched() {
    let (server, last) = before_finish();
    assert!(server.finish(last.as_bytes()).is_ok());
    for i in 0..last.len() {
        for byte in (0..=255).filter(|&byte| byte != last.as_bytes()[i]) {
            let mut tampered = last.clone().into_bytes();
            tampered[i] = byte;
            let (server, _) = rebegin();
            assert!(server.finish(&tampered).is_err(), "byte {i} as {byte}");
        }
    }
}

/// [`before_finish`] without the client's work.
fn rebegin() -> (ServerExchange, Vec<u8>) {
    begin(FIRST).unwrap()
}

#[test]
fn a_wrong_password_fails_by_its_proof() {
    let secret = secret(b"pencil");
    for wrong in [&b""[..], b"Pencil", b"pencil ", &[0xff], &[b'x'; 2000]] {
        assert_eq!(
            log_in(password(wrong), &secret),
            Err(ScramError::WrongProof)
        );
    }
    assert_eq!(ScramError::WrongProof.sqlstate(), "28P01");
}

#[test]
fn nobody_logs_in_to_a_mock_secret() {
    let mock = mock_secret("nobody", &[7; 32]);
    assert_eq!(
        log_in(password("pencil"), &mock),
        Err(ScramError::WrongProof)
    );
    let keys = |client_key| {
        ClientAuth::Keys(ScramKeys {
            keys: ClientKeys {
                client_key,
                server_key: mock.server_key,
            },
            salt: mock.salt.clone(),
            iterations: mock.iterations,
        })
    };
    for client_key in [[0; 32], mock.stored_key, mock.server_key] {
        assert_eq!(log_in(keys(client_key), &mock), Err(ScramError::WrongProof));
    }
}

#[test]
fn a_mock_secret_looks_like_a_true_one_and_stays_the_same() {
    let mock = mock_secret("nobody", &[7; 32]);
    assert_eq!(mock, mock_secret("nobody", &[7; 32]));
    assert_ne!(mock.salt, mock_secret("no one", &[7; 32]).salt);
    assert_ne!(mock.salt, mock_secret("nobody", &[8; 32]).salt);
    assert_eq!((mock.salt.len(), mock.iterations), (16, 4096));
    assert_ne!(mock.stored_key, mock.server_key);
}

#[test]
fn a_learned_client_key_logs_in_where_the_secret_is_the_same() {
    let secret = secret(b"pencil");
    let client_key = log_in(password("pencil"), &secret).unwrap();
    assert!(secret.matches_client_key(&client_key));
    let keys = ScramKeys {
        keys: ClientKeys {
            client_key,
            server_key: secret.server_key,
        },
        salt: secret.salt.clone(),
        iterations: secret.iterations,
    };
    let auth = ClientAuth::Keys(keys);
    assert_eq!(
        pbkdf2_runs(|| assert!(log_in(auth.clone(), &secret).is_ok())),
        0
    );

    let other_salt = ScramSecret::derive(b"pencil", b"another salt", 2);
    let other_count = ScramSecret::derive(b"pencil", &secret.salt, 3);
    let other_password = ScramSecret::derive(b"pen", &secret.salt, 2);
    assert_eq!(
        log_in(auth.clone(), &other_salt),
        Err(ScramError::ForeignSecret)
    );
    assert_eq!(
        log_in(auth.clone(), &other_count),
        Err(ScramError::ForeignSecret)
    );
    assert_eq!(log_in(auth, &other_password), Err(ScramError::WrongProof));
}

#[test]
fn keys_are_derived_once_for_each_salt_and_count() {
    let auth = password("pencil");
    let secrets = [
        ScramSecret::derive(b"pencil", b"salt", 2),
        ScramSecret::derive(b"pencil", b"salt", 3),
        ScramSecret::derive(b"pencil", b"tlas", 3),
    ];
    for logins in [3, 0, 0] {
        let runs = pbkdf2_runs(|| {
            for secret in &secrets {
                log_in(auth.clone(), secret).unwrap();
            }
        });
        assert_eq!(runs, logins);
    }
}

#[test]
fn the_key_cache_forgets_the_oldest_salt() {
    let cache = KeyCache::new("pencil");
    let salts = u8::try_from(KeyCache::SALTS).unwrap();
    for salt in 0..=salts {
        assert_eq!(pbkdf2_runs(|| cache.keys(&[salt], 1)), 1);
    }
    assert_eq!(cache.derived.lock().len(), KeyCache::SALTS);
    assert_eq!(pbkdf2_runs(|| cache.keys(&[1], 1)), 0);
    assert_eq!(pbkdf2_runs(|| cache.keys(&[0], 1)), 1);
    assert!(cache.keys(&[3], 1) == ClientKeys::derive(b"pencil", &[3], 1));
}

#[test]
fn a_servers_first_message_is_checked() {
    use ScramError::{Iterations, Malformed, Nonce, TooLong, Unsupported};
    let missing = Malformed("an attribute is missing");
    let number = Malformed("iterations are no number");
    let cases: &[(&str, ScramError)] = &[
        ("", missing.clone()),
        ("r=", Malformed("nonce is not printable")),
        ("r=mine+", Malformed("too short")),
        ("r=mine+,i=1,s=AAAA", missing.clone()),
        ("r=mine+,s=AAAA", Malformed("too short")),
        ("s=AAAA,r=mine+,i=1", missing.clone()),
        ("e=other-error", missing),
        (
            "m=x,r=mine+,s=AAAA,i=1",
            Unsupported("mandatory SCRAM extensions"),
        ),
        (
            "r=mine+,s=AAAA,i=1,m=x",
            Unsupported("mandatory SCRAM extensions"),
        ),
        ("r=mine+,s=AAAA,i=1,", Malformed("not an attribute")),
        ("r=mine,s=AAAA,i=1", Nonce),
        ("r=min,s=AAAA,i=1", Nonce),
        ("r=other+,s=AAAA,i=1", Nonce),
        ("r=xmine+,s=AAAA,i=1", Nonce),
        ("r=mine+,s=,i=1", Malformed("salt is empty")),
        ("r=mine+,s=A,i=1", Malformed("salt is not base64")),
        ("r=mine+,s=AAAA,i=", number.clone()),
        ("r=mine+,s=AAAA,i=0", number.clone()),
        ("r=mine+,s=AAAA,i=-1", number.clone()),
        ("r=mine+,s=AAAA,i=1x", number.clone()),
        ("r=mine+,s=AAAA,i=99999999999", number),
        ("r=mine+,s=AAAA,i=1000001", Iterations(1_000_001)),
        ("r=mine+,s=AAAA,i=4294967295", Iterations(u32::MAX)),
    ];
    let answer = |message: &[u8]| {
        let (client, _) =
            ClientExchange::begin("mine".into(), password("pencil"), ClientBinding::Unable);
        client.answer(message).err()
    };
    let runs = pbkdf2_runs(|| {
        for (message, error) in cases {
            assert_eq!(
                answer(message.as_bytes()).as_ref(),
                Some(error),
                "{message}"
            );
        }
        assert_eq!(answer(&[b'r'; MAX_MESSAGE + 1]), Some(TooLong));
        assert_eq!(answer(b"r=\xff"), Some(Malformed("not UTF-8")));
    });
    assert_eq!(runs, 0, "work for a message that is refused");
    assert_eq!(answer(b"r=mine+,s=AAAA,i=1,x=y"), None);
}

#[test]
fn a_server_must_know_the_secret_too() {
    use ScramError::{Malformed, ServerRefused, TooLong, Unsupported, WrongServer};
    let answered = || {
        let (client, first) = ClientExchange::begin(
            CLIENT_NONCE.into(),
            password("pencil"),
            ClientBinding::Unable,
        );
        let (server, challenge) = begin(&first).unwrap();
        let (client, last) = client.answer(&challenge).unwrap();
        (client, server.finish(&last).unwrap().server_final)
    };
    let (client, last) = answered();
    assert_eq!(client.verify(&last), Ok(()));
    let (client, last) = answered();
    assert_eq!(client.verify(&[&last[..], b",x=y"].concat()), Ok(()));

    let last = String::from_utf8(last).unwrap();
    let no_key = Malformed("signature is not 32 bytes");
    let cases = [
        (String::new(), Malformed("no server signature")),
        (format!("x{last}"), Malformed("no server signature")),
        ("v=".into(), no_key.clone()),
        ("v=AAAA".into(), no_key.clone()),
        (last.replace('=', "-"), Malformed("no server signature")),
        (last.trim_end_matches('=').into(), no_key),
        (format!("v={}", STANDARD.encode([0; 32])), WrongServer),
        (format!("{last},"), Malformed("not an attribute")),
        (
            format!("{last},m=x"),
            Unsupported("mandatory SCRAM extensions"),
        ),
        ("e=other-error".into(), ServerRefused("other-error".into())),
        ("e=\n\u{1b}[2J".into(), ServerRefused(r"\n\u{1b}[2J".into())),
        ("v".repeat(MAX_MESSAGE + 1), TooLong),
    ];
    for (message, error) in cases {
        assert_eq!(
            answered().0.verify(message.as_bytes()),
            Err(error),
            "{message}"
        );
    }
    assert_eq!(answered().0.verify(b"\xff"), Err(Malformed("not UTF-8")));
}

#[test]
fn a_nonce_is_printable_and_has_no_comma() {
    assert_eq!(nonce([0xff; 18]), "////////////////////////");
    assert_eq!(text::nonce(&nonce([7; 18])), Ok(nonce([7; 18]).as_str()));
}

#[test]
fn debug_shows_no_key() {
    let secret = secret(b"pencil");
    let keys = ClientKeys {
        client_key: [65; 32],
        server_key: [65; 32],
    };
    let (server, last) = before_finish();
    assert_eq!(format!("{secret:?}"), "SCRAM-SHA-256$2:***");
    assert_eq!(format!("{keys:?}"), "ClientKeys(***)");
    assert_eq!(
        format!("{:?}", password("pencil")),
        "Password(KeyCache(***))"
    );
    assert_eq!(format!("{server:?}"), "ServerExchange(***)");
    assert_eq!(
        format!("{:?}", server.finish(last.as_bytes())),
        "Ok(Verified(***))"
    );
}

/// Passwords as people and machines make them, and as nobody should.
fn passwords() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        "[ -~]{0,20}".prop_map(String::into_bytes),
        "\\PC{0,20}".prop_map(String::into_bytes),
        any::<String>().prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..40),
        prop::collection::vec(any::<u8>(), 1000..3000),
    ]
}

/// Bytes that come close to being SCRAM messages.
fn messages() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        "[nyp],,?",
        "[a-z]=",
        "r=fyko\\+d2lbbFgONRv9q",
        "3rfcNHYJY1ZVvWVs7j",
        ",",
        ",p=",
        "=",
        "[0-9]{1,12}",
        "c=biws,",
        "[A-Za-z0-9+/]{0,44}={0,2}",
        "SCRAM-SHA-256",
        "\\$",
        ":",
        "\\PC",
    ];
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat().into_bytes()),
    ]
}

proptest! {
    #[test]
    fn both_roles_agree_on_every_password(pass in passwords(), salt in prop::collection::vec(any::<u8>(), 1..40)) {
        let secret = ScramSecret::derive(&pass, &salt, 2);
        let client_key = log_in(password(&pass), &secret).unwrap();
        prop_assert!(client_key == ClientKeys::derive(&pass, &salt, 2).client_key);
        prop_assert!(secret.matches_password(&pass));
    }

    #[test]
    fn two_passwords_are_never_the_same(one in "[ -~]{0,20}", other in "[ -~]{0,20}") {
        prop_assume!(one != other);
        prop_assert_eq!(log_in(password(&one), &secret(other.as_bytes())), Err(ScramError::WrongProof));
    }

    #[test]
    fn a_secret_survives_being_written_and_read(
        iterations in 1u32.., salt in prop::collection::vec(any::<u8>(), 1..40), stored_key: [u8; 32], server_key: [u8; 32],
    ) {
        let secret = ScramSecret { iterations, salt, stored_key, server_key };
        prop_assert_eq!(ScramSecret::parse(&secret.to_string()), Some(secret));
    }

    #[test]
    fn what_is_read_as_a_secret_is_written_the_same(text in "SCRAM-SHA-256\\$[+0-9]{1,3}:[AQgw=]{2,4}\\$[AQgw]{43}=:[AQgw]{43}=") {
        if let Some(secret) = ScramSecret::parse(&text) {
            prop_assert_eq!(secret.to_string(), text);
        }
    }

    #[test]
    fn other_drivers_log_in(pass in "[ -~]{1,20}|[äöüß€]{1,9}") {
        let mut driver = sasl::ScramSha256::new(pass.as_bytes(), sasl::ChannelBinding::unsupported());
        let (server, challenge) = begin_for(driver.message(), &pass);
        driver.update(&challenge).unwrap();
        let verified = server.finish(driver.message()).unwrap();
        driver.finish(&verified.server_final).unwrap();
    }

    #[test]
    fn hostile_bytes_never_panic(bytes in messages()) {
        let _ = begin(&bytes);
        let _ = before_finish().0.finish(&bytes);
        let _ = ScramSecret::parse(&String::from_utf8_lossy(&bytes));
        let keys = ScramKeys { keys: ClientKeys { client_key: [0; 32], server_key: [0; 32] }, salt: vec![], iterations: 1 };
        let (client, _) = ClientExchange::begin("fyko".into(), ClientAuth::Keys(keys), ClientBinding::Unable);
        let _ = client.answer(&bytes);
        let (client, first) = ClientExchange::begin(CLIENT_NONCE.into(), password("pencil"), ClientBinding::Unable);
        let (client, _) = client.answer(&begin(&first).unwrap().1).unwrap();
        prop_assert!(client.verify(&bytes).is_err());
    }
}

fn begin_for(client_first: &[u8], password: &str) -> (ServerExchange, Vec<u8>) {
    let secret = secret(password.as_bytes());
    ServerExchange::begin(
        client_first,
        SERVER_NONCE,
        &secret,
        ChannelBinding::NotOffered,
    )
    .unwrap()
}

#[test]
fn both_roles_agree_on_channel_binding() {
    let secret = secret(b"pencil");
    let log_in = |ours: ClientBinding<'_>, theirs: ChannelBinding<'_>| {
        let (client, first) = ClientExchange::begin(CLIENT_NONCE.into(), password("pencil"), ours);
        let (server, challenge) = ServerExchange::begin(&first, SERVER_NONCE, &secret, theirs)?;
        let (client, last) = client.answer(&challenge)?;
        client.verify(&server.finish(&last)?.server_final)
    };
    let (ours, other) = (b"hash of a certificate", b"hash of another one..");
    for (client, server, agreed) in [
        (
            ClientBinding::EndPoint(ours),
            ChannelBinding::Chosen(ours),
            true,
        ),
        // Somebody stands between, and has shown a certificate of his own.
        (
            ClientBinding::EndPoint(other),
            ChannelBinding::Chosen(ours),
            false,
        ),
        // Or has taken the offer away.
        (ClientBinding::NotOffered, ChannelBinding::Declined, false),
        (ClientBinding::NotOffered, ChannelBinding::NotOffered, true),
        (ClientBinding::Unable, ChannelBinding::Declined, true),
        (ClientBinding::Unable, ChannelBinding::NotOffered, true),
    ] {
        match log_in(client, server) {
            Ok(()) => assert!(agreed, "{client:?} {server:?}"),
            Err(ScramError::ChannelBinding(_)) => assert!(!agreed, "{client:?} {server:?}"),
            Err(error) => panic!("{client:?} {server:?}: {error}"),
        }
    }
}
