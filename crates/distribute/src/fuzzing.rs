//! This crate's decoders of bytes from elsewhere, for the fuzz targets of `cohort-fuzz`.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use cohort_artifact::UnitHashes;
use cohort_artifact::client::Content;
use cohort_core::ids::ServerId;
use cohort_transfer::{Limits, SourceKind, UnitRun, UnitSet};
use futures_util::{StreamExt as _, stream};
use tokio::time::Instant;

use crate::budget::Budget;
use crate::part::Part;
use crate::peers::Answer;
use crate::progress::ByteCounters;
use crate::request::{Heard, Measured, RequestContext, take_link, take_units};

/// Receives units of an artifact as a parent (`from_parent`) or a mirror sends them, into a file
/// in `folder`. Returns those that are there then, whether the source misbehaved or not.
///
/// # Panics
/// If the disk fails.
pub async fn receive(
    folder: &Path,
    hashes: Arc<UnitHashes>,
    lacks: &[UnitRun],
    from_parent: Option<ServerId>,
    pieces: Vec<Bytes>,
) -> UnitSet {
    let part = Part::open(folder.join("fuzzed.part"), hashes).expect("a writable directory");
    let part = Arc::new(part);
    let context = RequestContext {
        kind: if from_parent.is_some() { SourceKind::Peer } else { SourceKind::Mirror },
        limits: Arc::new(Limits::default()),
        counters: Arc::new(ByteCounters::default()),
        received: Arc::new(AtomicU64::new(0)),
        budget: Arc::new(Budget::default()),
        heard: Arc::new(Heard::new(Instant::now())),
    };
    let pieces = stream::iter(pieces.into_iter().map(Ok)).boxed();
    let answer = Answer { content: Content::Whole, length: None, pieces };
    let mut measured = Measured::default();
    // How it ended is the source's affair.
    let _ = match &from_parent {
        Some(parent) => take_link(&context, &mut measured, &part, parent, lacks, answer).await,
        None => take_units(&context, &mut measured, &part, None, answer).await,
    };
    part.have()
}
