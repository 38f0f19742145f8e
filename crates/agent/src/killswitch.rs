//! The kill switch on this server: latched on disk, passed on with every question and answer; and
//! a file that stops this server alone, for when nothing else answers.

use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cohort_base::chain;
use cohort_core::ids::GroupId;
use cohort_identity::UnixTime;
use cohort_wire::http::ApiError;
use cohort_wire::kill::{DurableKill, KillAnswer, KillError, SignedKill};
use cohort_wire::tls::IdentitySlot;
use tokio::sync::watch;
use tokio::task::JoinError;

use crate::metrics::Metrics;

/// Registers of one message that are looked at. A server sends two: the fleet's and its group's.
const RECEIVED_MAX: usize = 8;

/// How often the file is looked for.
const FILE_EVERY: Duration = Duration::from_millis(500);

/// The bytes of the file that are shown as its reason.
const FILE_BYTES_MAX: u64 = 200;

/// The latch, the file, and channels for those that stop when one of them is on.
#[derive(Debug)]
pub(crate) struct KillSwitch {
    latch: DurableKill,
    /// Stops this server alone while it exists.
    file: PathBuf,
    identity: Arc<IdentitySlot>,
    on: watch::Sender<Option<String>>,
    /// Why nothing new may start on this server: a register, or the file.
    here: watch::Sender<Option<String>>,
    metrics: Arc<Metrics>,
}

impl KillSwitch {
    pub(crate) fn open(
        dir: &Path,
        file: &Path,
        identity: Arc<IdentitySlot>,
        group: GroupId,
        metrics: Arc<Metrics>,
    ) -> Result<KillSwitch, KillError> {
        let latch = DurableKill::open(dir, Some(group))?;
        let (file, on, here) =
            (file.to_owned(), watch::Sender::new(None), watch::Sender::new(None));
        let kill = KillSwitch { latch, file, identity, on, here, metrics };
        kill.look();
        Ok(kill)
    }

