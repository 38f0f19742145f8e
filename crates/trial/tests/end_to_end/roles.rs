//! Roles: the agent itself enforces which role may send which request.

use std::time::Duration;

use anyhow::{Result, ensure};
use cohort_core::Body;
use cohort_core::command::Planned;
use cohort_core::ids::{AppId, BootEpoch, Generation, GroupId, RequestId, ServerId};
use cohort_core::machine::{DiskSpace, Machine};
use cohort_core::orders::{Fence, Purpose};
use cohort_core::report::{Outcome, Report};
use cohort_identity::{Alpn, Identity, Peer, Role};
use cohort_wire::agent::{
    COMMAND, CommandAnswer, CommandRequest, FORWARD, Forwarded, KILL, ORDERS, OrdersRequest,
    REPORT, STATUS, SignedSubmission, Submission, ToGroup,
};
use cohort_wire::http::{Call, Client, Target};
use cohort_wire::kill::{KillRegister, KillScope, SignedKill};
use cohort_wire::tls::IdentitySlot;

use crate::trial::{GROUP, ONE_BY_ONE, Trial, policy};
use cohort_trial::release::WebRelease;

struct Caller<'a> {
    trial: &'a Trial,
    client: Client,
    target: Target,
}

impl Caller<'_> {
    fn as_whom<'a>(trial: &'a Trial, identity: Identity, server: &str) -> Result<Caller<'a>> {
        let target = Target {
            address: trial.agents()[server].address.to_string(),
            peer: Peer::new(Role::Agent, server)?,
            alpn: Alpn::Control,
        };
        Ok(Caller { trial, client: Client::new(IdentitySlot::new(identity)), target })
    }

    /// The response's status, and its error kind.
    fn status(&self, call: Call) -> Result<(u16, String)> {
        let _ = self.trial;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let call = call.deadline(Duration::from_secs(10));
        match runtime.block_on(self.client.stream(&self.target, call)) {
            Ok(answer) => Ok((answer.status.as_u16(), "ok".into())),
            Err(error) => match error.status() {
                Some(status) => Ok((status, error.kind().to_owned())),
                None => Err(error.into()),
            },
        }
    }

    fn refused(&self, what: &str, call: Call) -> Result<()> {
        let (status, kind) = self.status(call)?;
        ensure!(status == 403 && kind == "forbidden", "{what}: {status} {kind}");
        Ok(())
    }
}

/// Signed by `identity`, whether it may or not.
fn signed(identity: &Identity, submission: Submission) -> Result<SignedSubmission> {
    Ok(SignedSubmission::sign(identity, &GroupId::new(GROUP)?, submission)?)
}

fn command(body: Body) -> Submission {
    Submission::Command(CommandRequest { request: RequestId("test".into()), body })
}

fn to_group<T>(body: T) -> ToGroup<T> {
    ToGroup::new(&GroupId::new(GROUP).expect("a group's name"), body)
}

