use std::collections::BTreeMap;

use cohort_core::doing::{Doing, Download};
use cohort_core::ids::{AppId, ServerId};
use cohort_core::report::Step;
use cohort_core::state::{APPS_MAX, SERVERS_MAX};

use crate::contacts::Contacts;

fn server(n: usize) -> ServerId {
    ServerId::new(format!("s{n}")).unwrap()
}

fn doing(step: Step) -> BTreeMap<AppId, Doing> {
    BTreeMap::from([(AppId::new("web").unwrap(), Doing::Step { step })])
}

#[test]
fn an_older_contact_does_not_replace_a_newer_one() {
    let mut contacts = Contacts::default();
    contacts.heard(10_000, &server(1), 0, doing(Step::Check));
    contacts.heard(10_500, &server(1), 2_000, doing(Step::Drain));
    let known = contacts.of(&server(1)).unwrap();
    assert_eq!((known.at_ms, &known.doing), (10_000, &doing(Step::Check)));
    assert_eq!(contacts.ages_ms(10_700), BTreeMap::from([(server(1), 700)]));
}

#[test]
fn what_a_server_says_is_bounded() {
    let mut contacts = Contacts::default();
    let app = |n: usize| AppId::new(format!("app-{n:04}")).unwrap();
    let doing = Doing::Download(Download::Failed { tries: 1, error: "é".repeat(500) });
    let many = (0..APPS_MAX + 5).map(|n| (app(n), doing.clone())).collect();
    contacts.heard(0, &server(1), 0, many);
    let known = &contacts.of(&server(1)).unwrap().doing;
    assert_eq!(known.len(), APPS_MAX);
    let error = "é".repeat(100);
    let bounded = Doing::Download(Download::Failed { tries: 1, error });
    assert!(known.values().all(|doing| *doing == bounded));
}

#[test]
fn the_number_of_servers_is_bounded_and_known_ones_are_still_heard() {
    let mut contacts = Contacts::default();
    for n in 0..=SERVERS_MAX {
        contacts.heard(0, &server(n), 0, BTreeMap::new());
    }
    contacts.heard(5, &server(0), 0, BTreeMap::new());
    assert_eq!(contacts.of(&server(SERVERS_MAX)), None);
    assert_eq!(contacts.of(&server(0)).unwrap().at_ms, 5);
}

#[test]
fn recent_contacts_are_passed_on_in_batches_and_kill_registers_always() {
    let mut contacts = Contacts::default();
    assert_eq!(contacts.batches(0), vec![Contacts::default()], "one call all the same");
    for n in 0..120 {
        contacts.heard(10_000, &server(n), if n < 10 { 2_001 } else { 0 }, BTreeMap::new());
    }
    let batches = contacts.batches(10_000);
    let ages = |batch: &Contacts| batch.ages_ms(12_000);
    assert_eq!(batches.iter().map(|batch| ages(batch).len()).collect::<Vec<_>>(), [50, 50, 10]);
    assert!(batches.iter().all(|batch| batch.of(&server(3)).is_none()), "too old");
    assert!(ages(&batches[2]).values().all(|age_ms| *age_ms == 2_000), "older when sent later");
}

#[test]
fn servers_that_left_are_forgotten() {
    let mut contacts = Contacts::default();
    contacts.heard(0, &server(1), 0, doing(Step::Check));
    contacts.heard(0, &server(2), 0, doing(Step::Check));
    contacts.retain(|known| *known == server(2));
    let steps = contacts.steps();
    assert_eq!(steps, BTreeMap::from([((AppId::new("web").unwrap(), server(2)), Step::Check)]));
}
