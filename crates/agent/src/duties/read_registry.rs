//! What the leader reads in the registry: policies, groups, verdicts and kill switches.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cohort_base::chain::chain;
use cohort_base::retry::Schedule;
use cohort_consensus::Term;
use cohort_core::State;
use cohort_core::errand::{Errand, HubFault};
use cohort_core::gate::{ForeignVerdict, GroupInfo, RegistryView};
use cohort_core::ids::{AppId, GroupId, Revision};
use cohort_core::policy::Policy;
use cohort_core::reason::Reason;
use cohort_identity::{CertificateDer, UnixTime};
use cohort_registry::{Registry, RegistryError, Selector, WatchRequest, keys, typed};
use cohort_server::member::Input;
use cohort_wire::http::Call;
use cohort_wire::hub::KILL as HUB_KILL;
use cohort_wire::intent::{AppIntent, SignedIntent, Wanted};
use cohort_wire::kill::{KillAnswer, KillScope, SignedKill};
use tokio::sync::watch;

use crate::proofs::{policy_of, proof_of};

use super::{bounded, fault, still_leads, tell, until_deposed, until_leading};
use crate::shared::{MemberHandle, Shared};
use cohort_wire::revocation::Revocations;

/// How long one watch of the registry is held, in milliseconds; a hub that hangs is noticed then.
const WATCH_MS: u64 = 10_000;
/// How long the hub may take to accept a kill register.
const KILL_DEADLINE: Duration = Duration::from_secs(5);
/// Pauses while the registry does not answer. Only leaders ask: shorter than for a whole fleet.
pub(super) const RETRY: Schedule =
    Schedule::new(Duration::from_millis(250), Duration::from_secs(5));

/// Keeps the member's view of the registry up to date while it leads. `away` counts the failures.
pub(super) async fn run(shared: Arc<Shared>, mut handle: MemberHandle, away: watch::Sender<u64>) {
    let mut pauses = RETRY.pauses();
    let mut unusable = BTreeSet::new();
    while let Some(term) = until_leading(&mut handle).await {
        match follow(&shared, &handle, term, &mut unusable).await {
            Ok(()) => pauses.reset(),
            Err(error) => {
                let told = tell(&handle, Errand::ReadRegistry, Err(error)).await;
                if !told || !handle.inputs.put(Input::Registry(None)).await {
                    return;
                }
                tokio::time::sleep(pauses.next_pause()).await;
                away.send_modify(|times| *times += 1);
            }
        }
    }
}

/// Reads everything, then again after every change that matters, for as long as this member leads.
async fn follow(
    shared: &Arc<Shared>,
    handle: &MemberHandle,
    term: Term,
    told: &mut BTreeSet<AppId>,
) -> Result<(), RegistryError> {
    let registry = &*shared.registry;
    let mut kill = shared.kill.subscribe();
    while still_leads(handle, term) {
        kill.mark_unchanged();
        // Before everything else is read: a change meanwhile is seen again, but not missed.
        let (_, revision) = typed::list(registry, keys::POLICIES).await?;
        show_loss(registry, handle, revision).await;
        let taken = take_kill_registers(shared).await?;
        let carried = carry_kill(shared).await;
        let (identity, known) = (shared.identity.current(), handle.view());
        let (roots, revocations) = (identity.roots(), shared.identity.revocations());
        let (now, state) = (UnixTime::now(), &known.state);
        let trust = Trust { roots, now, revocations, state };
        let (view, unusable) = read_view(registry, &trust).await?;
        let unusable = faults(&handle.view().state, &view, unusable);
        let mut ended = vec![(Errand::CarryKill, carried), (Errand::ReadRegistry, Ok(()))];
        ended.extend(taken);
        let before = std::mem::replace(told, unusable.keys().cloned().collect());
        let mended = before.difference(told).cloned();
        ended.extend(mended.map(|app| (Errand::ReadPolicy { app }, Ok(()))));
        let failed = unusable.into_iter().map(|(app, why)| (Errand::ReadPolicy { app }, Err(why)));
        ended.extend(failed);
        for (errand, ended) in ended {
            if !handle.inputs.put(Input::Errand { errand, ended }).await {
                return Ok(());
            }
        }
        if !handle.inputs.put(Input::Registry(Some(view))).await {
            return Ok(());
        }
        tokio::select! {
            changed = until_change(registry, &shared.group, revision + 1) => changed?,
            // The next leadership reads everything itself.
            () = until_deposed(handle, term) => {}
            // Given to an agent: the hub hears of it from the leader.
            _ = kill.changed() => {}
        }
    }
    Ok(())
}

