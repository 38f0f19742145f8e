//! `cohort repository rotate-key` and its like: who signs what in a repository.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use cohort_artifact::{KeyChange, KeyRole, Keys, Needs, RoleInRoot, SigningKey};
use cohort_base::{OnPath as _, durable};
use cohort_view::command::Flag;
use cohort_view::hint::Hint;
use cohort_view::table::{cell, render, table};

use crate::answer::Answer;
use crate::args::Global;
use crate::context::Context;
use crate::failure::{Exit, Failure, OrFail as _};
use crate::output::{look, note};
use crate::passphrase;
use crate::workplace::{Place, Workplace};

/// Digits of a key's id that are shown, and that name it.
const ID_DIGITS: usize = 12;

/// Longest text to sign, in bytes: the list of releases, and some.
const SIGN_BYTES_MAX: u64 = 32 << 20;

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Show which keys sign what, and how many of them must
    Keys {
        #[command(flatten)]
        place: Place,
    },
    /// Replace a key of a role: lost, stolen, or its time has come
    RotateKey(RotateArgs),
    /// Let another key sign for a role
    AddKey(AddArgs),
    /// Let a key sign no more for a role
    RemoveKey {
        role: KeyRole,
        /// Key id, or its first digits
        id: String,
        #[command(flatten)]
        signing: Signing,
    },
    /// Set how many keys of a role must sign
    Threshold {
        role: KeyRole,
        /// 1 to the number of its keys
        count: NonZeroU64,
        #[command(flatten)]
        signing: Signing,
    },
    /// Set, change or remove the passphrase of a key file
    Passphrase(PassphraseArgs),
    /// Sign standard input with a key file, for a key file elsewhere that names this as its program
    Sign {
        /// Key file
        file: PathBuf,
    },
}

/// The keys that sign a change of keys.
#[derive(Debug, Args)]
pub(crate) struct Signing {
    /// Root key file; repeatable [default: root.pem in the directory of keys]
    #[arg(long = "root-key", value_name = "FILE")]
    root_keys: Vec<PathBuf>,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Args)]
pub(crate) struct RotateArgs {
    /// root, targets, snapshot or timestamp
    role: KeyRole,
    /// Id of the key to replace, or its first digits; needed if the role has several
    #[arg(long, value_name = "ID")]
    key: Option<String>,
    /// Key file that replaces it: another key, or one that names a program [default: a new key,
    /// which takes the place of the old file]
    #[arg(long, value_name = "FILE")]
    new_key: Option<PathBuf>,
    /// Give the new key a passphrase
    #[arg(long, conflicts_with = "new_key")]
    passphrase: bool,
    /// Use the new key that an interrupted rotation left
    #[arg(long, conflicts_with = "new_key")]
    resume: bool,
    #[command(flatten)]
    signing: Signing,
}

#[derive(Debug, Args)]
pub(crate) struct AddArgs {
    /// root, targets, snapshot or timestamp
    role: KeyRole,
    /// Key file; a new key, if it does not exist. `publish` finds ROLE-NAME.pem in the directory of
    /// keys
    file: PathBuf,
    /// Give a new key a passphrase
    #[arg(long)]
    passphrase: bool,
    #[command(flatten)]
    signing: Signing,
}

#[derive(Debug, Args)]
pub(crate) struct PassphraseArgs {
    /// Key file
    file: PathBuf,
    /// File whose first line is the new passphrase [default: from the terminal]
    #[arg(long, value_name = "FILE")]
    new_passphrase_file: Option<PathBuf>,
    /// Remove it: whoever can read the file can sign
    #[arg(long, conflicts_with = "new_passphrase_file")]
    remove: bool,
}

pub(crate) async fn run(global: &Global, command: &KeyCommand) -> Result<Exit, Failure> {
    match command {
        KeyCommand::Keys { place } => {
            let workplace = place.open_to_read(global, Needs::Names).await?;
            let (version, roles) = workplace.repository().roles().or_fail("repository")?;
            show(global, version, &roles);
            Ok(Exit::Done)
        }
        KeyCommand::RotateKey(args) => rotate(global, args).await,
        KeyCommand::AddKey(AddArgs { role, file, passphrase, signing }) => {
            let key = made_or_read(file, *passphrase)?;
            let mut keys = signing.keys(global, *role)?;
            keys.of_mut(*role).push(key.clone());
            signing.change(global, &keys, &KeyChange::Add { role: *role, key }).await
        }
        KeyCommand::RemoveKey { role, id, signing } => {
            let change = KeyChange::Remove { role: *role, old: id.clone() };
            signing.change(global, &signing.keys(global, *role)?, &change).await
        }
        KeyCommand::Threshold { role, count, signing } => {
            let change = KeyChange::Threshold { role: *role, count: *count };
            signing.change(global, &signing.keys(global, *role)?, &change).await
        }
        KeyCommand::Passphrase(args) => set_passphrase(args),
        KeyCommand::Sign { file } => sign(file).await,
    }
}

