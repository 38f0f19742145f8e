//! Errors of buckets, human-readable: stores respond with XML.

use std::error::Error;
use std::path::PathBuf;

use cohort_base::chain::causes;
use cohort_base::{FileError, chain};
use object_store::client::{HttpError, HttpErrorKind};

use super::http::NoCredentials;

/// Longest text from a store to show, in characters.
const TEXT_CHARS_MAX: usize = 300;

/// Why a bucket cannot be used, or a repository cannot be pushed to it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BucketError {
    #[error("`{url}` {reason}")]
    Url {
        url: String,
        reason: &'static str,
        /// The parser's error, if the text is not a URL at all.
        #[source]
        source: Option<url::ParseError>,
    },
    #[error("cannot open bucket {url}: {}", brief(why))]
    Settings {
        url: String,
        /// Not a source: the message shows the useful part.
        why: object_store::Error,
    },
    #[error("cannot create an HTTP client for object stores")]
    Client(#[source] reqwest::Error),
    #[error("bucket {bucket}: {object}: {}", brief(why))]
    Request {
        bucket: String,
        /// The file, or the directory to list.
        object: String,
        /// The store's response. Not a source: the message shows the useful part.
        why: object_store::Error,
    },
    #[error(transparent)]
    File(#[from] FileError),
    #[error("the search for the repository's files panicked")]
    Task(#[source] tokio::task::JoinError),
    #[error("repository file {} {reason}", path.display())]
    Damaged { path: PathBuf, reason: &'static str },
    #[error("{} holds no repository: there is no {file}", path.display())]
    NoRepository { path: PathBuf, file: &'static str },
    #[error("bucket {bucket} holds another repository: its first root is not ours")]
    Foreign { bucket: String },
    /// The bucket has a newer timestamp, or a different one of the same version.
    #[error(
        "bucket {bucket} holds timestamp {theirs}, this repository has {ours}: refusing to replace \
         the newer one"
    )]
    Ahead { bucket: String, theirs: u64, ours: u64 },
    #[error("another publisher wrote to bucket {bucket} at the same time")]
    Raced { bucket: String },
    #[error("bucket {bucket} holds more than {objects_max} objects")]
    TooMany { bucket: String, objects_max: usize },
}

impl BucketError {
    /// What to do next.
    #[must_use]
    pub fn hints(&self) -> Vec<String> {
        let hints: &[&str] = match self {
            Self::Url { .. } => {
                &["name it s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or \
                   file:///DIRECTORY"]
            }
            Self::Settings { url, .. } if url.starts_with("file:") => {
                &["a directory has to exist: where nothing is mounted, nothing is written"]
            }
            Self::Settings { .. } => {
                &["stores are reached as the environment says: AWS_REGION, AWS_ENDPOINT_URL, \
                   AZURE_STORAGE_ACCOUNT_NAME, GOOGLE_SERVICE_ACCOUNT, and so on"]
            }
            Self::Request { why, .. } => hints_of(why),
            Self::NoRepository { .. } => {
                &["`cohort init --dir DIR` makes one; the hub has its own in its data directory"]
            }
            Self::Foreign { .. } => &["push to another prefix, or empty this one first"],
            Self::Ahead { .. } => &[
                "push from where it was published last",
                "after a restore: publish until the version here is the greater one",
            ],
            Self::Raced { .. } => &["push again"],
            Self::Damaged { .. } => &["take the file from a mirror or a backup, then push again"],
            _ => &[],
        };
        hints.iter().map(|hint| (*hint).to_owned()).collect()
    }
}

fn hints_of(error: &object_store::Error) -> &'static [&'static str] {
    const WHO: &[&str] = &[
        "credentials come from the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, \
         GOOGLE_SERVICE_ACCOUNT, AZURE_STORAGE_ACCOUNT_KEY) or from the machine's role; ~/.aws is \
         not read",
        "they must be allowed to list, read and write below the prefix",
    ];
    let code = code_of(error).map(|(code, _)| code);
    if cause::<NoCredentials>(error).is_some() {
        return WHO;
    }
    match (error, code.as_deref()) {
        (_, Some("NoSuchBucket" | "ContainerNotFound")) => {
            &["make the bucket first; its name is the first part of the URL"]
        }
        (_, Some("PermanentRedirect" | "AuthorizationHeaderMalformed")) => {
            &["AWS_REGION names the bucket's region"]
        }
        (_, Some("NotImplemented")) => &[
            "a store that cannot write under conditions: AWS_CONDITIONAL_PUT=disabled does without",
        ],
        (
            object_store::Error::PermissionDenied { .. }
            | object_store::Error::Unauthenticated { .. },
            _,
        ) => WHO,
        _ if cause::<HttpError>(error).is_some_and(|e| e.kind() == HttpErrorKind::Connect) => {
            &["AWS_ENDPOINT_URL names the address of a store that is not Amazon's"]
        }
        _ => &[],
    }
}

/// The first cause of this type.
fn cause<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

/// The store's response, without XML, address and number of tries.
fn brief(error: &object_store::Error) -> String {
    if let Some((code, message)) = code_of(error) {
        return format!("{code}: {message}");
    }
    if let Some(none) = cause::<NoCredentials>(error) {
        return short(&chain(none));
    }
    let deepest = causes(error).last().map(ToString::to_string).unwrap_or_default();
    short(deepest.trim())
}

/// Code and message of an XML error; all stores use the same elements.
fn code_of(error: &object_store::Error) -> Option<(String, String)> {
    let text = error.to_string();
    let between = |tag: &str| {
        let (_, rest) = text.split_once(&format!("<{tag}>"))?;
        let (inner, _) = rest.split_once(&format!("</{tag}>"))?;
        Some(short(inner.trim()))
    };
    Some((between("Code")?, between("Message").unwrap_or_default()))
}

fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(TEXT_CHARS_MAX).collect()
}
