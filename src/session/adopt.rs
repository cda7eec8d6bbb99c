//! What a client did to the parameters of the session that it was lent becomes the client's own, and follows it to whichever server
//! connection it gets next.

use crate::server::state::{Answer, Touched};
use crate::wire::parameters::{Parameters, question, question_all};

/// What is known of a session's parameters after its client is done with it.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// They are these.
    Known(Parameters),
    /// Postgres must be asked with this query.
    Ask(String),
}

/// Where parameters are looked up.
#[derive(Debug, Clone, Copy)]
pub struct Ground<'a> {
    /// What Postgres reported when the connection was opened.
    pub base: &'a [(Box<str>, Box<str>)],
    /// What the client asked for at startup.
    pub startup: &'a Parameters,
    /// What the session was given.
    pub given: &'a Parameters,
}

/// Parameters that `RESET ALL` leaves alone.
const NOT_RESET: [&str; 2] = ["role", "session_authorization"];

impl Ground<'_> {
    /// What is known after the client has done this.
    pub fn after(&self, touched: &Touched) -> Found {
        let lasting = NOT_RESET
            .iter()
            .any(|name| self.given.value(name).is_some());
        if touched.any || (touched.resets_all && (touched.unsure || lasting)) {
            let dotted = self.given.iter().map(|(name, _)| name);
            return Found::Ask(question_all(
                dotted.chain(
                    touched
                        .names
                        .iter()
                        .chain(&touched.reset)
                        .map(|name| &**name),
                ),
            ));
        }
        let mut unknown = touched
            .names
            .iter()
            .chain(&touched.reset)
            .map(|name| &**name)
            .filter(|name| !self.is_reported(name))
            .peekable();
        if unknown.peek().is_some() {
            return Found::Ask(question(unknown));
        }
        Found::Known(self.with_reported(touched))
    }

    /// What is known after Postgres has answered as well.
    pub fn answered(&self, touched: &Touched, answer: &Answer) -> Parameters {
        let mut found = if touched.any || touched.resets_all {
            Parameters::default()
        } else {
            self.with_reported(touched)
        };
        for (name, value) in &answer.rows {
            let value = value.as_deref();
            // It has what a new connection has, unless the reset was taken back.
            let is_reset = touched.resets(name) && !touched.names.contains(name);
            if is_reset && !touched.any && value != self.given.value(name) {
                found.unset(name);
                continue;
            }
            match value {
                Some(value) if !(&**name == "role" && value == "none") => {
                    self.put(&mut found, name, value);
                }
                _ => found.unset(name),
            }
        }
        found
    }

    fn with_reported(&self, touched: &Touched) -> Parameters {
        let mut found = if touched.resets_all {
            Parameters::default()
        } else {
            self.given.clone()
        };
        for (name, value) in &touched.reported {
            if touched.resets(name) && self.base(name) == Some(&**value) {
                found.unset(name);
            } else {
                self.put(&mut found, name, value);
            }
        }
        found
    }

    /// What every new connection has is not worth carrying along, unless the client began with something else.
    fn put(&self, found: &mut Parameters, name: &str, value: &str) {
        if self.startup.value(name).is_none() && self.base(name) == Some(value) {
            found.unset(name);
        } else if is_settable(name) {
            found.set(name, value);
        }
    }

    fn base(&self, name: &str) -> Option<&str> {
        let (_, value) = self
            .base
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))?;
        Some(value)
    }

    fn is_reported(&self, name: &str) -> bool {
        self.base(name).is_some()
    }
}

/// Postgres reports some that nobody can set.
fn is_settable(name: &str) -> bool {
    const FIXED: [&str; 5] = [
        "is_superuser",
        "in_hot_standby",
        "integer_datetimes",
        "server_encoding",
        "server_version",
    ];
    !FIXED.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Parameters {
        pairs.iter().copied().collect()
    }

    fn ground<T>(
        startup: &[(&str, &str)],
        given: &[(&str, &str)],
        with: impl FnOnce(Ground<'_>) -> T,
    ) -> T {
        let base = [
            ("TimeZone".into(), "UTC".into()),
            ("is_superuser".into(), "off".into()),
        ];
        with(Ground {
            base: &base,
            startup: &of(startup),
            given: &of(given),
        })
    }

    fn names(names: &[&str]) -> Touched {
        Touched {
            names: names.iter().map(|name| (*name).into()).collect(),
            ..Touched::default()
        }
    }

    fn reported(name: &str, value: &str) -> Touched {
        Touched {
            reported: vec![(name.into(), value.into())],
            ..names(&["timezone"])
        }
    }

    #[test]
    fn what_postgres_reports_is_not_asked_for() {
        let known = |touched: &Touched| ground(&[], &[("a", "1")], |ground| ground.after(touched));
        assert_eq!(
            known(&reported("TimeZone", "CET")),
            Found::Known(of(&[("a", "1"), ("timezone", "CET")]))
        );
        assert_eq!(
            known(&reported("TimeZone", "UTC")),
            Found::Known(of(&[("a", "1")])),
            "as every new session has it"
        );
        assert_eq!(
            known(&reported("is_superuser", "on")),
            Found::Known(of(&[("a", "1")]))
        );
        assert!(matches!(known(&names(&["work_mem"])), Found::Ask(_)));
    }

    #[test]
    fn a_value_that_differs_from_the_startups_stays() {
        let found = ground(&[("timezone", "CET")], &[("timezone", "CET")], |ground| {
            ground.after(&reported("TimeZone", "UTC"))
        });
        assert_eq!(found, Found::Known(of(&[("timezone", "UTC")])));
    }

    #[test]
    fn reset_all_leaves_nothing_if_it_is_certain() {
        let resets = Touched {
            resets_all: true,
            ..Touched::default()
        };
        let given = [("a.b", "1"), ("timezone", "CET")];
        assert_eq!(
            ground(&[], &given, |ground| ground.after(&resets)),
            Found::Known(Parameters::default())
        );
        let role = [("role", "x")];
        let found = ground(&[], &role, |ground| ground.after(&resets));
        assert!(matches!(found, Found::Ask(_)), "RESET ALL keeps the role");
        let unsure = Touched {
            unsure: true,
            ..resets
        };
        let found = ground(&[], &given, |ground| ground.after(&unsure));
        assert!(matches!(found, Found::Ask(sql) if sql.contains("'a.b'")));
    }

    #[test]
    fn the_answer_says_what_is() {
        let answer = Answer {
            rows: vec![
                ("work_mem".into(), Some("1MB".into())),
                ("x.y".into(), None),
                ("role".into(), Some("none".into())),
            ],
            ..Answer::default()
        };
        let given = [("x.y", "1"), ("role", "a"), ("other", "1")];
        ground(&[], &given, |ground| {
            let found = ground.answered(&names(&["work_mem", "x.y", "role"]), &answer);
            assert_eq!(found, of(&[("other", "1"), ("work_mem", "1MB")]));
            let any = Touched {
                any: true,
                ..Touched::default()
            };
            let found = ground.answered(&any, &answer);
            assert_eq!(found, of(&[("work_mem", "1MB")]));
        });
    }
}
