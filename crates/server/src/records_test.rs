use std::collections::BTreeMap;

use cohort_consensus::{Configuration, RaftId};
use cohort_core::command::COMMAND_VERSION;
use cohort_core::ids::{AppId, ClockMs, Digest, GroupId, Incarnation, Revision, ServerId, Version};
use cohort_core::phase::PhaseName;
use cohort_core::policy::Policy;
use cohort_core::reason::Reason;
use cohort_core::refused::{Refused, Role, WhyRefused};
use cohort_core::release::{Release, Rollback};
use cohort_core::report::REPORT_TEXT_BYTES_MAX;
use cohort_core::state::Process;
use cohort_core::state::{Ending, HistoryEntry, Verdict};
use cohort_core::{Body, Command, Offer, State};

use crate::membership::{Founder, founding_state};
use crate::offers::judge;
use crate::records::{Record, Written, due};

fn web() -> AppId {
    AppId::new("web").unwrap()
}

fn group() -> State {
    let founder = Founder {
        server: ServerId::new("s1").unwrap(),
        address: "s1:1".into(),
        rack: None,
        process: Process::default(),
        labels: BTreeMap::from([("zone".into(), "a".into())]),
        platform: "intel".parse().unwrap(),
    };
    founding_state(GroupId::new("g").unwrap(), Incarnation(1), founder)
}

fn apply(state: &mut State, body: Body) {
    let (version, incarnation) = (COMMAND_VERSION, Incarnation(1));
    let command = Command { version, incarnation, actor: "test".into(), request: None, body };
    state.apply(&command).unwrap();
}

fn release(version: &str) -> Release {
    let digest = |c: &str| Digest::new(c.repeat(64)).unwrap();
    Release {
        version: Version::new(version).unwrap(),
        platform: "intel".parse().unwrap(),
        artifact: digest("a"),
        manifest: digest("b"),
        length: 1,
        unpacked_bytes: 64 << 30,
        entries: 250_000,
        rollback: Rollback::Revert,
    }
}

fn voters() -> Configuration {
    Configuration::of([RaftId(1)], [])
}

#[test]
fn a_new_leadership_writes_the_groups_labels_and_members_once() {
    let state = group();
    let mut written = Written::default();
    let records = due(&state, &voters(), &written);
    let [Record::Bootstrap { incarnation }, Record::Members(members), Record::Info { .. }] =
        &records[..]
    else {
        panic!("{records:?}")
    };
    assert_eq!(*incarnation, state.incarnation);
    assert!(members[0].voter);
    for record in records {
        assert_eq!(written.took(record), None);
    }
    assert_eq!(due(&state, &voters(), &written), []);
    let records = due(&state, &Configuration::of([], [RaftId(1)]), &written);
    assert!(matches!(&records[..], [Record::Members(members)] if !members[0].voter));
}

#[test]
fn a_record_is_due_until_the_group_knows_that_it_is_written() {
    let mut state = group();
    let policy: Policy =
        serde_json::from_value(serde_json::json!({"app": "web", "channel": "stable"})).unwrap();
    apply(&mut state, Body::SetPolicy { revision: Revision(1), policy, proof: Default::default() });
    let mut written = Written::default();
    for record in due(&state, &voters(), &written) {
        if !matches!(record, Record::Progress(_)) {
            written.took(record);
        }
    }
    if let Some(app) = state.apps.get_mut(&web()) {
        app.record = 1;
        app.verdicts_due = vec![Verdict {
            version: Version::new("1.0.0").unwrap(),
            platform: "intel".parse().unwrap(),
            bad: Some(Reason::Aborted { by: "ana".into(), text: "ä".repeat(10_000) }),
        }];
    }
    let records = due(&state, &voters(), &written);
    let [Record::Progress(progress), Record::Verdict { verdict, .. }] = &records[..] else {
        panic!("{records:?}")
    };
    let Some(Reason::Aborted { text, .. }) = &verdict.bad else { panic!("{verdict:?}") };
    assert!(text.len() <= REPORT_TEXT_BYTES_MAX, "other groups read it");
    assert_eq!((progress.phase, progress.sequence), (PhaseName::Empty, 1));
    assert_eq!(records, due(&state, &voters(), &written), "written again while nobody says so");
    for record in records {
        let body = written.took(record).expect("the group hears of it");
        apply(&mut state, body);
    }
    assert_eq!(due(&state, &voters(), &written), []);
}

#[test]
fn a_new_leadership_writes_again_what_the_registry_may_have_lost() {
    let mut state = group();
    let policy: Policy =
        serde_json::from_value(serde_json::json!({"app": "web", "channel": "stable"})).unwrap();
    apply(&mut state, Body::SetPolicy { revision: Revision(1), policy, proof: Default::default() });
    let app = state.apps.get_mut(&web()).unwrap();
    let (good, ending) = (release("1.0.0"), Ending::Completed);
    let (at, by) = (ClockMs(1), "leader".to_owned());
    app.last_good = Some(good.clone());
    let ended = HistoryEntry {
        version: good.version.clone(),
        ending,
        reason: None,
        by,
        started: at,
        ended: at,
        waves: 1,
    };
    app.history = vec![ended.clone()].into();
    (app.record, app.record_written) = (3, 3);
    let mut written = Written::default();
    let records = due(&state, &voters(), &written);
    let [.., Record::Progress(progress), Record::Verdict { verdict, due: false, .. }] =
        &records[..]
    else {
        panic!("{records:?}")
    };
    assert_eq!((progress.sequence, progress.due), (3, false));
    assert_eq!((&verdict.version, &verdict.bad), (&good.version, &None));
    for record in records {
        assert_eq!(written.took(record), None, "the group knows");
    }
    assert_eq!(due(&state, &voters(), &written), []);
    // Nobody judged a release that was found on the servers.
    let adopted = HistoryEntry { ending: Ending::Adopted, ..ended };
    state.apps.get_mut(&web()).unwrap().history = vec![adopted].into();
    let records = due(&state, &voters(), &Written::default());
    assert!(!records.iter().any(|record| matches!(record, Record::Verdict { .. })), "{records:?}");
}

#[test]
fn what_the_mirrors_refused_says_more_than_that_nothing_is_known() {
    let release = release("1.0.0");
    let away = Refused::from(WhyRefused::Unreachable { file: "timestamp.json".into() });
    let absent = Refused::from(WhyRefused::NotRead);
    let forged = Refused::from(WhyRefused::WrongSignature { role: Role::Targets });
    // A verified local release stays an offer, whatever the mirrors say now.
    assert_eq!(judge(Ok(release.clone()), Err(&forged)), Offer::Release(release));
    assert_eq!(judge(Err(absent.clone()), Err(&forged)), Offer::Refused(forged.clone()));
    assert_eq!(judge(Err(absent.clone()), Err(&away)), Offer::Unknown(absent.clone()));
    let none = Refused::from(WhyRefused::NoMirror);
    assert_eq!(judge(Err(absent.clone()), Err(&none)), Offer::Unknown(none), "nothing is refused");
    assert_eq!(judge(Err(absent.clone()), Ok(())), Offer::Unknown(absent));
    assert_eq!(judge(Err(away.clone()), Ok(())), Offer::Unknown(away));
    assert_eq!(judge(Err(forged.clone()), Ok(())), Offer::Refused(forged));
}
