//! What a name on the command line refers to: a group, or a server.

use cohort_core::ids::{GroupId, ServerId};

use crate::args::Direct;
use crate::commands::no_such_name;
use crate::context::Context;
use crate::failure::Failure;
use crate::fleet::{Groups, know};

/// A group, or a server and its group; neither: every group, or that of the agent which is asked.
#[derive(Debug, Default)]
pub(crate) struct About {
    pub(crate) group: Option<GroupId>,
    pub(crate) server: Option<ServerId>,
}

impl About {
    /// Looks a name up at the hub. With `--agent`, it may be the name of its group as well.
    pub(crate) async fn find(
        context: &Context,
        direct: &Direct,
        name: Option<&str>,
    ) -> Result<Self, Failure> {
        let Some(name) = name else { return Ok(About::default()) };
        let server = ServerId::new(name).ok();
        if direct.agent().is_some() {
            return Ok(About { group: None, server });
        }
        let (known, _) = know(context).await?;
        if let Ok(group) = GroupId::new(name)
            && known.groups.contains_key(&group)
        {
            return Ok(About { group: Some(group), server: None });
        }
        match known.group_of(name) {
            Some(group) => Ok(About { group: Some(group.clone()), server }),
            None => Err(no_such_name(&known, name)),
        }
    }

    /// The groups to ask.
    pub(crate) fn groups(&self) -> Groups<'_> {
        self.group.as_ref().map_or(Groups::All, Groups::One)
    }

    /// The server, unless `group` is what the name means.
    pub(crate) fn server_in(&self, group: &GroupId) -> Option<&ServerId> {
        self.server.as_ref().filter(|server| server.as_str() != group.as_str())
    }
}
