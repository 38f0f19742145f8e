//! The repository in a bucket of an object store: Amazon S3 and compatible stores, Google Cloud
//! Storage, Azure Blob Storage; or in a mounted directory.
//!
//! **Written** by [`push`], in an order in which no reader ever sees metadata whose targets are
//! missing. **Read** by a cache that has the bucket as an origin, with signed URLs
//! ([`Bucket::signed_url`]) and the same client as for all mirrors; a public bucket already is a
//! mirror.
//!
//! Address and credentials are variables named as in the environment ([`BucketSettings`]), in the
//! way that the object-store library reads them.

mod error;
mod http;
mod plan;
mod push;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;

use cohort_artifact::client::without_secrets;
use cohort_artifact::is_plain_name;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::signer::Signer;
use object_store::{BackoffConfig, ObjectStore, RetryConfig};
use serde::{Deserialize, Serialize};
use url::Url;

pub use error::BucketError;
pub use push::{Pushed, push, push_file};

use http::Connector;

/// Schemes of buckets that need credentials.
const CLOUD_SCHEMES: [&str; 3] = ["s3", "gs", "az"];

/// How long a signed URL is valid: it is used immediately, but clocks may differ by this much.
const URL_VALID: Duration = Duration::from_secs(15 * 60);

/// Prefixes of the relevant variables.
const PREFIXES: [&str; 3] = ["AWS_", "GOOGLE_", "AZURE_"];

/// Retries of one request while pushing, and the time in which they start: stores that ask for
/// fewer requests (`503 SlowDown`) mean seconds, and a publisher waits a minute for its hub.
const RETRIES_MAX: usize = 8;
const RETRY_TIME_MAX: Duration = Duration::from_secs(45);

/// Addresses and credentials of stores: variables named as in the environment, such as
/// `AWS_ACCESS_KEY_ID` and `AWS_ENDPOINT_URL`. Contains secrets; `Debug` shows only names.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BucketSettings(BTreeMap<String, String>);

impl BucketSettings {
    /// The variables of this process.
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
    /// Signs URLs; absent for a directory.
    signer: Option<Arc<dyn Signer>>,
    /// Prefix of all names, without leading or trailing slashes; may be empty.
    prefix: String,
    name: String,
    /// Whether it stores `Content-Type` and `Cache-Control` of a file.
    keeps_attributes: bool,
}

impl Bucket {
    /// Whether a text is the URL of a cloud bucket, rather than of a mirror or directory.
    #[must_use]
    pub fn is_cloud_url(text: &str) -> bool {
        text.split_once("://").is_some_and(|(scheme, _)| CLOUD_SCHEMES.contains(&scheme))
    }

    /// Opens `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, `az://CONTAINER/PREFIX` or
    /// `file:///DIRECTORY`. Sends no request yet.
    ///
    /// # Errors
    /// If the URL or the settings are wrong.
    pub fn open(text: &str, settings: &BucketSettings) -> Result<Self, BucketError> {
        let refused =
            |reason| BucketError::Url { url: without_secrets(text), reason, source: None };
        let url = Url::parse(text).map_err(|source| {
            let (url, reason) = (without_secrets(text), "is not a URL");
            BucketError::Url { url, reason, source: Some(source) }
        })?;
        let host = url.host_str().unwrap_or_default();
        let bare = url.username().is_empty() && url.password().is_none() && url.port().is_none();
        if !bare || url.query().is_some() || url.fragment().is_some() {
            return Err(refused(
                "has more than a bucket and a prefix; credentials and the store's address come \
                 from the environment, such as AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL",
            ));
        }
        if host.is_empty() != (url.scheme() == "file") {
            return Err(refused("is not s3://BUCKET/PREFIX or file:///DIRECTORY"));
        }
        if url.scheme() == "file" {
            return Self::folder(text, &url);
        }
        let prefix = url.path().trim_matches('/').to_owned();
        if !prefix.is_empty() && !prefix.split('/').all(is_plain_name) {
            return Err(refused("has a prefix that is not made of letters, digits and ._-+~"));
        }
        let http = Connector::new().map_err(BucketError::Client)?;
        let retry = RetryConfig {
            backoff: BackoffConfig::default(),
            max_retries: RETRIES_MAX,
            retry_timeout: RETRY_TIME_MAX,
        };
        // Their builders have methods of the same names, but no common trait.
        macro_rules! built {
            ($builder:ty, $variables:literal, $name_is:ident) => {{
                let from = <$builder>::new();
                let from = settings.of($variables).fold(from, |b, (k, v)| b.with_config(k, v));
                let from = from.$name_is(host).with_retry(retry).with_http_connector(http);
                let wrong = |why| BucketError::Settings { url: text.to_owned(), why };
                let store = Arc::new(from.build().map_err(wrong)?);
                (Arc::clone(&store) as Arc<dyn ObjectStore>, store as Arc<dyn Signer>)
            }};
        }
        let (store, signer) = match url.scheme() {
            "s3" => built!(AmazonS3Builder, "AWS_", with_bucket_name),
            "gs" => built!(GoogleCloudStorageBuilder, "GOOGLE_", with_bucket_name),
            "az" => built!(MicrosoftAzureBuilder, "AZURE_", with_container_name),
            _ => return Err(refused("does not begin with s3://, gs://, az:// or file://")),
        };
        let (name, keeps_attributes) = (text.to_owned(), true);
        Ok(Self { store, signer: Some(signer), prefix, name, keeps_attributes })
    }

    /// A directory, which must exist: if nothing is mounted, nothing should be written.
    fn folder(text: &str, url: &Url) -> Result<Self, BucketError> {
        let path = url.to_file_path().map_err(|()| BucketError::Url {
            url: text.to_owned(),
            reason: "is not the path of a directory",
            source: None,
        })?;
        let wrong = |why| BucketError::Settings { url: text.to_owned(), why };
        let store = LocalFileSystem::new_with_prefix(FilePath::new(&path)).map_err(wrong)?;
        Ok(Self {
            store: Arc::new(store.with_fsync(true)),
            signer: None,
            prefix: String::new(),
            name: text.to_owned(),
            keeps_attributes: false,
        })
    }

    /// The URL of the bucket.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A URL that grants read access to one file for [`URL_VALID`].
    pub(crate) async fn signed_url(&self, relative: &str) -> Result<Url, BucketError> {
        let path = self.path(relative)?;
        let Some(signer) = &self.signer else {
            return Err(self.failed(
                relative,
                object_store::Error::NotImplemented {
                    operation: "signing".to_owned(),
                    implementer: "directory".to_owned(),
                },
            ));
        };
        let signed = signer.signed_url(::http::Method::GET, &path, URL_VALID).await;
        signed.map_err(|error| self.failed(relative, error))
    }

    /// The name of an object. `relative` is a plain path below the repository.
    fn path(&self, relative: &str) -> Result<Path, BucketError> {
        let full = match self.prefix.as_str() {
            "" => relative.to_owned(),
            prefix => format!("{prefix}/{relative}"),
        };
        // Not `Path::from`, which writes the `~` of platforms as `%7E`.
        Path::parse(full).map_err(|error| self.failed(relative, error.into()))
    }

    fn failed(&self, object: &str, why: object_store::Error) -> BucketError {
        let (bucket, object) = (self.name.clone(), object.to_owned());
        BucketError::Request { bucket, object, why }
    }
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The store contains credentials.
        f.debug_tuple("Bucket").field(&self.name).finish()
    }
}

#[cfg(test)]
#[path = "bucket/bucket_test.rs"]
mod bucket_test;
