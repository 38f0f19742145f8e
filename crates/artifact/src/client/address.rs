//! The address of a mirror.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use url::Url;

/// A location that serves a copy of the repository. Not trusted with anything.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mirror {
    /// An HTTP or HTTPS server. The path ends with `/`; a query (such as the token of a private
    /// bucket) is sent with every request.
    Http(Url),
    /// A hub that only those with a certificate may read: `cohort://HOST:PORT`, stored as the
    /// https URL that it is.
    Hub(Url),
    /// A directory on this machine.
    Folder(PathBuf),
}

/// The scheme of [`Mirror::Hub`].
const HUB_SCHEME: &str = "cohort://";

/// Why a text is not a mirror's address. The text is stored as [`without_secrets`] shows it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    #[error("mirror `{text}` is neither a URL nor an absolute path")]
    Url {
        text: String,
        #[source]
        source: url::ParseError,
    },
    #[error("mirror `{text}` must be an http, https or file URL without fragment")]
    Scheme { text: String },
    #[error("mirror `{text}` is not of the form cohort://HOST:PORT")]
    Hub { text: String },
    /// Buckets need credentials and signatures; a cache has those.
    #[error(
        "mirror `{text}` is a bucket: use its https address if it is public, \
         else a `cohort mirror --origin {text} --cache-dir DIR`"
    )]
    Bucket { text: String },
}

/// Whether a port is named: a URL does not say so if it is the scheme's own.
fn names_port(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok_and(|port| port > 0))
}

fn only_host_and_port(url: &Url) -> bool {
    let plain = url.username().is_empty() && url.password().is_none();
    plain && url.path() == "/" && url.query().is_none() && url.fragment().is_none()
}

impl Mirror {
    /// The URL of a file; `None` for a directory. `path` is relative to the repository.
    pub(super) fn url_of(base: &Url, path: &str) -> Result<Url, url::ParseError> {
        let mut url = base.join(path)?;
        url.set_query(base.query());
        Ok(url)
    }
}

/// An address of any kind, or any other text, without user, password and query, which may be
/// secrets.
#[must_use]
pub fn without_secrets(text: &str) -> String {
    // A password may contain `?` or `#`: if an `@` follows one, only the scheme is shown.
    let end = text.find(['?', '#']).unwrap_or(text.len());
    match text.find('@') {
        Some(at) if at > end => text.split_once("://").map_or("", |(scheme, _)| scheme).to_owned(),
        Some(_) => {
            let (before, host) = text[..end].rsplit_once('@').unwrap_or_default();
            match before.split_once("://") {
                Some((scheme, _)) => format!("{scheme}://{host}"),
                None => host.to_owned(),
            }
        }
        None => text[..end].to_owned(),
    }
}

/// As `Display`: logged configuration must not contain secrets either.
impl fmt::Debug for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Omits user, password and query, which may be secrets.
impl fmt::Display for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(url) => {
                let mut shown = url.clone();
                // These fail only for URLs without a host, which are rejected when parsed.
                let _ = shown.set_username("");
                let _ = shown.set_password(None);
                shown.set_query(None);
                shown.fmt(f)
            }
            Self::Hub(url) => {
                let host = url.host_str().unwrap_or_default();
                write!(f, "{HUB_SCHEME}{host}:{}/", url.port_or_known_default().unwrap_or_default())
            }
            Self::Folder(path) => path.display().fmt(f),
        }
    }
}

impl FromStr for Mirror {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text.starts_with('/') {
            return Ok(Self::Folder(PathBuf::from(text)));
        }
        if let Some(address) = text.strip_prefix(HUB_SCHEME) {
            let address = address.trim_end_matches('/');
            let url = Url::parse(&format!("https://{address}/"));
            return match url {
                Ok(url) if names_port(address) && only_host_and_port(&url) => Ok(Self::Hub(url)),
                Ok(_) | Err(_) => Err(AddressError::Hub { text: without_secrets(text) }),
            };
        }
        let parsed = Url::parse(text);
        let text = || without_secrets(text);
        let mut url = parsed.map_err(|source| AddressError::Url { text: text(), source })?;
        let scheme = AddressError::Scheme { text: text() };
        if url.fragment().is_some() {
            return Err(scheme);
        }
        match url.scheme() {
            "http" | "https" if url.has_host() => {
                if !url.path().ends_with('/') {
                    let path = format!("{}/", url.path());
                    url.set_path(&path);
                }
                Ok(Self::Http(url))
            }
            "file" => url.to_file_path().map(Self::Folder).map_err(|()| scheme),
            "s3" | "gs" | "az" => Err(AddressError::Bucket { text: text() }),
            _ => Err(scheme),
        }
    }
}
