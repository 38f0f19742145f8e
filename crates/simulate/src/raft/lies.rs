//! A member that lies: it alters what it sends, field by field.
//!
//! Raft promises nothing against a member that lies about its log, its votes or its commits:
//! whoever owns one voter can make a group lose agreement (`SECURITY.md`). What is left is checked:
//! lies about anything else break no rule, and no lie at all makes another process panic, the
//! library in it included.

use std::collections::BTreeSet;

use cohort_consensus::{Envelope, Message, Verdict};
use cohort_store::{EntryKind, Index, RaftId, Term};
use rand::Rng;
use rand::seq::IndexedRandom;

/// What one member lies about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lies {
    #[default]
    Nothing,
    /// What others do not rely on: its wish for an election or a read.
    Wishes,
    Everything,
}

/// Alters one field of a message; some messages have nothing that `lies` covers.
pub(crate) fn alter(envelope: &mut Envelope, lies: Lies, rng: &mut impl Rng) {
    match rng.random_range(0..8) {
        0 if lies == Lies::Everything => number(&mut envelope.session, rng),
        1 if lies == Lies::Everything => number(&mut envelope.sequence, rng),
        2 if lies == Lies::Everything => number(&mut envelope.life, rng),
        3 if lies == Lies::Everything => number(&mut envelope.written, rng),
        4 if lies == Lies::Everything => {
            let (number, term) = (rng.random_range(0..9), Term(rng.random_range(0..9)));
            envelope.message = if number < 4 {
                Message::TakeOver { term }
            } else {
                Message::Present { found: number }
            };
        }
        _ => message(&mut envelope.message, lies, rng),
    }
}

fn message(message: &mut Message, lies: Lies, rng: &mut impl Rng) {
    match message {
        Message::PreVote(request) => match rng.random_range(0..6) {
            0 => number(&mut request.term.0, rng),
            1 => number(&mut request.last.0, rng),
            2 => number(&mut request.last_term.0, rng),
            3 => number(&mut request.commit.0, rng),
            4 => number(&mut request.commit_term.0, rng),
            _ => request.handed_over ^= true,
        },
        Message::TakeOver { term } => number(&mut term.0, rng),
        Message::ReadRequest { read } => number(&mut read.counter, rng),
        Message::PreVoteReply(reply) if lies == Lies::Wishes => reply.refused ^= true,
        _ if lies == Lies::Wishes => {}
        Message::Append { .. } => append(message, rng),
        Message::AppendReply(reply) => match rng.random_range(0..5) {
            0 => number(&mut reply.term.0, rng),
            1 => number(&mut reply.index.0, rng),
            2 => number(&mut reply.commit.0, rng),
            3 => reply.rejected = None,
            _ => {
                let (mut index, mut term) = (reply.index.0, reply.term.0);
                number(&mut index, rng);
                number(&mut term, rng);
                reply.rejected = Some((Index(index), Term(term)));
            }
        },
        Message::Vote(request) => match rng.random_range(0..6) {
            0 => number(&mut request.term.0, rng),
            1 => number(&mut request.last.0, rng),
            2 => number(&mut request.last_term.0, rng),
            3 => number(&mut request.commit.0, rng),
            4 => number(&mut request.commit_term.0, rng),
            _ => request.handed_over ^= true,
        },
        Message::PreVoteReply(reply) | Message::VoteReply(reply) => match rng.random_range(0..4) {
            0 => number(&mut reply.term.0, rng),
            1 => number(&mut reply.commit.0, rng),
            2 => number(&mut reply.commit_term.0, rng),
            _ => reply.refused ^= true,
        },
        Message::Snapshot { term, snapshot } => match rng.random_range(0..5) {
            0 => number(&mut term.0, rng),
            1 => number(&mut snapshot.index.0, rng),
            2 => number(&mut snapshot.term.0, rng),
            3 => members(&mut snapshot.configuration.voters, rng),
            _ => members(&mut snapshot.configuration.standbys, rng),
        },
        Message::Heartbeat { term, commit, read }
        | Message::HeartbeatReply { term, commit, read } => match rng.random_range(0..3) {
            0 => number(&mut term.0, rng),
            1 => number(&mut commit.0, rng),
            _ => *read = None,
        },
        Message::ReadReply { term, index, read } => match rng.random_range(0..3) {
            0 => number(&mut term.0, rng),
            1 => number(&mut index.0, rng),
            _ => number(&mut read.counter, rng),
        },
        Message::Present { found } => number(found, rng),
        Message::Vouch { .. } => vouch(message, rng),
        Message::Marks { marks } => {
            for mark in marks.values_mut() {
                number(&mut mark.written, rng);
                number(&mut mark.life, rng);
                number(&mut mark.boot_epoch, rng);
            }
        }
    }
}

fn append(message: &mut Message, rng: &mut impl Rng) {
    let Message::Append { term, previous, previous_term, commit, entries } = message else {
        return;
    };
    match rng.random_range(0..8) {
        0 => return number(&mut term.0, rng),
        1 => return number(&mut previous.0, rng),
        2 => return number(&mut previous_term.0, rng),
        3 => return number(&mut commit.0, rng),
        4 => return entries.reverse(),
        _ => {}
    }
    let Some(last) = entries.len().checked_sub(1) else { return };
    let entry = &mut entries[rng.random_range(0..=last)];
    match rng.random_range(0..4) {
        0 => number(&mut entry.index.0, rng),
        1 => number(&mut entry.term.0, rng),
        2 => {
            let kinds = [EntryKind::Data, EntryKind::Membership];
            entry.kind = *kinds.choose(rng).expect("two");
        }
        _ => {
            let bytes = rng.random_range(0..40);
            entry.data = (0..bytes).map(|_| rng.random()).collect();
        }
    }
}

fn vouch(message: &mut Message, rng: &mut impl Rng) {
    let Message::Vouch { life, verdict, leader, configured, voters } = message else { return };
    match rng.random_range(0..5) {
        0 => number(life, rng),
        1 => {
            let written = rng.random_range(0..1_000);
            let older = Verdict::Older { written };
            let verdicts = [Verdict::Fine, older, Verdict::Elsewhere, Verdict::Unknown];
            *verdict = *verdicts.choose(rng).expect("four");
        }
        2 => *leader = Some(RaftId(rng.random_range(0..9))),
        3 => number(&mut configured.0, rng),
        _ => members(voters, rng),
    }
}

/// A number that is a little off, or at an end of its range.
fn number(value: &mut u64, rng: &mut impl Rng) {
    *value = match rng.random_range(0..8) {
        0 => 0,
        1 => u64::MAX,
        2 => u64::MAX - rng.random_range(0..4),
        3 => i64::MAX.cast_unsigned(),
        4 => value.wrapping_sub(rng.random_range(1..4)),
        5 => value.wrapping_add(rng.random_range(1..4)),
        6 => value.wrapping_add(rng.random_range(1..1_000)),
        _ => rng.random(),
    };
}

fn members(members: &mut BTreeSet<RaftId>, rng: &mut impl Rng) {
    match rng.random_range(0..3) {
        0 => members.clear(),
        1 => {
            members.pop_first();
        }
        _ => {
            members.insert(RaftId(rng.random_range(0..9)));
        }
    }
}
