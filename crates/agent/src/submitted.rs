//! Submissions of servers and people: their author is verified where they arrive and again by the
//! leader, and only then does a command for the group's log follow from them.

use std::net::IpAddr;

use cohort_base::chain;
use cohort_core::Command;
use cohort_core::command::Body;
use cohort_core::ids::ServerId;
use cohort_core::state::Process;
use cohort_identity::{Peer, Role, UnixTime};
use cohort_server::answers::{self, Joining, ReportRefused};
use cohort_wire::agent::{Forwarded, JoinGroupRequest, SignedSubmission, Submission};
use cohort_wire::http::ApiError;

use crate::member::View;
use crate::shared::{MemberHandle, Shared};

/// A submission whose author is verified.
#[derive(Debug, Clone)]
pub(crate) struct Submitted {
    pub by: Peer,
    pub what: Submission,
    /// The same as it was signed, to be passed on.
    pub signed: Forwarded,
}

/// What follows from a submission.
#[derive(Debug)]
pub(crate) enum Follows {
    /// A command for the log.
    Command(Box<Command>),
    /// Nothing: the state at this index has it already.
    Nothing { index: u64 },
}

impl Submitted {
    /// Verifies a submission that its author sent here.
    ///
    /// # Errors
    /// The answer for the sender; it is counted.
    pub(crate) fn by_sender(
        shared: &Shared,
        sender: &Peer,
        submission: SignedSubmission,
        host: Option<IpAddr>,
    ) -> Result<Submitted, ApiError> {
        let submitted = Submitted::verify(shared, Forwarded { submission, host })?;
        if submitted.by != *sender {
            let error = format!("{sender} may not submit what {} signed", submitted.by);
            return Err(refuse(shared, sender, ApiError::forbidden(error)));
        }
        Ok(submitted)
    }

    /// Verifies a submission that a member passes on.
    ///
    /// # Errors
    /// The answer for that member; it is counted.
    pub(crate) fn forwarded(
        shared: &Shared,
        member: &ServerId,
        signed: Forwarded,
    ) -> Result<Submitted, ApiError> {
        Submitted::verify(shared, signed)
            .inspect_err(|error| complain(shared, &format!("member on {member}"), error))
    }

    fn verify(shared: &Shared, signed: Forwarded) -> Result<Submitted, ApiError> {
        let identity = shared.identity.current();
        let (by, what) =
            signed.submission.verify(identity.roots(), &shared.group, UnixTime::now())?;
        if shared.identity.revocations().revokes_author_of(&signed.submission.0) {
            return Err(ApiError::forbidden(format!("the certificate of {by} is revoked")));
        }
        Ok(Submitted { by, what, signed })
    }

    /// The command that follows, by this member's state.
    ///
    /// # Errors
    /// The answer for the sender: the author is not in the group, another agent speaks for it, the
    /// registry does not have it here, or people may not issue the command.
    pub(crate) async fn follows(
        &self,
        shared: &Shared,
        handle: &MemberHandle,
    ) -> Result<Follows, ApiError> {
        let view = handle.view();
        let (request, body) = match &self.what {
            Submission::Report { life, incarnation, report } => {
                answers::check_report(&view.state, (&report.server, *life), *incarnation)
                    .map_err(|refused| refused_report(refused, &report.server))?;
                (None, Body::Report { report: report.clone() })
            }
            Submission::Join(request) => match self.join(shared, &view, request).await? {
                Some(body) => (None, body),
                None => return Ok(Follows::Nothing { index: view.raft.applied.0 }),
            },
            Submission::Command(command) => {
                if !answers::for_people(&command.body) {
                    let name = command.body.name();
                    let error = format!("only the group's leader may issue `{name}`");
                    return Err(ApiError::forbidden(error));
                }
                (Some(command.request.clone()), command.body.clone())
            }
        };
        let actor = match self.by.role {
            Role::Agent => format!("agent {}", self.by.name),
            _ => self.by.to_string(),
        };
        let mut command = Shared::command(handle, actor, request, body);
        answers::name_leader(&mut command, &view);
        Ok(Follows::Command(Box::new(command)))
    }

    /// What brings a server into the group; `None` if it is in it as it says.
    async fn join(
        &self,
        shared: &Shared,
        view: &View,
        request: &JoinGroupRequest,
    ) -> Result<Option<Body>, ApiError> {
        let server = server_of(&self.by)?;
        let JoinGroupRequest { life, address, rack } = request.clone();
        let Some(host) = self.signed.host else {
            return Err(ApiError::bad_request("it does not say which host the server joins from"));
        };
        let process = Process { life, host: host.to_canonical().to_string() };
        match answers::joining(view, &server, &address, &process) {
            Joining::Done => Ok(None),
            Joining::Moved => Ok(Some(Body::MoveServer { server, address, process })),
            Joining::New => {
                let record = cohort_registry::typed::read_server(&*shared.registry, &server)
                    .await
                    .map_err(|error| ApiError::unavailable("registry_away", chain(&error)))?;
                if record.is_none_or(|record| record.group != shared.group) {
                    let error = format!("the registry does not have {server} in {}", shared.group);
                    return Err(ApiError::forbidden(error).hint("join with a fresh token"));
                }
                Ok(Some(Body::AddServer { server, address, rack, process }))
            }
        }
    }
}

/// The server that an agent's certificate names.
pub(crate) fn server_of(peer: &Peer) -> Result<ServerId, ApiError> {
    ServerId::new(peer.name.as_str()).map_err(|error| ApiError::bad_request(chain(&error)))
}

fn refused_report(refused: ReportRefused, server: &ServerId) -> ApiError {
    match refused {
        ReportRefused::Stranger => ApiError::forbidden(format!("{server} is not in this group")),
        ReportRefused::OtherAgent => {
            ApiError::conflict(format!("another agent speaks for {server}"))
        }
        ReportRefused::OtherIncarnation => {
            ApiError::conflict("the report belongs to another incarnation of the group")
        }
    }
}

fn refuse(shared: &Shared, by: &Peer, error: ApiError) -> ApiError {
    complain(shared, &by.to_string(), &error);
    error
}

/// Honest members and servers never send what is counted here.
fn complain(shared: &Shared, by: &str, error: &ApiError) {
    shared.metrics.submissions_refused.inc();
    tracing::warn!(by, error = error.error, "submission refused: its author did not sign it so");
}