/// Policies that the group cannot use, or ignores because it has removed the app since: the
/// registry is older than the group.
fn faults(state: &State, view: &RegistryView, unusable: Unusable) -> BTreeMap<AppId, HubFault> {
    let outlived = |(app, (revision, _)): (&AppId, &(Revision, Policy))| {
        let at = *state.removed.get(app)?;
        let ignored = !state.apps.contains_key(app) && state.outlived(app, *revision);
        ignored.then(|| (app.clone(), HubFault::Removed { at }))
    };
    view.policies.iter().filter_map(outlived).chain(unusable).collect()
}

/// Shows the hub that its registry went back, if its revision is below that of a policy that the
/// group has: it asks for what comes after that one. The answer, a refusal, is what `why` says of
/// the policy.
async fn show_loss(registry: &dyn Registry, handle: &MemberHandle, revision: u64) {
    let view = handle.view();
    let known = view.state.apps.values().map(|app| app.revision.0).max();
    if let Some(known) = known.filter(|known| *known > revision) {
        let select = Selector::Prefix(keys::POLICIES.to_owned());
        let request = WatchRequest { select, from_revision: known + 1, wait_ms: 0 };
        let _ = registry.watch(request).await;
    }
}

/// Waits for a change that a leader reads everything again for.
async fn until_change(
    registry: &dyn Registry,
    group: &GroupId,
    mut from_revision: u64,
) -> Result<(), RegistryError> {
    loop {
        let select = Selector::Prefix(keys::ROOT.to_owned());
        let request = WatchRequest { select, from_revision, wait_ms: WATCH_MS };
        let answer = match registry.watch(request).await {
            Err(RegistryError::Compacted { .. }) => return Ok(()),
            answer => answer?,
        };
        if answer.events.iter().any(|event| matters(group, event.key())) {
            return Ok(());
        }
        from_revision = answer.revision + 1;
    }
}

/// Whether the leader of a group decides anything by this record. Records of progress, written by
/// the hundred, do not matter.
fn matters(group: &GroupId, key: &str) -> bool {
    [keys::POLICIES, keys::REMOVED, keys::VERDICTS].iter().any(|root| key.starts_with(root))
        || key.ends_with("/info")
        || covering(group).iter().any(|scope| key == keys::kill(scope))
}

/// The scopes that cover a group. A leader reads no others: there may be one per group.
fn covering(group: &GroupId) -> [KillScope; 2] {
    [KillScope::Fleet, KillScope::Group(group.clone())]
}

/// How each errand of a list ended.
type Ended = Vec<(Errand, Result<(), HubFault>)>;

async fn take_kill_registers(shared: &Shared) -> Result<Ended, RegistryError> {
    let mut ended = Vec::new();
    for scope in covering(&shared.group) {
        let pair = typed::get(&*shared.registry, &keys::kill(&scope)).await?;
        let taken = match pair.map(|pair| serde_json::from_str::<SignedKill>(&pair.value)) {
            None => Ok(()),
            Some(Ok(register)) => {
                let offered = shared.kill.offer(vec![register]).await;
                offered.map(drop).map_err(|error| damaged(&error))
            }
            Some(Err(error)) => Err(damaged(&error)),
        };
        ended.push((Errand::ReadKill { scope }, taken));
    }
    Ok(ended)
}

fn damaged(error: &(dyn std::error::Error + 'static)) -> HubFault {
    HubFault::Damaged { text: bounded(chain(error)) }
}

/// Carries kill registers that were given to an agent to the hub: what counts there as well is
/// the operator's signature in them.
async fn carry_kill(shared: &Shared) -> Result<(), HubFault> {
    let mut carried = Ok(());
    for register in shared.kill.signed() {
        let call = Call::post(HUB_KILL, &register).deadline(KILL_DEADLINE).idempotent();
        let answer: Result<(usize, KillAnswer), _> =
            shared.client.call_any(&shared.hub, 0, call).await;
        if let Err(error) = answer {
            carried = Err(fault(&error.into()));
        }
    }
    carried
}

/// Apps about which the hub has something that proves nothing, or that this version cannot use.
type Unusable = BTreeMap<AppId, HubFault>;

/// What an operator wants of `app`, by its signature. One that the group has already accepted is
/// not proven again: its signer's certificate may have expired since.
fn proven(
    (app, signed): (AppId, SignedIntent),
    trust: &Trust<'_>,
) -> Result<AppIntent, (AppId, HubFault)> {
    let unproven = |text: String| HubFault::Unproven { text: bounded(text) };
    let known = |intent: &AppIntent| {
        let known = trust.state.apps.get(&app).filter(|known| known.revision == intent.revision);
        known.is_some_and(|known| policy_of(intent).is_ok_and(|policy| policy == *known.policy))
            || (intent.wanted == Wanted::Removal
                && trust.state.removed.get(&app).is_some_and(|at| *at >= intent.revision))
    };
    let revoked = trust.revocations.revokes_author_of(&signed.0);
    let intent = match signed.verify(trust.roots, trust.now) {
        Ok((_, intent)) if !revoked => intent,
        Ok((by, intent)) => match Some(intent).filter(known) {
            Some(intent) => intent,
            None => return Err((app, unproven(format!("the certificate of {by} is revoked")))),
        },
        Err(error) => match signed.unverified().ok().filter(known) {
            Some(intent) => intent,
            None => return Err((app, unproven(chain(&error)))),
        },
    };
    if intent.app != app {
        let text = format!("it is signed for {}", intent.app);
        return Err((app, unproven(text)));
    }
    Ok(intent)
}

/// What proves an intent.
#[derive(Clone, Copy)]
struct Trust<'a> {
    roots: &'a [CertificateDer<'static>],
    now: UnixTime,
    revocations: &'a Revocations,
    /// With the policies that the group has accepted.
    state: &'a State,
}

