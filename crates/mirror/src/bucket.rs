//! The repository in a bucket of an object store: Amazon S3 and what speaks like it, Google Cloud
//! Storage, Azure Blob Storage; or in a folder that is mounted from elsewhere.
//!
//! **Written** by [`push`], in an order in which no reader ever sees metadata whose targets are
//! missing. **Read** by a cache that names the bucket as an origin (`read.rs`); a public bucket is
//! read by anybody over HTTPS, as any mirror is.
//!
//! How a store is reached and who we are to it is said by variables named as in the environment
//! ([`BucketSettings`]), in the way that the library of object stores reads them.

mod error;
mod http;
mod plan;
mod push;
mod read;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{BackoffConfig, ObjectStore, RetryConfig};
use serde::{Deserialize, Serialize};
use url::Url;

pub use error::BucketError;
pub use push::{Pushed, push, push_file};
pub(crate) use read::Found;

use crate::request::is_plain;
use http::Connector;

/// What the URL of a bucket begins with.
const SCHEMES: [&str; 4] = ["s3", "gs", "az", "file"];

/// What variables that are of interest begin with.
const PREFIXES: [&str; 3] = ["AWS_", "GOOGLE_", "AZURE_"];

/// Tries of one request while pushing, and the time in which they begin: stores that ask for less
/// (`503 SlowDown`) mean seconds; and whoever publishes through a hub waits for a minute.
const RETRIES_MAX: usize = 8;
const RETRY_TIME_MAX: Duration = Duration::from_secs(45);

/// To connect to a store while pushing.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);

/// How stores are reached, and who we are to them: variables as the environment has them, such as
/// `AWS_ACCESS_KEY_ID` and `AWS_ENDPOINT_URL`. Holds secrets, and does not show them.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BucketSettings(BTreeMap<String, String>);

impl BucketSettings {
    /// Those of this process.
    #[must_use]
    pub fn from_env() -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            name.into_string().ok().zip(value.into_string().ok())
        };
        std::env::vars_os().filter_map(text).collect()
    }

    fn of<K: std::str::FromStr>(&self, prefix: &str) -> impl Iterator<Item = (K, &String)> {
        let ours = self.0.iter().filter(move |(name, _)| name.starts_with(prefix));
        ours.filter_map(|(name, value)| Some((name.to_ascii_lowercase().parse().ok()?, value)))
    }
}

impl FromIterator<(String, String)> for BucketSettings {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(variables: I) -> Self {
        let known = |name: &str| PREFIXES.iter().any(|prefix| name.starts_with(prefix));
        Self(variables.into_iter().filter(|(name, _)| known(name)).collect())
    }
}

impl fmt::Debug for BucketSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// A bucket, or a part of one, that holds the repository.
#[derive(Clone)]
pub struct Bucket {
    store: Arc<dyn ObjectStore>,
    /// What all names begin with; no slash at its ends, and maybe empty.
    prefix: String,
    name: String,
    /// Whether it keeps what HTTP says of a file: its kind, and for how long caches may keep it.
    keeps_attributes: bool,
}

impl Bucket {
    /// Whether a text is the URL of a bucket, rather than of a mirror.
    #[must_use]
    pub fn is_url(text: &str) -> bool {
        text.split_once("://").is_some_and(|(scheme, _)| SCHEMES.contains(&scheme))
    }

    /// Opens `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, `az://CONTAINER/PREFIX` or
    /// `file:///FOLDER` for [`push`]. Nothing is asked of the store yet.
    ///
    /// # Errors
    /// When the URL or the settings are wrong.
    pub fn open(url: &str, settings: &BucketSettings) -> Result<Self, BucketError> {
        let client = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIME_MAX)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("cohort/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(BucketError::Client)?;
        let retry = RetryConfig {
            backoff: BackoffConfig::default(),
            max_retries: RETRIES_MAX,
            retry_timeout: RETRY_TIME_MAX,
        };
        let http = Connector::that_waits(client).map_err(BucketError::Client)?;
        Self::with(url, settings, http, retry)
    }

    /// Opens a bucket as an origin of a cache, which knows itself when to ask again.
    pub(crate) fn open_to_read(
        url: &str,
        settings: &BucketSettings,
        client: reqwest::Client,
    ) -> Result<Self, BucketError> {
        let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
        let http = Connector::that_tells(client).map_err(BucketError::Client)?;
        Self::with(url, settings, http, retry)
    }

