//! What nobody has heard of: servers that are silent, voters that are not heard, a lost quorum.

use cohort_core::ids::ServerId;
use cohort_wire::agent::{GroupStatus, ServerStatus};

use crate::command::Command;
use crate::figures::{brief, names};
use crate::hint::Hint;
use crate::report::Problem;

/// Unknown servers that one sentence names.
const UNKNOWN_NAMED_MAX: usize = 5;

/// The machine that answered is a copy: what its group knows, others say.
fn refused(status: &GroupStatus, host: &str) -> Problem {
    let server = &status.answered_by;
    Problem {
        sentence: format!(
            "the group refuses the agent that answered: another machine, {host}, runs as {server}"
        ),
        hints: vec![
            Hint::run_to(
                "ask the group without --agent, or at another one",
                Command::Why { group: Some(status.group.clone()) },
            ),
            "if the machine that answered is a copy: stop its agent, empty its data_dir, and let \
             it join under a name of its own"
                .into(),
        ],
    }
}

/// Without a quorum, nothing that is known is known to be true now.
fn no_quorum(status: &GroupStatus) -> Problem {
    let voters: Vec<&str> = status.voters.iter().map(|voter| voter.server.as_str()).collect();
    let (group, first_server) = (status.group.clone(), status.answered_by.clone());
    let recover = Command::GroupRecover { group, first_server };
    Problem {
        sentence: format!(
            "no quorum of voters: showing what {} last knew, unknown whether any server serves",
            status.answered_by
        ),
        hints: vec![
            format!("check that a majority of {} run and reach each other", voters.join(", "))
                .into(),
            Hint::run_to("if that majority is lost permanently", recover),
        ],
    }
}

/// Unknown servers, and what that means for the group.
pub(crate) fn silence(status: &GroupStatus) -> Option<Problem> {
    if !status.linearizable {
        return Some(match &status.elsewhere {
            Some(host) => refused(status, host),
            None => no_quorum(status),
        });
    }
    let unknown: Vec<(&ServerId, &ServerStatus)> = status.unknown_servers().collect();
    let (first, _) = *unknown.first()?;
    let shown = || unknown.iter().take(UNKNOWN_NAMED_MAX);
    let mut sentence = format!(
        "no contact with {}: unknown whether {}",
        names(
            shown().map(|(server, known)| format!("{server} for {}", silent_for(known))),
            unknown.len() as u64
        ),
        if unknown.len() == 1 { "it serves" } else { "they serve" },
    );
    sentence.push_str(&voters_left(status));
    let mut hints = vec![
        format!("start the agent on {first}, or check its network").into(),
        Hint::run_to("or see whether its certificate was revoked", Command::ServerRevoked),
    ];
    hints.extend(shown().map(|(server, _)| {
        let (group, server) = (status.group.clone(), (*server).clone());
        let remove = Command::GroupRemoveServer { group, server };
        Hint::run_to("if it is lost permanently", remove)
    }));
    Some(Problem { sentence, hints })
}

/// Voters that the leader does not hear, although their agents are heard by others.
pub(crate) fn mute(status: &GroupStatus) -> Option<Problem> {
    let mute: Vec<&ServerId> = status.mute.iter().collect();
    let (first, leader) = (mute.first()?, status.leader.as_ref().unwrap_or(&status.answered_by));
    let shown = mute.iter().take(UNKNOWN_NAMED_MAX).map(ToString::to_string);
    let sentence = format!(
        "{leader} does not hear the members on {}, although their agents reach others{}",
        names(shown, mute.len() as u64),
        voters_left(status),
    );
    let hints =
        vec![format!("check the network between {leader} and {first}, in both directions").into()];
    Some(Problem { sentence, hints })
}

/// How many voters are left and what happens if one more is lost; empty if none is missing.
fn voters_left(status: &GroupStatus) -> String {
    let voters = status.voters.len();
    let is_lost = |server: &ServerId| {
        status.mute.contains(server) || status.unknown_servers().any(|(other, _)| other == server)
    };
    let left = status.voters.iter().filter(|voter| !is_lost(&voter.server)).count();
    if left == voters {
        return String::new();
    }
    let means = match left.checked_sub(voters / 2 + 1) {
        None => "the group has lost its majority".to_owned(),
        Some(0) => "one more loss stops the group".to_owned(),
        Some(spare) => format!("the group tolerates {spare} more failures"),
    };
    format!("; {left} of {voters} voters left, {means}")
}

/// How long a server has been silent: at least, if it may have asked the previous leader since.
fn silent_for(server: &ServerStatus) -> String {
    match (server.silent_ms, server.contact_age_ms) {
        (Some(silent_ms), Some(age_ms)) if age_ms <= silent_ms => brief(silent_ms),
        (silent_ms, _) => format!("at least {}", brief(silent_ms.unwrap_or(0))),
    }
}
