//! A bucket as an origin of a cache: one object, or a range of one.

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG};
use http::{HeaderMap, HeaderValue, StatusCode};
use object_store::{Error, GetOptions, GetRange};

use super::Bucket;
use super::error::{brief, cause, code_of};
use super::http::Busy;
use crate::origins::OriginError;

/// What was asked for, as a mirror would have answered.
pub(crate) struct Found {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) pieces: BoxStream<'static, Result<Bytes, OriginError>>,
}

impl Bucket {
    /// Asks for a file, or its bytes from `first` to `last`; with the tag of a copy, only if it is
    /// another.
    pub(crate) async fn get(
        &self,
        relative: &str,
        range: Option<(u64, u64)>,
        tag: Option<&str>,
    ) -> Result<Found, OriginError> {
        let path = self.path(relative);
        let path = path.map_err(|error| OriginError::Failed(error.to_string()))?;
        let options = GetOptions {
            range: range.map(|(first, last)| GetRange::Bounded(first..last.saturating_add(1))),
            if_none_match: tag.map(str::to_owned),
            ..GetOptions::default()
        };
        let result = match self.store.get_opts(&path, options).await {
            Ok(result) => result,
            Err(Error::NotModified { .. }) => {
                let pieces = futures_util::stream::empty().boxed();
                let headers = HeaderMap::new();
                return Ok(Found { status: StatusCode::NOT_MODIFIED, headers, pieces });
            }
            Err(error) => return Err(explain(&error)),
        };
        let (given, size) = (result.range.clone(), result.meta.size);
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_LENGTH, HeaderValue::from(given.end - given.start));
        if let Some(tag) = result.meta.e_tag.as_deref().and_then(|tag| tag.parse().ok()) {
            headers.insert(ETAG, tag);
        }
        let status = match range {
            None => StatusCode::OK,
            Some(_) => {
                let last = given.end.saturating_sub(1);
                let text = format!("bytes {}-{last}/{size}", given.start);
                headers.insert(CONTENT_RANGE, text.parse().expect("numbers are visible ASCII"));
                StatusCode::PARTIAL_CONTENT
            }
        };
        let pieces = result.into_stream().map(|piece| piece.map_err(|error| explain(&error)));
        Ok(Found { status, headers, pieces: pieces.boxed() })
    }
}

fn explain(error: &Error) -> OriginError {
    if let Some(Busy(after)) = cause::<Busy>(error) {
        return OriginError::Busy(*after);
    }
    let code = code_of(error).map(|(code, _)| code);
    match (error, code.as_deref()) {
        (_, Some("NoSuchBucket" | "ContainerNotFound")) => OriginError::Failed(brief(error)),
        (Error::NotFound { .. }, _) => OriginError::Absent,
        // Who may not list is told the same of what is missing and of what is kept from him.
        (Error::PermissionDenied { .. }, Some("AccessDenied")) => OriginError::Absent,
        _ => OriginError::Failed(brief(error)),
    }
}
