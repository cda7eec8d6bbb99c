//! Run-time parameters of a session: what a client asked for at startup or set later, the query that puts a server into that
//! state, and the one that asks what state it is in (manual, "Server Configuration", "Start-up").

use std::fmt::Write;

use super::startup::Startup;

/// The parameter by which a client names its deployment. Postgres never sees it.
pub const DEPLOYMENT: &str = "pgweir.deployment";

/// Parameters by name, in lower case and in order, each once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Parameters(Vec<(Box<str>, Box<str>)>);

/// A switch in `options` that sets no parameter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid command-line argument for server process: {0}")]
pub struct OptionsError(pub String);

/// They decide what a session may do. Set last, because they may take the right to set others away; reset first.
pub const ROLES: [&str; 2] = ["session_authorization", "role"];

/// What PgBouncer keeps of each client.
const TRACKED: [&str; 6] = [
    "application_name",
    "client_encoding",
    "DateStyle",
    "IntervalStyle",
    "standard_conforming_strings",
    "TimeZone",
];

impl Parameters {
    /// None at all.
    pub const NONE: Self = Self(Vec::new());

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How much memory they take, about, in bytes.
    pub fn size(&self) -> usize {
        self.iter()
            .map(|(name, value)| name.len() + value.len() + 32)
            .sum()
    }

    /// All, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// The value of one. Asked for at every transaction: nothing is allocated.
    pub fn value(&self, name: &str) -> Option<&str> {
        let lower = || name.bytes().map(|byte| byte.to_ascii_lowercase());
        let at = self
            .0
            .binary_search_by(|(known, _)| known.bytes().cmp(lower()));
        Some(&self.0[at.ok()?].1)
    }

    /// Sets one.
    pub fn set(&mut self, name: &str, value: &str) {
        let name = name.to_ascii_lowercase();
        match self.place(&name) {
            Ok(at) => self.0[at].1 = value.into(),
            Err(at) => self.0.insert(at, (name.into(), value.into())),
        }
    }

    /// Forgets one.
    pub fn unset(&mut self, name: &str) {
        if let Ok(at) = self.place(&name.to_ascii_lowercase()) {
            self.0.remove(at);
        }
    }

    /// Sets everything that `others` sets and this does not.
    pub fn fill_from(&mut self, others: &Self) {
        for (name, value) in others.iter() {
            if self.place(name).is_err() {
                self.set(name, value);
            }
        }
    }

    fn place(&self, name: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| (**known).cmp(name))
    }

    /// What a client asks for at startup: parameters of the packet, over those in its `options`. Those whose names are `ignored`
    /// are passed over; `options` among them stands for everything in it that PgBouncer would not know.
    pub fn of_startup(startup: &Startup, ignored: &[String]) -> Result<Self, OptionsError> {
        let is_ignored = |name: &str| ignored.iter().any(|known| known.eq_ignore_ascii_case(name));
        let mut parameters = Self::default();
        if let Some(options) = startup.parameter("options") {
            let all = is_ignored("options");
            let read = match options_of(options) {
                Err(_) if all => Vec::new(),
                read => read?,
            };
            for (name, value) in read {
                let is_kept = TRACKED
                    .iter()
                    .any(|known| known.eq_ignore_ascii_case(&name));
                if !is_ignored(&name) && (!all || is_kept) {
                    parameters.set(&name, &value);
                }
            }
        }
        for (name, value) in &startup.parameters {
            if !matches!(name.as_str(), "options" | "replication") && !is_ignored(name) {
                parameters.set(name, value);
            }
        }
        Ok(parameters)
    }

    /// The query that makes a session with parameters `from` one with these; `None` if it is one already.
    pub fn change_from(&self, from: &Self) -> Option<String> {
        let gone = from
            .iter()
            .filter(|(name, _)| self.place(name).is_err())
            .map(|(name, _)| (name, None));
        let new = self
            .iter()
            .filter(|(name, value)| from.value(name) != Some(value))
            .map(|(name, value)| (name, Some(value)));
        let mut changes: Vec<_> = gone.chain(new).collect();
        changes.sort_by_key(|(name, value)| {
            let role = ROLES.iter().position(|role| role == name);
            match (role, value) {
                (Some(at), None) => (0, ROLES.len() - at),
                (Some(at), Some(_)) => (2, at),
                (None, _) => (1, 0),
            }
        });
        if changes.is_empty() {
            return None;
        }
        // Its row is unlike those of a question.
        let mut sql = "SELECT NULL, NULL".to_owned();
        for change in changes {
            sql.push_str(", ");
            set_config(&mut sql, change);
        }
        Some(sql)
    }
}

impl<'a> FromIterator<(&'a str, &'a str)> for Parameters {
    fn from_iter<T: IntoIterator<Item = (&'a str, &'a str)>>(all: T) -> Self {
        let mut parameters = Self::default();
        for (name, value) in all {
            parameters.set(name, value);
        }
        parameters
    }
}

