//! The requests of a fetch: sent, and their outcomes processed.

use std::sync::Arc;

use cohort_base::chain;
use cohort_transfer::{Outcome, RequestId, SourceKind, Target, UnitRun, What, span_of};
use tokio::task::{Id, JoinError};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::{Fetch, FetchError, Running, blocking, random};
use crate::peers::Answer;
use crate::request::{
    Ended, Heard, RequestContext, RequestError, head, take_hashes, take_link, take_units,
};
use crate::store_error::StoreError;
use crate::subscription::RUNS_MAX;

impl Fetch<'_> {
    pub(super) fn ask(&mut self, id: RequestId, target: Target, what: What) {
        debug!(?target, ?what, "asking");
        let (kind, received, budget) = match target {
            Target::Mirror(_) => (SourceKind::Mirror, &self.from_mirrors, &self.mirror_budget),
            Target::Server(_) => (SourceKind::Peer, &self.from_peers, &self.context.download),
        };
        let heard = Arc::new(Heard::new(self.begun));
        let context = RequestContext {
            kind,
            limits: Arc::clone(&self.context.limits),
            counters: Arc::clone(&self.context.counters),
            received: Arc::clone(received),
            budget: Arc::clone(budget),
            heard: Arc::clone(&heard),
        };
        let lacks = match &self.part {
            Some(part) if what == What::Link => part.have().complement().runs(RUNS_MAX),
            Some(_) | None => Vec::new(),
        };
        let answer = self.send(target.clone(), what, lacks.clone());
        let (part, length) = (self.part.clone(), self.release().length);
        let to = target.clone();
        let task = self.tasks.spawn(async move {
            let mut ended = Ended::new(id);
            let measured = &mut ended.measured;
            ended.result = async {
                let answer = head(&context, measured, answer).await?;
                match (what, to, part) {
                    (What::Hashes, ..) => take_hashes(&context, measured, length, answer).await,
                    (What::Units(run), _, Some(part)) => {
                        take_units(&context, measured, &part, Some(run), answer).await
                    }
                    (What::Whole, _, Some(part)) => {
                        take_units(&context, measured, &part, None, answer).await
                    }
                    (What::Link, Target::Server(from), Some(part)) => {
                        context.heard.now();
                        let from = &from.server;
                        take_link(&context, measured, &part, from, &lacks, answer).await
                    }
                    (What::Link, ..) | (_, _, None) => Err(RequestError::Absent),
                }
            }
            .await;
            ended
        });
        let begun = Instant::now();
        self.running.insert(id, Running { task, target, what, begun, heard });
    }

    /// The request itself; nothing is sent before it is polled.
    fn send(
        &self,
        target: Target,
        what: What,
        lacks: Vec<UnitRun>,
    ) -> impl Future<Output = Result<Answer, RequestError>> + Send + 'static {
        let release = self.release();
        let (digest, length) = (release.artifact.clone(), release.length);
        let (mirrors, peers) = (Arc::clone(&self.context.mirrors), self.context.peers.clone());
        async move {
            match (target, what) {
                (Target::Mirror(index), What::Hashes) => mirrors.get_hashes(index, &digest).await,
                (Target::Mirror(index), What::Units(run)) => {
                    mirrors.get_blob(index, &digest, Some(span_of(length, run))).await
                }
                (Target::Mirror(index), What::Whole | What::Link) => {
                    mirrors.get_blob(index, &digest, None).await
                }
                (Target::Server(source), What::Hashes) => peers.unit_hashes(source, &digest).await,
                (Target::Server(source), What::Link | What::Units(_) | What::Whole) => {
                    peers.subscribe(source, &digest, lacks).await
                }
            }
        }
    }

    /// Processes the outcome of a request.
    pub(super) async fn ended(
        &mut self,
        ended: Result<(Id, Ended), JoinError>,
    ) -> Result<(), FetchError> {
        let Ended { id, measured, result } = match ended {
            Ok((_, ended)) => ended,
            // A subscription cancelled by this server.
            Err(error) if error.is_cancelled() => return Ok(()),
            Err(error) => return Err(FetchError::Task(error)),
        };
        let Some(running) = self.running.remove(&id) else { return Ok(()) };
        let result = match (running.what, result) {
            (What::Hashes, Ok(bytes)) => self.put_hashes(bytes).await?,
            (_, Err(RequestError::Disk(error))) => return Err(FetchError::Store(error)),
            (_, result) => result.map(|_| ()),
        };
        let failure = result.err().map(|error| {
            let (failure, text) = (error.failure(), chain(&error));
            let target = &running.target;
            if matches!(error, RequestError::Wrong(_)) {
                warn!(source = self.name(target), error = text, "refused wrong bytes");
            } else {
                debug!(source = self.name(target), error = text, "request failed");
            }
            (failure, text)
        });
        if let Target::Mirror(index) = running.target {
            let mirrors = &self.context.mirrors;
            if let Some(first_byte) = measured.first_byte {
                mirrors.answered(index, first_byte);
            }
            if measured.units > 0 {
                mirrors.delivered(index, running.begun.into_std());
            }
            if failure.is_some() {
                mirrors.failed(index);
            }
        }
        let outcome = Outcome {
            bytes: measured.bytes,
            elapsed_us: u64::try_from(measured.elapsed.as_micros()).unwrap_or(u64::MAX),
            units: measured.units,
            failure,
        };
        self.fetcher.ended(id, outcome, self.now_ms(), random());
        Ok(())
    }

    async fn put_hashes(&mut self, bytes: Vec<u8>) -> Result<Result<(), RequestError>, FetchError> {
        let claim = Arc::clone(&self.claim);
        match blocking(move || claim.put_hashes(&bytes)).await {
            Ok(hashes) => {
                self.begin(hashes).await?;
                Ok(Ok(()))
            }
            Err(FetchError::Store(StoreError::Bytes { source, .. })) => {
                Ok(Err(RequestError::Wrong(source)))
            }
            Err(error) => Err(error),
        }
    }

    fn name(&self, target: &Target) -> String {
        match target {
            Target::Server(source) => source.server.to_string(),
            Target::Mirror(index) => self.context.mirrors.name(*index),
        }
    }
}