async fn read_view(
    registry: &dyn Registry,
    trust: &Trust<'_>,
) -> Result<(RegistryView, Unusable), RegistryError> {
    let mut unusable = Unusable::new();
    let mut view = RegistryView::default();
    for signed in typed::intents(registry, keys::POLICIES).await? {
        let proof = proof_of(&signed.1);
        let read = proven(signed, trust).and_then(|intent| {
            let policy = policy_of(&intent)
                .map_err(|text| (intent.app.clone(), HubFault::Damaged { text: bounded(text) }))?;
            Ok((intent, policy))
        });
        match read {
            Ok((intent, policy)) => {
                view.proofs.insert((intent.app.clone(), intent.revision), proof);
                view.policies.insert(intent.app, (intent.revision, policy));
            }
            Err((app, fault)) => {
                unusable.insert(app, fault);
            }
        }
    }
    for signed in typed::intents(registry, keys::REMOVED).await? {
        let proof = proof_of(&signed.1);
        match proven(signed, trust) {
            Ok(AppIntent { app, revision, wanted: Wanted::Removal, .. }) => {
                view.proofs.insert((app.clone(), revision), proof);
                view.removed.insert(app, revision);
            }
            Ok(AppIntent { app, .. }) => {
                let text = "it is signed as a policy, and shown as a removal".to_owned();
                unusable.insert(app, HubFault::Unproven { text });
            }
            Err((app, fault)) => {
                unusable.insert(app, fault);
            }
        }
    }
    view.unusable = unusable.keys().cloned().collect();
    for info in typed::group_infos(registry).await? {
        view.groups.insert(info.group, GroupInfo { labels: info.labels, platform: info.platform });
    }
    let (pairs, _) = typed::list(registry, keys::VERDICTS).await?;
    for pair in &pairs {
        if let Some(found) = typed::decode_verdict(pair)? {
            view.verdicts.push(ForeignVerdict {
                group: found.group,
                app: found.app,
                version: found.version,
                platform: found.platform,
                bad: found.record.bad.map(Reason::shortened),
            });
        }
    }
    Ok((view, unusable))
}

#[cfg(test)]
mod read_registry_test {
    use std::sync::Arc;

    use async_trait::async_trait;
    use cohort_core::ids::{AppId, GroupId};
    use cohort_identity::{Identity, Peer, Role};
    use cohort_registry::records::{IntentRecord, SCHEMA, encode};
    use cohort_registry::{
        EmbeddedRegistry, Op, RangeAnswer, RangeRequest, Registry, RegistryError, Txn, TxnAnswer,
        WatchAnswer, WatchRequest, keys,
    };
    use cohort_server::member::View;
    use cohort_wire::kill::KillRegister;
    use parking_lot::Mutex;

    use super::{
        AppIntent, Duration, Errand, HubFault, KillScope, RegistryView, Revision, Revocations,
        SignedIntent, SignedKill, State, Trust, UnixTime, Unusable, Wanted, faults, matters,
        read_view, show_loss, take_kill_registers, typed,
    };
    use crate::testing::{GROUP, Lab, apply, founded, handle, policy};

    /// Notes which revisions are watched from.
    #[derive(Default)]
    struct Watched(Mutex<Vec<u64>>);

    #[async_trait]
    impl Registry for Watched {
        async fn range(&self, _: RangeRequest) -> Result<RangeAnswer, RegistryError> {
            unreachable!("nothing is read")
        }

