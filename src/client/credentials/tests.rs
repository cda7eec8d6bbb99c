use super::*;
use crate::wire::scram::tests::pbkdf2_runs;
use crate::wire::scram::{
    ChannelBinding, ClientAuth, ClientBinding, ClientExchange, ScramError, ServerExchange,
    Verified, nonce,
};

const KEY: [u8; 32] = [7; 32];

/// Few iterations, so that tests are fast; the numbers that matter are set by hand.
fn scram(password: &str) -> String {
    ScramSecret::derive(password.as_bytes(), b"0123456789abcdef", 3).to_string()
}

fn md5(user: &str, password: &str) -> String {
    Md5Secret::derive(user, password.as_bytes()).to_string()
}

fn owned(users: &[(&str, &str)]) -> Vec<(String, Secret)> {
    let owned = |(name, secret): &(&str, &str)| ((*name).to_owned(), Secret::new(*secret));
    users.iter().map(owned).collect()
}

fn credentials(users: &[(&str, &str)]) -> Credentials {
    Credentials::new(KEY, owned(users))
}

/// One user of each kind; everybody's password is `wonder`.
fn of_every_kind() -> Credentials {
    credentials(&[
        ("plain", "wonder"),
        ("md5", &md5("md5", "wonder")),
        ("scram", &scram("wonder")),
        ("none", ""),
    ])
}

/// A client's SCRAM login against a credential.
fn scram_login(credential: &Credential, auth: ClientAuth) -> Result<Verified, ScramError> {
    let (client, first) = ClientExchange::begin(nonce([1; 18]), auth, ClientBinding::Unable);
    let secret = credential.scram_secret();
    let (server, challenge) =
        ServerExchange::begin(&first, &nonce([2; 18]), secret, ChannelBinding::NotOffered)?;
    server.finish(&client.answer(&challenge)?.1)
}

fn with_password(password: &str) -> ClientAuth {
    ClientAuth::Password(Arc::new(KeyCache::new(password)))
}

#[test]
fn secrets_are_told_apart_as_pgbouncer_does() {
    let (hash, scram) = (md5("alice", "wonder"), scram("wonder"));
    let parse = |text: &str| StoredSecret::parse(&Secret::new(text));
    assert_eq!(parse(""), StoredSecret::None);
    assert!(matches!(parse(&hash), StoredSecret::Md5(_)));
    assert!(matches!(parse(&scram), StoredSecret::Scram(_)));
    for plain in [
        "wonder",
        " ",
        "md5",
        "md5wonder",
        &hash[..34],
        &hash.to_uppercase(),
        &format!("{hash}0"),
        "SCRAM-SHA-256$",
        &scram[..scram.len() - 1],
        &format!("{scram} "),
    ] {
        assert_eq!(parse(plain), StoredSecret::Plain(Secret::new(plain)));
    }
}

#[test]
fn each_kind_verifies_with_the_methods_that_work_for_it() {
    let users = of_every_kind();
    let salt = [1, 2, 3, 4];
    for (name, clear, by_md5, by_scram) in [
        ("plain", true, true, true),
        ("md5", true, true, false),
        ("scram", true, false, true),
        ("none", false, false, false),
        ("nobody", false, false, false),
    ] {
        let user = users.look_up(name);
        let response = Md5Secret::derive(name, b"wonder").response(salt);
        assert_eq!(user.verify_password(b"wonder"), clear, "{name}");
        assert_eq!(user.verify_md5(response.as_bytes(), salt), by_md5, "{name}");
        let login = scram_login(&user, with_password("wonder"));
        assert_eq!(login.is_ok(), by_scram, "{name}");
        assert!(
            by_scram || login.err() == Some(ScramError::WrongProof),
            "{name}"
        );
        assert!(by_md5 <= user.speaks_md5(), "{name}");
    }
    assert!(!users.look_up("scram").speaks_md5());
}