/// NULL resets a parameter.
fn set_config(sql: &mut String, (name, value): (&str, Option<&str>)) {
    let value = value.map_or("NULL".to_owned(), literal);
    write!(
        sql,
        "pg_catalog.set_config({}, {value}, false)",
        literal(name)
    )
    .expect("strings take everything");
}

/// A string constant that means the same whatever `standard_conforming_strings` and `client_encoding` say: those of the client that
/// had the session before hold until the query is done.
fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if text.is_ascii() && !text.contains('\\') {
        return format!("'{quoted}'");
    }
    let mut escaped = "E'".to_owned();
    for byte in quoted.bytes() {
        match byte {
            b'\\' => escaped.push_str("\\\\"),
            0x80.. => write!(escaped, "\\x{byte:02x}").expect("strings take everything"),
            _ => escaped.push(char::from(byte)),
        }
    }
    escaped.push('\'');
    escaped
}

/// The query for the values of these parameters, a row of name and value for each; no value where there is no such parameter.
pub fn question<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let rows: Vec<_> = names
        .into_iter()
        .map(|name| format!("({})", literal(name)))
        .collect();
    format!(
        "SELECT n, pg_catalog.current_setting(n, true) FROM (VALUES {}) AS v(n)",
        rows.join(", ")
    )
}

/// The query for every parameter that was set in the session, a row of name and value for each. `names`: those that Postgres
/// does not list (those with a dot), and which may have been set.
pub fn question_all<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let mut sql = "SELECT name, setting FROM pg_catalog.pg_settings WHERE source = 'session' \
        UNION ALL SELECT 'role', pg_catalog.current_setting('role') \
        WHERE pg_catalog.current_setting('role') <> 'none' \
        UNION ALL SELECT 'session_authorization', pg_catalog.current_setting('session_authorization')"
        .to_owned();
    for name in names.into_iter().filter(|name| name.contains('.')) {
        let name = literal(name);
        write!(
            sql,
            " UNION ALL SELECT {name}, pg_catalog.current_setting({name}, true) \
             WHERE pg_catalog.current_setting({name}, true) <> ''"
        )
        .expect("strings take everything");
    }
    sql
}

/// The query that says when a parameter can be set (manual, "pg_settings"): a row of its name and `context`.
pub fn question_context(name: &str) -> String {
    let name = literal(name);
    format!("SELECT name, context FROM pg_catalog.pg_settings WHERE lower(name) = lower({name})")
}

/// Name and value of a row of two columns; no value where that is null. `None`: it is no such row.
pub fn row(body: &[u8]) -> Option<(&str, Option<&str>)> {
    let (&[0, 2], rest) = body.split_first_chunk::<2>()? else {
        return None;
    };
    let (name, rest) = column(rest)?;
    let (value, _) = column(rest)?;
    Some((name?, value))
}

fn column(bytes: &[u8]) -> Option<(Option<&str>, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else {
        return Some((None, rest));
    };
    let (text, rest) = rest.split_at_checked(length)?;
    Some((Some(std::str::from_utf8(text).ok()?), rest))
}

/// Name and value of the parameters in `options`: `-c name=value`, `--name=value`, blanks escaped by backslashes (manual,
/// "PGOPTIONS").
fn options_of(options: &str) -> Result<Vec<(String, String)>, OptionsError> {
    let mut words = words(options).into_iter();
    let mut parameters = vec![];
    while let Some(word) = words.next() {
        let setting = match word.strip_prefix("--").or(word.strip_prefix("-c")) {
            Some("") => words.next().ok_or_else(|| OptionsError(word.clone()))?,
            Some(setting) => setting.to_owned(),
            None => return Err(OptionsError(word)),
        };
        let (name, value) = setting.split_once('=').ok_or(OptionsError(word))?;
        // As Postgres does, so that names can be written with dashes.
        parameters.push((name.replace('-', "_"), value.to_owned()));
    }
    Ok(parameters)
}

/// `options` without what they say of one parameter, which is none of Postgres'. As they were if they do not name it.
pub fn options_without(options: &str, name: &str) -> String {
    let mut words = words(options).into_iter();
    let (mut kept, mut found) = (String::new(), false);
    while let Some(word) = words.next() {
        let setting = match word.strip_prefix("--").or(word.strip_prefix("-c")) {
            Some("") => words.next(),
            Some(setting) => Some(setting.to_owned()),
            None => None,
        };
        let named = setting
            .as_deref()
            .and_then(|setting| setting.split_once('='));
        if named.is_some_and(|(named, _)| named.replace('-', "_").eq_ignore_ascii_case(name)) {
            found = true;
            continue;
        }
        // What follows a lone `-c` was taken from the words.
        let follows = setting.filter(|_| matches!(&*word, "-c" | "--"));
        for word in [word].into_iter().chain(follows) {
            if !kept.is_empty() {
                kept.push(' ');
            }
            for letter in word.chars() {
                if letter == '\\' || letter.is_ascii_whitespace() {
                    kept.push('\\');
                }
                kept.push(letter);
            }
        }
    }
    if found { kept } else { options.to_owned() }
}

