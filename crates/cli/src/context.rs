//! An operator's context directory: identity, hub, signing keys, repository.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use cohort_base::{OnPath as _, chain, durable};
use cohort_identity::{Identity, Peer, Role, UnixTime};
use cohort_view::command::{Command, Flag};
use cohort_view::hint::Hint;
use cohort_wire::http::Client;
use cohort_wire::tls::IdentitySlot;
use serde::{Deserialize, Serialize};

use crate::args::Global;
use crate::failure::{Exit, Failure, OrFail as _};
use crate::layers::read_file;
use crate::output::note;
use crate::toml_keys::{self, KnownKeys};

/// The name of the configuration file in the directory.
pub(crate) const FILE: &str = "context.toml";
/// The version of the file that this program reads and writes.
pub(crate) const VERSION: u32 = 1;

const KEYS: KnownKeys<'_> = KnownKeys {
    plain: "version hub hub_name identity keys repository mirrors trusted_root",
    tables: &[],
    later: "",
};

/// The configuration. Relative paths start at its directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ContextFile {
    /// Always [`VERSION`]; a file with another version is rejected.
    pub(crate) version: u32,
    /// The hub's API, `host:port`; if one does not respond, the next is tried.
    #[serde(default)]
    pub(crate) hub: Vec<String>,
    #[serde(default = "default_hub_name")]
    pub(crate) hub_name: String,
    /// The directory of the operator's certificate and key.
    pub(crate) identity: PathBuf,
    /// The directory of signing keys, for publishing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) keys: Option<PathBuf>,
    /// The repository's directory, for publishing on this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) repository: Option<PathBuf>,
    /// Base URLs of mirrors, for reading elsewhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) mirrors: Vec<String>,
    /// The trusted root metadata of the repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) trusted_root: Option<PathBuf>,
}

impl ContextFile {
    /// Reads the file. The version comes first: a later one may have keys that are unknown here.
    fn read(path: &Path) -> Result<Self, Failure> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let text = read_file(path)?;
        let name = path.display().to_string();
        match toml::from_str(&text) {
            Ok(Versioned { version }) if version != VERSION => {
                let error = format!("{name} has version {version}, this program reads {VERSION}");
                Err(Failure::new("version", error)
                    .hint("use a `cohort` of the version that wrote it, or a later one")
                    .exit(Exit::Usage))
            }
            Ok(_) | Err(_) => toml_keys::read(&text, &name, KEYS),
        }
    }

    pub(crate) fn write(&self, dir: &Path) -> Result<(), Failure> {
        let text = toml::to_string(self).or_fail("file")?;
        let comment = "# Your identity and the hub. Relative paths start at this directory.\n";
        write_file(&dir.join(FILE), &(comment.to_owned() + &text))
    }
}

/// Writes a file that every user may read, durably.
pub(crate) fn write_file(path: &Path, text: &str) -> Result<(), Failure> {
    durable::write(path, text.as_bytes(), durable::READABLE).on_path("write", path).or_fail("file")
}

fn default_hub_name() -> String {
    "hub".to_owned()
}

#[derive(Debug, Clone)]
pub(crate) struct Context {
    pub(crate) dir: PathBuf,
    file: ContextFile,
}

/// The directory from `--context` or the environment, else the current or the default one.
pub(crate) fn folder(global: &Global) -> Result<PathBuf, Failure> {
    if let Some(dir) = &global.context {
        return Ok(dir.clone());
    }
    if is_own(Path::new(FILE)) {
        return Ok(PathBuf::from("."));
    }
    home_folder().ok_or_else(none)
}

/// Whether a file that nobody has named is there and may be used: nobody but this user and root can
/// change it, or what is next to it. Somebody else's could send commands to their hub, and run
/// their programs.
pub(crate) fn is_own(file: &Path) -> bool {
    let Ok(found) = fs::symlink_metadata(file) else { return false };
    let others = found.mode() & 0o022 != 0 && !found.is_symlink();
    let own = [0, cohort_host::own_user()].contains(&found.uid()) && !others;
    let trusted = match cohort_host::check_trusted(durable::folder_of(file)) {
        Ok(_) if own && found.is_file() => return true,
        Ok(_) => "others can change it, or it is a link".to_owned(),
        Err(error) => chain(&error),
    };
    let shown = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    note(&format!("ignored {}: {trusted}", shown.display()));
    false
}

