//! Who may log in, and with what: the users of `[users]` and of the users file, and what pgweir learns of their keys.
//!
//! Knows no socket and no message: the login asks here for each answer. An unknown user is a [`Credential`] too, one that never
//! verifies, so that the login takes the same steps for it and a stranger cannot tell who exists.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, OnceLock};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::config::checked::Secret;
use crate::server::login::ServerLogin;
use crate::wire::md5::Md5Secret;
use crate::wire::scram::{
    ClientKeys, DEFAULT_ITERATIONS, KeyCache, SALT_LENGTH, ScramKeys, ScramSecret, mock_secret,
};

/// What is known of a user's password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredSecret {
    /// The password itself.
    Plain(Secret),
    /// `md5` and a hash.
    Md5(Md5Secret),
    /// `SCRAM-SHA-256$...`.
    Scram(ScramSecret),
    /// Nothing: the user is known to trust, but no password is his.
    None,
}

impl StoredSecret {
    /// Tells the forms apart as PgBouncer does: what is neither a true hash nor a true SCRAM secret is a plain password.
    pub fn parse(text: &Secret) -> Self {
        let value = text.expose();
        if value.is_empty() {
            Self::None
        } else if let Some(hash) = Md5Secret::parse(value) {
            Self::Md5(hash)
        } else if let Some(secret) = ScramSecret::parse(value) {
            Self::Scram(secret)
        } else {
            Self::Plain(text.clone())
        }
    }

    fn shape(&self) -> Option<Shape> {
        match self {
            Self::Plain(_) => Some(Shape::Plain),
            Self::Md5(_) => Some(Shape::Md5),
            Self::Scram(secret) => Some(Shape::Scram(secret.iterations)),
            Self::None => None,
        }
    }
}

/// What a stranger can tell of a stored secret, by the methods that work with it and by the time they take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Shape {
    Plain,
    Md5,
    Scram(u32),
}

/// All users that are known.
pub struct Credentials {
    /// From which the secrets of unknown users are made. It stays for the life of the process, lest they change.
    process_key: [u8; 32],
    /// Of the secrets that are derived from plain passwords.
    iterations: u32,
    users: HashMap<Box<str>, Arc<Credential>>,
    /// How often each shape was seen. Unknown users take the usual one: where all are alike, as is usual, none stands out.
    shapes: Mutex<BTreeMap<Shape, u64>>,
}

impl Credentials {
    /// The users given, of which the last counts where a name comes twice. `process_key` is 32 random bytes.
    pub fn new(process_key: [u8; 32], users: impl IntoIterator<Item = (String, Secret)>) -> Self {
        let nobody = Self {
            process_key,
            iterations: DEFAULT_ITERATIONS,
            users: HashMap::new(),
            shapes: Mutex::default(),
        };
        nobody.successor(DEFAULT_ITERATIONS, users)
    }

    /// The users after a reload. Whoever keeps his secret keeps the keys that were derived and learned for it. `iterations`: of
    /// secrets that are derived from plain passwords.
    #[must_use]
    pub fn successor(
        &self,
        iterations: u32,
        users: impl IntoIterator<Item = (String, Secret)>,
    ) -> Self {
        let users: Vec<_> = users
            .into_iter()
            .map(|(name, secret)| (name, StoredSecret::parse(&secret)))
            .collect();
        let mut next = Self {
            process_key: self.process_key,
            iterations,
            users: HashMap::with_capacity(users.len()),
            shapes: Mutex::default(),
        };
        // First of all, because a user without a password takes the usual shape.
        for (_, stored) in &users {
            next.note_shape(stored);
        }
        for (name, stored) in users {
            let kept = self
                .users
                .get(name.as_str())
                .filter(|kept| kept.holds(&stored, iterations));
            let credential = kept.map_or_else(|| next.make(&name, stored), Arc::clone);
            next.users.insert(name.into(), credential);
        }
        next
    }

