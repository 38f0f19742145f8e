//! A whole group fetches one artifact: bytes flow while the first copy is still arriving, and the
//! mirror sends each byte once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use cohort_core::ids::ServerId;
use cohort_identity::{Alpn, Authority, ClientAuth, Peer, Role};
use cohort_wire::http::{Client, Handler, serve};
use cohort_wire::limits::ServerLimits;
use cohort_wire::tls::IdentitySlot;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use rustls_pki_types::UnixTime;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::testing::{DEADLINE, Disk, Manners, Mirror, Sample, UNIT, patient, with_peers};
use crate::{
    Budget, CallError, Downloads, FetchStatus, Guides, Limits, Participant, ServeLimits,
    SharedTracker, TrackerCalls, TransferAnswer, TransferRequest, WirePeers, bulk_router, follow,
};

/// The leader's tracker, and whether it responds.
pub(crate) struct Leader {
    pub(crate) tracker: Mutex<Arc<SharedTracker>>,
    pub(crate) answers: AtomicBool,
}

struct ToLeader {
    leader: Arc<Leader>,
    from: Participant,
}

impl TrackerCalls for ToLeader {
    fn report(
        &self,
        request: TransferRequest,
    ) -> BoxFuture<'static, Result<TransferAnswer, CallError>> {
        let answer = if self.leader.answers.load(Ordering::Relaxed) {
            let tracker = Arc::clone(&self.leader.tracker.lock());
            tracker.report(&self.from, &request).map_err(CallError::from)
        } else {
            Err("nobody leads".into())
        };
        Box::pin(async move { answer })
    }
}

pub(crate) struct Group {
    authority: Authority,
    _folder: TempDir,
    pub(crate) leader: Arc<Leader>,
    limits: Limits,
}

pub(crate) struct Server {
    pub(crate) id: ServerId,
    pub(crate) disk: Disk,
    pub(crate) downloads: Arc<Downloads>,
    stop: Option<DropGuard>,
    pub(crate) upload: Arc<Budget>,
    pub(crate) guides: Arc<Guides>,
}

impl Group {
    pub(crate) fn new(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create(folder.path(), UnixTime::now()).unwrap();
        let tracker = Mutex::new(Arc::new(SharedTracker::default()));
        let leader = Arc::new(Leader { tracker, answers: AtomicBool::new(true) });
        Self { authority, _folder: folder, leader, limits }
    }

    pub(crate) async fn server(&self, name: &str, mirror: &Mirror) -> Server {
        self.server_with(name, Disk::new(), &[mirror], None).await
    }

    /// A server that starts with this disk, and serves these routes instead of the real ones.
    pub(crate) async fn server_with(
        &self,
        name: &str,
        disk: Disk,
        mirrors: &[&Mirror],
        routes: Option<Router>,
    ) -> Server {
        let peer = Peer::new(Role::Agent, name).unwrap();
        let life = Duration::from_secs(3_600);
        let identity = self.authority.make_identity(&peer, life, UnixTime::now()).unwrap();
        let slot = IdentitySlot::new(identity);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let upload = Arc::new(Budget::default());
        let serving = ServeLimits { upload: Arc::clone(&upload), ..ServeLimits::default() };
        let real = || bulk_router(Arc::clone(&disk.store), serving);
        let router = routes.unwrap_or_else(real);
        let stop = CancellationToken::new();
        tokio::spawn(serve(
            listener,
            Arc::clone(&slot),
            ClientAuth::Required,
            BTreeMap::from([(Alpn::Bulk, Handler::Http(router))]),
            ServerLimits { shutdown_grace: Duration::ZERO, ..ServerLimits::default() },
            stop.clone(),
        ));
        let guides = Arc::new(Guides::default());
        let peers = WirePeers::new(Client::new(slot));
        let mut context = with_peers(&disk, mirrors, self.limits.clone(), peers);
        context.guides = Arc::clone(&guides);
        let downloads = Arc::new(Downloads::new(context));
        let id: ServerId = name.parse().unwrap();
        let from = Participant { server: id.clone(), address, rack: None, leads: name == "s0" };
        let calls = Arc::new(ToLeader { leader: Arc::clone(&self.leader), from });
        let following = Arc::clone(&guides);
        tokio::spawn(follow(Arc::clone(&downloads), following, calls, stop.clone()));
        Server { id, disk, downloads, stop: Some(stop.drop_guard()), upload, guides }
    }