    /// The reason for a register that covers this group, while one is on.
    pub(crate) fn on(&self) -> Option<String> {
        self.on.borrow().clone()
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Option<String>> {
        self.on.subscribe()
    }

    /// The reason why nothing new may start on this server: a register, or the file.
    pub(crate) fn subscribe_here(&self) -> watch::Receiver<Option<String>> {
        self.here.subscribe()
    }

    /// Whether it is the file that stops this server, and no register.
    pub(crate) fn is_stopped_by_file(&self) -> bool {
        self.on.borrow().is_none() && self.here.borrow().is_some()
    }

    /// Looks for the file, and at who is revoked, until the agent stops.
    pub(crate) async fn watch_file(self: Arc<Self>) {
        let mut revocations = self.identity.revocations().subscribe();
        loop {
            let news = tokio::select! {
                () = tokio::time::sleep(FILE_EVERY) => false,
                news = revocations.changed() => news.is_ok(),
            };
            let this = Arc::clone(&self);
            let look = move || {
                if news {
                    this.latch.forget_revoked(this.identity.revocations());
                }
                this.look();
            };
            // A panic leaves what it was.
            let _ = tokio::task::spawn_blocking(look).await;
        }
    }

    /// Tells those that stop what the registers and the file say now.
    fn look(&self) {
        let on = reason(&self.latch);
        let here = on.clone().or_else(|| stopped_by(&self.file));
        self.metrics.kill_switch.set(here.is_some().into());
        tell(&self.on, on);
        if tell(&self.here, here.clone()) {
            tracing::warn!(on = here.is_some(), reason = here.as_deref(), "kill switch");
        }
    }

    /// The registers to pass on with every question and answer: the fleet's and the group's.
    pub(crate) fn signed(&self) -> Vec<SignedKill> {
        self.latch.signed()
    }

    /// The answer to a request for the registers, or to a posted one that was newer or not.
    pub(crate) fn answer(&self, changed: bool) -> KillAnswer {
        self.latch.answer(changed)
    }

    /// Latches registers; durable before this returns. True when one was newer than ours. An error
    /// is logged here.
    pub(crate) async fn offer(
        self: &Arc<Self>,
        registers: Vec<SignedKill>,
    ) -> Result<bool, OfferError> {
        let known = self.signed();
        if registers.iter().all(|register| known.contains(register)) {
            return Ok(false);
        }
        let this = Arc::clone(self);
        let offered = tokio::task::spawn_blocking(move || {
            let identity = this.identity.current();
            let (mut newer, mut refused) = (false, None);
            for register in registers.iter().take(RECEIVED_MAX) {
                // A refused one does not hold up the others.
                if this.identity.revocations().revokes_author_of(&register.0) {
                    refused = Some(KillError::Revoked);
                    continue;
                }
                match this.latch.offer(register, identity.roots(), UnixTime::now()) {
                    Ok(false) => {}
                    Ok(true) => {
                        newer = true;
                        this.metrics.kill_registers_latched.inc();
                    }
                    Err(error) => refused = Some(error),
                }
            }
            // Also when another call latched it first.
            this.look();
            match refused {
                Some(error) => Err(error),
                None => Ok(newer),
            }
        })
        .await;
        outcome(offered).inspect_err(|error| {
            tracing::warn!(error = chain(error), "kill register not latched");
        })
    }
}

/// Why a kill register was not latched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OfferError {
    #[error(transparent)]
    Kill(#[from] KillError),
    /// A panic: the register may be latched or not.
    #[error("cannot latch kill registers")]
    Unfinished(#[from] JoinError),
}

impl From<OfferError> for ApiError {
    fn from(error: OfferError) -> ApiError {
        match error {
            OfferError::Kill(error) => error.into(),
            OfferError::Unfinished(_) => ApiError::internal(chain(&error)),
        }
    }
}

fn outcome(offered: Result<Result<bool, KillError>, JoinError>) -> Result<bool, OfferError> {
    Ok(offered??)
}

/// Returns whether that is news.
fn tell(channel: &watch::Sender<Option<String>>, now: Option<String>) -> bool {
    channel.send_if_modified(|known| {
        let news = *known != now;
        *known = now;
        news
    })
}

/// Why a file stops this server. One that cannot be looked at stops it, too.
fn stopped_by(file: &Path) -> Option<String> {
    let path = file.display();
    let found = match std::fs::symlink_metadata(file) {
        Ok(found) => found,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return None;
        }
        Err(error) => return Some(format!("cannot look for {path}: {error}")),
    };
    if found.is_dir() {
        return None;
    }
    let mut text = Vec::new();
    // Nothing but a plain file is opened: a pipe would wait.
    if found.is_file()
        && let Ok(open) = std::fs::File::open(file)
    {
        let _ = open.take(FILE_BYTES_MAX).read_to_end(&mut text);
    }
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().next().unwrap_or_default().replace(char::is_control, " ");
    Some(match line.trim() {
        "" => format!("the file {path}"),
        line => format!("{line} (the file {path})"),
    })
}

fn reason(latch: &DurableKill) -> Option<String> {
    latch.is_on().map(|entry| {
        let reason = entry.reason();
        if reason.is_empty() { "no reason given".to_owned() } else { reason.to_owned() }
    })
}

#[cfg(test)]
mod killswitch_test {
    use std::time::Duration;

    use cohort_identity::{Authority, Identity, Peer, Role};
    use cohort_wire::kill::{KillRegister, KillScope};

    use super::*;

    struct Lab {
        _folder: tempfile::TempDir,
        kill: Arc<KillSwitch>,
        operator: Identity,
        agent: Identity,
    }

    fn lab() -> Lab {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create(&folder.path().join("ca"), UnixTime::now()).unwrap();
        let identity = |role, name| {
            let peer = Peer::new(role, name).unwrap();
            authority.make_identity(&peer, Duration::from_secs(3_600), UnixTime::now()).unwrap()
        };
        let slot = IdentitySlot::new(identity(Role::Agent, "web-1"));
        let group = GroupId::new("intel.zone-a").unwrap();
        let dir = folder.path().join("kill");
        let file = folder.path().join("stop");
        let kill = KillSwitch::open(&dir, &file, slot, group, Arc::default()).unwrap();
        let (operator, agent) = (identity(Role::Operator, "ana"), identity(Role::Agent, "web-2"));
        Lab { kill: Arc::new(kill), operator, agent, _folder: folder }
    }

