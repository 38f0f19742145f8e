//! A person's context folder: who they are, where the hub is, where their keys and repository are.

use std::path::{Path, PathBuf};

use cohort_artifact::Keys;
use cohort_identity::{Identity, Peer, Role, UnixTime};
use cohort_wire::http::Client;
use cohort_wire::tls::IdentitySlot;
use serde::{Deserialize, Serialize};

use crate::args::Global;
use crate::failure::{Exit, Failure};
use crate::layers::read_file;
use crate::toml_keys::{self, Shape};

/// The file in the folder.
pub(crate) const FILE: &str = "context.toml";

const SHAPES: &[(&str, Shape)] = &[
    ("hub", Shape::Value),
    ("hub_name", Shape::Value),
    ("identity", Shape::Value),
    ("keys", Shape::Value),
    ("repository", Shape::Value),
    ("mirrors", Shape::Value),
    ("trusted_root", Shape::Value),
];

/// What the file says. Relative paths start at its folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ContextFile {
    /// The hub's API, `host:port`; the next is tried when one does not answer.
    #[serde(default)]
    pub(crate) hub: Vec<String>,
    /// The hub's name in its certificate.
    #[serde(default = "default_hub_name")]
    pub(crate) hub_name: String,
    /// The folder of one's certificate and key.
    pub(crate) identity: PathBuf,
    /// The folder of signing keys, for those who publish.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) keys: Option<PathBuf>,
    /// The repository's folder, for those who publish here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) repository: Option<PathBuf>,
    /// Base URLs of mirrors, for those who only read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) mirrors: Vec<String>,
    /// The root of the repository that is trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) trusted_root: Option<PathBuf>,
}

fn default_hub_name() -> String {
    "hub".to_owned()
}

/// A context folder that was read.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    /// The folder.
    pub(crate) dir: PathBuf,
    file: ContextFile,
}

/// The folder that `--context`, the environment, the current folder or the home folder names.
pub(crate) fn folder(global: &Global) -> Result<PathBuf, Failure> {
    if let Some(dir) = &global.context {
        return Ok(dir.clone());
    }
    if Path::new(FILE).is_file() {
        return Ok(PathBuf::from("."));
    }
    home_folder().ok_or_else(none)
}

/// `~/.config/cohort`.
fn home_folder() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let config = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
    config.map(|config| config.join("cohort"))
}

fn none() -> Failure {
    Failure::new("no_context", "there is no context folder: who you are and where the hub is")
        .hint("say --context DIR, or: export COHORT_CONTEXT=DIR")
        .hint("make one with: cohort init --dir DIR")
        .exit(Exit::Usage)
}

impl Context {
    /// Reads the context folder.
    ///
    /// # Errors
    /// When there is none, or its file is wrong.
    pub(crate) fn load(global: &Global) -> Result<Self, Failure> {
        let dir = folder(global)?;
        let path = dir.join(FILE);
        if !path.exists() {
            let failure = none();
            let error = format!("{} does not exist: {}", path.display(), failure.error);
            return Err(Failure { error, ..failure });
        }
        let name = path.display().to_string();
        let text = read_file(&path)?;
        toml_keys::check(&text, &name, SHAPES)?;
        let file = toml::from_str(&text).map_err(|error| toml_keys::malformed(&name, &error))?;
        Ok(Context { dir, file })
    }

    /// Who this person is.
    ///
    /// # Errors
    /// When the identity cannot be read or has expired.
    pub(crate) fn identity(&self) -> Result<Identity, Failure> {
        let dir = self.dir.join(&self.file.identity);
        let identity = Identity::load(&dir).map_err(|error| Failure::of("identity", &error))?;
        if identity.is_expired(UnixTime::now()) {
            let error = format!("your certificate in {} has expired", dir.display());
            return Err(Failure::new("expired", error)
                .hint("on the hub: cohort token create --role operator --name NAME")
                .hint("then here: cohort context join TOKEN-FILE --name NAME"));
        }
        Ok(identity)
    }

    /// Where the identity lies.
    pub(crate) fn identity_dir(&self) -> PathBuf {
        self.dir.join(&self.file.identity)
    }

    /// A client that proves who this person is.
    ///
    /// # Errors
    /// As [`Context::identity`].
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        Ok(Client::new(IdentitySlot::new(self.identity()?)))
    }

    /// Who the hub is, and where.
    ///
    /// # Errors
    /// When the context names no hub.
    pub(crate) fn hub(&self) -> Result<(Peer, &[String]), Failure> {
        let wrong = |error: String| Failure::new("configuration", error).exit(Exit::Usage);
        let peer = Peer::new(Role::Hub, self.file.hub_name.clone())
            .map_err(|error| wrong(format!("hub_name in {FILE}: {error}")))?;
        if self.file.hub.is_empty() {
            let path = self.dir.join(FILE);
            return Err(wrong(format!("{} names no hub", path.display()))
                .hint("add: hub = [\"HOST:7418\"]")
                .hint("or ask an agent: --agent HOST:PORT --name SERVER"));
        }
        Ok((peer, &self.file.hub))
    }

    /// The repository's folder, if it is here.
    pub(crate) fn repository_dir(&self) -> Option<PathBuf> {
        self.file.repository.as_ref().map(|dir| self.dir.join(dir))
    }

    /// Base URLs of mirrors, for those who only read.
    pub(crate) fn mirrors(&self) -> &[String] {
        &self.file.mirrors
    }

    /// The root metadata that is trusted, if named.
    pub(crate) fn trusted_root(&self) -> Option<PathBuf> {
        self.file.trusted_root.as_ref().map(|path| self.dir.join(path))
    }

    /// Reads the signing keys.
    ///
    /// # Errors
    /// When none are named, or they cannot be used.
    pub(crate) fn keys(&self) -> Result<Keys, Failure> {
        let dir = self.file.keys.as_ref().map(|dir| self.dir.join(dir)).ok_or_else(|| {
            Failure::usage("your context names no signing keys")
                .hint("say --keys DIR, or add `keys = \"DIR\"` to context.toml")
        })?;
        Keys::load(&dir).map_err(|error| Failure::of("keys", &error))
    }

    /// Where things are kept that can be fetched again.
    pub(crate) fn cache_dir(&self) -> PathBuf {
        self.dir.join("cache")
    }
}