/// A new key waits next to the old one until the repository names it. So an interrupted rotation
/// can be repeated: it takes the key that waits.
async fn rotate(global: &Global, args: &RotateArgs) -> Result<Exit, Failure> {
    let role = args.role;
    let mut keys = args.signing.keys(global, role)?;
    if let Some(file) = &args.new_key {
        let new = SigningKey::load(file, &passphrase::ask).or_fail("keys")?;
        keys.of_mut(role).push(new.clone());
        let change = KeyChange::Replace { role, old: args.key.clone(), new };
        return args.signing.change(global, &keys, &change).await;
    }
    let workplace = args.signing.place.open_to_read(global, Needs::Names).await?;
    let (_, roles) = workplace.repository().roles().or_fail("repository")?;
    let named: Vec<String> =
        roles.iter().filter(|of| of.role == role).flat_map(|of| of.keys.clone()).collect();
    let name = format!("{role}-new.pem");
    let is_old = |key: &&SigningKey| {
        let waits = key.path().is_some_and(|path| path.ends_with(&name));
        !waits
            && match &args.key {
                Some(start) => key.id().starts_with(start.as_str()),
                None => named.contains(&key.id()),
            }
    };
    let old = keys.of(role).iter().find(is_old).and_then(SigningKey::path);
    let old = match old {
        Some(path) => path.to_owned(),
        None if role == KeyRole::Root && !args.signing.root_keys.is_empty() => {
            args.signing.root_keys[0].clone()
        }
        None => Keys::path(&args.signing.folder(global)?, role),
    };
    let waiting = durable::folder_of(&old).join(&name);
    if !waiting.exists() {
        can_sign(&roles, &keys)?;
    }
    let left = waiting.exists();
    let new = if let Some(key) = keys.of(role).iter().find(|key| key.path() == Some(&waiting)) {
        key.clone()
    } else {
        made_or_read(&waiting, args.passphrase || is_sealed(&old)?)?
    };
    if left && !args.resume && !named.contains(&new.id()) {
        let error = format!("{} is the new key of an interrupted rotation", waiting.display());
        return Err(Failure::new("interrupted", error)
            .hint("to use it, add --resume")
            .hint("if somebody else may have read it, remove the file, and rotate again"));
    }
    keys.of_mut(role).push(new.clone());
    if named.contains(&new.id()) {
        note("the repository names the new key already");
    } else {
        let change = KeyChange::Replace { role, old: args.key.clone(), new };
        change_and_show(global, workplace, &keys, &change).await?;
    }
    durable::rename(&waiting, &old).on_path("write key file", &old).or_fail("file")?;
    note(&format!("the new {role} key is {}", old.display()));
    match role {
        KeyRole::Timestamp => note("the hub needs it, too: as keys/timestamp.pem, before tomorrow"),
        KeyRole::Root => note("join tokens made from now on name the new root"),
        KeyRole::Targets | KeyRole::Snapshot => {
            note("every machine that publishes needs it in its directory of keys");
        }
    }
    Ok(Exit::Done)
}

/// Before anything is made: whether the root keys that are here can sign a change.
fn can_sign(roles: &[RoleInRoot], keys: &Keys) -> Result<(), Failure> {
    let Some(root) = roles.iter().find(|of| of.role == KeyRole::Root) else { return Ok(()) };
    let own = keys.root.iter().map(SigningKey::id).collect::<BTreeSet<_>>();
    let own = root.keys.iter().filter(|id| own.contains(*id)).count() as u64;
    if own >= root.threshold {
        return Ok(());
    }
    let (needs, all) = (root.threshold, root.keys.join(", "));
    let error = format!("{needs} of the repository's root keys must sign this, and {own} are here");
    Err(Failure::new("keys", error)
        .hint(format!("its root keys are {all}"))
        .hint(Hint::add("say where they are kept", Flag::RootKey)))
}

/// Whether a key file has a passphrase, which the key in its place then gets, too.
fn is_sealed(old: &Path) -> Result<bool, Failure> {
    if old.extension().is_some_and(|it| it == "toml") {
        let error = format!("{} names a program that signs: its key is made there", old.display());
        return Err(Failure::new("program", error)
            .hint("name the file of the new one: --new-key FILE")
            .exit(Exit::Usage));
    }
    let text = std::fs::read_to_string(old).unwrap_or_default();
    Ok(text.contains("BEGIN ENCRYPTED PRIVATE KEY"))
}

