//! `auth_type = pam` and records with `pam`: real modules check the passwords, for PgBouncer and for pgweir. Each program has an
//! `/etc/pam.d` of its own, in a mount namespace.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use support::case::ROLES;
use support::pgbouncer::{Kind, Place, Running};
use support::postgres::psql;
use support::{Method, Postgres, eventually};

/// Passwords are given to a script; a second one says who may come in today.
const SERVICE: &str = "\
auth required pam_exec.so quiet expose_authtok {dir}/password
account required pam_exec.so quiet {dir}/account
";

const PASSWORD: &str = "\
#!/bin/sh
password=$(tr -d '\\000')
if [ \"$PAM_USER\" = carol ]; then
  : >{dir}/begun
  while [ ! -e {dir}/go ]; do sleep 0.05; done
fi
case \"$PAM_SERVICE $PAM_USER $PAM_RHOST $password\" in
  \"{service} alice 127.0.0.1 wonder\"|\"{service} bob 127.0.0.1 builder\"|\"{service} carol 127.0.0.1 carols\") exit 0 ;;
esac
exit 1
";

const ACCOUNT: &str = "#!/bin/sh\n[ \"$PAM_USER\" != bob ]\n";

const INI: &str = "\
[databases]
shop = host=127.0.0.1 port={postgres} dbname=postgres
[pgbouncer]
{listen}
auth_type = pam
";

fn postgres() -> Postgres {
    let postgres = Postgres::setup().method(Method::Scram).start();
    for (role, password) in ROLES {
        postgres.create_role(role, password);
    }
    postgres
}

fn start(kind: Kind, postgres: &Postgres, ini: &str, hba: &str) -> Running {
    let place = Place::new();
    let filled = |text: &str| {
        let text = place.fill(text, postgres.port());
        text.replace("{service}", "pgbouncer")
    };
    place.write("pgbouncer.ini", &filled(ini));
    place.write("hba", hba);
    place.write("users.txt", "\"dave\" \"unlisted\"\n");
    fs::create_dir(place.path().join("pam.d")).expect("the directory is ours");
    place.write("pam.d/pgbouncer", &filled(SERVICE));
    for (name, text) in [("password", PASSWORD), ("account", ACCOUNT)] {
        place.write(name, &filled(text));
        fs::set_permissions(place.path().join(name), fs::Permissions::from_mode(0o755))
            .expect("it is ours");
    }
    place.start_in(kind, "mount --bind {dir}/pam.d /etc/pam.d")
}

/// Who psql says it is, or what the pooler told it.
fn login(running: &Running, user: &str, password: &str) -> String {
    let Output { stdout, stderr, .. } = psql(running.port(), user, "shop")
        .env("PGPASSWORD", password)
        .args(["-c", "select current_user"])
        .output()
        .expect("psql is installed");
    let text = String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned();
    let told = text.rsplit("failed: ").next().unwrap_or_default();
    told.trim().to_owned()
}

#[test]
fn pam_lets_in_whom_it_lets_in_for_pgbouncer() {
    let postgres = postgres();
    for kind in [Kind::PgBouncer118, Kind::PgBouncer124, Kind::Pgweir] {
        let running = start(kind, &postgres, INI, "");
        let name = kind.name();
        let failed = "FATAL:  PAM authentication failed";
        // With the same password she logs in to Postgres.
        assert_eq!(login(&running, "alice", "wonder"), "alice", "{name}");
        assert_eq!(login(&running, "alice", "wrong"), failed, "{name}");
        assert_eq!(login(&running, "nobody", "wonder"), failed, "{name}");
        // His password is right, but today he may not come in.
        assert_eq!(login(&running, "bob", "builder"), failed, "{name}");
        eventually("the log says so", || {
            let log = running.place.read("log");
            log.contains("closing because: PAM authentication failed")
                && log.contains("pam_acct_mgmt() failed")
                && log.contains("pam_authenticate() failed")
        });
        assert!(!running.place.read("log").contains("wonder"), "{name}");
    }
}

#[test]
fn a_module_that_takes_its_time_holds_up_nobody_else() {
    let postgres = postgres();
    let ini = INI.replace(
        "auth_type = pam",
        "auth_type = hba\nauth_hba_file = {dir}/hba\nauth_file = {dir}/users.txt\nclient_login_timeout = 20",
    );
    let hba = "host all carol all pam\nhost all dave all scram-sha-256\n";
    let running = start(Kind::Pgweir, &postgres, &ini, hba);
    std::thread::scope(|scope| {
        let carol = scope.spawn(|| login(&running, "carol", "carols"));
        eventually("the module has begun", || {
            running.place.path().join("begun").exists()
        });
        assert_eq!(login(&running, "dave", "unlisted"), "dave");
        assert!(!carol.is_finished(), "it has not come to its end");
        running.place.write("go", "");
        assert_eq!(carol.join().expect("psql runs"), "carol");
    });
}