    pub(crate) async fn servers(&self, count: usize, mirror: &Mirror) -> Vec<Server> {
        let mut servers = Vec::new();
        for n in 0..count {
            servers.push(self.server(&format!("s{n}"), mirror).await);
        }
        servers
    }
}

impl Server {
    pub(crate) fn order(&self, sample: &Sample) {
        let mut order = sample.order();
        order.from_mirror = false;
        self.downloads.set_orders(&[order]);
    }

    pub(crate) async fn until_held(&self, sample: &Sample) {
        let mut statuses = self.downloads.statuses();
        let held = statuses.wait_for(|all| all.get(sample.digest()) == Some(&FetchStatus::Held));
        let held = tokio::time::timeout(DEADLINE, held).await.map(|held| held.is_ok());
        assert_eq!(held, Ok(true), "{}: {:?}", self.id, self.downloads.statuses().borrow());
        self.disk.assert_holds(sample);
    }

    pub(crate) fn held_units(&self, sample: &Sample) -> u32 {
        self.disk.store.part(sample.digest()).map_or(0, |part| part.held())
    }

    pub(crate) async fn until_units(&self, sample: &Sample, units: u32) {
        let deadline = Instant::now() + DEADLINE;
        while self.held_units(sample) < units && !self.disk.store.is_whole(sample.digest()) {
            assert!(Instant::now() < deadline, "{} never had {units} units", self.id);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) async fn dies(&mut self) {
        self.stop.take();
        self.downloads.stop().await;
    }
}

pub(crate) fn limits() -> Limits {
    let Limits { no_leader_ms, pull_after_ms, .. } = Limits::default();
    let (silence_ms_max, link_begin_ms_max) = (5_000, 5_000);
    Limits { silence_ms_max, link_begin_ms_max, no_leader_ms, pull_after_ms, ..patient() }
}

/// The mirror sent it once, or little more: a machine that is busy for a second makes the leader
/// think that a head is gone, and bytes in transit to it are sent twice. Tests in virtual time show
/// that nothing is sent twice without faults.
pub(crate) fn hardly_twice(mirror: &Mirror, sample: &Sample) {
    let most = sample.release.length + 64 * UNIT as u64;
    assert!(mirror.sent() <= most, "{} of {most}", mirror.sent());
}

pub(crate) fn gated(units: usize) -> (Manners, Arc<tokio::sync::Semaphore>) {
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let manners =
        Manners { gate: Some(((units * UNIT) as u64, Arc::clone(&gate))), ..Manners::default() };
    (manners, gate)
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_flow_to_all_while_the_first_copy_still_arrives() {
    let group = Group::new(limits());
    let sample = Sample::new("group", 100 * UNIT + 7);
    let (manners, gate) = gated(8);
    let mirror = Mirror::start(&[&sample], manners).await;
    let servers = group.servers(5, &mirror).await;
    for server in &servers {
        server.order(&sample);
    }
    // The mirror holds back most of it, but what it sent is everywhere.
    for server in &servers {
        server.until_units(&sample, 8).await;
        assert!(!server.disk.store.is_whole(sample.digest()));
    }
    gate.add_permits(1_000_000);
    for server in &servers {
        server.until_held(&sample).await;
    }
    hardly_twice(&mirror, &sample);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_dies_is_replaced_and_little_is_fetched_twice() {
    let group = Group::new(limits());
    let sample = Sample::new("head", 200 * UNIT);
    let (manners, gate) = gated(16);
    let mirror = Mirror::start(&[&sample], manners).await;
    let mut servers = group.servers(4, &mirror).await;
    for server in &servers {
        server.order(&sample);
    }
    for server in &servers {
        server.until_units(&sample, 8).await;
    }
    let tracker = Arc::clone(&group.leader.tracker.lock());
    let head = tracker.view()[0].heads[0].clone();
    let place = servers.iter().position(|server| server.id == head).unwrap();
    servers.remove(place).dies().await;
    gate.add_permits(1_000_000);
    for server in &servers {
        server.until_held(&sample).await;
    }
    hardly_twice(&mirror, &sample);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_in_the_middle_dies_and_its_children_go_on() {
    let group = Group::new(limits());
    let sample = Sample::new("middle", 200 * UNIT);
    let (manners, gate) = gated(16);
    let mirror = Mirror::start(&[&sample], manners).await;
    let mut servers = group.servers(5, &mirror).await;
    for server in &servers {
        server.order(&sample);
    }
    for server in &servers {
        server.until_units(&sample, 8).await;
    }
    let tracker = Arc::clone(&group.leader.tracker.lock());
    let view = &tracker.view()[0];
    let middle = view.servers.iter().find(|server| server.depth == 2).unwrap().server.clone();
    let place = servers.iter().position(|server| server.id == middle).unwrap();
    servers.remove(place).dies().await;
    gate.add_permits(1_000_000);
    for server in &servers {
        server.until_held(&sample).await;
    }
    hardly_twice(&mirror, &sample);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_leader_takes_over_what_is_under_way() {
    let group = Group::new(limits());
    let sample = Sample::new("leader", 150 * UNIT);
    let (manners, gate) = gated(16);
    let mirror = Mirror::start(&[&sample], manners).await;
    let servers = group.servers(4, &mirror).await;
    for server in &servers {
        server.order(&sample);
    }
    for server in &servers {
        server.until_units(&sample, 8).await;
    }
    group.leader.answers.store(false, Ordering::Relaxed);
    *group.leader.tracker.lock() = Arc::new(SharedTracker::default());
    gate.add_permits(1_000_000);
    // Leased units arrive without a leader.
    servers[1].until_units(&sample, 60).await;
    group.leader.answers.store(true, Ordering::Relaxed);
    for server in &servers {
        server.until_held(&sample).await;
    }
    hardly_twice(&mirror, &sample);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_leader_one_server_goes_on() {
    let group = Group::new(Limits { no_leader_ms: 400, ..limits() });
    let sample = Sample::new("heir", 150 * UNIT);
    let (manners, gate) = gated(16);
    let mirror = Mirror::start(&[&sample], manners).await;
    let servers = group.servers(4, &mirror).await;
    for server in &servers {
        server.order(&sample);
    }
    for server in &servers {
        server.until_units(&sample, 8).await;
    }
    // All servers know the heir.
    let heirs = || servers.iter().filter(|s| s.guides.of(sample.digest()).is_some_and(|g| g.heir));
    let deadline = Instant::now() + DEADLINE;
    while heirs().count() != 1 || heirs().any(|server| server.id.as_str() == "s0") {
        assert!(Instant::now() < deadline, "no heir");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    group.leader.answers.store(false, Ordering::Relaxed);
    gate.add_permits(1_000_000);
    for server in &servers {
        server.until_held(&sample).await;
    }
    // The head continues with its lease, and the heir requests what it lacks: two, never all four.
    let most = 2 * sample.release.length;
    assert!(mirror.sent() <= most, "{} of {most}", mirror.sent());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_latecomer_is_fed_by_those_who_have_it() {
    let group = Group::new(limits());
    let sample = Sample::new("late", 80 * UNIT);
    let mirror = Mirror::start(&[&sample], Manners::default()).await;
    let servers = group.servers(3, &mirror).await;
    servers[0].order(&sample);
    servers[0].until_held(&sample).await;
    servers[1].order(&sample);
    servers[2].order(&sample);
    servers[1].until_held(&sample).await;
    servers[2].until_held(&sample).await;
    hardly_twice(&mirror, &sample);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_limit_holds_a_parent_back_and_lifting_it_is_felt_at_once() {
    let group = Group::new(limits());
    let sample = Sample::new("budget", 200 * UNIT);
    let mirror = Mirror::start(&[&sample], Manners::default()).await;
    let servers = group.servers(2, &mirror).await;
    servers[0].order(&sample);
    servers[0].until_held(&sample).await;
    servers[0].upload.set(Some(100_000));
    servers[1].order(&sample);
    servers[1].until_units(&sample, 4).await;
    assert!(servers[1].held_units(&sample) < 100);
    let statuses = servers[1].downloads.statuses().borrow().clone();
    let Some(FetchStatus::UnderWay { progress }) = statuses.get(sample.digest()) else {
        panic!("it is not whole: {statuses:?}")
    };
    let parent = progress.sources.iter().find(|source| source.source.to_string() == "s0").unwrap();
    assert_eq!((parent.failures, &parent.last_error), (0, &None), "slow is not silent");
    servers[0].upload.set(None);
    servers[1].until_held(&sample).await;
    hardly_twice(&mirror, &sample);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zone_limit_holds_the_heads_back_and_lifting_it_is_felt_at_once() {
    let (limited, free) = (Group::new(limits()), Group::new(limits()));
    let sample = Sample::new("zone limit", 400 * UNIT);
    let mirror = Mirror::start(&[&sample], Manners::default()).await;
    let tracker = Arc::clone(&limited.leader.tracker.lock());
    // Four minutes for the whole.
    tracker.set_zone_limit(Some(100_000));
    let servers = limited.servers(4, &mirror).await;
    for server in &servers {
        server.order(&sample);
    }
    for server in &servers {
        server.until_units(&sample, 1).await;
    }
    // A group without the limit has all of it meanwhile.
    let its_mirror = Mirror::start(&[&sample], Manners::default()).await;
    let other = free.server("s0", &its_mirror).await;
    other.order(&sample);
    other.until_held(&sample).await;
    for server in &servers {
        assert!(!server.disk.store.is_whole(sample.digest()), "{}", server.id);
    }
    tracker.set_zone_limit(None);
    for server in &servers {
        server.until_held(&sample).await;
    }
    hardly_twice(&mirror, &sample);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_is_withdrawn_is_fetched_no_more_and_passed_on_no_more() {
    let group = Group::new(limits());
    let (old, new) = (Sample::new("withdrawn", 100 * UNIT), Sample::new("instead", 20 * UNIT));
    let (manners, gate) = gated(8);
    let mirror = Mirror::start(&[&old, &new], manners).await;
    let servers = group.servers(3, &mirror).await;
    for server in &servers {
        server.order(&old);
    }
    for server in &servers {
        server.until_units(&old, 8).await;
    }
    // Another release instead of it; no more of the first one reaches any server.
    for server in &servers {
        server.order(&new);
    }
    gate.add_permits(1_000_000);
    for server in &servers {
        server.until_held(&new).await;
        assert!(server.disk.store.part(old.digest()).is_none(), "its file was let go of");
        assert!(!server.downloads.statuses().borrow().contains_key(old.digest()));
    }
    let of_old = mirror.sent() - new.release.length;
    assert!(of_old <= 40 * UNIT as u64, "{of_old} bytes: what was asked for, not all of it");
    // Received bytes are reused when the release comes back, until it is collected.
    servers[0].order(&old);
    servers[0].until_held(&old).await;
    servers[1].downloads.set_orders(&[]);
    let kept = std::collections::BTreeSet::from([new.digest().clone()]);
    let collected = servers[1].disk.store.collect(&kept).unwrap();
    assert_eq!(collected.digests, [old.digest().clone()].into());
    servers[1].disk.assert_holds(&new);
}