impl Signing {
    fn folder(&self, global: &Global) -> Result<PathBuf, Failure> {
        match &self.place.keys {
            Some(dir) => Ok(dir.clone()),
            None => Context::load(global)?.keys_dir(),
        }
    }

    /// The root keys, and those that sign again after a change of `role`, as far as they are here.
    fn keys(&self, global: &Global, role: KeyRole) -> Result<Keys, Failure> {
        let folder = self.folder(global)?;
        let roles: &[KeyRole] = match role {
            KeyRole::Targets => &KeyRole::PUBLISHING,
            KeyRole::Snapshot => &[KeyRole::Snapshot, KeyRole::Timestamp],
            KeyRole::Root | KeyRole::Timestamp => &[KeyRole::Timestamp],
        };
        let mut keys = Keys::load(&folder, roles, &passphrase::ask).or_fail("keys")?;
        keys.root = match self.root_keys.as_slice() {
            [] => Keys::load(&folder, &[KeyRole::Root], &passphrase::ask).or_fail("keys")?.root,
            files => files
                .iter()
                .map(|file| SigningKey::load(file, &passphrase::ask).or_fail("keys"))
                .collect::<Result<_, _>>()?,
        };
        if keys.root.is_empty() {
            let path = Keys::path(&folder, KeyRole::Root);
            let error = format!("the root key signs this, and {} does not exist", path.display());
            return Err(Failure::new("keys", error)
                .hint(Hint::add("say where it is kept", Flag::RootKey))
                .exit(Exit::Usage));
        }
        Ok(keys)
    }

    async fn change(
        &self,
        global: &Global,
        keys: &Keys,
        change: &KeyChange,
    ) -> Result<Exit, Failure> {
        let workplace = self.place.open_to_read(global, Needs::Names).await?;
        change_and_show(global, workplace, keys, change).await?;
        Ok(Exit::Done)
    }
}

async fn change_and_show(
    global: &Global,
    workplace: Workplace,
    keys: &Keys,
    change: &KeyChange,
) -> Result<(), Failure> {
    workplace.repository().change_keys(keys, change).await.or_fail("keys")?;
    let (version, roles) = workplace.repository().roles().or_fail("repository")?;
    // Nothing has changed until the hub has it.
    workplace.finish_key_change().await?;
    show(global, version, &roles);
    Ok(())
}

fn made_or_read(file: &Path, with_passphrase: bool) -> Result<SigningKey, Failure> {
    if !file.exists() {
        let passphrase = with_passphrase.then(|| passphrase::choose(None)).transpose()?;
        let key = SigningKey::generate().or_fail("keys")?;
        key.save(file, passphrase.as_deref()).or_fail("keys")?;
    }
    SigningKey::load(file, &passphrase::ask).or_fail("keys")
}

fn show(global: &Global, version: u64, roles: &[RoleInRoot]) {
    global.output.answer(&Answer::RepositoryKeys { root: version, roles }, || {
        let mut rows = table(look(), &["ROLE", "NEEDS", "KEYS"]);
        for RoleInRoot { role, threshold, keys } in roles {
            let ids = keys.iter().map(|id| id.chars().take(ID_DIGITS).collect::<String>());
            let ids = ids.collect::<Vec<_>>().join(" ");
            rows.add_row([cell(role), cell(threshold), cell(ids)]);
        }
        format!("root version {version}\n{}", render(&rows))
    });
}

fn set_passphrase(args: &PassphraseArgs) -> Result<Exit, Failure> {
    let key = SigningKey::load(&args.file, &passphrase::ask).or_fail("keys")?;
    let new = match args.remove {
        true => None,
        false => Some(passphrase::choose(args.new_passphrase_file.as_deref())?),
    };
    key.set_passphrase(&args.file, new.as_deref()).or_fail("keys")?;
    Ok(Exit::Done)
}

async fn sign(file: &Path) -> Result<Exit, Failure> {
    let key = SigningKey::load(file, &passphrase::ask).or_fail("keys")?;
    let mut bytes = Vec::new();
    io::stdin().take(SIGN_BYTES_MAX + 1).read_to_end(&mut bytes).or_fail("input")?;
    if bytes.len() as u64 > SIGN_BYTES_MAX {
        return Err(Failure::usage(format!("input is longer than {SIGN_BYTES_MAX} bytes")));
    }
    let signature = key.sign(&bytes).await.or_fail("keys")?;
    let mut out = io::stdout().lock();
    if out.is_terminal() {
        return Err(Failure::usage("the signature is bytes, and this is a terminal"));
    }
    out.write_all(&signature).and_then(|()| out.flush()).or_fail("output")?;
    Ok(Exit::Done)
}
