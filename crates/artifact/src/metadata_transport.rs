//! How the TUF library gets at files: from one mirror or from memory, within limits.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tough::{Transport, TransportError, TransportErrorKind, TransportStream};
use url::Url;

use crate::fetch::{FetchError, Fetcher, Mirror};
use crate::layout::METADATA_DIR;
use crate::metadata::METADATA_BYTES_MAX;

/// Longest root, timestamp and snapshot: ours are 3 KiB, 1 KiB and 1 KiB.
pub(crate) const SMALL_METADATA_BYTES_MAX: u64 = 256 << 10;

/// Where metadata comes from in one attempt.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    Mirror(Fetcher, Mirror),
    Memory(BTreeMap<String, Bytes>),
}

/// The TUF library's way to files: one source, whole files, hard limits, and a record of all bytes.
#[derive(Debug, Clone)]
pub(crate) struct MetadataTransport {
    pub(crate) source: Source,
    /// Versioned files at hand, by name.
    pub(crate) held: BTreeMap<String, Bytes>,
    /// What was handed out, by name.
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
            (None, Source::Memory(files)) => files.get(&name).cloned().ok_or(FetchError::NotFound),
            (None, Source::Mirror(fetcher, mirror)) => {
                fetcher.fetch(mirror, &format!("{METADATA_DIR}/{name}"), bytes_max).await
            }
        };
        let item = match fetched {
            Ok(bytes) => {
                let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
                taken.insert(name, bytes.clone());
                Ok(bytes)
            }
            Err(error @ FetchError::NotFound) => {
                let kind = TransportErrorKind::FileNotFound;
                return Err(TransportError::new_with_cause(kind, url, error));
            }
            // In the stream, not as the call's result: of a new root the library would otherwise
            // take any failure for "there is none".
            Err(error) => {
                Err(TransportError::new_with_cause(TransportErrorKind::Other, url, error))
            }
        };
        Ok(Box::pin(futures_util::stream::iter([item])))
    }
}

/// A stand-in: the transport looks at file names only.
pub(crate) fn base_url() -> Url {
    Url::parse("http://repository.invalid/metadata/").expect("a constant URL that parses")
}