        async fn txn(&self, _: Txn) -> Result<TxnAnswer, RegistryError> {
            unreachable!("nothing is written")
        }

        async fn watch(&self, request: WatchRequest) -> Result<WatchAnswer, RegistryError> {
            self.0.lock().push(request.from_revision);
            Err(RegistryError::WentBack { asked: request.from_revision, revision: 0 })
        }
    }

    /// A file that was restored in place looks like the one that was there.
    #[tokio::test]
    async fn a_registry_that_is_older_than_a_policy_of_the_group_is_shown_that() {
        let (lab, registry) = (Lab::new().await, Watched::default());
        let mut state = founded();
        apply(&mut state, policy());
        let view = View { state: Arc::new(state), ..lab.leading() };
        let (handle, _views, _queue) = handle(view);
        show_loss(&registry, &handle, 1).await;
        assert!(registry.0.lock().is_empty(), "it has the policy's revision");
        show_loss(&registry, &handle, 0).await;
        assert_eq!(*registry.0.lock(), [2]);
    }

    #[test]
    fn a_policy_of_an_app_that_the_group_has_removed_since_is_told() {
        let app = AppId::new("web").unwrap();
        let mut state = founded();
        apply(&mut state, policy());
        state.removed.insert(app.clone(), Revision(7));
        let told = |state: &State, revision| {
            let mut view = RegistryView::default();
            let policy = serde_json::json!({ "app": "web", "channel": "stable" });
            let policy = serde_json::from_value(policy).unwrap();
            view.policies.insert(app.clone(), (Revision(revision), policy));
            faults(state, &view, Unusable::new()).remove(&app)
        };
        assert_eq!(told(&state, 7), None, "the group has the app");
        state.apps.clear();
        assert_eq!(told(&state, 7), Some(HubFault::Removed { at: Revision(7) }));
        assert_eq!(told(&state, 8), None, "it was added again");
    }

    /// What the hub may have of the app, signed by whom, under which key.
    fn put(key: String, signer: &Identity, intent: &AppIntent) -> Op {
        let signed = SignedIntent::sign(signer, intent).unwrap();
        Op::put(key, encode(&IntentRecord { schema: SCHEMA, signed }))
    }

    fn stable(revision: u64) -> AppIntent {
        let policy = serde_json::json!({ "app": "web", "channel": "stable" });
        let (app, wanted) = (AppId::new("web").unwrap(), Wanted::Policy(policy));
        AppIntent { app, revision: Revision(revision), wanted, at: 1 }
    }

    /// What a leader makes of a registry in which the hub has put only this.
    async fn seen(
        registry: &EmbeddedRegistry,
        trust: &Trust<'_>,
        op: Op,
    ) -> (RegistryView, Unusable) {
        for prefix in [keys::POLICIES, keys::REMOVED] {
            let (items, _) = typed::list(registry, prefix).await.unwrap();
            let then: Vec<Op> =
                items.into_iter().map(|pair| Op::Delete { key: pair.key }).collect();
            registry.txn(Txn { then, ..Txn::default() }).await.unwrap();
        }
        registry.txn(Txn { then: vec![op], ..Txn::default() }).await.unwrap();
        read_view(registry, trust).await.unwrap()
    }

    /// The hub as attacker: it keeps what operators sign, and can forge, change and swap it.
    #[tokio::test]
    async fn only_what_an_operator_signed_is_a_policy_or_a_removal() {
        let lab = Lab::new().await;
        let (registry, state) = (lab.registry(), founded());
        let who = |role| lab.slot_of(&Peer::new(role, "ana").unwrap()).current();
        let (operator, app) = (who(Role::Operator), AppId::new("web").unwrap());
        let (roots, now, revocations) =
            (operator.roots(), UnixTime::now(), &Revocations::default());
        let trust = Trust { roots, now, revocations, state: &state };
        let (policy, removed) = (|| keys::policy(&app), || keys::removed(&app));
        let good = put(policy(), &operator, &stable(5));
        let (view, unusable) = seen(&registry, &trust, good).await;
        assert_eq!(view.policies.get(&app).map(|known| known.0), Some(Revision(5)));
        assert_eq!(unusable, Unusable::new());

        let removal = AppIntent { wanted: Wanted::Removal, ..stable(9) };
        let other = AppIntent { app: AppId::new("db").unwrap(), ..stable(9) };
        let invalid = serde_json::json!({ "app": "web", "channel": "stable",
            "check": [{ "type": "http", "path": "@elsewhere/" }] });
        let invalid = AppIntent { wanted: Wanted::Policy(invalid), ..stable(9) };
        let mut changed = SignedIntent::sign(&operator, &stable(5)).unwrap();
        changed.0.body = serde_json::to_vec(&stable(9)).unwrap();
        let changed = encode(&IntentRecord { schema: SCHEMA, signed: changed });
        let attacks = [
            put(policy(), &who(Role::Hub), &stable(9)),
            put(policy(), &who(Role::Agent), &stable(9)),
            put(policy(), &who(Role::Publisher), &stable(9)),
            put(policy(), &operator, &other),
            put(policy(), &operator, &removal),
            put(policy(), &operator, &invalid),
            Op::put(policy(), changed),
            put(removed(), &operator, &stable(9)),
            put(removed(), &who(Role::Hub), &removal),
        ];
        for (n, attack) in attacks.into_iter().enumerate() {
            let (view, unusable) = seen(&registry, &trust, attack).await;
            assert!(view.policies.is_empty() && view.removed.is_empty(), "attack {n}");
            assert!(unusable.contains_key(&app), "attack {n}");
        }
    }

