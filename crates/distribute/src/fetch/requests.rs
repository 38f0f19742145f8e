//! What a fetch asks of its sources, and what comes of it.

use std::io;
use std::sync::Arc;

use tokio::task::{Id, JoinError};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::guided::Link;
use super::{Fetch, FetchError, blocking};
use crate::plan::{SourceId, SourceKind};
use crate::request::{
    Asked, Heard, Measured, RequestContext, RequestError, head, span_of, take_hashes, take_link,
    take_units,
};
use crate::store_error::StoreError;
use crate::subscription::{RUNS_MAX, SubscribeRequest};
use crate::transport::{ByteStream, hashes_request_path, subscription_path, units_request_path};
use crate::unit_set::UnitRun;

/// How long a parent may hold the question for unit hashes that it has not got yet, in milliseconds.
const HASHES_WAIT_MS: u64 = 5_000;

/// What a request was for, until it ends.
pub(super) struct UnderWay {
    pub(super) source: SourceId,
    pub(super) what: What,
    pub(super) began: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Hashes,
    Units(Asked),
    /// Everything that is lacking, as the source gets it.
    Link,
}

/// What a request's task gives back.
pub(super) struct Ended {
    measured: Measured,
    /// The unit hashes, when they were asked for; empty otherwise.
    result: Result<Vec<u8>, RequestError>,
}