/// `cohort` in `XDG_CONFIG_HOME`, by default `~/.config/cohort`; `None` without a home directory.
fn home_folder() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let config = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
    config.map(|config| config.join("cohort"))
}

fn none() -> Failure {
    Failure::new("no_context", "no context directory")
        .hint(Hint::add("name it (or: export COHORT_CONTEXT=DIR)", Flag::Context))
        .hint(Hint::run_to("or make one", Command::Init))
        .exit(Exit::Usage)
}

impl Context {
    pub(crate) fn load(global: &Global) -> Result<Self, Failure> {
        let dir = folder(global)?;
        let path = dir.join(FILE);
        if !path.exists() {
            let failure = none();
            let error = format!("{}: {} does not exist", failure.error, path.display());
            return Err(Failure { error, ..failure });
        }
        Ok(Context { file: ContextFile::read(&path)?, dir })
    }

    pub(crate) fn identity(&self) -> Result<Identity, Failure> {
        let dir = self.dir.join(&self.file.identity);
        let identity = Identity::load(&dir).or_fail("identity")?;
        if identity.is_expired(UnixTime::now()) {
            let error = format!("your certificate in {} has expired", dir.display());
            let token = Command::TokenCreate { role: Some("operator"), named: true };
            return Err(Failure::new("expired", error)
                .hint(Hint::run_to("on a machine that reaches the hub, as an operator", token))
                .hint(Hint::run_to(
                    "then here, with a new context directory",
                    Command::ContextJoin,
                )));
        }
        Ok(identity)
    }

    pub(crate) fn identity_dir(&self) -> PathBuf {
        self.dir.join(&self.file.identity)
    }

    pub(crate) fn client(&self) -> Result<Client, Failure> {
        Ok(Client::new(IdentitySlot::new(self.identity()?)))
    }

    pub(crate) fn hub(&self) -> Result<(Peer, &[String]), Failure> {
        let wrong = |error: String| Failure::new("configuration", error).exit(Exit::Usage);
        let peer = Peer::new(Role::Hub, self.file.hub_name.clone())
            .map_err(|error| wrong(format!("hub_name in {FILE}: {}", chain(&error))))?;
        if self.file.hub.is_empty() {
            let path = self.dir.join(FILE);
            return Err(wrong(format!("{} names no hub", path.display()))
                .hint("add to it: hub = [\"HOST:7418\"]")
                .hint(Hint::add("or ask an agent", Flag::Agent)));
        }
        Ok((peer, &self.file.hub))
    }

    /// The repository's directory, if it is on this machine.
    pub(crate) fn repository_dir(&self) -> Option<PathBuf> {
        self.file.repository.as_ref().map(|dir| self.dir.join(dir))
    }

    pub(crate) fn mirrors(&self) -> &[String] {
        &self.file.mirrors
    }

    /// The file of the trusted root metadata, if configured.
    pub(crate) fn trusted_root(&self) -> Option<PathBuf> {
        self.file.trusted_root.as_ref().map(|path| self.dir.join(path))
    }

    /// The directory of signing keys.
    pub(crate) fn keys_dir(&self) -> Result<PathBuf, Failure> {
        self.file.keys.as_ref().map(|dir| self.dir.join(dir)).ok_or_else(|| {
            Failure::usage("your context has no signing keys")
                .hint(Hint::add("name them (or as `keys` in context.toml)", Flag::Keys))
        })
    }

    /// The directory for data that can be fetched again.
    pub(crate) fn cache_dir(&self) -> PathBuf {
        self.dir.join("cache")
    }
}

#[cfg(test)]
#[path = "context_test.rs"]
mod context_test;