#[test]
fn a_wrong_proof_never_verifies() {
    let users = of_every_kind();
    let salt = [1, 2, 3, 4];
    for name in ["plain", "md5", "scram", "none", "nobody"] {
        let user = users.look_up(name);
        for wrong in ["", "Wonder", "wonder ", "wonde", "\0", &"x".repeat(2000)] {
            assert!(!user.verify_password(wrong.as_bytes()), "{name} {wrong}");
            let response = Md5Secret::derive(name, wrong.as_bytes()).response(salt);
            assert!(
                !user.verify_md5(response.as_bytes(), salt),
                "{name} {wrong}"
            );
            let login = scram_login(&user, with_password(wrong));
            assert_eq!(login.err(), Some(ScramError::WrongProof), "{name} {wrong}");
        }
        let right = Md5Secret::derive(name, b"wonder").response([1, 2, 3, 5]);
        assert!(!user.verify_md5(right.as_bytes(), salt), "{name}");
        assert!(!user.verify_md5(b"", salt), "{name}");
        assert!(!user.verify_md5(b"wonder", salt), "{name}");
    }
}

#[test]
fn an_empty_password_never_verifies_even_if_it_is_the_right_one() {
    let users = credentials(&[("md5", &md5("md5", "")), ("scram", &scram(""))]);
    assert!(!users.look_up("md5").verify_password(b""));
    assert!(!users.look_up("scram").verify_password(b""));
}

/// Not even for somebody who has read this process' memory: the stand-in's own secret does not verify.
#[test]
fn an_unknown_user_does_not_verify_with_the_decoy_itself() {
    let salt = [1, 2, 3, 4];
    for (name, secret) in [("plain", "wonder".into()), ("md5", md5("md5", "wonder"))] {
        let users = credentials(&[(name, &secret)]);
        for stranger in [
            users.unknown("bob"),
            users.adopt("bob", &Secret::new(""), None),
        ] {
            let (password, hash) = match &stranger.measure {
                Measure::Plain { password, .. } => (
                    password.expose().as_bytes().to_vec(),
                    Md5Secret::derive("bob", password.expose().as_bytes()),
                ),
                Measure::Md5 { hash, .. } => {
                    (mock_secret("bob", &KEY).stored_key.to_vec(), hash.clone())
                }
                Measure::Scram(_) => panic!("{name} is not the usual shape"),
            };
            assert!(!stranger.verify_password(&password), "{name}");
            assert!(
                !stranger.verify_md5(hash.response(salt).as_bytes(), salt),
                "{name}"
            );
            assert!(matches!(stranger.server_login(), ServerLogin::Nothing));
        }
    }
}

#[test]
fn an_unknown_user_is_asked_for_the_same_and_costs_the_same() {
    let users = [
        ("plain", "wonder".to_owned(), 0),
        ("md5", md5("md5", "wonder"), 0),
        ("scram", scram("wonder"), 1),
    ];
    for (name, secret, runs) in users {
        let users = credentials(&[(name, &secret), ("none", "")]);
        users.derive_all();
        let known = users.look_up(name);
        for stranger in [users.look_up("bob"), users.look_up("none")] {
            assert_eq!(stranger.speaks_md5(), known.speaks_md5(), "{name}");
            let (theirs, ours) = (stranger.scram_secret(), known.scram_secret());
            assert_eq!(theirs.iterations, ours.iterations, "{name}");
            assert_eq!(theirs.salt.len(), ours.salt.len(), "{name}");
            for user in [&stranger, &known] {
                assert_eq!(pbkdf2_runs(|| user.verify_password(b"x")), runs, "{name}");
                assert_eq!(pbkdf2_runs(|| user.scram_secret().salt.len()), 0, "{name}");
            }
        }
    }
}

#[test]
fn an_unknown_user_takes_the_usual_shape_also_of_an_auth_querys_answers() {
    let users = credentials(&[("auth", "wonder")]);
    assert!(users.unknown("bob").speaks_md5());
    for name in ["alice", "carol"] {
        assert!(users.adopt(name, &Secret::new(scram("x")), None).is_known());
    }
    assert!(!users.unknown("bob").speaks_md5());
    assert_eq!(users.unknown("bob").scram_secret().iterations, 3);
    assert_eq!(
        credentials(&[]).unknown("bob").scram_secret().iterations,
        4096
    );
}

