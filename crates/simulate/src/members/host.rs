//! One server: a disk that outlives its processes, and the member that runs on it.

use std::sync::Arc;

use cohort_consensus::{Config, Limits, RaftId};
use cohort_core::ids::{GroupId, MemberId, ServerId};
use cohort_server::contacts::Contacts;
use cohort_server::member::{Input, Member, MemberError, Output, View};
use cohort_store::{Disk, FaultyStore};

/// Steps in a row that a member may ask for at one moment: a plan looks ahead, but not for ever.
const STEPS_AT_ONCE_MAX: usize = 200;

/// When a server starts that is gone for good.
pub(super) const GONE_MS: u64 = u64::MAX;
/// For how long a voter may be silent before it is replaced, in milliseconds.
const REPLACE_AFTER_MS: u64 = 5_000;

/// A server.
pub(super) struct Host {
    pub(super) server: ServerId,
    /// The member whose log is on the disk, and the disk.
    pub(super) disk: Option<(MemberId, Disk)>,
    pub(super) member: Option<Member<FaultyStore>>,
    pub(super) view: Option<Arc<View>>,
    pub(super) contacts: Contacts,
    /// When the agent starts again; 0 while it runs.
    pub(super) starts_ms: u64,
    /// The process does nothing until then.
    pub(super) paused_until_ms: u64,
    /// When it may claim its member again.
    pub(super) claims_ms: u64,
    boot_epoch: u64,
    /// A write was made to fail: the member may end.
    pub(super) disk_fails: bool,
}

impl Host {
    pub(super) fn new(server: ServerId) -> Host {
        Host {
            server,
            disk: None,
            member: None,
            view: None,
            contacts: Contacts::default(),
            starts_ms: 0,
            paused_until_ms: 0,
            claims_ms: 0,
            boot_epoch: 0,
            disk_fails: false,
        }
    }

    /// The agent starts; its member, too, if there is a log.
    pub(super) fn start(
        &mut self,
        now_ms: u64,
        group: &GroupId,
        limits: Limits,
        seed: u64,
    ) -> Result<(), String> {
        self.starts_ms = 0;
        self.boot_epoch += 1;
        let Some((member, disk)) = &self.disk else { return Ok(()) };
        let store = FaultyStore::open(disk).map_err(|error| error.to_string())?;
        let mut config = Config::new(group.as_str(), 1, RaftId(member.0));
        config.boot_epoch = self.boot_epoch;
        config.limits = limits;
        config.seed = seed;
        let server = self.server.clone();
        let member = Member::open(now_ms, server, group.clone(), store, config, None);
        let mut member = member.map_err(|error| format!("{}: {error}", self.server))?;
        member.replace_after(REPLACE_AFTER_MS);
        self.member = Some(member);
        Ok(())
    }

    /// The process ends, and with it whatever was not durable.
    pub(super) fn crash(&mut self, starts_ms: u64) {
        self.member = None;
        self.view = None;
        self.contacts = Contacts::default();
        self.starts_ms = starts_ms;
        self.disk_fails = false;
        if let Some((_, disk)) = &self.disk {
            disk.crash();
        }
    }

    pub(super) fn is_gone(&self) -> bool {
        self.starts_ms == GONE_MS
    }

    /// Whether its member has something to do now.
    pub(super) fn is_due(&self, now_ms: u64) -> bool {
        let due = |member: &Member<FaultyStore>| member.wake_ms(now_ms) <= now_ms;
        self.paused_until_ms <= now_ms && self.member.as_ref().is_some_and(due)
    }

    /// Steps until there is nothing more to do. `None`: the member has ended.
    pub(super) fn step(
        &mut self,
        now_ms: u64,
        inputs: Vec<Input>,
    ) -> Result<Option<Vec<Output>>, String> {
        let Some(member) = &mut self.member else { return Ok(Some(Vec::new())) };
        let mut outputs = Vec::new();
        let mut inputs = Some(inputs);
        for _ in 0..STEPS_AT_ONCE_MAX {
            match member.step(now_ms, &self.contacts, inputs.take().unwrap_or_default()) {
                Ok(more) => outputs.extend(more),
                Err(MemberError::Node(_)) if self.disk_fails => return Ok(None),
                Err(error) => return Err(format!("{} stopped: {error:?}", self.server)),
            }
            if outputs.last() == Some(&Output::Stopped) || member.wake_ms(now_ms) > now_ms {
                return Ok(Some(outputs));
            }
        }
        Err(format!("{} never rests", self.server))
    }
}
