//! Reports a server's transfers to the leader, and forwards the responses to its fetches.

use std::sync::Arc;
use std::time::Duration;

use cohort_base::chain;
use cohort_core::ids::Digest;
use cohort_core::orders::{FetchOrder, Source};
use cohort_core::release::Release;
use cohort_transfer::tracker::{
    HAVE_RUNS_MAX, HOLDERS_MAX, REPORTS_MAX, TransferAnswer, TransferReport, TransferRequest,
};
use cohort_transfer::{FetchWait, NextReport, Pace, UnitRun, unit_count};
use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::downloads::{Downloads, EndedFetch, FetchStatus};
use crate::guides::Guides;
use crate::progress::Progress;

/// How long a response may take, in milliseconds. A leader that takes longer has been replaced.
const ANSWER_MS_MAX: u64 = 2_000;

/// Why a report did not reach the leader.
pub type CallError = Box<dyn std::error::Error + Send + Sync>;

/// The connection to the current leader.
pub trait TrackerCalls: Send + Sync + 'static {
    /// Sends a report to the leader.
    fn report(
        &self,
        request: TransferRequest,
    ) -> BoxFuture<'static, Result<TransferAnswer, CallError>>;
}

/// Reports a server's transfers to the leader and follows the responses, until stopped.
pub async fn follow(
    downloads: Arc<Downloads>,
    guides: Arc<Guides>,
    calls: Arc<dyn TrackerCalls>,
    stop: CancellationToken,
) {
    let begun = Instant::now();
    let mut pace = Pace::default();
    let mut statuses = downloads.statuses();
    loop {
        let transfers = downloads.transfers();
        guides.retain(|digest| transfers.iter().any(|(o, _)| o.release.artifact == *digest));
        let ended = downloads.ended();
        let reports = reports(&downloads, &guides, &transfers, &ended);
        let untold = ended.iter().filter(|fetch| !fetch.told);
        let untold = untold.map(|fetch| fetch.release.artifact.clone()).collect();
        match pace.next(begun.elapsed(), &reports, untold) {
            NextReport::Now => {}
            NextReport::Wait { pause, idle } => {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = sleep(pause) => continue,
                    _ = statuses.changed(), if idle => continue,
                }
            }
        }
        let request = TransferRequest { transfers: reports };
        let asked = timeout(Duration::from_millis(ANSWER_MS_MAX), calls.report(request));
        let answer = tokio::select! {
            () = stop.cancelled() => return,
            answer = asked => answer.unwrap_or_else(|late| Err(late.into())),
        };
        match answer {
            Ok(answer) => {
                downloads.told(&pace.answered(begun.elapsed(), &answer));
                guides.take(answer.guidance);
                guides.measured(answer.downlink_rate);
            }
            Err(error) => {
                tracing::debug!(error = chain(&*error), "cannot report transfers to the leader");
                pace.unanswered(begun.elapsed());
            }
        }
    }
}

/// Fetches that ended and are no longer ordered, reported once so that the leader knows which
/// servers have what and from where; then those still ordered.
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
    // Ended fetches are soon forgotten, and must not wait behind many orders.
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