    /// The names of all users, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.users.keys().map(|name| &**name)
    }

    /// A user, if known.
    pub fn get(&self, name: &str) -> Option<&Arc<Credential>> {
        self.users.get(name)
    }

    /// A user, or a stand-in that never verifies.
    pub fn look_up(&self, name: &str) -> Arc<Credential> {
        self.users
            .get(name)
            .map_or_else(|| self.unknown(name), Arc::clone)
    }

    /// The stand-in for a user whom neither this set nor an auth query knows.
    pub fn unknown(&self, name: &str) -> Arc<Credential> {
        let measure = self.decoy(name);
        Arc::new(Credential::new(name, Standing::Unknown, measure))
    }

    /// A user outside this set, such as an auth query's answer. The caller keeps it: what it learns is lost with it. `kept`: who
    /// the user was at the last answer, and still is if the secret is the same.
    pub fn adopt(
        &self,
        name: &str,
        secret: &Secret,
        kept: Option<&Arc<Credential>>,
    ) -> Arc<Credential> {
        let stored = StoredSecret::parse(secret);
        if let Some(kept) = kept.filter(|kept| kept.holds(&stored, self.iterations)) {
            return Arc::clone(kept);
        }
        self.note_shape(&stored);
        self.make(name, stored)
    }

    /// Derives the SCRAM secret of every plain password that has none yet, each in half a millisecond or more.
    ///
    /// Meant for a thread that serves no client. Without it each user's first SCRAM login does so, and takes longer by that.
    pub fn derive_all(&self) {
        for credential in self.users.values() {
            credential.scram_secret();
        }
    }

    /// How many users are known.
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Whether nobody is known.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    fn make(&self, name: &str, stored: StoredSecret) -> Arc<Credential> {
        let (standing, measure) = match stored {
            StoredSecret::Plain(password) => (
                Standing::Password,
                Measure::plain(password, self.iterations),
            ),
            StoredSecret::Md5(hash) => {
                let mock = mock_secret(name, &self.process_key);
                (Standing::Password, Measure::Md5 { hash, mock })
            }
            StoredSecret::Scram(secret) => (Standing::Password, Measure::Scram(secret)),
            StoredSecret::None => (Standing::NoPassword, self.decoy(name)),
        };
        Arc::new(Credential::new(name, standing, measure))
    }

    /// A secret of the usual shape that nobody knows.
    fn decoy(&self, name: &str) -> Measure {
        let mock = mock_secret(name, &self.process_key);
        match self.usual_shape() {
            Shape::Plain => Measure::Plain {
                password: Secret::new(STANDARD.encode(mock.stored_key)),
                iterations: self.iterations,
                scram: OnceLock::from(ScramSecret {
                    iterations: self.iterations,
                    ..mock
                }),
            },
            Shape::Md5 => Measure::Md5 {
                hash: Md5Secret::derive(name, &mock.stored_key),
                mock,
            },
            Shape::Scram(iterations) => Measure::Scram(ScramSecret { iterations, ..mock }),
        }
    }

    fn usual_shape(&self) -> Shape {
        let shapes = self.shapes.lock();
        let usual = shapes.iter().max_by_key(|(_, seen)| **seen);
        usual.map_or(Shape::Scram(DEFAULT_ITERATIONS), |(shape, _)| *shape)
    }

    fn note_shape(&self, stored: &StoredSecret) {
        if let Some(shape) = stored.shape() {
            *self.shapes.lock().entry(shape).or_default() += 1;
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("users", &self.users.len())
            .finish_non_exhaustive()
    }
}

/// One user, known or not, and all that a login needs to know of his password.
pub struct Credential {
    name: Box<str>,
    standing: Standing,
    measure: Measure,
    /// The client key that a SCRAM login has shown us.
    learned: OnceLock<[u8; 32]>,
    /// Keys for logging in to servers with a plain password.
    server_keys: OnceLock<Arc<KeyCache>>,
}

/// Whether the measure is the user's own, or a decoy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Password,
    NoPassword,
    Unknown,
}

/// Against what a client's proof is measured.
enum Measure {
    /// With the SCRAM secret that is derived at its first use.
    Plain {
        password: Secret,
        iterations: u32,
        scram: OnceLock<ScramSecret>,
    },
    /// With a SCRAM secret that never verifies: nothing can be derived from the hash.
    Md5 { hash: Md5Secret, mock: ScramSecret },
    /// As stored.
    Scram(ScramSecret),
}

impl Measure {
    fn plain(password: Secret, iterations: u32) -> Self {
        Self::Plain {
            password,
            iterations,
            scram: OnceLock::new(),
        }
    }
}

impl Credential {
    fn new(name: &str, standing: Standing, measure: Measure) -> Self {
        Self {
            name: name.into(),
            standing,
            measure,
            learned: OnceLock::new(),
            server_keys: OnceLock::new(),
        }
    }

    /// A user whose password somebody else has found right.
    pub fn vouched(name: &str, password: &Secret) -> Self {
        Self::new(
            name,
            Standing::Password,
            Measure::plain(password.clone(), DEFAULT_ITERATIONS),
        )
    }

    /// The user's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the user exists. Trust and client certificates need this; a password login asks the verification alone.
    pub fn is_known(&self) -> bool {
        self.standing != Standing::Unknown
    }

    /// Whether a proof can verify at all. For the log, never for the client.
    pub fn has_password(&self) -> bool {
        self.standing == Standing::Password
    }

    /// Whether the method `md5` may ask for MD5. Where the secret is a SCRAM secret it asks for SCRAM instead, as PgBouncer does.
    pub fn speaks_md5(&self) -> bool {
        !matches!(self.measure, Measure::Scram(_))
    }

