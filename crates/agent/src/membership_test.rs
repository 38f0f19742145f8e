use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use axum::routing::post;
use axum::{Json, Router};
use cohort_consensus::RaftId;
use cohort_core::ids::{Incarnation, MemberId, ServerId};
use cohort_core::orders::MemberAddress;
use cohort_identity::Alpn;
use cohort_registry::{EmbeddedRegistry, typed};
use cohort_server::membership::LOOK_EVERY_MS;
use cohort_store::{Identity, RedbStore};
use cohort_wire::agent::{CLAIM_MEMBER, ClaimMemberAnswer, ToGroup};
use cohort_wire::http::Handler;
use tokio::sync::mpsc::unbounded_channel;
use tokio::sync::watch;
use tokio::time::{Duration, timeout};

use super::{Starter, learn, retire, run_thread, watch_retirement};
use crate::error::AgentError;
use crate::join::Joined;
use crate::metrics::Rollout;
use crate::shared::{MemberHandle, Shared};
use crate::tasks::Tasks;
use crate::testing::{GROUP, Lab, add, apply, founded, handle, joined, policy, received, server};

/// The time of enough looks for one that asks the registry although there is a leader.
const LOOKS: Duration = Duration::from_millis(LOOK_EVERY_MS * 13);

/// An agent on `s1`, and the registry that it asks.
struct World {
    lab: Lab,
    registry: Arc<EmbeddedRegistry>,
    shared: Arc<Shared>,
}

impl World {
    /// `first` founds the group, says the registry.
    async fn new(first: &str) -> World {
        let lab = Lab::new().await;
        let registry = lab.registry();
        let shared = lab.agent_over("s1", Arc::clone(&registry) as _).await;
        let world = World { lab, registry, shared };
        typed::bootstrap_group(&*world.registry, &world.shared.group, &server(first))
            .await
            .unwrap();
        world
    }

    fn starter(&self) -> Starter {
        let orders = self.shared.orders.subscribe();
        Starter { shared: Arc::clone(&self.shared), joined: joined(), orders }
    }

    fn data(&self, name: &str) -> PathBuf {
        self.lab.path("s1").join(name)
    }

    async fn incarnation(&self) -> Incarnation {
        let bootstrap = typed::read_bootstrap(&*self.registry, &self.shared.group).await;
        bootstrap.unwrap().unwrap().incarnation
    }

    async fn recover(&self, first: &ServerId) -> Incarnation {
        let (group, old) = (&self.shared.group, self.incarnation().await);
        let next = typed::recover_group(&*self.registry, group, old, first, "a test").await;
        next.unwrap().unwrap().incarnation
    }

    /// A log on the disk.
    fn log(&self, group: &str, incarnation: Incarnation, member: u64) {
        let folder = self.data("member");
        fs::create_dir_all(&folder).unwrap();
        let raft_id = RaftId(member);
        let identity = Identity { group: group.to_owned(), incarnation: incarnation.0, raft_id };
        RedbStore::create(&folder, &identity).unwrap();
    }

    /// The member that runs, after it leads.
    async fn leads(&self) -> MemberHandle {
        let mut handle = self.shared.handle().unwrap();
        handle.view.wait_for(|view| view.leads()).await.unwrap();
        handle
    }
}

async fn end(mut handle: MemberHandle) {
    handle.inputs.stop().await.unwrap().await.unwrap();
    handle.ended.wait_for(|ended| *ended).await.unwrap();
}

#[tokio::test]
async fn the_first_server_founds_the_group_and_a_restarted_agent_opens_its_log() {
    let world = World::new("s1").await;
    world.starter().run().await.unwrap();
    let handle = world.leads().await;
    let started = (handle.incarnation, handle.member);
    assert_eq!(started, (world.incarnation().await, MemberId(1)));
    let state = Arc::clone(&handle.view.borrow().state);
    assert!(state.servers.contains_key(&server("s1")));
    end(handle).await;
    world.starter().run().await.unwrap();
    let handle = world.leads().await;
    assert_eq!((handle.incarnation, handle.member), started);
    assert_eq!(handle.view.borrow().state.servers, state.servers);
    end(handle).await;
}

#[tokio::test]
async fn a_founding_that_a_crash_cut_short_is_completed() {
    let world = World::new("s1").await;
    let incarnation = world.incarnation().await;
    world.log(GROUP, incarnation, 1);
    world.starter().run().await.unwrap();
    let handle = world.leads().await;
    assert_eq!((handle.incarnation, handle.member), (incarnation, MemberId(1)));
    end(handle).await;
}

#[tokio::test]
async fn the_log_of_an_earlier_incarnation_is_set_aside_before_the_group_is_founded_again() {
    let world = World::new("s1").await;
    let old = world.incarnation().await;
    world.log(GROUP, old, 7);
    let present = world.recover(&server("s1")).await;
    world.starter().run().await.unwrap();
    let handle = world.leads().await;
    assert_eq!((handle.incarnation, handle.member), (present, MemberId(1)));
    assert!(world.data(&format!("member.retired-{old}-7")).join("member.redb").exists());
    end(handle).await;
}

