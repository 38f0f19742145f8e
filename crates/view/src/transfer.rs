//! Artifact transfers, one line each, and their misbehaving sources.

use cohort_wire::agent::{ChainStatus, Offence, OffenderStatus, SourceName, TransferStatus};

use crate::figures::{bits, brief, bytes, names};
use crate::hint::Hint;

/// Servers that one line names: of a chain, the slow ones, or those that saw an offence.
const NAMED_MAX: usize = 3;

/// A transfer, such as `web 1.2.0: 412.0 MiB of 640.0 MiB · mirrors 64.0 MiB, 48.9 Mbit/s · …`.
#[must_use]
pub fn sentence(transfer: &TransferStatus) -> String {
    let what = match (&transfer.app, &transfer.version) {
        (Some(app), Some(version)) => format!("{app} {version}"),
        _ => format!("artifact {}", transfer.artifact.as_str().get(..12).unwrap_or_default()),
    };
    let delta = if transfer.delta { " (delta)" } else { "" };
    let rate = |now: u64| if now > 0 { format!(", {}", bits(now)) } else { String::new() };
    let mut parts = vec![
        format!(
            "{what}{delta}: {} of {}",
            bytes(transfer.held_bytes),
            bytes(transfer.wanted_bytes)
        ),
        format!(
            "mirrors {}{}",
            bytes(transfer.mirror_bytes),
            rate(transfer.mirror_bytes_per_second)
        ),
        format!("peers {}{}", bytes(transfer.peer_bytes), rate(transfer.peer_bytes_per_second)),
        format!("complete on {} of {}", transfer.whole_servers, transfer.servers),
    ];
    if let Some(chain) = transfer.chains.first() {
        let more = match transfer.chains_in_all {
            0 | 1 => String::new(),
            all => format!(" and {} more", all - 1),
        };
        parts.push(format!("chain {}{more}", chain_text(chain)));
    }
    if transfer.slow_servers > 0 {
        let slow = transfer.slow.iter().take(NAMED_MAX);
        parts.push(format!("slow {}", names(slow, transfer.slow_servers)));
    }
    if transfer.away_servers > 0 {
        parts.push(format!("{} unreachable", transfer.away_servers));
    }
    match (transfer.under_way, transfer.left_ms, transfer.took_ms) {
        (true, Some(left), _) => parts.push(format!("about {} left", brief(left.max(1000)))),
        (true, None, _) => parts.push("time left unknown".to_owned()),
        (false, _, Some(took)) => parts.push(format!("took {}", brief(took.max(1000)))),
        (false, _, None) => {}
    }
    parts.join(" · ")
}

/// `s3 → s1 → s7`, or for a longer one `s3 → s1 → s7 → … (10 deep)`.
fn chain_text(chain: &ChainStatus) -> String {
    let shown: Vec<&str> = chain.servers.iter().take(NAMED_MAX).map(|id| id.as_str()).collect();
    let text = shown.join(" → ");
    if chain.depth > shown.len() as u64 {
        format!("{text} → … ({} deep)", chain.depth)
    } else {
        text
    }
}

/// What a source is blamed for, and by which servers.
#[must_use]
pub fn offender(offender: &OffenderStatus) -> String {
    let source = match &offender.source {
        SourceName::Server(server) => server.to_string(),
        SourceName::Mirror(url) => format!("mirror {url}"),
    };
    let what = match offender.what {
        Offence::WrongBytes => "sent wrong bytes",
        Offence::WrongLength => "sent responses of the wrong length",
        Offence::Silent => "did not respond",
        Offence::Slow => "sent too slowly to be of use",
    };
    let times =
        if offender.count == 1 { String::new() } else { format!(" {} times", offender.count) };
    let told_by = names(offender.told_by.iter().take(NAMED_MAX), offender.told_by_servers);
    let barred = if offender.barred { "; the group refuses it for now" } else { "" };
    format!("{source} {what}{times}, says {told_by}{barred}")
}

/// What to check. The bytes come from other sources meanwhile.
#[must_use]
pub fn offender_hints(offender: &OffenderStatus) -> Vec<Hint> {
    let place = match &offender.source {
        SourceName::Server(server) => server.as_str(),
        SourceName::Mirror(_) => "that mirror",
    };
    let look = match offender.what {
        Offence::WrongBytes => format!("check disk and memory of {place}"),
        Offence::WrongLength => format!("check what answers at {place}, and its version"),
        Offence::Silent => format!("check that {place} is reachable"),
        Offence::Slow => format!("check load and network link of {place}"),
    };
    vec![Hint::Do(format!("{look}; other sources are used meanwhile"))]
}
