//! A server reports its transfers to the leader and hands the answers to its fetches.

use std::sync::Arc;
use std::time::Duration;

use cohort_base::chain;
use cohort_core::ids::{Digest, GroupId, ServerId};
use cohort_core::orders::{FetchOrder, Source};
use cohort_core::release::Release;
use cohort_transfer::tracker::{
    HAVE_RUNS_MAX, HOLDERS_MAX, REPORTS_MAX, TransferAnswer, TransferReport, TransferRequest,
};
use cohort_transfer::{FetchWait, UnitRun, UnitSet, unit_count};
use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::downloads::{Downloads, EndedFetch, FetchStatus};
use crate::guides::Guides;
use crate::progress::Progress;

/// How often a server checks whether it has something urgent to report, in milliseconds.
const CHECK_MS: u64 = 25;

/// Shortest pause between two reports, in milliseconds, however urgent.
const REPORT_MS_MIN: u64 = 50;

/// How long an answer may take, in milliseconds. A leader that takes longer has been replaced.
const ANSWER_MS_MAX: u64 = 2_000;

/// Pause after the leader could not be reached, in milliseconds.
const AGAIN_MS: u64 = 250;

/// Why a report did not reach the leader.
pub type CallError = Box<dyn std::error::Error + Send + Sync>;

/// The way to the current leader.
pub trait TrackerCalls: Send + Sync + 'static {
    /// Sends a report to the leader.
    fn report(
        &self,
        request: TransferRequest,
    ) -> BoxFuture<'static, Result<TransferAnswer, CallError>>;
}

/// Reports the transfers of a server to the leader and obeys the answers, until it is stopped.
pub async fn follow(
    downloads: Arc<Downloads>,
    guides: Arc<Guides>,
    group: GroupId,
    version: u32,
    calls: Arc<dyn TrackerCalls>,
    stop: CancellationToken,
) {
    let mut pace = Pace::new(Instant::now());
    let mut statuses = downloads.statuses();
    loop {
        let transfers = downloads.transfers();
        guides.retain(|digest| transfers.iter().any(|(o, _)| o.release.artifact == *digest));
        let ended = downloads.ended();
        let reports = reports(&downloads, &guides, &transfers, &ended);
        match pace.next(Instant::now(), &reports, &ended) {
            Next::Report => {}
            Next::Wait { pause, idle } => {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = sleep(pause) => continue,
                    _ = statuses.changed(), if idle => continue,
                }
            }
        }
        let request = TransferRequest { version, group: group.clone(), transfers: reports };
        let asked = timeout(Duration::from_millis(ANSWER_MS_MAX), calls.report(request));
        let answer = tokio::select! {
            () = stop.cancelled() => return,
            answer = asked => answer.unwrap_or_else(|late| Err(late.into())),
        };
        let again_ms = match answer {
            Ok(answer) => {
                pace.lease_given = answer.guidance.iter().map(|(_, g)| units(&g.lease)).sum();
                guides.take(answer.guidance);
                guides.measured(answer.downlink_rate);
                downloads.told(&std::mem::take(&mut pace.told.ended));
                answer.again_ms
            }
            Err(error) => {
                tracing::debug!(error = chain(&*error), "cannot report transfers to the leader");
                AGAIN_MS
            }
        };
        pace.due = Instant::now() + Duration::from_millis(again_ms.max(REPORT_MS_MIN));
    }
}

/// When to report.
struct Pace {
    /// When the leader wants to hear from this server again.
    due: Instant,
    reported: Instant,
    told: Urgent,
    /// Units that the last answer leased.
    lease_given: u64,
}

/// What to do about the next report.
enum Next {
    Report,
    Wait {
        pause: Duration,
        /// Nothing but a change of orders can make it urgent.
        idle: bool,
    },
}

/// What makes a report urgent when it changes.
#[derive(Default, PartialEq, Eq)]
struct Urgent {
    ordered: Vec<Digest>,
    silent: Vec<ServerId>,
    whole: usize,
    /// What ended and no leader has heard of.
    ended: Vec<Digest>,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { due: now, reported: now, told: Urgent::default(), lease_given: 0 }
    }

    fn next(&mut self, now: Instant, reports: &[TransferReport], ended: &[EndedFetch]) -> Next {
        let urgent = urgent(reports, ended);
        if reports.is_empty() {
            self.told = urgent;
            return Next::Wait { pause: Duration::MAX, idle: true };
        }
        let soon = now >= self.reported + Duration::from_millis(REPORT_MS_MIN);
        let pressing = urgent != self.told || lease_left(reports) * 2 < self.lease_given;
        if now >= self.due || soon && pressing {
            self.reported = now;
            self.told = urgent;
            return Next::Report;
        }
        let idle = urgent.whole == reports.len() && !pressing;
        let pause = if idle { self.due - now } else { Duration::from_millis(CHECK_MS) };
        Next::Wait { pause, idle }
    }
}

fn units(runs: &[UnitRun]) -> u64 {
    runs.iter().map(|run| u64::from(run.count)).sum()
}

/// Leased units that are not on disk yet.
fn lease_left(reports: &[TransferReport]) -> u64 {
    let left = reports.iter().map(|report| {
        let Some(told) = &report.told else { return 0 };
        let count = unit_count(report.length);
        let mut lease = UnitSet::from_runs(count, &told.lease);
        lease.subtract(&UnitSet::from_runs(count, &report.have));
        u64::from(lease.held())
    });
    left.sum()
}

fn urgent(reports: &[TransferReport], ended: &[EndedFetch]) -> Urgent {
    let silent = reports.iter().flat_map(|report| report.silent.iter().chain(&report.wrong));
    let whole =
        |report: &&TransferReport| units(&report.have) == u64::from(unit_count(report.length));
    Urgent {
        ordered: reports.iter().map(|report| report.artifact.clone()).collect(),
        silent: silent.cloned().collect(),
        whole: reports.iter().filter(whole).count(),
        ended: ended
            .iter()
            .filter(|fetch| !fetch.told)
            .map(|fetch| fetch.release.artifact.clone())
            .collect(),
    }
}

/// What ended and is no longer ordered, reported once so that the leader knows who has it whole and
/// what came from where; then what is ordered.
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
    // What ended is soon forgotten, and must not wait behind many orders.
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
    let (artifact, length) = (&release.artifact, release.length);
    let store = &downloads.context().store;
    let have = if store.is_whole(artifact) {
        vec![UnitRun { first: 0, count: unit_count(length) }]
    } else {
        store.part(artifact).map_or_else(Vec::new, |part| part.have().runs(HAVE_RUNS_MAX))
    };
    let mut report = TransferReport {
        have,
        mirror_bytes: progress.bytes_from_mirrors,
        peer_bytes: progress.bytes_from_peers,
        mirror_busy: matches!(progress.waiting_on, Some(FetchWait::Sources { .. })),
        holders: holders.iter().take(HOLDERS_MAX).cloned().collect(),
        ..TransferReport::new(artifact.clone(), length)
    };
    report.told(guides.of(artifact).as_ref());
    report.sources(&progress.sources);
    report
}
