//! Many groups on one machine, for `cargo xtask bench see`: copies the only group of a fleet in the
//! hub's registry, under other names, while the hub is stopped. For each server of a copy it
//! answers `GET /v1/status` with a certificate of that server, as the real group did; nothing else.
//! It prints `ready` once the hub may start, and runs until it is killed.
//!
//! `cargo run --release -p cohort-hub --example copies DIR STATUS COUNT`: the hub's directory, the
//! file with the real group's status, and how many copies.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use cohort_base::Cause;
use cohort_identity::{Alpn, Authority, ClientAuth, LIFETIME, Peer, Role, UnixTime};
use cohort_registry::records::{ServerRecord, decode};
use cohort_registry::typed::list;
use cohort_registry::{EmbeddedRegistry, KeyValue, Op, Registry as _, Txn, keys};
use cohort_wire::agent::STATUS;
use cohort_wire::http::{Handler, serve};
use cohort_wire::limits::{ServerLimits, raise_files};
use cohort_wire::tls::IdentitySlot;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Cause> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, status, count] = &args[..] else {
        return Err("usage: copies DIR STATUS COUNT".into());
    };
    // A listener for each server.
    raise_files();
    let (dir, count) = (Path::new(dir), count.parse::<u32>()?);
    let authority = Authority::open(&dir.join("authority"))?;
    let registry = EmbeddedRegistry::open(&dir.join("registry.redb"), "copies")?;
    let original = Original::read(&registry, std::fs::read_to_string(status)?).await?;
    for nth in 1..=count {
        original.copy(nth, &registry, &authority).await?;
    }
    // The hub opens it next.
    drop(registry);
    println!("ready");
    std::future::pending().await
}

/// The real group.
struct Original {
    zone: String,
    servers: Vec<ServerRecord>,
    /// Its records: all that its zone and its servers' names are in.
    pairs: Vec<KeyValue>,
    /// The answer of its agents, as JSON.
    status: String,
}

impl Original {
    async fn read(registry: &EmbeddedRegistry, status: String) -> Result<Self, Cause> {
        let mut pairs = Vec::new();
        for prefix in [keys::SERVERS, keys::GROUPS, keys::VERDICTS] {
            pairs.extend(list(registry, prefix).await?.0);
        }
        let servers = pairs.iter().filter(|pair| pair.key.starts_with(keys::SERVERS));
        let servers = servers.map(decode::<ServerRecord>).collect::<Result<Vec<_>, _>>()?;
        let zone = servers.first().and_then(|server| server.labels.get("zone"));
        let zone = zone.ok_or("a server with the label zone")?.clone();
        Ok(Original { zone, servers, pairs, status })
    }

    /// Writes the records of a copy, and answers for its servers from now on.
    async fn copy(
        &self,
        nth: u32,
        registry: &EmbeddedRegistry,
        authority: &Authority,
    ) -> Result<(), Cause> {
        let mut listeners = Vec::new();
        let mut addresses = Vec::new();
        for _ in &self.servers {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            addresses.push(listener.local_addr()?.to_string());
            listeners.push(listener);
        }
        let renamed = |text: &str| self.renamed(text, nth, &addresses);
        let record = |pair: &KeyValue| Op::put(renamed(&pair.key), renamed(&pair.value));
        let then = self.pairs.iter().map(record).collect();
        registry.txn(Txn { then, ..Txn::default() }).await?;
        for (server, listener) in self.servers.iter().zip(listeners) {
            let peer = Peer::new(Role::Agent, renamed(server.server.as_str()))?;
            let identity = authority.make_identity(&peer, LIFETIME, UnixTime::now())?;
            answer(listener, IdentitySlot::new(identity), renamed(&self.status));
        }
        Ok(())
    }

    /// A text about the original as one about a copy whose servers have these addresses.
    fn renamed(&self, text: &str, nth: u32, addresses: &[String]) -> String {
        let mut text = text.replace(&self.zone, &format!("{}-{nth}", self.zone));
        for (server, address) in self.servers.iter().zip(addresses) {
            let name = server.server.as_str();
            text = text.replace(name, &format!("{name}-{nth}"));
            text = text.replace(&server.address, address);
        }
        text
    }
}

/// Answers every question for a group's status with `status`.
fn answer(listener: TcpListener, identity: Arc<IdentitySlot>, status: String) {
    let router = Router::new().route(STATUS, get(move || async move { status }));
    let routes = BTreeMap::from([(Alpn::Control, Handler::Http(router))]);
    let (limits, shutdown) = (ServerLimits::default(), CancellationToken::new());
    tokio::spawn(serve(listener, identity, ClientAuth::Required, routes, limits, shutdown));
}