    fn sign(by: &Identity, scope: KillScope, epoch: u64, on: bool, reason: &str) -> SignedKill {
        let reason = reason.to_owned();
        SignedKill::sign(by, &KillRegister { scope, epoch, on, reason, at: 0 }).unwrap()
    }

    #[tokio::test]
    async fn a_register_stops_this_group_until_a_newer_one_lets_it_continue() {
        let Lab { kill, operator, _folder, .. } = lab();
        let on = sign(&operator, KillScope::Fleet, 1, true, "");
        assert!(kill.offer(vec![on.clone()]).await.unwrap());
        assert!(kill.on().is_some(), "also without a reason");
        assert_eq!(kill.metrics.kill_switch.get(), 1);
        assert_eq!(kill.signed(), std::slice::from_ref(&on));
        assert!(!kill.offer(vec![on.clone()]).await.unwrap(), "known already");
        assert!(kill.offer(vec![sign(&operator, KillScope::Fleet, 2, false, "")]).await.unwrap());
        assert!(!kill.offer(vec![on]).await.unwrap(), "an old one");
        assert_eq!(kill.on(), None);
        assert_eq!(kill.metrics.kill_switch.get(), 0);
        assert_eq!(kill.metrics.kill_registers_latched.get(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_stops_this_server_alone_until_it_is_removed() {
        let Lab { kill, operator, _folder: folder, .. } = lab();
        let file = folder.path().join("stop");
        let mut here = kill.subscribe_here();
        let watching = tokio::spawn(Arc::clone(&kill).watch_file());
        for (text, shown) in [("disk smells\nof smoke", "disk smells"), ("", "the file")] {
            std::fs::write(&file, text).unwrap();
            here.changed().await.unwrap();
            let reason = here.borrow_and_update().clone().unwrap();
            assert!(reason.starts_with(shown), "{reason}");
            assert!(kill.is_stopped_by_file());
            assert_eq!(kill.on(), None, "the group goes on");
        }
        let on = sign(&operator, KillScope::Fleet, 1, true, "bad night");
        assert!(kill.offer(vec![on]).await.unwrap());
        assert_eq!(here.borrow_and_update().as_deref(), Some("bad night"));
        assert!(!kill.is_stopped_by_file());
        std::fs::remove_file(&file).unwrap();
        assert!(kill.offer(vec![sign(&operator, KillScope::Fleet, 2, false, "")]).await.unwrap());
        assert_eq!(*here.borrow_and_update(), None);
        // Opening it would fail, or wait.
        let _socket = std::os::unix::net::UnixListener::bind(&file).unwrap();
        here.changed().await.unwrap();
        assert!(here.borrow().is_some(), "whatever it is");
        watching.abort();
    }

    #[tokio::test]
    async fn a_panic_while_latching_is_an_error_of_this_server() {
        let offered = tokio::task::spawn_blocking(|| panic!("a bug")).await;
        let error = outcome(offered).unwrap_err();
        assert!(matches!(error, OfferError::Unfinished(_)), "{error:?}");
        assert_eq!(ApiError::from(error).status, 500);
    }

    #[tokio::test]
    async fn a_refused_register_does_not_hold_up_the_others() {
        let Lab { kill, operator, agent, _folder } = lab();
        let other = KillScope::Group(GroupId::new("amd.zone-b").unwrap());
        let registers = vec![
            sign(&agent, KillScope::Fleet, 9, true, "forged"),
            sign(&operator, other, 1, true, "elsewhere"),
            sign(&operator, KillScope::Fleet, 1, true, "bad night"),
        ];
        assert!(kill.offer(registers).await.is_err());
        assert_eq!(kill.on().as_deref(), Some("bad night"));
        assert_eq!(kill.signed().len(), 1, "another group's is not forwarded");
    }
}
