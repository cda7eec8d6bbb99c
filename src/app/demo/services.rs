//! Who the clients are: four services that share one Postgres, as a small team has them.

use std::time::Duration;

use crate::config::checked::Secret;
use crate::server::login::{Identity, ServerLogin};

/// What the throw-away Postgres is started with.
pub(super) const MAX_CONNECTIONS: u32 = 100;

/// What pgweir may have of them.
pub(super) const BUDGET: u32 = 40;

/// One service of the demo. Its role and its database have its name.
pub(super) struct Service {
    pub(super) name: &'static str,
    /// How many server connections pgweir gives it.
    pub(super) max_servers: u32,
    /// Its rollouts: one client in four still runs the first.
    deployments: [&'static str; 2],
    /// How long Postgres works on one of its transactions.
    pub(super) work: Duration,
    /// How long a client does something else between two transactions, on average.
    pub(super) think: Duration,
}

/// The services. Together they may have more than the budget, so that both the caps and the budget are put to use.
pub(super) const SERVICES: [Service; 4] = [
    Service {
        name: "site",
        max_servers: 20,
        deployments: ["v41", "v42"],
        work: Duration::from_millis(2),
        think: Duration::from_millis(200),
    },
    // Slow and many: it waits at its cap, and nobody else does because of it.
    Service {
        name: "worker",
        max_servers: 12,
        deployments: ["2024-11", "2024-12"],
        work: Duration::from_millis(20),
        think: Duration::from_millis(100),
    },
    Service {
        name: "bot",
        max_servers: 8,
        deployments: ["9c1e", "d07a"],
        work: Duration::from_millis(1),
        think: Duration::from_millis(200),
    },
    Service {
        name: "metrics",
        max_servers: 4,
        deployments: ["1.3", "1.4"],
        work: Duration::from_millis(5),
        think: Duration::from_millis(300),
    },
];

/// Whose the clients are that arrive: half of them the site's.
const ARRIVALS: [usize; 10] = [0, 1, 0, 2, 0, 1, 0, 2, 0, 3];

/// The service of the `nth` client, as an index of [`SERVICES`].
pub(super) fn service_of(nth: usize) -> usize {
    ARRIVALS[nth % ARRIVALS.len()]
}

/// What the `nth` client says at login.
pub(super) fn identity_of(nth: usize, logins: &[Login]) -> Identity {
    let service = service_of(nth);
    let deployments = SERVICES[service].deployments;
    let deployment = deployments[usize::from(!(nth / ARRIVALS.len()).is_multiple_of(4))];
    identity(service, deployment, logins)
}

/// What a client of this service and deployment says at login.
pub(super) fn identity(service: usize, deployment: &str, logins: &[Login]) -> Identity {
    let name = SERVICES[service].name;
    Identity {
        user: name.to_owned(),
        database: name.to_owned(),
        proof: logins[service].proof.clone(),
        application_name: format!("{name}@{deployment}"),
        parameters: Vec::new(),
        minor: 0,
    }
}

/// How one service logs in.
pub(super) struct Login {
    /// Role, database and service.
    pub(super) name: &'static str,
    /// Made for this run.
    pub(super) password: Secret,
    /// Shared by all its clients, so that the keys are derived once and not by each.
    proof: ServerLogin,
}

/// New passwords for all services.
pub(super) fn logins() -> Vec<Login> {
    SERVICES.iter().map(Login::new).collect()
}

impl Login {
    fn new(service: &Service) -> Self {
        let password = password();
        let proof = ServerLogin::password(&password);
        Self {
            name: service.name,
            password,
            proof,
        }
    }
}

/// A password that nobody has to type: others on this machine can reach the ports as well.
pub(super) fn password() -> Secret {
    Secret::new(format!("{:032x}", rand::random::<u128>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_service_has_clients_of_both_deployments() {
        let logins = logins();
        let names: std::collections::BTreeSet<_> = (0..100)
            .map(|nth| identity_of(nth, &logins).application_name)
            .collect();
        assert_eq!(names.len(), 2 * SERVICES.len(), "{names:?}");
        assert!(names.contains("site@v41") && names.contains("site@v42"));
    }

    #[test]
    fn the_caps_together_exceed_the_budget_and_the_budget_fits() {
        assert!(
            SERVICES
                .iter()
                .map(|service| service.max_servers)
                .sum::<u32>()
                > BUDGET
        );
        const { assert!(BUDGET < MAX_CONNECTIONS) };
    }
}
