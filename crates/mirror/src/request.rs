//! What a reader asks for: paths, ranges and tags, as the standard says, and the head of the answer.

use std::path::PathBuf;

use axum::http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_NONE_MATCH,
    IF_RANGE, RANGE,
};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode};
use axum::response::{IntoResponse as _, Response};

/// The longest path that is looked at, in bytes.
const PATH_BYTES_MAX: usize = 1024;

/// The path below the repository, or nothing if it could mean anything else.
///
/// Names in a repository need no escapes, so that a percent sign never has to be understood, and no
/// part begins with a dot (unfinished files do).
pub(crate) fn relative_path(path: &str) -> Option<PathBuf> {
    let path = path.strip_prefix('/')?;
    is_relative(path).then(|| PathBuf::from(path))
}

/// Whether a text can be a path below a repository.
pub(crate) fn is_relative(path: &str) -> bool {
    path.len() <= PATH_BYTES_MAX && path.split('/').all(is_plain)
}

/// Whether a text can be one part of such a path.
pub(crate) fn is_plain(part: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-+~".contains(&byte);
    !part.is_empty() && !part.starts_with('.') && part.bytes().all(allowed)
}

/// What the head of an answer says of a file.
pub(crate) struct About<'a> {
    pub(crate) etag: &'a str,
    pub(crate) length: u64,
    pub(crate) cache: &'static str,
    pub(crate) kind: &'static str,
}

/// An answer without its body, and what its body has to be: the first byte and the number of bytes.
pub(crate) struct Reply {
    pub(crate) response: Response,
    pub(crate) span: Option<(u64, u64)>,
}

/// The head of the answer to a `GET` or `HEAD` of a file.
pub(crate) fn reply(method: &Method, headers: &HeaderMap, about: &About<'_>) -> Reply {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let length = about.length;
    let common = [
        (ETAG, about.etag),
        (ACCEPT_RANGES, "bytes"),
        (CACHE_CONTROL, about.cache),
        (CONTENT_TYPE, about.kind),
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

/// Whether one tag of `If-None-Match` is that of the file.
pub(crate) fn same_tag(given: &str, etag: &str) -> bool {
    let given = given.trim();
    given == "*" || given.strip_prefix("W/").unwrap_or(given) == etag
}

/// What of a file is wanted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// No range that we understand: the whole, as the standard says.
    Whole,
    /// From the first byte to the last, both included.
    Part { first: u64, last: u64 },
    /// Beyond the end.
    Outside,
}

/// Reads `bytes=FIRST-LAST`, `bytes=FIRST-` and `bytes=-LENGTH`. Several ranges are not served
/// apart: the whole answers them, as the standard allows.
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
mod request_test {
    use super::{Wanted, parse_range, relative_path};

    #[test]
    fn ranges_are_read_as_the_standard_says() {
        let part = |first, last| Wanted::Part { first, last };
        for (text, wanted) in [
            ("bytes=0-0", part(0, 0)),
            ("bytes=2-", part(2, 9)),
            ("bytes=2-99", part(2, 9)),
            ("bytes=-3", part(7, 9)),
            ("bytes=-99", part(0, 9)),
            ("bytes=10-", Wanted::Outside),
            ("bytes=-0", Wanted::Outside),
            ("bytes=5-2", Wanted::Whole),
            ("bytes=0-1,4-5", Wanted::Whole),
            ("bytes=x-y", Wanted::Whole),
            ("units=0-1", Wanted::Whole),
            ("bytes=99999999999999999999-", Wanted::Whole),
        ] {
            assert_eq!(parse_range(text, 10), wanted, "{text}");
        }
        assert_eq!(parse_range("bytes=0-", 0), Wanted::Outside);
    }

    #[test]
    fn only_plain_paths_are_looked_at() {
        for plain in
            ["/metadata/1.root.json", "/targets/apps/web/1.0.0+b/linux~amd64/ab.manifest.json"]
        {
            assert!(relative_path(plain).is_some(), "{plain}");
        }
        for odd in [
            "/metadata/../keys/a",
            "/metadata/%2e%2e/keys/a",
            "/metadata//a",
            "/metadata/.unfinished",
            "/metadata/a b",
            "/",
            "metadata/a",
        ] {
            assert!(relative_path(odd).is_none(), "{odd}");
        }
        assert!(relative_path(&format!("/blobs/{}", "a".repeat(2000))).is_none());
    }
}
