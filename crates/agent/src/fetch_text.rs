//! The progress of a download, as a server reports it: how far it is, its source, what it waits
//! for.

use std::time::Duration;

use cohort_base::figures::{bits, brief, bytes};
use cohort_core::orders::Source;
use cohort_distribute::{
    FetchStatus, FetchWait, Guidance, Offence, Progress, SourceKind, SourceReport,
};

/// A leader that has not responded for this long is mentioned. 6 s: it responds every four.
const LEADER_SILENT: Duration = Duration::from_secs(6);

/// Sources that one line names.
const NAMED_MAX: usize = 2;

/// What a download depends on besides its own progress.
#[derive(Debug, Clone, Default)]
pub(crate) struct Surroundings {
    /// The leader's last instructions about it, if any.
    pub guidance: Option<Guidance>,
    /// Time since the leader responded.
    pub leader_silent: Duration,
    /// `download_limit` of this server, in bytes per second.
    pub download_limit: Option<u64>,
}

/// One line, what matters most first: it may be truncated.
pub(crate) fn fetch_text(status: Option<&FetchStatus>, around: &Surroundings) -> String {
    match status {
        Some(FetchStatus::UnderWay { progress }) => under_way(progress, around),
        Some(FetchStatus::Failed { reason, tries, .. }) => format!("try {tries}: {reason}"),
        Some(FetchStatus::Held) => "complete".to_owned(),
        None => "queued".to_owned(),
    }
}

fn under_way(progress: &Progress, around: &Surroundings) -> String {
    let mut parts = Vec::new();
    if progress.bytes_total > 0 {
        parts.push(format!("{} of {}", bytes(progress.bytes_held), bytes(progress.bytes_total)));
    }
    if progress.bytes_total == 0 || progress.bytes_held < progress.bytes_total {
        parts.push(source_text(progress, around));
    }
    let wrong = progress.sources.iter().filter(|s| s.offences.contains_key(&Offence::WrongBytes));
    let wrong: Vec<String> = wrong.map(|wrong| wrong.source.to_string()).take(NAMED_MAX).collect();
    if !wrong.is_empty() {
        parts.push(format!("refusing {}: wrong bytes", wrong.join(", ")));
    }
    if let Some(limit) = around.download_limit {
        parts.push(format!("download_limit {}", bits(limit)));
    }
    parts.join("; ")
}

/// The current source; without one, why.
fn source_text(progress: &Progress, around: &Surroundings) -> String {
    let asked =
        |kind| progress.sources.iter().filter(move |s| s.source.kind() == kind && s.requests > 0);
    if let Some(mirror) = asked(SourceKind::Mirror).next() {
        return format!("from mirror {}", mirror.source);
    }
    let peers: Vec<String> = asked(SourceKind::Peer).map(|peer| peer.source.to_string()).collect();
    match peers.split_first() {
        Some((first, [])) => return format!("from {first}"),
        Some((first, more)) => return format!("from {first} and {} more", more.len()),
        None => {}
    }
    let Some(guidance) = &around.guidance else {
        return unguided(progress, around);
    };
    let failed =
        |kind| progress.sources.iter().find(|s| s.source.kind() == kind && s.last_error.is_some());
    if !guidance.lease.is_empty() {
        return match failed(SourceKind::Mirror) {
            Some(mirror) => format!("waiting for a mirror: {}", complaint(mirror)),
            None => "contacting a mirror".to_owned(),
        };
    }
    let lost = if around.leader_silent >= LEADER_SILENT {
        format!(", no leader for {}", brief(ms(around.leader_silent)))
    } else {
        String::new()
    };
    match guidance.feeds.first() {
        Some(Source { server, .. }) => {
            let known =
                progress.sources.iter().find(|source| source.source.server() == Some(server));
            let error = known.and_then(|source| source.last_error.as_ref());
            let why = error.map_or_else(String::new, |error| format!(" ({error})"));
            format!("waiting for {server}{why}{lost}")
        }
        None => format!("waiting for the leader to name a source{lost}"),
    }
}

/// Without instructions from the leader about this artifact.
fn unguided(progress: &Progress, around: &Surroundings) -> String {
    let silent = ms(around.leader_silent);
    match &progress.waiting_on {
        Some(FetchWait::Mirror) => "no mirror is configured, and no server holds it".to_owned(),
        Some(FetchWait::Sources { .. }) => {
            let failed = progress.sources.iter().filter(|source| source.last_error.is_some());
            let failed: Vec<String> = failed.take(NAMED_MAX).map(complaint).collect();
            format!("waiting for {}", failed.join(", "))
        }
        Some(FetchWait::Holder | FetchWait::Answers) | None
            if around.leader_silent >= LEADER_SILENT =>
        {
            format!("no leader for {}", brief(silent))
        }
        Some(FetchWait::Holder | FetchWait::Answers) | None => {
            "waiting for the leader to name a source".to_owned()
        }
    }
}

