use std::collections::BTreeSet;
use std::fs;

use cohort_core::ids::Digest;
use cohort_core::orders::MemberAddress;
use cohort_wire::agent::CONTROL_VERSION;

use crate::testing::{GROUP, Lab, web};

fn digests(bytes: &[&str]) -> BTreeSet<Digest> {
    bytes.iter().map(|byte| byte.repeat(32).parse().unwrap()).collect()
}

#[tokio::test]
async fn no_artifact_may_go_before_every_app_on_disk_has_said_what_it_keeps() {
    let lab = Lab::new().await;
    let shared = lab.agent("s1", None).await;
    let app_on_disk = |name: &str| fs::create_dir_all(lab.path("s1").join("apps").join(name));
    assert_eq!(shared.keep_of_all(), None, "no app is on the disk");
    app_on_disk("web").unwrap();
    assert_eq!(shared.keep_of_all(), None);
    shared.keep(&web(), digests(&["aa", "bb"]));
    assert_eq!(shared.keep_of_all(), Some(digests(&["aa", "bb"])));
    app_on_disk("db").unwrap();
    assert_eq!(shared.keep_of_all(), None);
    shared.keep(&"db".parse().unwrap(), digests(&["bb", "cc"]));
    assert_eq!(shared.keep_of_all(), Some(digests(&["aa", "bb", "cc"])));
    shared.keep(&web(), BTreeSet::new());
    assert_eq!(shared.keep_of_all(), Some(digests(&["bb", "cc"])), "the last word counts");
}

#[tokio::test]
async fn only_directories_named_like_an_app_are_apps() {
    let lab = Lab::new().await;
    let shared = lab.agent("s1", None).await;
    assert!(shared.apps_on_disk().unwrap().is_empty(), "before the first app");
    let apps = lab.path("s1").join("apps");
    for folder in ["web", "lost+found", ".web.old"] {
        fs::create_dir_all(apps.join(folder)).unwrap();
    }
    fs::write(apps.join("notes"), "a file whose name an app could have").unwrap();
    assert_eq!(shared.apps_on_disk().unwrap(), BTreeSet::from([web()]));
    shared.keep(&web(), digests(&["aa"]));
    assert_eq!(shared.keep_of_all(), Some(digests(&["aa"])), "what else is there keeps nothing");
    fs::remove_dir_all(&apps).unwrap();
    fs::write(&apps, "").unwrap();
    assert!(shared.apps_on_disk().is_err());
    assert_eq!(shared.keep_of_all(), None);
}

#[tokio::test]
async fn the_leader_is_the_member_that_others_named_last() {
    let lab = Lab::new().await;
    let shared = lab.agent("s9", None).await;
    let members = [1, 2].map(|number| MemberAddress {
        server: format!("s{number}").parse().unwrap(),
        address: format!("10.0.0.{number}:1"),
        member: cohort_core::ids::MemberId(number),
    });
    assert_eq!(shared.leader(), None);
    shared.learn_leader(Some(&members[0].server), &members);
    let leader = shared.leader().unwrap();
    assert_eq!((leader.server.as_str(), leader.address.as_str()), ("s1", "10.0.0.1:1"));
    shared.learn_leader(None, &members);
    shared.learn_leader(Some(&"s7".parse().unwrap()), &members);
    assert_eq!(shared.leader(), Some(leader), "who is unknown is not believed");
}

#[tokio::test]
async fn messages_of_another_group_or_version_are_refused() {
    let lab = Lab::new().await;
    let shared = lab.agent("s1", None).await;
    let (own, other) = (GROUP.parse().unwrap(), "linux-arm".parse().unwrap());
    assert_eq!(shared.same_group(&own, CONTROL_VERSION), Ok(()));
    assert_eq!(shared.same_group(&own, CONTROL_VERSION + 1).unwrap_err().status, 400);
    assert_eq!(shared.same_group(&other, CONTROL_VERSION).unwrap_err().status, 409);
}
