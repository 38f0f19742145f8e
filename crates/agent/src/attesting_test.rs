use std::sync::Arc;

use cohort_core::ids::Incarnation;
use cohort_identity::{Alpn, UnixTime};
use cohort_registry::attest::Attestation;
use cohort_registry::records::{BootstrapRecord, SCHEMA, Stamp, VerdictRecord, encode};
use cohort_registry::{Compare, Op, keys};
use cohort_server::records::{Record, Written, due};
use cohort_wire::http::Handler;

use super::{Attesting, follows, group_info, members_record, progress_record};
use crate::member::View;
use crate::testing::{GROUP, Lab, add, apply, founded, handle, policy, server, web};

/// A group of `s1` and `s2`, which both carry a member, with the app `web`.
fn with_web(lab: &Lab) -> View {
    let mut state = founded();
    apply(&mut state, add("s2"));
    apply(&mut state, cohort_core::Body::AllocateMember { server: server("s2") });
    apply(&mut state, policy());
    View { state: Arc::new(state), ..lab.leading() }
}

fn stamp_of(view: &View) -> Stamp {
    let (term, index) = (view.raft.term.0, view.raft.applied.0);
    Stamp { incarnation: view.state.incarnation, term, index }
}

/// What an honest leader writes, by this view and at this stamp.
fn written(view: &View, stamp: Stamp) -> Vec<Op> {
    let group = || view.state.group.clone();
    let records = due(&view.state, &view.raft.configuration, &Written::default());
    let op = |record: Record| match record {
        Record::Info { labels, platform } => {
            let info = group_info(group(), labels, platform);
            Op::put(keys::group_info(&group()), encode(&info))
        }
        Record::Bootstrap { incarnation } => {
            let record = BootstrapRecord::restored(group(), incarnation, server("s1"));
            Op::put(keys::bootstrap(&group()), encode(&record))
        }
        Record::Members(members) => {
            let record = members_record(group(), stamp, members);
            Op::put(keys::members(&group()), encode(&record))
        }
        Record::Progress(progress) => {
            let key = keys::group_record(&group(), &progress.app);
            Op::put(key, encode(&progress_record(group(), stamp, 17, progress)))
        }
        other => panic!("{other:?}"),
    };
    records.into_iter().map(op).collect()
}

#[tokio::test]
async fn a_member_attests_what_its_own_state_says_and_nothing_else() {
    let lab = Lab::new().await;
    let view = with_web(&lab);
    let true_ones = written(&view, stamp_of(&view));
    assert_eq!(true_ones.len(), 4);
    for op in &true_ones {
        assert!(follows(&view, &server("s1"), op), "{op:?}");
    }
    let leads = |op: &Op| follows(&view, &server("s1"), op);
    // Stamps that would keep later records out.
    for stamp in [
        Stamp { term: u64::MAX, ..stamp_of(&view) },
        Stamp { index: view.raft.applied.0 + 1, ..stamp_of(&view) },
        Stamp { incarnation: Incarnation(2), ..stamp_of(&view) },
    ] {
        for op in written(&view, stamp) {
            let stamped = op.key().ends_with("/members") || op.key().ends_with("/record");
            assert_eq!(leads(&op), !stamped, "{op:?}");
        }
    }
    // Somebody else as the author of the bootstrap, or another incarnation.
    let bootstrap = keys::bootstrap(&view.state.group);
    let by_s3 = true_ones.iter().find(|op| op.key() == bootstrap).unwrap();
    assert!(!follows(&view, &server("s3"), by_s3));
    // A group of its own, and a verdict that nobody reached.
    let alone = members_record(view.state.group.clone(), stamp_of(&view), Vec::new());
    let bad = VerdictRecord { schema: SCHEMA, bad: None, stamp: stamp_of(&view) };
    let (version, platform) = ("1.0.0".parse().unwrap(), view.state.platform.clone().unwrap());
    let verdict = keys::verdict(&web(), &version, &platform, &view.state.group);
    let record = keys::group_record(&view.state.group, &web());
    let foreign = keys::members(&"other".parse().unwrap());
    for op in [
        Op::put(keys::members(&view.state.group), encode(&alone)),
        Op::put(verdict.clone(), encode(&bad)),
        Op::Delete { key: verdict },
        Op::Delete { key: record },
        Op::Delete { key: keys::members(&view.state.group) },
        Op::put(keys::policy(&web()), "{}"),
        Op::put(foreign, "{}"),
        Op::put("/elsewhere", "{}"),
    ] {
        assert!(!leads(&op), "{op:?}");
    }
    // Of an app that the group does not have, nothing stays.
    let gone = keys::group_record(&view.state.group, &"db".parse().unwrap());
    assert!(leads(&Op::Delete { key: gone }));
}

