//! Users and groups of this machine by name, as `/etc/passwd` and `/etc/group` have them.
//!
//! Not by the C library, whose look-up may load code for other directories; a number works where a name is elsewhere.

use std::fs;
use std::io;

/// Who a user is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Its name.
    pub name: String,
    /// Its number.
    pub user: u32,
    /// The number of its own group.
    pub group: u32,
    /// The numbers of the other groups that it belongs to.
    pub groups: Vec<u32>,
}

/// A user by name or number.
pub fn user(name: &str) -> io::Result<Account> {
    let (users, groups) = (
        fs::read_to_string("/etc/passwd")?,
        fs::read_to_string("/etc/group")?,
    );
    account(name, &users, &groups).ok_or_else(|| unknown("user", name))
}

/// A group by name or number.
pub fn group(name: &str) -> io::Result<u32> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    group_in(name, &fs::read_to_string("/etc/group")?).ok_or_else(|| unknown("group", name))
}

/// The name of a user by number.
pub fn user_name(number: u32) -> Option<String> {
    let users = fs::read_to_string("/etc/passwd").ok()?;
    let mut lines = users.lines().map(fields);
    let found = lines.find(|fields| fields.get(2).and_then(|n| n.parse().ok()) == Some(number))?;
    Some(found[0].to_owned())
}

fn account(name: &str, users: &str, groups: &str) -> Option<Account> {
    let mut lines = users.lines().map(fields);
    let found = lines.find(|fields| fields[0] == name || fields.get(2) == Some(&name))?;
    let (user, group) = (found.get(2)?.parse().ok()?, found.get(3)?.parse().ok()?);
    let belongs = |fields: &Vec<&str>| {
        fields
            .get(3)
            .is_some_and(|members| members.split(',').any(|member| member == found[0]))
    };
    let others = groups.lines().map(fields).filter(belongs);
    let others = others.filter_map(|fields| fields.get(2)?.parse().ok());
    Some(Account {
        name: found[0].to_owned(),
        user,
        group,
        groups: others.filter(|other| *other != group).collect(),
    })
}

fn group_in(name: &str, groups: &str) -> Option<u32> {
    let mut lines = groups.lines().map(fields);
    let found = lines.find(|fields| fields[0] == name)?;
    found.get(2)?.parse().ok()
}

fn fields(line: &str) -> Vec<&str> {
    line.split(':').collect()
}

fn unknown(kind: &str, name: &str) -> io::Error {
    let message = format!("this machine has no {kind} {name:?}");
    io::Error::new(io::ErrorKind::NotFound, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    const USERS: &str =
        "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\nbroken:x\n";
    const GROUPS: &str = "root:x:0:\nann:x:1000:\nssl-cert:x:112:bob,ann\nother:x:113:bob\n";

    #[test]
    fn a_user_is_found_by_name_or_number_with_all_its_groups() {
        let ann = Account {
            name: "ann".into(),
            user: 1000,
            group: 1000,
            groups: vec![112],
        };
        assert_eq!(account("ann", USERS, GROUPS), Some(ann.clone()));
        assert_eq!(account("1000", USERS, GROUPS), Some(ann));
        assert_eq!(account("carl", USERS, GROUPS), None);
        assert_eq!(account("broken", USERS, GROUPS), None);
    }

    #[test]
    fn a_group_is_found_by_name() {
        assert_eq!(group_in("ssl-cert", GROUPS), Some(112));
        assert_eq!(group_in("none", GROUPS), None);
    }
}
