//! A directory: OpenLDAP's server with a handful of people.

use std::fmt::Write;
use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::certs::Authority;
use super::process::{Guarded, free_port, run, scratch};
use super::wait::eventually;

/// Below it is everybody.
pub const BASE: &str = "dc=example,dc=net";

/// May search, with the password `secret`.
pub const READER: &str = "cn=reader,dc=example,dc=net";

/// People below `ou=people`: name, password, mail.
const PEOPLE: [(&str, &str, &str); 4] = [
    ("alice", "wonder", "alice@example.net"),
    ("bob", "builder", "shared@example.net"),
    ("carol", "singer", "shared@example.net"),
    // Who is found where an escape is missing.
    ("al*", "starry", "star@example.net"),
];

/// A running server, ended on drop. `localhost` is its certificate's name.
pub struct Slapd {
    pub port: u16,
    pub tls_port: u16,
    process: Guarded,
    directory: TempDir,
}

impl Slapd {
    /// Starts one. Nobody may search without a name.
    pub fn start(authority: &Authority) -> Self {
        authority.issue("directory", "localhost", &["localhost"]);
        let directory = scratch();
        let path = directory.path();
        fs::create_dir(path.join("data")).expect("the directory is ours");
        fs::write(path.join("slapd.conf"), configuration(path, authority))
            .expect("the directory is ours");
        fs::write(path.join("people.ldif"), people()).expect("the directory is ours");
        run(Command::new("/usr/sbin/slapadd")
            .arg("-f")
            .arg(path.join("slapd.conf"))
            .arg("-l")
            .arg(path.join("people.ldif")));
        for _ in 0..10 {
            let (port, tls_port) = (free_port(), free_port());
            let urls = format!("ldap://127.0.0.1:{port}/ ldaps://127.0.0.1:{tls_port}/");
            let mut command = Command::new("/usr/sbin/slapd");
            // "-d" keeps it in the foreground.
            command
                .args(["-d", "0", "-h", &urls, "-f"])
                .arg(path.join("slapd.conf"))
                .stderr(Stdio::null());
            let mut process = Guarded::spawn(&mut command, "KILL", path);
            let mut is_there = false;
            eventually("the directory listens or ends", || {
                is_there = [port, tls_port]
                    .iter()
                    .all(|port| TcpStream::connect(("127.0.0.1", *port)).is_ok());
                is_there || process.ended().is_some()
            });
            if is_there && process.ended().is_none() {
                return Self {
                    port,
                    tls_port,
                    process,
                    directory,
                };
            }
        }
        panic!("no free port in ten attempts");
    }

    /// It goes on to listen, and answers nobody.
    pub fn freeze(&self) {
        self.process.signal("STOP");
    }
}

fn configuration(path: &Path, authority: &Authority) -> String {
    let path = path.display();
    format!(
        "include /etc/ldap/schema/core.schema\ninclude /etc/ldap/schema/cosine.schema\n\
         include /etc/ldap/schema/inetorgperson.schema\nmodulepath /usr/lib/ldap\nmoduleload back_mdb\n\
         pidfile {path}/pid\nargsfile {path}/arguments\nallow bind_anon_dn\n\
         TLSCACertificateFile {ca}\nTLSCertificateFile {certificate}\nTLSCertificateKeyFile {key}\n\
         database mdb\nmaxsize 10485760\nsuffix \"{BASE}\"\ndirectory {path}/data\n\
         access to attrs=userPassword by anonymous auth by * none\naccess to * by dn.exact=\"{READER}\" read by users read by * none\n",
        ca = authority.ca().display(),
        certificate = authority.certificate("directory").display(),
        key = authority.key("directory").display(),
    )
}

fn people() -> String {
    let mut text = format!(
        "dn: {BASE}\nobjectClass: dcObject\nobjectClass: organization\no: example\ndc: example\n\n\
         dn: {READER}\nobjectClass: organizationalRole\nobjectClass: simpleSecurityObject\ncn: reader\nuserPassword: secret\n\n\
         dn: ou=people,{BASE}\nobjectClass: organizationalUnit\nou: people\n\n\
         dn: ou=admins,ou=people,{BASE}\nobjectClass: organizationalUnit\nou: admins\n\n\
         dn: uid=root,ou=admins,ou=people,{BASE}\nobjectClass: account\nobjectClass: simpleSecurityObject\nuid: root\n\
         userPassword: toor\n\n"
    );
    for (name, password, mail) in PEOPLE {
        let _ = write!(
            text,
            "dn: uid={name},ou=people,{BASE}\nobjectClass: inetOrgPerson\nuid: {name}\ncn: {name}\nsn: {name}\nmail: {mail}\n\
             userPassword: {password}\n\n"
        );
    }
    text
}