#[test]
fn an_unknown_user_has_the_same_salt_at_each_login() {
    let users = of_every_kind();
    let salt = |users: &Credentials, name| users.look_up(name).scram_secret().salt.clone();
    assert_eq!(salt(&users, "bob"), salt(&users, "bob"));
    assert_ne!(salt(&users, "bob"), salt(&users, "carol"));
    let reloaded = users.successor(DEFAULT_ITERATIONS, owned(&[("plain", "other")]));
    assert_eq!(salt(&users, "bob"), salt(&reloaded, "bob"));
}

#[test]
fn only_listed_users_are_known() {
    let users = of_every_kind();
    for (name, known, password) in [
        ("plain", true, true),
        ("none", true, false),
        ("nobody", false, false),
        ("", false, false),
        ("Plain", false, false),
    ] {
        let user = users.look_up(name);
        assert_eq!(user.is_known(), known, "{name}");
        assert_eq!(user.has_password(), password, "{name}");
        assert_eq!(user.name(), name);
        assert_eq!(users.get(name).is_some(), known, "{name}");
    }
    assert_eq!((users.len(), users.is_empty()), (4, false));
}

#[test]
fn the_last_entry_of_a_name_counts() {
    let users = credentials(&[("alice", "one"), ("alice", "two")]);
    assert!(users.look_up("alice").verify_password(b"two"));
    assert!(!users.look_up("alice").verify_password(b"one"));
}

#[test]
fn a_plain_passwords_scram_secret_is_derived_once() {
    let users = credentials(&[("alice", "wonder"), ("bob", "wonder")]);
    assert_eq!(pbkdf2_runs(|| users.derive_all()), 2);
    let (alice, bob) = (users.look_up("alice"), users.look_up("bob"));
    let logins = pbkdf2_runs(|| {
        (
            alice.scram_secret().salt.len(),
            bob.scram_secret().salt.len(),
        )
    });
    assert_eq!(logins, 0);
    assert_eq!(alice.scram_secret().iterations, 4096);
    assert_eq!(alice.scram_secret().salt.len(), 16);
    assert_ne!(alice.scram_secret().salt, bob.scram_secret().salt);
}

#[test]
fn a_plain_password_logs_in_to_servers_by_every_method_and_derives_keys_once() {
    let users = credentials(&[("alice", "wonder")]);
    let alice = users.look_up("alice");
    let login = alice.server_login();
    assert_eq!(login.cleartext(), Some(&Secret::new("wonder")));
    assert_eq!(
        login.md5("alice"),
        Some(Md5Secret::derive("alice", b"wonder"))
    );

    let server = credentials(&[("alice", &scram("wonder"))]).look_up("alice");
    for runs in [1, 0] {
        let auth = alice.server_login().scram().unwrap();
        assert_eq!(
            pbkdf2_runs(|| assert!(scram_login(&server, auth).is_ok())),
            runs
        );
    }
}

#[test]
fn an_md5_hash_logs_in_to_servers_by_md5_alone() {
    let users = of_every_kind();
    let login = users.look_up("md5").server_login();
    assert_eq!(login.cleartext(), None);
    assert_eq!(login.md5("md5"), Some(Md5Secret::derive("md5", b"wonder")));
    assert!(login.scram().is_none());
}

#[test]
fn a_scram_secret_logs_in_to_servers_once_a_client_has_shown_its_key() {
    let users = of_every_kind();
    let user = users.look_up("scram");
    assert!(matches!(user.server_login(), ServerLogin::Nothing));
    assert!(user.server_login().scram().is_none());

    user.learn_client_key([9; 32]);
    assert!(
        matches!(user.server_login(), ServerLogin::Nothing),
        "a foreign key was kept"
    );

    let verified = scram_login(&user, with_password("wonder")).unwrap();
    user.learn_client_key(verified.client_key);
    let login = users.look_up("scram").server_login();
    assert_eq!((login.cleartext(), login.md5("scram")), (None, None));
    let auth = login.scram().unwrap();
    let same = credentials(&[("scram", &scram("wonder"))]).look_up("scram");
    assert_eq!(
        pbkdf2_runs(|| assert!(scram_login(&same, auth.clone()).is_ok())),
        0
    );

    let salted = ScramSecret::derive(b"wonder", b"another salt", 3).to_string();
    let other = credentials(&[("scram", &salted)]).look_up("scram");
    let refused = scram_login(&other, auth).err();
    assert_eq!(refused, Some(ScramError::ForeignSecret));
}

