//! A server's side: reports to the leader, and hands what it hears to the fetches.

use std::sync::Arc;
use std::time::Duration;

use cohort_core::ids::{Digest, GroupId};
use cohort_core::orders::{FetchOrder, Source};
use cohort_core::release::Release;
use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::message::{
    Accusation, HAVE_RUNS_MAX, HOLDERS_MAX, OFFENCES_MAX, REPORTS_MAX, Told, TransferAnswer,
    TransferReport, TransferRequest,
};
use super::transfer::UNIT_BYTES;
use crate::downloads::{Downloads, EndedFetch, FetchStatus};
use crate::guidance::Guides;
use crate::plan::{FetchWait, SourceKind};
use crate::progress::Progress;
use crate::unit_set::{UnitRun, UnitSet};

/// How often a server looks whether it has something urgent to tell, in milliseconds.
const LOOK_MS: u64 = 25;

/// Shortest pause between two reports, in milliseconds, whatever happens.
const REPORT_MS_MIN: u64 = 50;

/// How long an answer may take, in milliseconds. Below that the leader is somebody else by now.
const ANSWER_MS_MAX: u64 = 2_000;

/// Pause after the leader could not be asked, in milliseconds.
const AGAIN_MS: u64 = 250;

/// The way to the leader, whoever that is now.
pub trait TrackerCalls: Send + Sync + 'static {
    /// Sends a report to the leader; an error says in words why that failed.
    fn report(
        &self,
        request: TransferRequest,
    ) -> BoxFuture<'static, Result<TransferAnswer, String>>;
}

/// What makes the next report urgent.
#[derive(Default, PartialEq, Eq)]
struct Urgent {
    ordered: Vec<Digest>,
    silent: Vec<String>,
    whole: usize,
    /// What ended, and no leader has heard of.
    ended: Vec<Digest>,
}

/// Reports every transfer of a server to the leader, and obeys the answers, until it is stopped.
pub async fn follow(
    downloads: Arc<Downloads>,
    guides: Arc<Guides>,
    group: GroupId,
    version: u32,
    calls: Arc<dyn TrackerCalls>,
    stop: CancellationToken,
) {
    let mut due = Instant::now();
    let mut reported = Instant::now();
    let mut told = Urgent::default();
    let mut lease_given = 0;
    let mut statuses = downloads.statuses();
    loop {
        let transfers = downloads.transfers();
        guides.retain(|digest| transfers.iter().any(|(o, _)| o.release.artifact == *digest));
        let ended = downloads.ended();
        if transfers.is_empty() && ended.is_empty() {
            told = Urgent::default();
            tokio::select! {
                () = stop.cancelled() => return,
                _ = statuses.changed() => continue,
            }
        }
        let now = Instant::now();
        let reports = reports(&downloads, &guides, &transfers, &ended);
        let urgent = urgent(&reports, &ended);
        let soon = now >= reported + Duration::from_millis(REPORT_MS_MIN);
        let low = lease_left(&reports) * 2 < lease_given;
        // Nothing changes at one that has everything, but what is ordered; it says now and then that
        // it is still there.
        let at_rest = urgent.whole == reports.len();
        let pressing = urgent != told || low;
        if now < due && !(soon && pressing) {
            let rest = at_rest && !pressing;
            let look = if rest { due - now } else { Duration::from_millis(LOOK_MS) };
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(look) => continue,
                _ = statuses.changed(), if rest => continue,
            }
        }
        reported = now;
        told = urgent;
        let request = TransferRequest { version, group: group.clone(), transfers: reports };
        let asked = timeout(Duration::from_millis(ANSWER_MS_MAX), calls.report(request));
        let answer = tokio::select! {
            () = stop.cancelled() => return,
            answer = asked => answer.unwrap_or_else(|_| Err("no answer in time".to_owned())),
        };
        let again_ms = match answer {
            Ok(answer) => {
                lease_given = answer.guidance.iter().map(|(_, g)| units(&g.lease)).sum();
                guides.take(answer.guidance);
                guides.measured(answer.downlink_rate);
                downloads.told(&std::mem::take(&mut told.ended));
                answer.again_ms
            }
            Err(reason) => {
                tracing::debug!(reason, "the leader was not told of the transfers");
                AGAIN_MS
            }
        };
        due = Instant::now() + Duration::from_millis(again_ms.max(REPORT_MS_MIN));
    }
}

fn units(runs: &[UnitRun]) -> u64 {
    runs.iter().map(|run| u64::from(run.count)).sum()
}