    /// A group does not lose its policy when the operator who signed it leaves; a new one takes
    /// none that nobody vouches for any more.
    #[tokio::test]
    async fn an_expired_signature_proves_only_what_the_group_has_already() {
        let lab = Lab::new().await;
        let registry = lab.registry();
        let operator = lab.slot_of(&Peer::new(Role::Operator, "ana").unwrap()).current();
        let app = AppId::new("web").unwrap();
        let mut state = founded();
        apply(&mut state, policy());
        let later = UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs() << 1));
        let at = |intent: &AppIntent| put(keys::policy(&app), &operator, intent);
        let (roots, revocations) = (operator.roots(), &Revocations::default());
        let trust = Trust { roots, now: later, revocations, state: &state };
        let (view, unusable) = seen(&registry, &trust, at(&stable(1))).await;
        assert!(view.policies.contains_key(&app) && unusable.is_empty());
        let beta = serde_json::json!({ "app": "web", "channel": "beta" });
        let beta = AppIntent { wanted: Wanted::Policy(beta), ..stable(1) };
        let none = founded();
        let new = Trust { state: &none, ..trust };
        for (trust, intent) in [(&trust, beta), (&trust, stable(2)), (&new, stable(1))] {
            let (view, unusable) = seen(&registry, trust, at(&intent)).await;
            assert!(view.policies.is_empty(), "{intent:?}");
            assert!(matches!(unusable[&app], HubFault::Unproven { .. }), "{unusable:?}");
        }
    }

    #[tokio::test]
    async fn a_damaged_register_in_the_registry_does_not_hide_a_healthy_one() {
        let lab = Lab::new().await;
        let registry = lab.registry();
        let shared = lab.agent_over("s1", Arc::clone(&registry) as _).await;
        let operator = lab.slot_of(&Peer::new(Role::Operator, "ana").unwrap()).current();
        let scope = KillScope::Group(GROUP.parse().unwrap());
        let (key, reason) = (keys::kill(&scope), "bad night".to_owned());
        let register = KillRegister { scope, epoch: 1, on: true, reason, at: 0 };
        let signed = SignedKill::sign(&operator, &register).unwrap();
        let signed = serde_json::to_string(&signed).unwrap();
        let fleet = keys::kill(&KillScope::Fleet);
        let then = vec![Op::put(fleet, "{".to_owned()), Op::put(key, signed)];
        registry.txn(Txn { then, ..Txn::default() }).await.unwrap();
        let ended = take_kill_registers(&shared).await.unwrap();
        assert_eq!(shared.kill.on().as_deref(), Some("bad night"));
        for (errand, ended) in ended {
            let Errand::ReadKill { scope } = errand else { panic!("{errand:?}") };
            let damaged = matches!(ended, Err(HubFault::Damaged { .. }));
            assert_eq!(damaged, scope == KillScope::Fleet, "{scope}: {ended:?}");
        }
    }

    #[test]
    fn progress_of_other_groups_is_no_reason_to_read_everything_again() {
        let (app, group) = (AppId::new("web").unwrap(), GroupId::new("intel.a").unwrap());
        let matters = |key: String| matters(&group, &key);
        assert!(matters(keys::policy(&app)));
        assert!(matters(keys::group_info(&group)));
        assert!(!matters(keys::group_record(&group, &app)));
        assert!(!matters(keys::members(&group)));
        assert!(matters(keys::kill(&KillScope::Fleet)));
        assert!(matters(keys::kill(&KillScope::Group(group.clone()))));
        assert!(!matters(keys::kill(&KillScope::Group(GroupId::new("intel.b").unwrap()))));
    }
}
