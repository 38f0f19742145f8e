//! Ranges and tags of a request, and the response head, by RFC 9110.

use axum::http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_NONE_MATCH,
    IF_RANGE, RANGE,
};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use cohort_artifact::RepositoryFile;

/// Headers that describe a file.
pub(crate) struct About<'a> {
    pub(crate) etag: &'a str,
    pub(crate) length: u64,
    pub(crate) kind: &'a RepositoryFile,
}

/// A response without body, and the body it needs: first byte and number of bytes.
pub(crate) struct Reply {
    pub(crate) response: Response,
    pub(crate) span: Option<(u64, u64)>,
}

/// The reply to a `GET` or `HEAD` of a file.
pub(crate) fn reply(method: &Method, headers: &HeaderMap, about: &About<'_>) -> Reply {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let length = about.length;
    let common = [
        (ETAG, about.etag),
        (ACCEPT_RANGES, "bytes"),
        (CACHE_CONTROL, about.kind.cache_control()),
        (CONTENT_TYPE, about.kind.content_type()),
    ];
    let known = text(IF_NONE_MATCH)
        .is_some_and(|tags| tags.split(',').any(|tag| same_tag(tag, about.etag)));
    if known {
        return Reply { response: (StatusCode::NOT_MODIFIED, common).into_response(), span: None };
    }
    let range_is_for_this = text(IF_RANGE).is_none_or(|tag| tag.trim() == about.etag);
    let wanted = text(RANGE).filter(|_| range_is_for_this && *method == Method::GET);
    let range = match wanted.map(|wanted| parse_range(wanted, length)) {
        None | Some(Wanted::Whole) => None,
        Some(Wanted::Part { first, last }) => Some((first, last)),
        Some(Wanted::Outside) => {
            let whole = [(CONTENT_RANGE, format!("bytes */{length}"))];
            let response = (StatusCode::RANGE_NOT_SATISFIABLE, whole).into_response();
            return Reply { response, span: None };
        }
    };
    let (status, first, bytes) = match range {
        Some((first, last)) => (StatusCode::PARTIAL_CONTENT, first, last - first + 1),
        None => (StatusCode::OK, 0, length),
    };
    let mut response = (status, common, [(CONTENT_LENGTH, bytes.to_string())]).into_response();
    if let Some((first, last)) = range {
        let value = format!("bytes {first}-{last}/{length}");
        let value = value.parse().expect("numbers are visible ASCII");
        response.headers_mut().insert(CONTENT_RANGE, value);
    }
    Reply { response, span: (*method != Method::HEAD).then_some((first, bytes)) }
}

/// Whether one tag of `If-None-Match` matches.
pub(crate) fn same_tag(given: &str, etag: &str) -> bool {
    let given = given.trim();
    given == "*" || given.strip_prefix("W/").unwrap_or(given) == etag
}

/// The requested part of a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// No range, or one that may be ignored.
    Whole,
    /// First and last byte.
    Part { first: u64, last: u64 },
    /// Starts beyond the end of the file.
    Outside,
}

/// Reads `bytes=FIRST-LAST`, `bytes=FIRST-` and `bytes=-LENGTH`. Several ranges get the
/// whole file, as the standard allows.
pub(crate) fn parse_range(text: &str, length: u64) -> Wanted {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-'))
    else {
        return Wanted::Whole;
    };
    match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(first), last_given) => {
            let last = match last_given {
                Ok(last) if last < first => return Wanted::Whole,
                Ok(last) => last.min(length.saturating_sub(1)),
                Err(_) if last.trim().is_empty() => length.saturating_sub(1),
                Err(_) => return Wanted::Whole,
            };
            if first >= length { Wanted::Outside } else { Wanted::Part { first, last } }
        }
        (Err(_), Ok(suffix)) if first.trim().is_empty() => {
            if suffix == 0 || length == 0 {
                return Wanted::Outside;
            }
            Wanted::Part { first: length.saturating_sub(suffix), last: length - 1 }
        }
        (Err(_), _) => Wanted::Whole,
    }
}

#[cfg(test)]
#[path = "request_test.rs"]
mod request_test;
