//! `pg_hba.conf`: by which method who may log in from where. The first record that fits decides; without one nobody may.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use super::ldap_options::LdapOptions;
use super::mistake::{Mistake, Mistakes};

/// How deep `@file` may lead on.
const DEEPEST: usize = 10;

/// The records of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HbaFile(Vec<Record>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Record {
    kind: Kind,
    databases: Names,
    users: Names,
    method: Method,
}

/// Which connections a record is for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// Unix sockets.
    Local,
    /// TCP; `tls`: with it, without it, or either. `network`: `None` is any.
    Host {
        tls: Option<bool>,
        network: Option<IpNet>,
    },
}

/// A list of databases or users.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Names {
    all: bool,
    same_user: bool,
    replication: bool,
    listed: Vec<String>,
}

/// How a client is to prove who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Method {
    /// Not at all.
    Trust,
    /// It is refused.
    Reject,
    /// By its password in clear.
    Password,
    /// By MD5, or SCRAM where the secret is one.
    Md5,
    /// By SCRAM-SHA-256.
    ScramSha256,
    /// By its certificate, whose common name is the user's or is mapped to it by the map named here.
    Cert(Option<String>),
    /// By being that user of this machine, or one that the map named here maps to it.
    Peer(Option<String>),
    /// By its password in clear, which a directory checks.
    Ldap(Box<LdapOptions>),
    /// By its password in clear, which PAM checks.
    Pam,
}

/// A client that wants to log in.
#[derive(Debug, Clone, Copy)]
pub struct Asking<'a> {
    /// Its address; `None`: it came over a unix socket.
    pub address: Option<IpAddr>,
    /// Whether it speaks TLS.
    pub tls: bool,
    /// The database that it wants.
    pub database: &'a str,
    /// Who it says it is.
    pub user: &'a str,
    /// Whether it wants physical replication, which belongs to no database.
    pub replicates: bool,
}

impl HbaFile {
    /// The options of the records that ask a directory.
    pub fn ldap(&self) -> impl Iterator<Item = &LdapOptions> {
        self.0.iter().filter_map(|record| match &record.method {
            Method::Ldap(options) => Some(&**options),
            _ => None,
        })
    }

    /// Whether a record asks PAM.
    pub fn asks_pam(&self) -> bool {
        self.0.iter().any(|record| record.method == Method::Pam)
    }

    /// The method of the first record that fits.
    pub fn method(&self, asking: &Asking<'_>) -> Option<&Method> {
        let mut fitting = self.0.iter().filter(|record| record.fits(asking));
        fitting.next().map(|record| &record.method)
    }
}

impl Record {
    fn fits(&self, asking: &Asking<'_>) -> bool {
        let from_there = match (&self.kind, asking.address) {
            (Kind::Local, None) => true,
            (Kind::Host { tls, network }, Some(address)) => {
                let address = address.to_canonical();
                tls.is_none_or(|tls| tls == asking.tls)
                    && network.is_none_or(|network| network.contains(&address))
            }
            _ => false,
        };
        let Names {
            all,
            same_user,
            replication,
            listed,
        } = &self.databases;
        // As in Postgres: no name of a database stands for physical replication, "all" neither.
        let to_there = if asking.replicates {
            *replication
        } else {
            *all || *same_user && asking.user == asking.database
                || listed.iter().any(|name| name == asking.database)
        };
        let users = &self.users;
        from_there && to_there && (users.all || users.listed.iter().any(|name| name == asking.user))
    }
}

/// Reads the file. All records that are right, and what is wrong with the others.
pub fn parse(text: &str, path: &Path) -> (HbaFile, Option<Mistakes>) {
    let read = |path: &Path| std::fs::read_to_string(path);
    parse_with(text, path, &read)
}

fn parse_with(text: &str, path: &Path, read: Read<'_>) -> (HbaFile, Option<Mistakes>) {
    let mut records = Vec::new();
    let mut wrong = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let message = match record(line, path, read) {
            Ok(record) => {
                records.extend(record);
                continue;
            }
            Err(Wrong { message, instead }) => {
                records.extend(instead.map(|record| *record));
                message
            }
        };
        wrong.push(Mistake {
            line: index + 1,
            column: 1,
            message,
        });
    }
    let file = path.display().to_string();
    let wrong = (!wrong.is_empty()).then(|| Mistakes::new(&file, wrong));
    (HbaFile(records), wrong)
}

/// What is wrong with a record, or with its method.
struct Wrong<T> {
    message: String,
    /// What takes its place: who it is for is not to come in by one further down.
    instead: Option<Box<T>>,
}

impl<T> From<String> for Wrong<T> {
    fn from(message: String) -> Self {
        Self {
            message,
            instead: None,
        }
    }
}

/// Reads the file behind an `@`.
type Read<'a> = &'a dyn Fn(&Path) -> io::Result<String>;

