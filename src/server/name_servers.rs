//! The name servers of a file like `/etc/resolv.conf`, asked directly: for the addresses of a name, which then come with the time
//! for which they count, and for the serial number of a zone.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, ResolverConfig, ResolverOpts};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RData;
use hickory_resolver::system_conf::parse_resolv_conf;

use super::names::Answer;

/// What the system itself asks by.
const SYSTEM: &str = "/etc/resolv.conf";

/// Whom to ask, and how.
pub struct NameServers {
    config: ResolverConfig,
    options: ResolverOpts,
}

impl NameServers {
    /// Reads a file as resolv.conf(5) describes it. One without a name server is refused.
    pub fn read(path: &Path) -> io::Result<Self> {
        let (config, mut options) =
            parse_resolv_conf(std::fs::read(path)?).map_err(io::Error::other)?;
        // What is known is remembered elsewhere.
        options.cache_size = 0;
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        Ok(Self { config, options })
    }

    /// Those that the system asks.
    pub fn of_the_system() -> io::Result<Self> {
        Self::read(Path::new(SYSTEM))
    }

    /// The addresses of a host, which `/etc/hosts` may know too.
    pub(super) async fn addresses(&self, name: &str) -> io::Result<Answer> {
        let found = self.resolver()?.lookup_ip(name).await.map_err(failed)?;
        let ttls = found.as_lookup().answers().iter().map(|record| record.ttl);
        Ok(Answer {
            addresses: found.iter().map(|ip| SocketAddr::new(ip, 0)).collect(),
            ttl: ttls.min().map(|ttl| Duration::from_secs(ttl.into())),
        })
    }

    /// The serial number of a zone (RFC 1035, section 3.3.13).
    pub(super) async fn serial(&self, zone: &str) -> io::Result<u32> {
        let found = self.resolver()?.soa_lookup(zone).await.map_err(failed)?;
        let serial = found
            .answers()
            .iter()
            .find_map(|record| match &record.data {
                RData::SOA(start) => Some(start.serial),
                _ => None,
            });
        serial.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "this is no zone"))
    }

    /// One for each question: its sockets belong to the runtime of whoever asks.
    fn resolver(&self) -> io::Result<TokioResolver> {
        let runtime = TokioRuntimeProvider::default();
        TokioResolver::builder_with_config(self.config.clone(), runtime)
            .with_options(self.options.clone())
            .build()
            .map_err(failed)
    }
}

impl fmt::Debug for NameServers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses = self.config.name_servers().iter().map(|server| server.ip);
        f.debug_list().entries(addresses).finish()
    }
}

fn failed(error: NetError) -> io::Error {
    let kind = if error.is_no_records_found() || error.is_nx_domain() {
        io::ErrorKind::NotFound
    } else {
        io::ErrorKind::Other
    };
    io::Error::new(kind, error)
}
