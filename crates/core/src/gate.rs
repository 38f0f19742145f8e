//! Whether this group may start a rollout, by the stages and by other groups' verdicts.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{AppId, GroupId, Platform, Revision, Version};
use crate::policy::{Policy, Proof};
use crate::reason::Reason;
use crate::state::State;
use crate::waiting::WaitingOn;

/// The registry as the leader last read it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RegistryView {
    /// The apps' policies, with their revisions.
    pub policies: BTreeMap<AppId, (Revision, Policy)>,
    /// What operators signed of policies and removals, by revision.
    pub proofs: BTreeMap<(AppId, Revision), Proof>,
    /// The apps whose policies this version cannot read.
    pub unusable: BTreeSet<AppId>,
    /// The apps that were removed, each with the revision of that.
    pub removed: BTreeMap<AppId, Revision>,
    pub groups: BTreeMap<GroupId, GroupInfo>,
    /// Verdicts of all groups about releases of these apps.
    pub verdicts: Vec<ForeignVerdict>,
}

/// What is known about another group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupInfo {
    pub labels: BTreeMap<String, String>,
    pub platform: Platform,
}

/// Another group's verdict about a version, as the registry has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignVerdict {
    pub group: GroupId,
    pub app: AppId,
    pub version: Version,
    /// The platform on which the group ran it.
    pub platform: Platform,
    /// Why the version is bad; `None` if it is good.
    pub bad: Option<Reason>,
}

/// Another group of the same platform that found the version bad, and its reason.
#[must_use]
pub fn bad_verdict<'a>(
    state: &State,
    view: &'a RegistryView,
    app: &AppId,
    version: &Version,
) -> Option<(&'a GroupId, &'a Reason)> {
    let found = view.verdicts.iter().find(|verdict| {
        verdict.bad.is_some()
            && verdict.group != state.group
            && verdict.app == *app
            && verdict.version == *version
            && Some(&verdict.platform) == state.platform.as_ref()
    });
    found.and_then(|verdict| Some((&verdict.group, verdict.bad.as_ref()?)))
}

/// What keeps this group from starting a rollout, if anything. Per platform, a stage waits until
/// every group of earlier stages has found the version good; one bad verdict stops all groups.
#[must_use]
pub fn gate(
    state: &State,
    view: &RegistryView,
    app: &AppId,
    policy: &Policy,
    version: &Version,
) -> Option<WaitingOn> {
    if let Some((group, reason)) = bad_verdict(state, view, app, version) {
        let (group, reason) = (group.clone(), reason.clone());
        return Some(WaitingOn::VerdictElsewhere { version: version.clone(), group, reason });
    }
    if policy.stages.is_empty() {
        return None;
    }
    let stage_of = |labels: &BTreeMap<String, String>| {
        policy.stages.iter().position(|stage| stage.matches(labels))
    };
    let Some(own) = stage_of(&state.labels) else {
        return Some(WaitingOn::NoStage { version: version.clone() });
    };
    let good = |group: &GroupId| {
        view.verdicts.iter().any(|verdict| {
            verdict.bad.is_none()
                && verdict.group == *group
                && verdict.app == *app
                && verdict.version == *version
        })
    };
    let open: Vec<GroupId> = view
        .groups
        .iter()
        .filter(|(group, info)| {
            Some(&info.platform) == state.platform.as_ref()
                && stage_of(&info.labels).is_some_and(|stage| stage < own)
                && !good(group)
        })
        .map(|(group, _)| group.clone())
        .collect();
    if open.is_empty() {
        None
    } else {
        Some(WaitingOn::StageBefore { version: version.clone(), groups: open })
    }
}