#[tokio::test]
async fn the_log_of_another_group_stops_the_agent_and_stays() {
    let world = World::new("s1").await;
    world.log("linux-arm", Incarnation(1), 1);
    let refused = world.starter().run().await;
    assert!(matches!(refused, Err(AgentError::Kept { .. })), "{refused:?}");
    assert!(world.data("member").join("member.redb").exists());
    assert!(world.shared.handle().is_none());
}

#[tokio::test]
async fn a_server_carries_the_member_of_its_orders_only_once_another_member_granted_it() {
    let world = World::new("s9").await;
    let (claims, mut claimed) = unbounded_channel();
    let claim = async move |Json(message): Json<ToGroup<MemberId>>| {
        claims.send(message.body).unwrap();
        Json(ClaimMemberAnswer { granted: message.body != MemberId(2) })
    };
    let handler = Handler::Http(Router::new().route(CLAIM_MEMBER, post(claim)));
    let address = world.lab.serve("s2", Alpn::Control, handler).await;
    let at = |name: &str, address: &str| {
        let (server, address) = (server(name), address.to_owned());
        MemberAddress { server, address, member: MemberId(1) }
    };
    // It does not ask itself; the first of the others is away.
    let known = [at("s1", &address), at("s3", "127.0.0.1:1"), at("s2", &address)];
    world.shared.book.lock().learn(&known);
    let starter = tokio::spawn(world.starter().run());
    let told = |member| {
        world.shared.orders.send_replace(Some(Arc::new(received(Vec::new(), Some(member)))));
    };
    told(2);
    assert_eq!(claimed.recv().await, Some(MemberId(2)));
    told(3);
    while claimed.recv().await != Some(MemberId(3)) {}
    starter.await.unwrap().unwrap();
    let handle = world.shared.handle().unwrap();
    assert_eq!((handle.incarnation, handle.member), (Incarnation(1), MemberId(3)));
    end(handle).await;
    let identity = RedbStore::identity_in(&world.data("member")).unwrap().unwrap();
    assert_eq!(identity.raft_id, RaftId(3));
}

#[test]
fn a_retired_log_is_kept_and_never_in_the_way_of_another() {
    let folder = tempfile::tempdir().unwrap();
    let retire_one = |text: &str| {
        let member = folder.path().join("member");
        fs::create_dir(&member).unwrap();
        fs::write(member.join("log"), text).unwrap();
        retire(folder.path(), Incarnation(3), MemberId(5)).unwrap();
        assert!(!member.exists());
    };
    retire_one("first");
    retire_one("second");
    retire_one("third");
    let kept = |name: &str| fs::read_to_string(folder.path().join(name).join("log")).unwrap();
    assert_eq!(kept("member.retired-3-5"), "first");
    assert_eq!(kept("member.retired-3-5.2"), "second");
    assert_eq!(kept("member.retired-3-5.3"), "third");
    let missing = retire(folder.path(), Incarnation(3), MemberId(5));
    assert_eq!(missing.unwrap_err().path, folder.path().join("member"));
}

