//! What goes wrong with buckets, in words for people: stores answer with XML.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use object_store::client::{HttpError, HttpErrorKind};

use super::http::NoCredentials;

/// The longest text of a store that is passed on, in characters.
const TEXT_CHARS_MAX: usize = 300;

/// Why a bucket cannot be used, or a repository not be put into one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BucketError {
    /// The URL cannot be one of a bucket.
    #[error("`{url}` {reason}")]
    Url {
        /// What was given.
        url: String,
        /// Why not.
        reason: String,
    },
    /// The variables that say how the store is reached contradict themselves or are incomplete.
    #[error("bucket {url} cannot be opened: {}", brief(why))]
    Settings {
        /// Which bucket.
        url: String,
        /// Why. Not a source: all of it that is for people is in the message.
        why: object_store::Error,
    },
    /// No HTTP client can be made.
    #[error("there is no client to ask object stores with")]
    Client(#[source] reqwest::Error),
    /// The store did not do what it was asked for.
    #[error("bucket {bucket}: {object}: {}", brief(why))]
    Request {
        /// Which bucket.
        bucket: String,
        /// Which file of the repository, or a folder that was to be listed.
        object: String,
        /// What the store said. Not a source: all of it that is for people is in the message.
        why: object_store::Error,
    },
    /// A file of the repository cannot be read here.
    #[error("repository's file {} cannot be read", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of the repository here is not what it should be.
    #[error("repository's file {} {reason}", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The folder holds no repository.
    #[error("{} holds no repository: there is no {file}", path.display())]
    NoRepository {
        /// Which folder.
        path: PathBuf,
        /// What is missing.
        file: &'static str,
    },
    /// The bucket has a repository of other keys.
    #[error("bucket {bucket} holds another repository: its first root is not ours")]
    Foreign {
        /// Which bucket.
        bucket: String,
    },
    /// The bucket has what was signed later, or at the same time by somebody else.
    #[error(
        "bucket {bucket} holds timestamp {theirs}, and here is another {ours}: what is there must \
         not be replaced by what is older"
    )]
    Ahead {
        /// Which bucket.
        bucket: String,
        /// The version there.
        theirs: u64,
        /// The version here.
        ours: u64,
    },
    /// Somebody else pushed at the same time.
    #[error("somebody else has written to bucket {bucket} at the same time")]
    Raced {
        /// Which bucket.
        bucket: String,
    },
    /// The prefix holds far more than a repository.
    #[error("bucket {bucket} holds more than {objects_max} objects")]
    TooMany {
        /// Which bucket.
        bucket: String,
        /// The limit.
        objects_max: usize,
    },
    /// The process is shutting down.
    #[error("reading the repository was cut short because the program is stopping")]
    Stopped,
}

impl BucketError {
    /// What to do about it.
    #[must_use]
    pub fn hints(&self) -> Vec<String> {
        let hints: &[&str] = match self {
            Self::Url { .. } => {
                &["name it s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or \
                   file:///FOLDER"]
            }
            Self::Settings { url, .. } if url.starts_with("file:") => {
                &["a folder has to exist: where nothing is mounted, nothing is written"]
            }
            Self::Settings { .. } => {
                &["stores are reached as the environment says: AWS_REGION, AWS_ENDPOINT_URL, \
                   AZURE_STORAGE_ACCOUNT_NAME, GOOGLE_SERVICE_ACCOUNT, and so on"]
            }
            Self::Request { why, .. } => hints_of(why),
            Self::NoRepository { .. } => {
                &["`cohort init` makes one; the hub's is `repository` in its data folder"]
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

    /// Whether it may go away by itself.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Request { .. } | Self::Raced { .. } | Self::Read { .. })
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

/// The first cause of a type.
pub(super) fn cause<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// What a store said, without the XML, the address and the number of tries around it.
pub(super) fn brief(error: &object_store::Error) -> String {
    if let Some((code, message)) = code_of(error) {
        return format!("{code}: {message}");
    }
    let mut deepest: &dyn Error = error;
    while let Some(cause) = deepest.source() {
        deepest = cause;
    }
    short(deepest.to_string().trim())
}

/// The code and the sentence of an error in XML, as all these stores write it.
pub(super) fn code_of(error: &object_store::Error) -> Option<(String, String)> {
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