    /// Whether `password` came in clear and is right. Takes constant time for plain and MD5 secrets.
    ///
    /// For a SCRAM secret it runs PBKDF2 each time, half a millisecond or more: such users should log in with SCRAM. The right one
    /// teaches the client key, as a SCRAM login does.
    pub fn verify_password(&self, password: &[u8]) -> bool {
        let matches = match &self.measure {
            Measure::Plain { password: ours, .. } => same_text(ours.expose().as_bytes(), password),
            Measure::Md5 { hash, .. } => hash.matches_password(&self.name, password),
            Measure::Scram(secret) => match secret.client_key_of(password) {
                Some(client_key) => {
                    if !password.is_empty() {
                        self.learned.get_or_init(|| client_key);
                    }
                    true
                }
                None => false,
            },
        };
        matches & self.has_password() & !password.is_empty()
    }

    /// Whether `response` answers AuthenticationMD5Password with this salt. Never, unless the credential
    /// [speaks MD5](Self::speaks_md5).
    pub fn verify_md5(&self, response: &[u8], salt: [u8; 4]) -> bool {
        let matches = match &self.measure {
            Measure::Plain { password, .. } => {
                Md5Secret::derive(&self.name, password.expose().as_bytes()).verify(response, salt)
            }
            Measure::Md5 { hash, .. } => hash.verify(response, salt),
            Measure::Scram(_) => false,
        };
        matches & self.has_password()
    }

    /// The secret for a SCRAM exchange. There is always one, so that the exchange always takes place; nobody has a proof for that
    /// of an unknown user or of an MD5 secret.
    ///
    /// The first call for a plain password runs PBKDF2 ([`Credentials::derive_all`] has it done before).
    pub fn scram_secret(&self) -> &ScramSecret {
        match &self.measure {
            Measure::Plain {
                password,
                iterations,
                scram,
            } => scram.get_or_init(|| {
                let salt: [u8; SALT_LENGTH] = rand::random();
                ScramSecret::derive(password.expose().as_bytes(), &salt, *iterations)
            }),
            Measure::Md5 { mock, .. } => mock,
            Measure::Scram(secret) => secret,
        }
    }

    /// Keeps the client key from [`Verified`](crate::wire::scram::Verified), so that pgweir can log in to Postgres as this user. A
    /// key that does not belong to the secret is not kept.
    pub fn learn_client_key(&self, client_key: [u8; 32]) {
        if let Measure::Scram(secret) = &self.measure
            && secret.matches_client_key(&client_key)
        {
            self.learned.get_or_init(|| client_key);
        }
    }

    /// What pgweir has to log in to Postgres as this user.
    pub fn server_login(&self) -> ServerLogin {
        if !self.has_password() {
            return ServerLogin::Nothing;
        }
        match &self.measure {
            Measure::Plain { password, .. } => ServerLogin::Password {
                password: password.clone(),
                keys: Arc::clone(self.server_keys(password)),
            },
            Measure::Md5 { hash, .. } => ServerLogin::Md5(hash.clone()),
            Measure::Scram(secret) => self
                .learned
                .get()
                .map_or(ServerLogin::Nothing, |client_key| {
                    ServerLogin::Keys(scram_keys(secret, *client_key))
                }),
        }
    }

    fn server_keys(&self, password: &Secret) -> &Arc<KeyCache> {
        self.server_keys
            .get_or_init(|| Arc::new(KeyCache::new(password.expose())))
    }

    /// Whether this is the credential of `stored`. One without a password holds nothing worth keeping.
    fn holds(&self, stored: &StoredSecret, iterations: u32) -> bool {
        self.has_password()
            && match (&self.measure, stored) {
                (
                    Measure::Plain {
                        password,
                        iterations: own,
                        ..
                    },
                    StoredSecret::Plain(theirs),
                ) => password == theirs && *own == iterations,
                (Measure::Md5 { hash, .. }, StoredSecret::Md5(theirs)) => hash == theirs,
                (Measure::Scram(secret), StoredSecret::Scram(theirs)) => secret == theirs,
                _ => false,
            }
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("name", &self.name)
            .field("standing", &self.standing)
            .finish_non_exhaustive()
    }
}

fn scram_keys(secret: &ScramSecret, client_key: [u8; 32]) -> ScramKeys {
    ScramKeys {
        keys: ClientKeys {
            client_key,
            server_key: secret.server_key,
        },
        salt: secret.salt.clone(),
        iterations: secret.iterations,
    }
}

/// Compares hashes: a comparison of the texts would tell how long ours is.
fn same_text(ours: &[u8], theirs: &[u8]) -> bool {
    Sha256::digest(ours).ct_eq(&Sha256::digest(theirs)).into()
}

#[cfg(test)]
mod tests;