fn record(line: &str, path: &Path, read: Read<'_>) -> Result<Option<Record>, Wrong<Record>> {
    let mut fields = fields(line)?.into_iter();
    let Some(kind) = fields.next() else {
        return Ok(None);
    };
    let kind = single(&kind, "the type")?;
    let mut next = |what: &str| fields.next().ok_or(format!("ends before {what}"));
    let databases = names(&next("the database")?, true, path, read, 0)?;
    let users = names(&next("the user")?, false, path, read, 0)?;
    let kind = match kind {
        "local" => Kind::Local,
        "host" | "hostssl" | "hostnossl" => {
            let tls = match kind {
                "hostssl" => Some(true),
                "hostnossl" => Some(false),
                _ => None,
            };
            let address = next("the address")?;
            let network = match single(&address, "the address")? {
                "all" => None,
                text if text.contains('/') => Some(network(text)?),
                text => {
                    let mask = next("the mask")?;
                    Some(masked(text, single(&mask, "the mask")?)?)
                }
            };
            Kind::Host { tls, network }
        }
        other => return Err(format!("unknown type {other:?}").into()),
    };
    let method = next("the method")?;
    let method = self::method(single(&method, "the method")?, &kind, fields);
    let with = |method| Record {
        kind,
        databases,
        users,
        method,
    };
    match method {
        Ok(method) => Ok(Some(with(method))),
        Err(Wrong { message, instead }) => Err(Wrong {
            message,
            instead: instead.map(|method| Box::new(with(*method))),
        }),
    }
}

/// A method with its options, in a record of that kind.
fn method(
    name: &str,
    kind: &Kind,
    options: impl Iterator<Item = Vec<Word>>,
) -> Result<Method, Wrong<Method>> {
    if name == "ldap" {
        // The options are separated by commas or blanks.
        let options = LdapOptions::of(options.flatten().map(|word| word.text));
        return match options {
            Ok(options) => Ok(Method::Ldap(Box::new(options))),
            Err(message) => Err(Wrong {
                message,
                instead: Some(Box::new(Method::Reject)),
            }),
        };
    }
    let mut map = None;
    for option in options {
        match single(&option, "an option")?.split_once('=') {
            Some(("map", name)) if !name.is_empty() => map = Some(name.to_owned()),
            _ => return Err("has an option other than map=NAME".to_owned().into()),
        }
    }
    Ok(match (name, map) {
        ("cert", map) => Method::Cert(map),
        ("peer", map) if *kind == Kind::Local => Method::Peer(map),
        // There it would let in nobody, and it stands before others.
        ("peer", map) => {
            return Err(Wrong {
                message: "peer is for local records alone".to_owned(),
                instead: Some(Box::new(Method::Peer(map))),
            });
        }
        (_, Some(_)) => return Err("map= is for cert and peer alone".to_owned().into()),
        ("trust", None) => Method::Trust,
        ("reject", None) => Method::Reject,
        ("password", None) => Method::Password,
        ("md5", None) => Method::Md5,
        ("scram-sha-256", None) => Method::ScramSha256,
        ("pam", None) => Method::Pam,
        (other, None) => return Err(format!("unsupported method {other:?}").into()),
    })
}

/// One word of a field; one in quotes means no more than it says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Word {
    text: String,
    quoted: bool,
}

/// Splits a line into fields, and these at their commas, around which there may be blanks.
fn fields(line: &str) -> Result<Vec<Vec<Word>>, String> {
    let mut fields: Vec<Vec<Word>> = Vec::new();
    let mut rest = line.trim_start();
    // Whether the next word belongs to the field before it.
    let mut goes_on = false;
    while !rest.is_empty() && !rest.starts_with('#') {
        if let Some(behind) = rest.strip_prefix(',') {
            if fields.is_empty() || goes_on {
                return Err("has a comma that follows nothing".to_owned());
            }
            goes_on = true;
            rest = behind.trim_start();
            continue;
        }
        let (word, behind) = word(rest)?;
        match fields.last_mut().filter(|_| goes_on) {
            Some(field) => field.push(word),
            None => fields.push(vec![word]),
        }
        goes_on = false;
        rest = behind.trim_start();
    }
    if goes_on {
        return Err("ends with a comma".to_owned());
    }
    Ok(fields)
}

fn word(text: &str) -> Result<(Word, &str), String> {
    let quoted = text.starts_with('"');
    let mut word = String::new();
    let mut inside = false;
    let mut letters = text.char_indices().peekable();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' if inside && letters.peek().is_some_and(|(_, next)| *next == '"') => {
                letters.next();
                word.push('"');
            }
            '"' => inside = !inside,
            ',' | '#' if !inside => return Ok((Word { text: word, quoted }, &text[at..])),
            blank if blank.is_whitespace() && !inside => {
                return Ok((Word { text: word, quoted }, &text[at..]));
            }
            other => word.push(other),
        }
    }
    if inside {
        return Err("has a quote without its end".to_owned());
    }
    Ok((Word { text: word, quoted }, ""))
}

