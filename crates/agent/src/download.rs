//! How far a download is, as facts that a server reports for people.

use std::time::Duration;

use cohort_core::doing::{BytesFrom, Download, Failing, SOURCES_NAMED_MAX};
use cohort_distribute::{
    FetchStatus, FetchWait, Guidance, Offence, Progress, SourceKind, SourceReport,
};

/// What a download depends on besides its own progress.
#[derive(Debug, Clone, Default)]
pub(crate) struct Environment {
    /// The leader's last instructions about it, if any.
    pub guidance: Option<Guidance>,
    pub leader_silent: Duration,
    /// `download_limit` of this server, in bytes per second.
    pub download_limit: Option<u64>,
}

pub(crate) fn download(status: &FetchStatus, around: &Environment) -> Download {
    match status {
        FetchStatus::UnderWay { progress } => running(progress, around),
        FetchStatus::Failed { reason, tries, .. } => {
            Download::Failed { tries: *tries, error: reason.clone() }
        }
        FetchStatus::Held => Download::Complete,
    }
}

fn running(progress: &Progress, around: &Environment) -> Download {
    let wrong = |source: &&SourceReport| source.offences.contains_key(&Offence::WrongBytes);
    let refused = progress.sources.iter().filter(wrong).map(|source| source.source.to_string());
    Download::Running {
        held_bytes: progress.bytes_held,
        total_bytes: progress.bytes_total,
        from: from(progress, around.guidance.as_ref()),
        refused: refused.take(SOURCES_NAMED_MAX).collect(),
        leader_silent_ms: u64::try_from(around.leader_silent.as_millis()).unwrap_or(u64::MAX),
        limit_bytes_per_second: around.download_limit,
    }
}

/// The current source; without one, what is waited for.
fn from(progress: &Progress, guidance: Option<&Guidance>) -> BytesFrom {
    let of = |kind| progress.sources.iter().filter(move |source| source.source.kind() == kind);
    let asked = |kind| of(kind).filter(|source| source.requests > 0);
    if let Some(mirror) = asked(SourceKind::Mirror).next() {
        return BytesFrom::Mirror { mirror: mirror.source.to_string() };
    }
    let mut peers = asked(SourceKind::Peer);
    if let Some(peer) = peers.next() {
        return BytesFrom::Servers { first: peer.source.to_string(), more: peers.count() as u64 };
    }
    let mut failed = progress.sources.iter().filter_map(failing);
    match (guidance, &progress.waiting_on) {
        (Some(guidance), _) if !guidance.lease.is_empty() => {
            BytesFrom::MirrorAwaited { failed: of(SourceKind::Mirror).find_map(failing) }
        }
        (Some(guidance), _) => match guidance.feeds.first() {
            Some(feed) => {
                let known = of(SourceKind::Peer).find(|s| s.source.server() == Some(&feed.server));
                let error = known.and_then(|source| source.last_error.clone());
                BytesFrom::ServerAwaited { server: feed.server.clone(), error }
            }
            None => BytesFrom::LeaderAwaited,
        },
        (None, Some(FetchWait::Mirror)) => BytesFrom::Nowhere,
        (None, Some(FetchWait::Sources { .. })) => {
            BytesFrom::SourcesAwaited { failed: failed.by_ref().take(SOURCES_NAMED_MAX).collect() }
        }
        (None, Some(FetchWait::Holder | FetchWait::Answers) | None) => BytesFrom::LeaderAwaited,
    }
}

fn failing(source: &SourceReport) -> Option<Failing> {
    let error = source.last_error.clone()?;
    Some(Failing { source: source.source.to_string(), error })
}

#[cfg(test)]
mod download_test {
    use cohort_core::orders::Source;
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

    fn of(
        sources: Vec<SourceReport>,
        waiting_on: FetchWait,
        guidance: Option<&Guidance>,
    ) -> BytesFrom {
        let waiting_on = Some(waiting_on);
        from(&Progress { waiting_on, sources, ..Progress::default() }, guidance)
    }

    fn fed_by(parent: &str) -> Option<Guidance> {
        let feed = Source { server: parent.parse().unwrap(), address: "10.0.0.3:7417".to_owned() };
        Some(Guidance { feeds: vec![feed], ..Guidance::default() })
    }

    #[test]
    fn incoming_bytes_name_their_source() {
        let peer = |name| source(name, SourceKind::Peer, 1, None);
        let from = of(vec![peer("s3"), peer("s4")], FetchWait::Answers, fed_by("s3").as_ref());
        assert_eq!(from, BytesFrom::Servers { first: "s3".to_owned(), more: 1 });
        let mirror = source("http://m1/", SourceKind::Mirror, 2, None);
        let from = of(vec![peer("s3"), mirror], FetchWait::Answers, None);
        assert_eq!(from, BytesFrom::Mirror { mirror: "http://m1/".to_owned() });
    }

    #[test]
    fn missing_bytes_have_a_reason() {
        let failing = |source: &str, error: &str| Failing {
            source: source.to_owned(),
            error: error.to_owned(),
        };
        let gone = || source("s3", SourceKind::Peer, 0, Some("no heartbeat"));
        let busy = || source("http://m1/", SourceKind::Mirror, 0, Some("is busy"));
        let s3 = "s3".parse().unwrap();
        let lease = vec![UnitRun { first: 0, count: 64 }];
        let leased = || Some(Guidance { lease: lease.clone(), ..Guidance::default() });
        let holder = FetchWait::Holder;
        let cases = [
            (vec![], holder.clone(), None, BytesFrom::LeaderAwaited),
            (vec![], holder.clone(), Some(Guidance::default()), BytesFrom::LeaderAwaited),
            (vec![], FetchWait::Mirror, None, BytesFrom::Nowhere),
            (
                vec![gone()],
                holder.clone(),
                fed_by("s3"),
                BytesFrom::ServerAwaited { server: s3, error: Some("no heartbeat".to_owned()) },
            ),
            (vec![], holder.clone(), leased(), BytesFrom::MirrorAwaited { failed: None }),
            (
                vec![busy()],
                holder,
                leased(),
                BytesFrom::MirrorAwaited { failed: Some(failing("http://m1/", "is busy")) },
            ),
            (
                vec![gone(), busy()],
                FetchWait::Sources { until_ms: 0 },
                None,
                BytesFrom::SourcesAwaited {
                    failed: vec![failing("s3", "no heartbeat"), failing("http://m1/", "is busy")],
                },
            ),
        ];
        for (sources, waiting_on, guidance, expected) in cases {
            assert_eq!(of(sources, waiting_on, guidance.as_ref()), expected);
        }
    }

    #[test]
    fn sources_of_wrong_bytes_are_named() {
        let mut bad = source("s7", SourceKind::Peer, 0, None);
        bad.offences.insert(Offence::WrongBytes, 1);
        let sources = vec![source("s3", SourceKind::Peer, 1, None), bad];
        let progress = Box::new(Progress { sources, ..Progress::default() });
        let status = FetchStatus::UnderWay { progress };
        let Download::Running { refused, .. } = download(&status, &Environment::default()) else {
            panic!()
        };
        assert_eq!(refused, ["s7"]);
    }
}
