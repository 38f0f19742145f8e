//! What a release does when it runs: its faults come from its content, never from the server.

use std::collections::BTreeSet;

use cohort_core::ids::ServerId;
use cohort_core::release::Release;
use cohort_core::report::Step;

#[derive(Debug, Clone, Default)]
pub(crate) struct Behaviour {
    /// Its faults, each where and how.
    pub(crate) faults: Vec<(Fault, Option<BTreeSet<ServerId>>)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The step fails at once, by the release's fault.
    Fails(Step),
    /// The step fails because of the surroundings (a full disk, say).
    Surroundings(Step),
    /// The step hangs until the host's limit, then counts as failed.
    Hangs(Step),
    /// The step takes that long, in milliseconds, and is done.
    Takes(Step, u64),
    /// The hook of the step says "later" so many times.
    Later(Step, u32),
    /// The service dies this long after its start, in milliseconds.
    DiesAfter(u64),
    /// The server cannot reach the group while this release is switched in.
    CutsNetwork,
}

impl Behaviour {
    pub(crate) fn on<'a>(&'a self, server: &'a ServerId) -> impl Iterator<Item = &'a Fault> {
        self.faults
            .iter()
            .filter(move |(_, on)| on.as_ref().is_none_or(|on| on.contains(server)))
            .map(|(fault, _)| fault)
    }
}

/// The behaviours of all releases that were ever made.
#[derive(Debug, Clone, Default)]
pub(crate) struct Behaviours(Vec<(Release, Behaviour)>);

impl Behaviours {
    pub(crate) fn add(&mut self, release: Release, behaviour: Behaviour) {
        self.0.retain(|(known, _)| *known != release);
        self.0.push((release, behaviour));
    }

    /// What it does on a server.
    pub(crate) fn faults<'a>(
        &'a self,
        release: &Release,
        server: &'a ServerId,
    ) -> impl Iterator<Item = &'a Fault> {
        self.0
            .iter()
            .find(|(known, _)| known == release)
            .into_iter()
            .flat_map(|(_, b)| b.on(server))
    }

    /// Whether it cuts a server off.
    pub(crate) fn cuts_off(&self, release: &Release, server: &ServerId) -> bool {
        let cuts = |behaviour: &Behaviour| behaviour.on(server).any(|f| *f == Fault::CutsNetwork);
        self.0.iter().any(|(known, behaviour)| cuts(behaviour) && known == release)
    }

    pub(crate) fn knows(&self, release: &Release) -> bool {
        // The newest ones run.
        self.0.iter().rev().any(|(known, _)| known == release)
    }
}