fn single<'w>(field: &'w [Word], what: &str) -> Result<&'w str, String> {
    match field {
        [word] => Ok(&word.text),
        _ => Err(format!("{what} can be no list")),
    }
}

fn names(
    words: &[Word],
    of_databases: bool,
    path: &Path,
    read: Read<'_>,
    depth: usize,
) -> Result<Names, String> {
    let mut names = Names::default();
    for Word { text, quoted } in words {
        match text.as_str() {
            "all" if !quoted => names.all = true,
            "sameuser" if !quoted && of_databases => names.same_user = true,
            "replication" if !quoted && of_databases => names.replication = true,
            "samerole" | "samegroup" if !quoted && of_databases => {
                return Err(format!("{text} is not supported"));
            }
            group if !quoted && group.starts_with('+') => {
                return Err("groups (+name) are not supported".to_owned());
            }
            file if !quoted && file.len() > 1 && file.starts_with('@') => {
                let more = from_file(&file[1..], of_databases, path, read, depth)?;
                names.all |= more.all;
                names.same_user |= more.same_user;
                names.replication |= more.replication;
                names.listed.extend(more.listed);
            }
            name => names.listed.push(name.to_owned()),
        }
    }
    Ok(names)
}

/// The names in a file, whose path starts from the directory of the file that names it.
fn from_file(
    name: &str,
    of_databases: bool,
    from: &Path,
    read: Read<'_>,
    depth: usize,
) -> Result<Names, String> {
    if depth >= DEEPEST {
        return Err(format!("@{name} is more than {DEEPEST} files deep"));
    }
    let path: PathBuf = from.parent().unwrap_or(Path::new("")).join(name);
    let text = read(&path).map_err(|error| format!("@{name} cannot be read: {error}"))?;
    let mut words = Vec::new();
    for line in text.lines() {
        words.extend(fields(line)?.into_iter().flatten());
    }
    names(&words, of_databases, &path, read, depth + 1)
}

fn network(text: &str) -> Result<IpNet, String> {
    let network: IpNet = text
        .parse()
        .map_err(|_| format!("{text:?} is no network"))?;
    whole(network)
}

fn masked(address: &str, mask: &str) -> Result<IpNet, String> {
    let parse = |text: &str| {
        text.parse::<IpAddr>()
            .map_err(|_| format!("{text:?} is no address"))
    };
    let network = IpNet::with_netmask(parse(address)?, parse(mask)?);
    whole(network.map_err(|_| format!("{mask:?} is no mask of {address}"))?)
}