fn words(options: &str) -> Vec<String> {
    let (mut words, mut word) = (vec![], None::<String>);
    let mut letters = options.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => word.get_or_insert_default().extend(letters.next()),
            blank if blank.is_ascii_whitespace() => words.extend(word.take()),
            letter => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Parameters {
        pairs.iter().copied().collect()
    }

    #[test]
    fn nothing_is_sent_when_nothing_differs() {
        let parameters = of(&[("TimeZone", "UTC"), ("application_name", "x")]);
        assert_eq!(parameters.change_from(&parameters.clone()), None);
        for name in ["timezone", "TimeZone", "TIMEZONE"] {
            assert_eq!(parameters.value(name), Some("UTC"));
        }
        assert_eq!(parameters.value("time"), None);
    }

    #[test]
    fn a_change_is_one_query_in_which_roles_come_at_the_right_end() {
        let from = of(&[("role", "a"), ("work_mem", "1MB"), ("x.y", "1")]);
        let to = of(&[("role", "b"), ("search_path", "it's, \\"), ("x.y", "1")]);
        assert_eq!(
            to.change_from(&from).unwrap(),
            "SELECT NULL, NULL, pg_catalog.set_config('work_mem', NULL, false), \
             pg_catalog.set_config('search_path', E'it''s, \\\\', false), \
             pg_catalog.set_config('role', 'b', false)"
        );
        assert_eq!(
            Parameters::default()
                .change_from(&of(&[("a", "1"), ("role", "x")]))
                .unwrap(),
            "SELECT NULL, NULL, pg_catalog.set_config('role', NULL, false), pg_catalog.set_config('a', NULL, false)"
        );
    }

    #[test]
    fn text_is_sent_in_ascii_because_the_encoding_may_be_the_last_clients() {
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal("ë\\'"), "E'\\xc3\\xab\\\\'''");
    }

    #[test]
    fn options_are_read_as_postgres_reads_them() {
        let cases: [(&str, &[(&str, &str)]); 6] = [
            ("-c geqo=off", &[("geqo", "off")]),
            (
                "-cgeqo=off --search-path=a,\\ b",
                &[("geqo", "off"), ("search_path", "a, b")],
            ),
            ("  ", &[]),
            ("-c a.b=x=y\t-c c=\\\\", &[("a.b", "x=y"), ("c", "\\")]),
            ("--a=", &[("a", "")]),
            ("-c a=\\", &[("a", "")]),
        ];
        for (options, expected) in cases {
            let expected: Vec<_> = expected
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect();
            assert_eq!(options_of(options), Ok(expected), "{options}");
        }
        for wrong in ["-d 5", "x", "-c", "-c x", "--x"] {
            assert!(options_of(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn one_parameter_is_taken_out_of_options_and_the_others_stay() {
        let name = "pgweir.deployment";
        for (options, rest) in [
            ("-c pgweir.deployment=v1", ""),
            ("-cpgweir.deployment=v1 -c geqo=off", "-c geqo=off"),
            (
                "-c geqo=off --PGWEIR.deployment=v1 --search-path=a,\\ b\\\\",
                "-c geqo=off --search-path=a,\\ b\\\\",
            ),
            ("-c  geqo=off", "-c  geqo=off"),
            ("-d 5 -c", "-d 5 -c"),
            ("-d 5 -c pgweir.deployment=v1 -c", "-d 5 -c"),
        ] {
            assert_eq!(options_without(options, name), rest, "{options}");
        }
    }

    #[test]
    fn rows_of_two_columns_are_read() {
        assert_eq!(row(b"\0\x02\0\0\0\x01a\0\0\0\x01b"), Some(("a", Some("b"))));
        assert_eq!(row(b"\0\x02\0\0\0\x01a\xff\xff\xff\xff"), Some(("a", None)));
        assert_eq!(row(b"\0\x02\0\0\0\x09a"), None);
        assert_eq!(row(b"\0\x01\0\0\0\x01a"), None);
    }

    proptest! {
        #[test]
        fn any_options_and_rows_are_survived(options in ".{0,60}", body in proptest::collection::vec(any::<u8>(), 0..60)) {
            let left = options_without(&options, "a.b");
            prop_assert_eq!(options_without(&left, "a.b"), left.clone());
            if let (Ok(all), Ok(rest)) = (options_of(&options), options_of(&left)) {
                let all: Vec<_> = all.into_iter().filter(|(name, _)| !name.eq_ignore_ascii_case("a.b")).collect();
                prop_assert_eq!(all, rest);
            }
            let _ = row(&body);
        }

        #[test]
        fn what_is_set_is_read(pairs in proptest::collection::vec(("[a-c]{1,2}", "[a-z]{0,3}"), 0..8)) {
            let parameters: Parameters = pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            for (name, _) in &pairs {
                let last = pairs.iter().rev().find(|(known, _)| known == name).unwrap();
                prop_assert_eq!(parameters.value(name), Some(last.1.as_str()));
            }
            let mut names: Vec<_> = parameters.iter().map(|(name, _)| name).collect();
            names.sort_unstable();
            names.dedup();
            prop_assert_eq!(names.len(), parameters.iter().count());
        }
    }
}