#[tokio::test]
async fn the_leader_gets_the_signatures_of_members_that_say_the_same() {
    let lab = Lab::new().await;
    let (leader, follower) = (lab.agent("s1", None).await, lab.agent("s2", None).await);
    let address = lab.serve_control(&follower).await;
    let mut view = with_web(&lab);
    let mut state = (*view.state).clone();
    state.servers.get_mut(&server("s2")).unwrap().address = address;
    view.state = Arc::new(state);
    let (own, views, _queue) = handle(view.clone());
    let (theirs, _others, _queue) = handle(view.clone());
    follower.member.send_replace(Some(theirs));
    let attesting = Attesting { shared: &leader, handle: &own };
    let changes = written(&view, stamp_of(&view));
    let same = |op: &Op| Compare::unchanged_since(op.key(), 7);
    let bound = |changes: &[Op]| changes.iter().map(same).collect::<Vec<_>>();
    let compare = bound(&changes);
    let attested = attesting.attested(&compare, &changes).await;
    let [attestation] = attested.as_slice() else { panic!("{attested:?}") };
    let roots = leader.identity.current();
    let verify = |changes: &[Op]| {
        let group = GROUP.parse().unwrap();
        attestation.verify(roots.roots(), &group, (&compare, changes), UnixTime::now())
    };
    assert_eq!(verify(&changes).unwrap(), server("s2"));
    assert!(verify(&changes[1..]).is_err());
    // Nothing that could be used again later.
    assert!(attesting.attested(&[], &changes).await.is_empty());
    // A leader that says something else, or something that the member has not applied, gets none.
    let lie = written(&view, Stamp { term: u64::MAX, ..stamp_of(&view) });
    assert!(attesting.attested(&bound(&lie), &lie).await.is_empty());
    let mut ahead = view.clone();
    ahead.raft.applied.0 += 1;
    views.send_replace(Arc::new(ahead));
    assert!(attesting.attested(&compare, &changes).await.is_empty());
}

/// It answers first, so that nobody waits for the others.
#[tokio::test]
async fn a_signature_that_does_not_verify_is_none() {
    let lab = Lab::new().await;
    let leader = lab.agent("s1", None).await;
    let mut view = with_web(&lab);
    let changes = written(&view, stamp_of(&view));
    let compare = [Compare::unchanged_since("/elsewhere", 7)];
    let signed = |by: &str, changes: &[Op]| {
        let identity = lab.slot(by).current();
        Attestation::sign(&identity, &GROUP.parse().unwrap(), &compare, changes).unwrap()
    };
    for junk in [signed("s2", &changes[1..]), signed("s3", &changes)] {
        let router = axum::Router::new().route(
            cohort_registry::attest::ATTEST,
            axum::routing::post(async move || axum::Json(junk)),
        );
        let address = lab.serve("s2", Alpn::Control, Handler::Http(router)).await;
        let mut state = (*view.state).clone();
        state.servers.get_mut(&server("s2")).unwrap().address = address;
        view.state = Arc::new(state);
        let (own, _views, _queue) = handle(view.clone());
        let attesting = Attesting { shared: &leader, handle: &own };
        assert!(attesting.attested(&compare, &changes).await.is_empty());
    }
}