#[test]
fn only_those_who_may() -> Result<()> {
    let trial = Trial::of("roles", 2)?;
    trial.first_release(&policy(ONE_BY_ONE, ""), &WebRelease::new("1.0.0"))?;
    let servers = trial.servers();
    let (first, second) = (&servers[0], &servers[1]);
    let app = AppId::new("web")?;
    let group = GroupId::new(GROUP)?;
    let incarnation = trial.status(GROUP)?.incarnation;

    // A server speaks only for itself, and never as a person.
    let agents_own = || Identity::load(&trial.agents()[second].dir.join("data/identity"));
    let operators_own = || Identity::load(&trial.context_dir().join("operator"));
    let own = agents_own()?;
    let agent = Caller::as_whom(&trial, agents_own()?, first)?;
    let pause = Body::Pause { app: app.clone(), reason: String::new(), for_ms: None };
    let pauses = to_group(signed(&own, command(pause.clone()))?);
    agent.refused("an agent sends a command", Call::post(COMMAND, &pauses))?;
    let report = Report {
        server: ServerId::new(first.as_str())?,
        boot_epoch: BootEpoch(999),
        sequence: 1,
        app: app.clone(),
        fence: Fence::default(),
        attempt: 1,
        outcome: Outcome::Found { release: None, in_service: false },
    };
    let about_first = Submission::Report { life: 1, incarnation, report };
    let reports = to_group(vec![signed(&own, about_first.clone())?]);
    agent.refused("an agent reports for another server", Call::post(REPORT, &reports))?;
    // A member passes on what servers and people signed, and nothing else.
    let server = ServerId::new(second.as_str())?;
    let step = Planned::Grant { server, purpose: Purpose::Debt, voters: [].into() };
    let grant = Body::Plan { app, generation: Generation(1), step };
    let by_operator = signed(&operators_own()?, command(grant.clone()))?;
    let mut changed = signed(&operators_own()?, command(pause.clone()))?;
    changed.0.body.pop();
    for (what, submission) in [
        ("the leader's plan", signed(&own, command(grant))?),
        ("the leader's plan, signed by an operator", by_operator.clone()),
        ("a person's command", signed(&own, command(pause.clone()))?),
        ("a changed command of a person", changed),
        ("another server's report", signed(&own, about_first)?),
    ] {
        let forged = to_group(Forwarded { submission, host: None });
        agent.refused(&format!("a member forges {what}"), Call::post(FORWARD, &forged))?;
    }
    // What a person signed counts, but from nobody else as if it was said here and now.
    let stolen = to_group(signed(&operators_own()?, command(pause))?);
    agent.refused("an agent sends a person's command", Call::post(COMMAND, &stolen))?;
    // Only an operator's signature makes a kill register valid, not an agent's.
    let register = KillRegister {
        scope: KillScope::Fleet,
        epoch: 1,
        on: true,
        reason: "not by an operator".into(),
        at: 0,
    };
    let forged = SignedKill::sign(&own, &register)?;
    agent.refused("an agent signs a kill register", Call::post(KILL, &forged))?;

    // An operator may not request orders, send reports, or propose the leader's commands.
    let operator = Caller::as_whom(&trial, operators_own()?, first)?;
    let orders = OrdersRequest {
        life: 1,
        doing: std::collections::BTreeMap::new(),
        machine: Machine { unix_ms: 0, disk: DiskSpace::Enough, vouched: true, stopped: false },
        known: 0,
    };
    let orders = ToGroup::new(&group, orders);
    operator.refused("an operator requests orders", Call::post(ORDERS, &orders))?;
    operator.refused("an operator reports", Call::post(REPORT, &reports))?;
    operator.refused("an operator grants", Call::post(COMMAND, &to_group(by_operator)))?;
    let (status, _) = operator.status(Call::get(STATUS))?;
    ensure!(status == 200, "an operator cannot read the group's status: {status}");
    // The agent accepts operators' commands, and answers with the state machine's own reason.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let approval = Body::Approve { app: AppId::new("web")? };
    let approves = to_group(signed(&operators_own()?, command(approval))?);
    let call = Call::post(COMMAND, &approves);
    let answer: CommandAnswer =
        runtime.block_on(operator.client.call_json(&operator.target, call))?;
    ensure!(answer.rejection.is_some(), "accepted an approval without a rollout");

    // Another group's name, another version, and a body that is too large get distinct errors.
    let mut elsewhere = orders.clone();
    elsewhere.group = GroupId::new("amd.zone-z")?;
    let (status, kind) = agent.status(Call::post(ORDERS, &elsewhere))?;
    ensure!((status, kind.as_str()) == (409, "conflict"), "{status} {kind}");
    let mut newer = orders;
    newer.version = 99;
    let (status, _) = agent.status(Call::post(ORDERS, &newer))?;
    ensure!(status == 400, "unknown version: {status}");
    trial.pass()
}