#[test]
fn a_key_shown_to_a_plain_or_unknown_credential_is_not_kept() {
    let users = of_every_kind();
    for name in ["none", "nobody", "md5"] {
        let user = users.look_up(name);
        user.learn_client_key([9; 32]);
        assert!(user.server_login().scram().is_none(), "{name}");
    }
}

#[test]
fn a_reload_keeps_the_keys_of_unchanged_secrets_only() {
    let same = scram("wonder");
    let users = credentials(&[
        ("a", &same),
        ("b", &same),
        ("c", "plain"),
        ("d", &same),
        ("e", ""),
    ]);
    users.derive_all();
    for name in ["a", "b", "d"] {
        let user = users.look_up(name);
        let verified = scram_login(&user, with_password("wonder")).unwrap();
        user.learn_client_key(verified.client_key);
    }
    let changed = scram("other");
    let new = [
        ("a", same.as_str()),
        ("b", &changed),
        ("c", "plain"),
        ("e", "now"),
    ];
    let next = users.successor(DEFAULT_ITERATIONS, owned(&new));

    assert!(next.look_up("a").server_login().scram().is_some());
    assert!(next.look_up("b").server_login().scram().is_none());
    assert!(next.look_up("d").server_login().scram().is_none());
    assert!(!next.look_up("d").is_known());
    let (before, after) = (users.look_up("c"), next.look_up("c"));
    assert_eq!(before.scram_secret(), after.scram_secret());
    assert!(next.look_up("e").verify_password(b"now"));
    assert!(!next.look_up("b").verify_password(b"wonder"));
}

#[test]
fn a_user_whose_secret_changes_is_made_anew() {
    let hashes = ["wonder", "land"].map(|password| (md5("alice", password), scram(password)));
    let [(md5, scram), (other_md5, other_scram)] = &hashes;
    let secrets = ["wonder", "land", md5, other_md5, scram, other_scram, ""];
    for before in secrets {
        for after in secrets {
            let users = credentials(&[("alice", before)]);
            let next = users.successor(DEFAULT_ITERATIONS, owned(&[("alice", after)]));
            let kept = Arc::ptr_eq(&users.look_up("alice"), &next.look_up("alice"));
            assert_eq!(
                kept,
                before == after && !before.is_empty(),
                "{before} {after}"
            );
            assert_eq!(next.look_up("alice").has_password(), !after.is_empty());
        }
    }
}

#[test]
fn an_absurd_iteration_count_in_a_secret_costs_nothing() {
    let absurd = ScramSecret {
        iterations: u32::MAX,
        ..mock_secret("alice", &KEY)
    };
    let users = credentials(&[("alice", &absurd.to_string())]);
    for name in ["alice", "bob"] {
        let user = users.look_up(name);
        assert_eq!(pbkdf2_runs(|| assert!(!user.verify_password(b"wonder"))), 0);
    }
}

#[test]
fn debug_shows_no_secret() {
    let users = of_every_kind();
    for name in ["plain", "md5", "scram", "none", "nobody"] {
        let user = users.look_up(name);
        let standing = format!("{:?}", user.standing);
        let shown = format!("Credential {{ name: {name:?}, standing: {standing}, .. }}");
        assert_eq!(format!("{user:?}"), shown);
        let login = format!("{:?}", user.server_login());
        assert!(!login.contains("wonder") && login.len() < 60, "{login}");
    }
    assert_eq!(format!("{users:?}"), "Credentials { users: 4, .. }");
}