#[tokio::test(start_paused = true)]
async fn a_member_tells_its_incarnation_to_a_hub_that_lost_it_and_does_not_retire_for_it() {
    let world = World::new("s1").await;
    let (mut handle, _views, _queue) = handle(world.lab.leading());
    handle.incarnation = Incarnation(4_000);
    let watch = watch_retirement(Arc::clone(&world.shared), handle.clone());
    assert!(timeout(LOOKS, watch).await.is_err());
    assert_eq!(world.incarnation().await, Incarnation(4_000));
    // Another member, of an earlier incarnation, believes no other member's word.
    handle.incarnation = Incarnation(3_000);
    assert!(timeout(LOOKS, watch_retirement(Arc::clone(&world.shared), handle)).await.is_err());
    // Nor does a server without a log found the group, although it is named.
    let starter = tokio::time::timeout(Duration::from_secs(60), world.starter().run());
    assert!(starter.await.is_err());
    assert!(!world.data("member").join("member.redb").exists());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_has_worked_for_its_group_never_founds_it_when_the_hub_forgot_it() {
    let lab = Lab::new().await;
    let registry = lab.registry();
    let shared = lab.agent_over("s1", Arc::clone(&registry) as _).await;
    let starter = |joined| {
        let (shared, orders) = (Arc::clone(&shared), shared.orders.subscribe());
        timeout(Duration::from_secs(60), Starter { shared, joined, orders }.run())
    };
    let at = |server| MemberAddress { server, address: "s2:1".into(), member: MemberId(1) };
    let knows = Joined { members: vec![at(server("s2"))], ..joined() };
    assert!(starter(knows).await.is_err(), "the hub knew members when it joined");
    let record = lab.path("s1").join("apps/web");
    fs::create_dir_all(&record).unwrap();
    assert!(starter(joined()).await.is_err(), "it has worked on an app");
    assert_eq!(typed::read_bootstrap(&*registry, &shared.group).await.unwrap(), None);
    fs::remove_dir(record).unwrap();
    starter(joined()).await.unwrap().unwrap();
    end(shared.handle().unwrap()).await;
}

/// Whether its watch ended because this member is retired.
fn is_retired(of: &MemberHandle, ended: Result<(), AgentError>) -> bool {
    match ended {
        Err(AgentError::Retired { incarnation, member }) => {
            (incarnation, member) == (of.incarnation, of.member)
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_member_that_fresh_orders_replace_is_retired() {
    let world = World::new("s1").await;
    let (mut handle, _views, _queue) = handle(world.lab.leading());
    handle.incarnation = world.incarnation().await;
    let watch = async || {
        let watch = watch_retirement(Arc::clone(&world.shared), handle.clone());
        timeout(LOOKS, watch).await
    };
    let told = |valid_ms, member| {
        let mut received = received(Vec::new(), member);
        (received.valid_ms, received.orders.incarnation) = (valid_ms, handle.incarnation);
        world.shared.orders.send_replace(Some(Arc::new(received)));
    };
    assert!(watch().await.is_err(), "no orders yet");
    told(600_000, Some(1));
    assert!(watch().await.is_err(), "its own number");
    told(0, Some(2));
    assert!(watch().await.is_err(), "stale orders");
    told(600_000, Some(2));
    assert!(is_retired(&handle, watch().await.unwrap()));
    told(600_000, None);
    assert!(is_retired(&handle, watch().await.unwrap()));
}

#[tokio::test(start_paused = true)]
async fn a_member_of_a_recovered_group_is_retired_also_while_it_has_a_leader() {
    let world = World::new("s1").await;
    let (mut handle, views, _queue) = handle(world.lab.leading());
    handle.incarnation = world.incarnation().await;
    let watch = || watch_retirement(Arc::clone(&world.shared), handle.clone());
    assert!(timeout(LOOKS, watch()).await.is_err());
    let present = world.recover(&server("s2")).await;
    assert!(present > handle.incarnation);
    assert!(is_retired(&handle, watch().await));
    let mut alone = world.lab.leading();
    alone.raft.leader = None;
    views.send_replace(Arc::new(alone));
    let next_look = Duration::from_millis(LOOK_EVERY_MS + 1_000);
    assert!(is_retired(&handle, timeout(next_look, watch()).await.unwrap()), "asks at every look");
}

#[tokio::test]
async fn what_is_committed_says_who_the_members_are_and_which_servers_there_are() {
    let world = World::new("s1").await;
    let shared = &world.shared;
    for name in ["s1", "s2", "s3"] {
        shared.contacts.heard(&server(name), 0, Default::default());
    }
    let mut view = world.lab.leading();
    let mut state = founded();
    apply(&mut state, add("s2"));
    apply(&mut state, policy());
    view.state = Arc::new(state);
    let (sender, views) = watch::channel(Arc::new(view.clone()));
    drop(sender);
    learn(Arc::clone(shared), views).await;
    assert_eq!(shared.whereabouts(MemberId(1)), Some((server("s1"), "127.0.0.1:1".to_owned())));
    let contacts = shared.contacts.all();
    let heard = |name| contacts.of(&server(name)).is_some();
    assert_eq!((heard("s1"), heard("s2"), heard("s3")), (true, true, false));
    assert_eq!(shared.metrics.raft_is_leader.get(), 1);
    assert_eq!(shared.metrics.raft_term.get(), view.raft.term.0.cast_signed());
    let phase = view.state.apps["web"].phase.name().as_str().to_owned();
    let of = |state: &str| {
        let (app, state) = ("web".to_owned(), state.to_owned());
        let labels = Rollout { app, state, release: String::new() };
        shared.metrics.rollout.get_or_create(&labels).get()
    };
    assert_eq!(of(&phase), 1);
    let _ = of("a state of the past");
    let (sender, views) = watch::channel(Arc::new(view));
    drop(sender);
    learn(Arc::clone(shared), views).await;
    let text = shared.metrics.text();
    assert!(!text.contains("a state of the past"), "{text}");
}

#[tokio::test]
async fn a_member_that_panics_ends_the_agent_and_one_that_stops_does_not() {
    let (tasks, mut ends) = Tasks::new();
    let (ended, mut was_ended) = watch::channel(false);
    run_thread(tasks.clone(), ended, || Ok(())).unwrap();
    was_ended.wait_for(|ended| *ended).await.unwrap();
    let (ended, mut was_ended) = watch::channel(false);
    run_thread(tasks, ended, || panic!("a broken invariant")).unwrap();
    was_ended.wait_for(|ended| *ended).await.unwrap();
    assert!(matches!(ends.recv().await, Some(AgentError::Panicked("member"))));
    assert!(ends.recv().await.is_none(), "nothing else");
}
