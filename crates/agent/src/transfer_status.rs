//! The leader's transfers as part of its status: what its tracker knows of every server, summed up.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use cohort_core::ids::{AppId, ServerId, Version};
use cohort_distribute::{Offence, ServerView, SourceName, TransferView};
use cohort_wire::agent::{
    CHAIN_SERVERS_SHOWN_MAX, CHAINS_SHOWN_MAX, ChainStatus, NAMES_SHOWN_MAX, OffenderStatus,
    TRANSFERS_SHOWN_MAX, TransferStatus,
};

/// The release that an artifact belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    pub app: AppId,
    pub version: Version,
    /// It is the delta to that release, not the whole artifact.
    pub delta: bool,
}

/// Those in progress first, then the latest.
pub(crate) fn transfers(
    mut views: Vec<TransferView>,
    name: impl Fn(&TransferView) -> Option<Named>,
) -> Vec<TransferStatus> {
    views.sort_by_key(|view| (!view.under_way, view.idle_ms));
    views.truncate(TRANSFERS_SHOWN_MAX);
    views.iter().map(|view| transfer(view, name(view))).collect()
}

fn transfer(view: &TransferView, named: Option<Named>) -> TransferStatus {
    let lacking = || view.servers.iter().filter(|server| server.held < server.units);
    // Servers that left the group do not count.
    let servers = view.servers.iter().filter(|s| s.there || s.held < s.units).count() as u64;
    let away = lacking().filter(|server| !server.there).count() as u64;
    let rates: u64 = lacking().filter(|s| s.there).map(|server| server.rate).sum();
    let (chains, chains_in_all) = chains(&view.servers);
    let slow = || view.servers.iter().filter(|server| server.slow && server.there);
    let offenders = offenders(&view.servers);
    TransferStatus {
        delta: named.as_ref().is_some_and(|named| named.delta),
        app: named.as_ref().map(|named| named.app.clone()),
        version: named.map(|named| named.version),
        artifact: view.artifact.clone(),
        under_way: view.under_way,
        length_bytes: view.length,
        servers,
        whole_servers: view.whole as u64,
        away_servers: away,
        held_bytes: view.servers.iter().map(|server| held_bytes(view, server)).sum(),
        wanted_bytes: view.length.saturating_mul(servers),
        mirror_bytes: view.mirror_bytes,
        peer_bytes: view.peer_bytes,
        mirror_bytes_per_second: view.mirror_rate,
        peer_bytes_per_second: rates.saturating_sub(view.mirror_rate),
        downlink_bytes_per_second: view.downlink_rate,
        for_ms: view.for_ms,
        took_ms: view.took_ms,
        left_ms: view.left_ms,
        heads: view.heads.clone(),
        fan_out: view.fan_out as u64,
        chains,
        chains_in_all,
        slow: slow().take(NAMES_SHOWN_MAX).map(|server| server.server.clone()).collect(),
        slow_servers: slow().count() as u64,
        offenders_in_all: offenders.len() as u64,
        offenders: offenders.into_iter().take(NAMES_SHOWN_MAX).collect(),
    }
}

/// The last unit may be shorter than the others.
fn held_bytes(view: &TransferView, server: &ServerView) -> u64 {
    let units = u64::from(server.units.max(1));
    if server.held >= server.units {
        return view.length;
    }
    u64::from(server.held).saturating_mul(view.length.div_ceil(units)).min(view.length)
}

/// Who sends to whom, as chains, the longest first. Every link is in one of them; where a server
/// sends to several, the longest goes on and the others begin there.
fn chains(servers: &[ServerView]) -> (Vec<ChainStatus>, u64) {
    let mut children: BTreeMap<&ServerId, Vec<&ServerId>> = BTreeMap::new();
    let mut fed: BTreeSet<&ServerId> = BTreeSet::new();
    // From the tail up, so that what is below a server is known before the server is met.
    let mut below: BTreeMap<&ServerId, u64> = BTreeMap::new();
    let mut upwards: Vec<&ServerView> = servers.iter().filter(|server| server.there).collect();
    upwards.sort_by_key(|server| Reverse(server.depth));
    for server in upwards {
        let Some(parent) = &server.parent else { continue };
        children.entry(parent).or_default().push(&server.server);
        fed.insert(&server.server);
        let links = below.get(&server.server).copied().unwrap_or(0) + 1;
        let longest = below.entry(parent).or_default();
        *longest = links.max(*longest);
    }
    let long = |server: &ServerId| below.get(server).copied().unwrap_or(0);
    let roots = children.keys().copied().filter(|server| !fed.contains(server));
    let mut open: Vec<Vec<&ServerId>> = roots.map(|root| vec![root]).collect();
    let mut chains: Vec<Vec<&ServerId>> = Vec::new();
    while let Some(mut chain) = open.pop() {
        // Taken out as they are followed: every link once, whatever the plan looks like.
        while let Some(at) = chain.last().copied()
            && let Some(mut next) = children.remove(at)
        {
            next.sort_by_key(|child| (Reverse(long(child)), *child));
            let (first, others) = next.split_at(1);
            open.extend(others.iter().map(|other| vec![at, *other]));
            chain.extend(first);
        }
        chains.push(chain);
    }
    chains.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
    let all = chains.len() as u64;
    let shown = chains.into_iter().take(CHAINS_SHOWN_MAX).map(|chain| ChainStatus {
        depth: chain.len() as u64,
        servers: chain.into_iter().take(CHAIN_SERVERS_SHOWN_MAX).cloned().collect(),
    });
    (shown.collect(), all)
}

/// Who is blamed and by whom: the worst offence first, then the one that most servers saw.
fn offenders(servers: &[ServerView]) -> Vec<OffenderStatus> {
    let mut found: BTreeMap<(&SourceName, Offence), (u64, Vec<&ServerId>)> = BTreeMap::new();
    for server in servers {
        for accusation in &server.accusations {
            let one = found.entry((&accusation.source, accusation.what)).or_default();
            one.0 += u64::from(accusation.count);
            one.1.push(&server.server);
        }
    }
    let barred = |source: &SourceName| {
        servers.iter().any(|server| server.barred && source.server() == Some(&server.server))
    };
    let of =
        |((source, what), (count, told_by)): ((&SourceName, Offence), (u64, Vec<&ServerId>))| {
            OffenderStatus {
                source: source.clone(),
                what,
                count,
                told_by_servers: told_by.len() as u64,
                told_by: told_by.into_iter().take(NAMES_SHOWN_MAX).cloned().collect(),
                barred: barred(source),
            }
        };
    let mut offenders: Vec<OffenderStatus> = found.into_iter().map(of).collect();
    offenders.sort_by(|a, b| {
        (a.what, Reverse(a.told_by_servers), &a.source).cmp(&(
            b.what,
            Reverse(b.told_by_servers),
            &b.source,
        ))
    });
    offenders
}

#[cfg(test)]
#[path = "transfer_status_test.rs"]
mod transfer_status_test;