/// Leased units that are not here yet.
fn lease_left(reports: &[TransferReport]) -> u64 {
    let left = reports.iter().map(|report| {
        let Some(told) = &report.told else { return 0 };
        let count = u32::try_from(report.length.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX);
        let mut lease = UnitSet::from_runs(count, &told.lease);
        lease.subtract(&UnitSet::from_runs(count, &report.have));
        u64::from(lease.held())
    });
    left.sum()
}

fn urgent(reports: &[TransferReport], ended: &[EndedFetch]) -> Urgent {
    let silent = reports.iter().flat_map(|report| report.silent.iter().chain(&report.wrong));
    let whole = |report: &&TransferReport| {
        let count = report.length.div_ceil(UNIT_BYTES);
        units(&report.have) == count
    };
    Urgent {
        ordered: reports.iter().map(|report| report.artifact.clone()).collect(),
        silent: silent.map(ToString::to_string).collect(),
        whole: reports.iter().filter(whole).count(),
        ended: ended
            .iter()
            .filter(|fetch| !fetch.told)
            .map(|fetch| fetch.release.artifact.clone())
            .collect(),
    }
}

/// What is ordered, and after that what ended and is no longer ordered: said once, so that the
/// leader knows who has it whole, and what came from where.
fn reports(
    downloads: &Downloads,
    guides: &Guides,
    transfers: &[(FetchOrder, Option<FetchStatus>)],
    ended: &[EndedFetch],
) -> Vec<TransferReport> {
    let none = Progress::default();
    let ended_as = |artifact: &Digest| {
        let found = ended.iter().find(|fetch| fetch.release.artifact == *artifact);
        found.map_or(&none, |fetch| &fetch.progress)
    };
    let ordered = transfers.iter().map(|(order, status)| {
        let progress = match status {
            Some(FetchStatus::UnderWay { progress }) => progress,
            Some(FetchStatus::Held) => ended_as(&order.release.artifact),
            Some(FetchStatus::Failed { .. }) | None => &none,
        };
        report(downloads, guides, &order.release, &order.sources, progress)
    });
    let gone = ended.iter().filter(|fetch| {
        !transfers.iter().any(|(order, _)| order.release.artifact == fetch.release.artifact)
    });
    let gone = gone.map(|fetch| report(downloads, guides, &fetch.release, &[], &fetch.progress));
    // What ended is short-lived, and must not wait behind many orders.
    let mut reports: Vec<TransferReport> = gone.take(REPORTS_MAX / 2).collect();
    let room = REPORTS_MAX - reports.len();
    reports.extend(ordered.take(room));
    reports
}

fn report(
    downloads: &Downloads,
    guides: &Guides,
    release: &Release,
    holders: &[Source],
    progress: &Progress,
) -> TransferReport {
    let (artifact, length) = (release.artifact.clone(), release.length);
    let store = &downloads.context().store;
    let count = u32::try_from(length.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX);
    let have = if store.is_whole(&artifact) {
        vec![UnitRun { first: 0, count }]
    } else {
        store.part(&artifact).map_or_else(Vec::new, |part| part.have().runs(HAVE_RUNS_MAX))
    };
    let peers = || progress.sources.iter().filter(|source| source.kind == SourceKind::Peer);
    let mut mirrors = progress.sources.iter().filter(|s| s.kind == SourceKind::Mirror).peekable();
    let told = guides.of(&artifact).map(|guidance| Told {
        feeds: guidance.feeds.into_iter().map(|source| source.server).collect(),
        lease: guidance.lease,
    });
    let accusations = progress.sources.iter().flat_map(|source| {
        source.offences.iter().map(|(what, count)| Accusation {
            source: source.name.clone(),
            what: *what,
            count: *count,
        })
    });
    TransferReport {
        artifact,
        length,
        have,
        mirror_bytes: progress.bytes_from_mirrors,
        peer_bytes: progress.bytes_from_peers,
        mirror_failed: mirrors.peek().is_some() && mirrors.all(|source| source.failures > 1),
        mirror_busy: matches!(progress.waiting_on, Some(FetchWait::Sources { .. })),
        told,
        holders: holders.iter().take(HOLDERS_MAX).cloned().collect(),
        silent: peers()
            .filter(|source| source.failures > 0)
            .filter_map(|source| source.name.parse().ok())
            .take(HAVE_RUNS_MAX)
            .collect(),
        wrong: peers()
            .filter(|source| source.refused_units > 0)
            .filter_map(|source| source.name.parse().ok())
            .take(HAVE_RUNS_MAX)
            .collect(),
        offences: accusations.take(OFFENCES_MAX).collect(),
    }
}
