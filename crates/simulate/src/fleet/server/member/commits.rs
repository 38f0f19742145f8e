//! Commands on their way into the log, here or through the leader.

use cohort_consensus::RaftId;
use cohort_core::command::{Body, Rejection};
use cohort_core::ids::RequestId;
use cohort_server::answers::{self, Committing, Next};
use cohort_server::asking::Input as Answer;
use cohort_server::member::{Input, Proposed};

use super::reports::Batch;
use super::{Carried, Client, Commit, Waits, command};
use crate::fleet::log::Log;
use crate::fleet::net::What;

impl Carried {
    pub(super) fn commit(
        &mut self,
        actor: String,
        request: Option<RequestId>,
        body: Body,
        client: Client,
    ) {
        let mut command = command(actor, request, body);
        answers::name_leader(&mut command, &self.view);
        let committing = Committing::begin(self.now_ms, self.own);
        self.propose(Commit { command, committing, client });
    }

    pub(super) fn propose(&mut self, commit: Commit) {
        let command = Box::new(commit.command.clone());
        let ticket = self.wait(Waits::Commit(Box::new(commit)));
        self.inputs.push(Input::Propose { ticket, command });
    }

    pub(super) fn proposed(&mut self, commit: Commit, outcome: Proposed, log: &mut Log) {
        let next = commit.committing.proposed(self.now_ms, outcome);
        self.next(commit, next, log);
    }

    pub(super) fn failed(&mut self, commit: Commit, log: &mut Log) {
        let next = commit.committing.failed(self.now_ms);
        self.next(commit, next, log);
    }

    pub(super) fn next(&mut self, commit: Commit, next: Next, log: &mut Log) {
        match next {
            Next::Done { rejection, .. } => self.committed(commit, Some(rejection), log),
            Next::Forward { to, within_ms } => {
                let Some(place) = self.place_of(RaftId(to.0)) else {
                    return self.failed(commit, log);
                };
                let (id, command) = (self.id(), Box::new(commit.command.clone()));
                self.send(place, id, What::Forward(command));
                self.forwarded.insert(id, (self.now_ms + within_ms, commit));
            }
            Next::Again { after_ms } => self.again.push((self.now_ms + after_ms, commit)),
            Next::GiveUp => self.committed(commit, None, log),
        }
    }

    /// Whether a command was refused is known; `None`: its outcome is not.
    pub(super) fn committed(
        &mut self,
        commit: Commit,
        outcome: Option<Option<Rejection>>,
        log: &mut Log,
    ) {
        if outcome == Some(None) {
            log.acknowledged(&commit.command);
        }
        match (commit.client, outcome) {
            (Client::Reports(mut batch), Some(rejection)) => {
                batch.taken.push(rejection.is_none());
                self.next_report(batch);
            }
            (Client::Reports(Batch { request, taken, .. }), None) => {
                let taken = Some(taken).filter(|taken| !taken.is_empty());
                self.reply(request, What::Taken(taken));
            }
            (Client::Join(request), outcome) => {
                let answer = match outcome {
                    Some(Some(Rejection::RunsElsewhere { host, .. })) => {
                        Answer::RunsElsewhere { host }
                    }
                    outcome => Answer::Joined(outcome == Some(None)),
                };
                self.reply(request, What::Answer(answer));
            }
            (Client::Person(number), outcome) => {
                log.outcomes.insert(number, outcome);
            }
        }
    }
}
