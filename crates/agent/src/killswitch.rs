//! The kill switch on this server: latched on disk, passed on with every question and answer.

use std::path::Path;
use std::sync::Arc;

use cohort_core::ids::GroupId;
use cohort_identity::UnixTime;
use cohort_wire::kill::{DurableKill, KillError, SignedKill};
use cohort_wire::tls::IdentitySlot;
use tokio::sync::watch;

/// Registers that one message may carry: the fleet's and the own group's, and room for errors.
const PASSED_ON_MAX: usize = 8;

/// The latch, and a channel for those that stop when it is on.
#[derive(Debug)]
pub(crate) struct KillSwitch {
    latch: DurableKill,
    identity: Arc<IdentitySlot>,
    group: GroupId,
    on: watch::Sender<Option<String>>,
}

impl KillSwitch {
    pub(crate) fn open(
        dir: &Path,
        identity: Arc<IdentitySlot>,
        group: GroupId,
    ) -> Result<KillSwitch, KillError> {
        let latch = DurableKill::open(dir)?;
        let on = watch::Sender::new(reason(&latch, &group));
        Ok(KillSwitch { latch, identity, group, on })
    }

    /// The reason why nothing new may start here, while it is on.
    pub(crate) fn on(&self) -> Option<String> {
        self.on.borrow().clone()
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Option<String>> {
        self.on.subscribe()
    }

    /// The registers to pass on with every question and answer.
    pub(crate) fn signed(&self) -> Vec<SignedKill> {
        self.latch.signed().into_iter().take(PASSED_ON_MAX).collect()
    }

    /// Latches registers; durable before this returns. True when that changed what is in force.
    pub(crate) async fn offer(
        self: &Arc<Self>,
        registers: Vec<SignedKill>,
    ) -> Result<bool, KillError> {
        if registers.is_empty() || registers.iter().all(|one| self.latch.signed().contains(one)) {
            return Ok(false);
        }
        let this = Arc::clone(self);
        let offered = tokio::task::spawn_blocking(move || {
            let identity = this.identity.current();
            let mut refused = None;
            for register in registers.iter().take(PASSED_ON_MAX) {
                // A refused one does not hold up the others.
                if let Err(error) = this.latch.offer(register, identity.roots(), UnixTime::now()) {
                    refused = Some(error);
                }
            }
            // Also when another call latched it first.
            let changed = this.on.send_if_modified(|on| {
                let now = reason(&this.latch, &this.group);
                let changed = *on != now;
                *on = now;
                changed
            });
            if changed {
                let now = this.on.borrow().clone();
                tracing::warn!(on = now.is_some(), reason = now.as_deref(), "kill switch");
            }
            match refused {
                Some(error) => Err(error),
                None => Ok(changed),
            }
        })
        .await;
        offered.unwrap_or(Ok(false))
    }
}

fn reason(latch: &DurableKill, group: &GroupId) -> Option<String> {
    latch.is_on(Some(group)).map(|entry| {
        let reason = entry.reason();
        if reason.is_empty() { "no reason given".to_owned() } else { reason.to_owned() }
    })
}