/// What was meant, the one address or the whole network, only its author knows.
fn whole(network: IpNet) -> Result<IpNet, String> {
    if network == network.trunc() {
        Ok(network)
    } else {
        Err(format!("the host bits of {network} are not 0"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOBODY: Read<'static> = &|_| Err(io::ErrorKind::NotFound.into());

    fn read(text: &str) -> HbaFile {
        let (file, wrong) = parse_with(text, Path::new("hba"), NOBODY);
        assert_eq!(wrong, None);
        file
    }

    fn asking<'a>(from: &str, database: &'a str, user: &'a str) -> Asking<'a> {
        let (from, tls) = from
            .strip_suffix("+tls")
            .map_or((from, false), |from| (from, true));
        Asking {
            address: from.parse().ok(),
            tls,
            database,
            user,
            replicates: false,
        }
    }

    #[test]
    fn the_first_record_that_fits_decides() {
        let file = read(concat!(
            "# who may come\n\n",
            "local all postgres peer map=os\n",
            "local   site , \"all\"  ann,\"bo b\"  trust   # behind\n",
            "host    all   evil   all            reject\n",
            "hostssl all   ann    10.0.0.0/8     cert map=m\n",
            "hostnossl sameuser all 10.1.0.0 255.255.0.0 md5\n",
            "host    all   all    ::1/128        scram-sha-256\n",
            "host    all   all    127.0.0.1/32   password\n",
        ));
        let map = |name: &str| Some(name.to_owned());
        for (from, database, user, method) in [
            ("unix", "x", "postgres", Some(Method::Peer(map("os")))),
            ("unix", "site", "ann", Some(Method::Trust)),
            ("unix", "all", "bo b", Some(Method::Trust)),
            ("unix", "other", "ann", None),
            ("10.9.9.9", "site", "evil", Some(Method::Reject)),
            ("::2+tls", "site", "evil", Some(Method::Reject)),
            ("10.9.9.9+tls", "site", "ann", Some(Method::Cert(map("m")))),
            ("10.9.9.9", "site", "ann", None),
            ("10.1.9.9", "bob", "bob", Some(Method::Md5)),
            ("::ffff:10.1.9.9", "bob", "bob", Some(Method::Md5)),
            ("10.1.9.9", "site", "bob", None),
            ("10.1.9.9+tls", "bob", "bob", None),
            ("::1", "x", "bob", Some(Method::ScramSha256)),
            ("127.0.0.1+tls", "x", "bob", Some(Method::Password)),
            ("127.0.0.2", "x", "bob", None),
        ] {
            let found = file.method(&asking(from, database, user));
            assert_eq!(found, method.as_ref(), "{from} {database} {user}");
        }
    }

    #[test]
    fn physical_replication_has_records_of_its_own() {
        let file = read("local all all trust\nlocal replication ann md5\n");
        let ann = Asking {
            replicates: true,
            ..asking("unix", "x", "ann")
        };
        assert_eq!(file.method(&ann), Some(&Method::Md5));
        let bob = Asking { user: "bob", ..ann };
        assert_eq!(file.method(&bob), None);
    }

    #[test]
    fn names_may_stand_in_files() {
        let files = |path: &Path| match path.to_str() {
            Some("/etc/users") => Ok("ann, bob # two\n@more\n".to_owned()),
            Some("/etc/more") => Ok("carl\n".to_owned()),
            Some("/etc/loop") => Ok("@loop".to_owned()),
            _ => Err(io::ErrorKind::NotFound.into()),
        };
        let text = "local all @users trust\nlocal all @loop trust\nlocal all @nosuch trust";
        let (file, wrong) = parse_with(text, Path::new("/etc/hba"), &files);
        for (user, comes_in) in [
            ("ann", true),
            ("bob", true),
            ("carl", true),
            ("dora", false),
        ] {
            assert_eq!(file.method(&asking("unix", "x", user)).is_some(), comes_in);
        }
        let wrong = wrong.unwrap();
        let lines: Vec<_> = wrong.iter().map(|mistake| mistake.line).collect();
        assert_eq!(lines, [2, 3]);
    }

    #[test]
    fn every_broken_line_is_named_and_the_others_stay() {
        let broken = [
            "nosuch all all trust",
            "local all",
            "local all all",
            "local all all nosuch",
            "local all all trust map=x",
            "local all all peer map=",
            "host all all all peer",
            "host all all 10.0.0.1/8 trust",
            "host all all 192.168.1.1/0 trust",
            "host all all 10.0.0.0/33 trust",
            "host all all 10.0.0.0 trust",
            "host all all 10.0.0.0 255.0.255.0 trust",
            "host all all localhost trust",
            "host all all samenet trust",
            "local samerole all trust",
            "local all +group trust",
            "local all \"all trust",
            "local , all trust",
            "local all, all trust,",
            "local a,,b all trust",
        ];
        let text = format!("{}\nlocal all all trust\n", broken.join("\n"));
        let (file, wrong) = parse_with(&text, Path::new("hba"), NOBODY);
        let wrong = wrong.unwrap();
        let lines: Vec<_> = wrong.iter().map(|mistake| mistake.line).collect();
        assert_eq!(lines, (1..=broken.len()).collect::<Vec<_>>(), "{wrong}");
        // The last one, and a refusal for whom `peer` would have refused.
        assert_eq!(file.0.len(), 2);
        assert!(wrong.to_string().starts_with("hba:1:1: "));
    }

    #[test]
    fn a_directory_has_its_options_in_the_record_and_a_wrong_one_lets_nobody_past() {
        let text = "local all ann ldap ldapserver=a, ldapprefix=\"uid=\" ldapsuffix=\",dc=x\"\n\
                    local all bob ldap ldapserver=a\nlocal all all trust\n";
        let (file, wrong) = parse_with(text, Path::new("hba"), NOBODY);
        let wrong = wrong.unwrap().to_string();
        assert_eq!(wrong, "hba:2:1: needs ldapbasedn, ldapprefix or ldapsuffix");
        let options = "ldapserver=a ldapprefix=uid= ldapsuffix=\",dc=x\"";
        let options = LdapOptions::parse(options).unwrap();
        let method = |user| file.method(&asking("unix", "x", user)).cloned();
        assert_eq!(method("ann"), Some(Method::Ldap(Box::new(options))));
        assert_eq!(method("bob"), Some(Method::Reject));
        assert_eq!(method("carl"), Some(Method::Trust));
    }

    proptest! {
        #[test]
        fn no_line_is_too_strange(line in "\\PC{0,60}", words in "((local|host|all|@x|\"|,|#|::1/128|trust|map=x) ?){0,9}") {
            for text in [line, words] {
                // What matters is that it returns.
                let _ = parse_with(&text, Path::new("hba"), NOBODY);
            }
        }
    }
}
