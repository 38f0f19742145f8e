//! How the TUF library reads files: from one mirror or from memory, within limits.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tough::{Transport, TransportError, TransportErrorKind, TransportStream};
use url::Url;

use crate::client::{FetchError, Mirror, MirrorClient};
use crate::layout::METADATA_DIR;
use crate::metadata::METADATA_BYTES_MAX;

/// Longest root, timestamp and snapshot, in bytes: ours have 3 KiB, 1 KiB and 1 KiB.
pub(crate) const SMALL_METADATA_BYTES_MAX: u64 = 256 << 10;

/// The source of metadata in one attempt.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    Mirror(MirrorClient, Mirror),
    Memory(BTreeMap<String, Bytes>),
}

/// Reads whole files from one source within hard limits, and records them.
#[derive(Debug, Clone)]
pub(crate) struct MetadataTransport {
    pub(crate) source: Source,
    /// Versioned files that need not be fetched, by name.
    pub(crate) held: BTreeMap<String, Bytes>,
    /// The files returned so far, by name.
    pub(crate) taken: Arc<Mutex<BTreeMap<String, Bytes>>>,
}

#[tough::async_trait]
impl Transport for MetadataTransport {
    async fn fetch(&self, url: Url) -> Result<TransportStream, TransportError> {
        let name = url.path_segments().and_then(Iterator::last).unwrap_or_default().to_owned();
        let bytes_max = if name.ends_with("targets.json") {
            METADATA_BYTES_MAX
        } else {
            SMALL_METADATA_BYTES_MAX
        };
        let fetched = match (self.held.get(&name), &self.source) {
            (Some(held), _) => Ok(held.clone()),
            (None, Source::Memory(files)) => files.get(&name).cloned().ok_or(FetchError::Absent),
            (None, Source::Mirror(client, mirror)) => {
                client.fetch(mirror, &format!("{METADATA_DIR}/{name}"), bytes_max).await
            }
        };
        let item = match fetched {
            Ok(bytes) => {
                let mut taken = self.taken.lock();
                taken.insert(name, bytes.clone());
                Ok(bytes)
            }
            Err(error @ FetchError::Absent) => {
                let kind = TransportErrorKind::FileNotFound;
                return Err(TransportError::new_with_cause(kind, url, error));
            }

            Err(error) => {
                Err(TransportError::new_with_cause(TransportErrorKind::Other, url, error))
            }
        };
        Ok(Box::pin(futures_util::stream::iter([item])))
    }
}

/// A placeholder: the transport only uses file names.
pub(crate) fn base_url() -> Url {
    Url::parse("http://repository.invalid/metadata/").expect("a constant URL that parses")
}
