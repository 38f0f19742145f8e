//! May this group begin? Stages and verdicts of other groups.

use std::collections::BTreeMap;

use crate::ids::{AppId, GroupId, Platform, Revision, Version};
use crate::policy::Policy;
use crate::state::State;
use crate::waiting::WaitingOn;

/// What the leader last read from the registry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RegistryView {
    /// The policies, with their revisions.
    pub policies: BTreeMap<AppId, (Revision, Policy)>,
    /// All groups of the fleet.
    pub groups: BTreeMap<GroupId, GroupInfo>,
    /// All verdicts about releases of these apps.
    pub verdicts: Vec<ForeignVerdict>,
}

/// What is known of a group from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupInfo {
    /// The labels that its servers share.
    pub labels: BTreeMap<String, String>,
    /// Their platform.
    pub platform: Platform,
}

/// A verdict, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignVerdict {
    /// Whose.
    pub group: GroupId,
    /// About which app,
    pub app: AppId,
    /// version
    pub version: Version,
    /// and platform.
    pub platform: Platform,
    /// Good or bad.
    pub good: bool,
    /// Why it is bad.
    pub reason: String,
}

/// Another group of the same platform that found the version bad.
#[must_use]
pub fn bad_verdict<'a>(
    state: &State,
    view: &'a RegistryView,
    app: &AppId,
    version: &Version,
) -> Option<&'a ForeignVerdict> {
    view.verdicts.iter().find(|verdict| {
        !verdict.good
            && verdict.group != state.group
            && verdict.app == *app
            && verdict.version == *version
            && Some(&verdict.platform) == state.platform.as_ref()
    })
}

/// What keeps this group from beginning, if anything.
///
/// Per platform, a stage waits until every group of the stages before has found the version good;
/// a bad verdict anywhere on the platform keeps all groups from beginning.
#[must_use]
pub fn gate(
    state: &State,
    view: &RegistryView,
    app: &AppId,
    policy: &Policy,
    version: &Version,
) -> Option<WaitingOn> {
    if let Some(verdict) = bad_verdict(state, view, app, version) {
        return Some(WaitingOn::VerdictElsewhere {
            version: version.clone(),
            group: verdict.group.clone(),
            reason: verdict.reason.clone(),
        });
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
            verdict.good
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