fn complaint(source: &SourceReport) -> String {
    let error = source.last_error.as_deref().unwrap_or("is not responding");
    format!("{} {error}", source.source)
}

fn ms(over: Duration) -> u64 {
    u64::try_from(over.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod fetch_text_test {
    use cohort_distribute::{Offences, SourceName, UnitRun};

    use super::*;

    fn source(name: &str, kind: SourceKind, requests: usize, error: Option<&str>) -> SourceReport {
        let source = match kind {
            SourceKind::Mirror => SourceName::mirror(name),
            SourceKind::Peer => SourceName::Server(name.parse().unwrap()),
        };
        SourceReport {
            source,
            requests,
            rate: 0,
            failures: 0,
            refused_units: 0,
            last_error: error.map(str::to_owned),
            offences: Offences::new(),
        }
    }

    fn said(sources: Vec<SourceReport>, around: &Surroundings) -> String {
        let progress = Progress {
            bytes_total: 8 << 20,
            bytes_held: 3 << 20,
            waiting_on: Some(FetchWait::Holder),
            sources,
            ..Progress::default()
        };
        fetch_text(Some(&FetchStatus::UnderWay { progress: Box::new(progress) }), around)
    }

    fn fed_by(parent: &str) -> Surroundings {
        let feed = Source { server: parent.parse().unwrap(), address: "10.0.0.3:7417".to_owned() };
        let guidance = Guidance { feeds: vec![feed], ..Guidance::default() };
        Surroundings { guidance: Some(guidance), ..Surroundings::default() }
    }

    #[test]
    fn incoming_bytes_name_their_source() {
        let peer = source("s3", SourceKind::Peer, 1, None);
        assert_eq!(said(vec![peer], &fed_by("s3")), "3.0 MiB of 8.0 MiB; from s3");
        let mirror = source("http://m1/", SourceKind::Mirror, 2, None);
        let around = Surroundings { download_limit: Some(1_250_000), ..Surroundings::default() };
        assert_eq!(
            said(vec![mirror], &around),
            "3.0 MiB of 8.0 MiB; from mirror http://m1/; download_limit 10.0 Mbit/s"
        );
    }

    #[test]
    fn missing_bytes_have_a_reason() {
        let around = Surroundings::default();
        assert_eq!(
            said(vec![], &around),
            "3.0 MiB of 8.0 MiB; waiting for the leader to name a source"
        );
        let silent = Surroundings { leader_silent: Duration::from_secs(12), ..around };
        assert_eq!(said(vec![], &silent), "3.0 MiB of 8.0 MiB; no leader for 12s");
        let gone = source("s3", SourceKind::Peer, 0, Some("no heartbeat within 300 ms"));
        assert_eq!(
            said(vec![gone], &fed_by("s3")),
            "3.0 MiB of 8.0 MiB; waiting for s3 (no heartbeat within 300 ms)"
        );
        let nobody =
            Surroundings { guidance: Some(Guidance::default()), ..Surroundings::default() };
        assert_eq!(
            said(vec![], &nobody),
            "3.0 MiB of 8.0 MiB; waiting for the leader to name a source"
        );
        let lease = vec![UnitRun { first: 0, count: 64 }];
        let guidance = Some(Guidance { lease, ..Guidance::default() });
        let head = Surroundings { guidance, ..Surroundings::default() };
        let busy = "is busy and asks to come back in 2000 ms";
        assert_eq!(
            said(vec![source("http://m1/", SourceKind::Mirror, 0, Some(busy))], &head),
            "3.0 MiB of 8.0 MiB; waiting for a mirror: http://m1/ is busy and asks to come back in \
             2000 ms"
        );
    }

    #[test]
    fn a_source_of_wrong_bytes_is_named() {
        let mut bad = source("s7", SourceKind::Peer, 0, None);
        bad.offences.insert(Offence::WrongBytes, 1);
        let good = source("s3", SourceKind::Peer, 1, None);
        assert_eq!(
            said(vec![good, bad], &fed_by("s3")),
            "3.0 MiB of 8.0 MiB; from s3; refusing s7: wrong bytes"
        );
    }
}