impl Fetch<'_> {
    pub(super) fn start(&mut self, source: &SourceId, what: What) {
        debug!(?source, ?what, "asking");
        let kind = source.kind();
        let (received, budget) = match kind {
            SourceKind::Mirror => (&self.from_mirrors, &self.mirror_budget),
            SourceKind::Peer => (&self.from_peers, &self.context.download),
        };
        let context = RequestContext {
            kind,
            limits: Arc::clone(&self.context.limits),
            counters: Arc::clone(&self.context.counters),
            received: Arc::clone(received),
            budget: Arc::clone(budget),
            heard: Arc::new(Heard::new(self.begun)),
        };
        let heard = Arc::clone(&context.heard);
        let lacks = match &self.part {
            Some(part) if what == What::Link => part.have().complement().runs(RUNS_MAX),
            Some(_) | None => Vec::new(),
        };
        let answer = self.ask(source, what, lacks.clone());
        let (part, length) = (self.part.clone(), self.release().length);
        let from = source.clone();
        let task = self.tasks.spawn(async move {
            let mut measured = Measured::default();
            let result = async {
                let answer = head(&context, &mut measured, answer).await?;
                match (what, part) {
                    (What::Hashes, _) => take_hashes(&context, &mut measured, length, answer).await,
                    (What::Units(asked), Some(part)) => {
                        take_units(&context, &mut measured, &part, asked, answer).await?;
                        Ok(Vec::new())
                    }
                    (What::Link, Some(part)) => {
                        let SourceId::Peer(parent) = &from else {
                            return Err(RequestError::Absent);
                        };
                        context.heard.now();
                        take_link(&context, &mut measured, &part, parent, &lacks, answer).await?;
                        Ok(Vec::new())
                    }
                    (What::Units(_) | What::Link, None) => Err(RequestError::Absent),
                }
            }
            .await;
            Ended { measured, result }
        });
        self.sources.began(source);
        if let (What::Link, SourceId::Peer(server)) = (what, source) {
            let link = Link { task: task.clone(), heard, begun_ms: self.now_ms() };
            self.links.insert(server.clone(), link);
        }
        let began = Instant::now();
        self.under_way.insert(task.id(), UnderWay { source: source.clone(), what, began });
    }

    /// The request itself; nothing is sent before it is polled.
    fn ask(
        &self,
        source: &SourceId,
        what: What,
        lacks: Vec<UnitRun>,
    ) -> impl Future<Output = io::Result<http::Response<ByteStream>>> + Send + 'static {
        let release = self.release();
        let (digest, length) = (release.artifact.clone(), release.length);
        let all = UnitRun { first: 0, count: self.part.as_ref().map_or(0, |p| p.hashes().count()) };
        let mirrors = Arc::clone(&self.context.mirrors);
        let peers = Arc::clone(&self.context.peers);
        let (source, address) = (source.clone(), self.sources.address(source));
        let guided = self.guides.is_some();
        async move {
            match (source, what) {
                (SourceId::Mirror(index), What::Hashes) => mirrors.get_hashes(index, &digest).await,
                (SourceId::Mirror(index), What::Units(Asked::Run(run))) => {
                    mirrors.get_blob(index, &digest, Some(span_of(length, run))).await
                }
                (SourceId::Mirror(index), What::Units(Asked::Whole)) => {
                    mirrors.get_blob(index, &digest, None).await
                }
                (SourceId::Mirror(_), What::Link) => Err(io::Error::other("is no parent")),
                (SourceId::Peer(_), what) => {
                    let address = address.ok_or_else(|| io::Error::other("has no address"))?;
                    let path = match what {
                        What::Link => {
                            let body = serde_json::to_vec(&SubscribeRequest { lacks })?;
                            let path = subscription_path(&digest);
                            return peers.post(&address, path, body).await;
                        }
                        What::Hashes if guided => {
                            format!("{}?wait_ms={HASHES_WAIT_MS}", hashes_request_path(&digest))
                        }
                        What::Hashes => hashes_request_path(&digest),
                        What::Units(Asked::Run(run)) => units_request_path(&digest, run),
                        What::Units(Asked::Whole) => units_request_path(&digest, all),
                    };
                    peers.get(&address, path).await
                }
            }
        }
    }

    /// Takes the outcome of a request.
    pub(super) async fn ended(
        &mut self,
        ended: Result<(Id, Ended), JoinError>,
    ) -> Result<(), FetchError> {
        let (id, Ended { measured, result }) = match ended {
            Ok(ended) => ended,
            // A link that was ended here.
            Err(error) if error.is_cancelled() => return Ok(()),
            Err(error) => return Err(FetchError::Task(error)),
        };
        let Some(UnderWay { source, what, began }) = self.under_way.remove(&id) else {
            return Ok(());
        };
        if let (What::Link, SourceId::Peer(server)) = (what, &source) {
            self.links.remove(server);
        }
        let result = match (what, result) {
            // It had nothing, and holds nobody up.
            (What::Link, Ok(_)) if measured.units == 0 => Err(RequestError::Absent),
            (What::Link, Ok(_)) => Ok(()),
            (What::Hashes, Ok(bytes)) => self.put_hashes(bytes).await?,
            (What::Units(_), Ok(_)) => Ok(()),
            (_, Err(RequestError::Disk(error))) => return Err(FetchError::Store(error)),
            (_, Err(error)) => Err(error),
        };
        if let Err(error) = &result {
            let name = self.name(&source);
            if matches!(error, RequestError::Wrong(_)) {
                warn!(source = name, %error, artifact = %self.release().artifact, "left out");
            } else {
                debug!(source = name, %error, "request failed");
            }
        }
        let began = began.into_std();
        self.tell_mirrors(&source, began, &measured, result.is_err());
        let now_ms = self.now_ms();
        let failure = result.as_ref().err();
        self.sources.ended(&source, began, &measured, failure, now_ms, &self.context.limits);
        Ok(())
    }

    async fn put_hashes(&mut self, bytes: Vec<u8>) -> Result<Result<(), RequestError>, FetchError> {
        let claim = Arc::clone(&self.claim);
        match blocking(move || claim.put_hashes(&bytes)).await {
            Ok(hashes) => {
                self.begin(hashes).await?;
                self.moved_at_ms = self.now_ms();
                Ok(Ok(()))
            }
            Err(FetchError::Store(StoreError::Bytes { source, .. })) => {
                Ok(Err(RequestError::Wrong(source)))
            }
            Err(error) => Err(error),
        }
    }

    fn tell_mirrors(
        &self,
        source: &SourceId,
        began: std::time::Instant,
        measured: &Measured,
        failed: bool,
    ) {
        let SourceId::Mirror(index) = *source else { return };
        let mirrors = &self.context.mirrors;
        if let Some(first_byte) = measured.first_byte {
            mirrors.answered(index, first_byte);
        }
        if measured.units > 0 {
            mirrors.delivered(index, began);
        }
        if failed {
            mirrors.failed(index);
        }
    }
}