    fn with(
        text: &str,
        settings: &BucketSettings,
        http: Connector,
        retry: RetryConfig,
    ) -> Result<Self, BucketError> {
        let refused =
            |reason: &str| BucketError::Url { url: text.to_owned(), reason: reason.into() };
        let url = Url::parse(text).map_err(|error| refused(&format!("is no URL: {error}")))?;
        let host = url.host_str().unwrap_or_default();
        let bare = url.username().is_empty() && url.password().is_none() && url.port().is_none();
        if !bare || url.query().is_some() || url.fragment().is_some() {
            return Err(refused(
                "has more than a bucket and a prefix; credentials and the store's address come \
                 from the environment, such as AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL",
            ));
        }
        if host.is_empty() != (url.scheme() == "file") {
            return Err(refused("is not s3://BUCKET/PREFIX or file:///FOLDER"));
        }
        if url.scheme() == "file" {
            return Self::folder(text, &url);
        }
        let prefix = url.path().trim_matches('/').to_owned();
        if !prefix.is_empty() && !prefix.split('/').all(is_plain) {
            return Err(refused("has a prefix that is not made of letters, digits and ._-+~"));
        }
        let wrong = |why| BucketError::Settings { url: text.to_owned(), why };
        let store: Arc<dyn ObjectStore> = match url.scheme() {
            "s3" => {
                let from = AmazonS3Builder::new();
                let from = settings.of("AWS_").fold(from, |b, (k, v)| b.with_config(k, v));
                let from = from.with_bucket_name(host);
                let built = from.with_retry(retry).with_http_connector(http).build();
                Arc::new(built.map_err(wrong)?)
            }
            "gs" => {
                let from = GoogleCloudStorageBuilder::new();
                let from = settings.of("GOOGLE_").fold(from, |b, (k, v)| b.with_config(k, v));
                let from = from.with_bucket_name(host);
                let built = from.with_retry(retry).with_http_connector(http).build();
                Arc::new(built.map_err(wrong)?)
            }
            "az" => {
                let from = MicrosoftAzureBuilder::new();
                let from = settings.of("AZURE_").fold(from, |b, (k, v)| b.with_config(k, v));
                let from = from.with_container_name(host);
                let built = from.with_retry(retry).with_http_connector(http).build();
                Arc::new(built.map_err(wrong)?)
            }
            _ => return Err(refused("does not begin with s3://, gs://, az:// or file://")),
        };
        Ok(Self { store, prefix, name: text.to_owned(), keeps_attributes: true })
    }

    /// A folder, made by whoever mounts it: where nothing is mounted, nothing is to be written.
    fn folder(text: &str, url: &Url) -> Result<Self, BucketError> {
        let path = url.to_file_path().map_err(|()| BucketError::Url {
            url: text.to_owned(),
            reason: "is no path of a folder".into(),
        })?;
        let wrong = |why| BucketError::Settings { url: text.to_owned(), why };
        let store = LocalFileSystem::new_with_prefix(FilePath::new(&path)).map_err(wrong)?;
        Ok(Self {
            store: Arc::new(store.with_fsync(true)),
            prefix: String::new(),
            name: text.to_owned(),
            keeps_attributes: false,
        })
    }

    /// Its URL.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of an object. `relative` is a plain path below the repository.
    fn path(&self, relative: &str) -> Result<Path, BucketError> {
        let full = match self.prefix.as_str() {
            "" => relative.to_owned(),
            prefix => format!("{prefix}/{relative}"),
        };
        // Not `Path::from`, which would write the `~` of platforms as `%7E`.
        Path::parse(full).map_err(|error| self.failed(relative, error.into()))
    }

    fn failed(&self, object: &str, why: object_store::Error) -> BucketError {
        let (bucket, object) = (self.name.clone(), object.to_owned());
        BucketError::Request { bucket, object, why }
    }

    #[cfg(test)]
    fn of(store: Arc<dyn ObjectStore>, prefix: &str) -> Self {
        let prefix = prefix.to_owned();
        Self { store, prefix, name: "memory".to_owned(), keeps_attributes: true }
    }
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The store knows credentials.
        f.debug_tuple("Bucket").field(&self.name).finish()
    }
}

#[cfg(test)]
#[path = "bucket/bucket_test.rs"]
mod bucket_test;
