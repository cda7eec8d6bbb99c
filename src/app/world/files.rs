//! The files beside a configuration: who may log in, how, and whom to ask for the addresses of names.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use super::{SourceError, World};
use crate::config::checked::{AuthMethod, Config, Secret};
use crate::config::hba_file::HbaFile;
use crate::config::ident_file::IdentMap;
use crate::config::{self, Mistakes};
use crate::server::name_servers::NameServers;

/// Users with their secrets.
pub(super) type Users = Vec<(String, Secret)>;

/// Reads the files that say who may log in, and how.
pub(super) struct Files<'a> {
    /// As PgBouncer: a file that is not there is told, and what was read from it before stays. In an HBA file, what is wrong is passed
    /// over.
    lenient: bool,
    before: Option<&'a World>,
    /// The users file is one of those that are not there.
    pub(super) lacks_users: bool,
    /// What is to be told of those that are not there.
    pub(super) missing: Vec<String>,
}

impl<'a> Files<'a> {
    pub(super) fn new(lenient: bool, before: Option<&'a World>) -> Self {
        Self {
            lenient,
            before,
            lacks_users: false,
            missing: Vec::new(),
        }
    }

    /// What a file holds; `None`: it is not there, and that is borne. `what`: PgBouncer's word for it.
    fn read(&mut self, what: &str, path: &Path) -> Result<Option<String>, SourceError> {
        match read(path) {
            Err(SourceError::Unreadable { cause, .. })
                if self.lenient && cause.kind() == ErrorKind::NotFound =>
            {
                let path = path.display();
                let missing = format!("could not open {what} {path}: No such file or directory");
                self.missing.push(missing);
                Ok(None)
            }
            read => read.map(Some),
        }
    }

    /// What is kept of them for a reload that does not find the file.
    pub(super) fn kept(&self, users: Arc<Users>) -> Arc<Users> {
        if self.lenient { users } else { Arc::default() }
    }

    /// Those of `auth.users_file`.
    pub(super) fn users(&mut self, config: &Config) -> Result<Arc<Users>, SourceError> {
        let Some(path) = &config.auth.users_file else {
            return Ok(Arc::default());
        };
        let Some(text) = self.read("auth_file", path)? else {
            self.lacks_users = true;
            let before = self.before.map(|before| Arc::clone(&before.in_file));
            return Ok(before.unwrap_or_default());
        };
        let file = path.display().to_string();
        let users = config::users_file::parse(&text).map_err(|mistakes| mistakes.in_file(&file))?;
        Ok(Arc::new(users))
    }

    /// The names in certificates, as `auth.ident_file` maps them.
    pub(super) fn idents(&mut self, config: &Config) -> Result<Option<Arc<IdentMap>>, SourceError> {
        let Some(path) = &config.auth.ident_file else {
            return Ok(None);
        };
        let Some(text) = self.read("ident config file", path)? else {
            // Without any map, whoever has a certificate could log in by its name.
            let before = self.before.and_then(|before| before.idents.clone());
            return Ok(Some(before.unwrap_or_default()));
        };
        let file = path.display().to_string();
        let map = config::ident_file::parse(&text).map_err(|mistakes| mistakes.in_file(&file))?;
        Ok(Some(Arc::new(map)))
    }

    /// The records of `auth.hba_file`, and what was passed over.
    pub(super) fn hba(
        &mut self,
        config: &Config,
    ) -> Result<(Arc<HbaFile>, Option<Mistakes>), SourceError> {
        let auth = &config.auth;
        let Some(path) = auth
            .hba_file
            .as_ref()
            .filter(|_| auth.method == AuthMethod::Hba)
        else {
            return Ok((Arc::default(), None));
        };
        let Some(text) = self.read("hba config file", path)? else {
            let before = self.before.map(|before| Arc::clone(&before.hba));
            return Ok((before.unwrap_or_default(), None));
        };
        match config::hba_file::parse(&text, path) {
            (_, Some(mistakes)) if !self.lenient => Err(mistakes.into()),
            (records, passed_over) => Ok((Arc::new(records), passed_over)),
        }
    }
}

/// The forced users of `[databases]`, those of `users_file`, and those of `[users]`; the later win.
pub(super) fn users(config: &Config, in_file: &Users) -> Users {
    // Whoever gives a login in [databases] means it to be asked for: nobody gets it for nothing.
    let databases = config.databases.values().chain(&config.any_database);
    let forced =
        databases.filter_map(|database| Some((database.user.clone()?, database.password.clone()?)));
    let mut users: Vec<_> = forced.collect();
    users.extend(in_file.iter().cloned());
    let listed = config
        .users
        .iter()
        .filter_map(|(name, user)| Some((name.clone(), user.password.clone()?)));
    users.extend(listed);
    users
}

/// Whom `process.resolv_conf` names.
pub(super) fn name_servers(config: &Config) -> Result<Option<Arc<NameServers>>, SourceError> {
    let Some(path) = &config.process.resolv_conf else {
        return Ok(None);
    };
    let servers = NameServers::read(path).map_err(|cause| SourceError::Unreadable {
        path: path.clone(),
        cause,
    })?;
    Ok(Some(Arc::new(servers)))
}

fn read(path: &Path) -> Result<String, SourceError> {
    std::fs::read_to_string(path).map_err(|cause| SourceError::Unreadable {
        path: path.to_owned(),
        cause,
    })
}

#[cfg(test)]
mod tests {
    use super::super::CERTIFICATES;
    use super::*;

    #[test]
    fn an_ident_file_that_is_not_there_maps_nobody() {
        let config = config::parse(
            "[databases.\"*\"]\nurl = \"postgres://db\"\n[auth]\nident_file = \"/nonexistent/idents\"\n",
            "test",
            &|_| None,
        )
        .unwrap();
        let mut files = Files::new(true, None);
        let idents = files.idents(&config).unwrap();
        let missing =
            "could not open ident config file /nonexistent/idents: No such file or directory";
        assert_eq!(files.missing, [missing]);
        assert!(idents.is_some_and(|map| !map.admits(CERTIFICATES, "alice", "alice")));
        files.lenient = false;
        assert!(files.idents(&config).is_err());
    }
}
