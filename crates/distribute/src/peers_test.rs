//! Servers of a group fetch from each other, over real mutual TLS on loopback.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cohort_core::orders::{FetchOrder, Source};
use cohort_identity::{Alpn, Authority, ClientAuth, Peer, Role};
use cohort_wire::http::{Call, Client, Handler, Target, serve};
use cohort_wire::limits::ServerLimits;
use cohort_wire::tls::IdentitySlot;
use rustls_pki_types::UnixTime;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::fetch::fetch;
use crate::testing::{
    DEADLINE, Disk, Manners, Mirror, Sample, UNIT, fetch_once, patient, quick, with_peers,
};
use crate::{
    Downloads, FetchContext, FetchStatus, FetchWait, Limits, Progress, RUNS_MAX, ServeLimits,
    SourceKind, SubscribeRequest, UnitRun, WirePeers, bulk_router,
};

struct Zone {
    authority: Authority,
    _folder: TempDir,
}

impl Zone {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create(folder.path(), UnixTime::now()).unwrap();
        Self { authority, _folder: folder }
    }

    fn slot(&self, role: Role, name: &str) -> Arc<IdentitySlot> {
        let peer = Peer::new(role, name).unwrap();
        let life = Duration::from_secs(3_600);
        IdentitySlot::new(self.authority.make_identity(&peer, life, UnixTime::now()).unwrap())
    }

    fn client(&self, role: Role, name: &str) -> Client {
        Client::new(self.slot(role, name))
    }

    async fn server(&self, name: &str, limits: ServeLimits) -> Server {
        let disk = Disk::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let router = bulk_router(Arc::clone(&disk.store), limits);
        let shutdown = CancellationToken::new();
        tokio::spawn(serve(
            listener,
            self.slot(Role::Agent, name),
            ClientAuth::Required,
            BTreeMap::from([(Alpn::Bulk, Handler::Http(router))]),
            ServerLimits { shutdown_grace: Duration::ZERO, ..ServerLimits::default() },
            shutdown.clone(),
        ));
        let source = Source { server: name.parse().unwrap(), address };
        Server { disk, source, stop: shutdown.drop_guard() }
    }

    fn context(&self, disk: &Disk, mirrors: &[&Mirror], limits: Limits) -> FetchContext {
        let peers = WirePeers::new(self.client(Role::Agent, "me"));
        with_peers(disk, mirrors, limits, peers)
    }
}

struct Server {
    disk: Disk,
    source: Source,
    stop: DropGuard,
}

fn sample() -> Sample {
    Sample::new("peers", 60 * UNIT + 5)
}

fn from_peers(sample: &Sample, servers: &[&Server]) -> FetchOrder {
    let sources = servers.iter().map(|server| server.source.clone()).collect();
    FetchOrder { from_mirror: false, sources, ..sample.order() }
}

#[tokio::test(flavor = "multi_thread")]
async fn units_come_from_a_holder_and_no_mirror_is_asked() {
    let (zone, sample, me) = (Zone::new(), sample(), Disk::new());
    let a = zone.server("a", ServeLimits::default()).await;
    let b = zone.server("b", ServeLimits::default()).await;
    a.disk.hold(&sample);
    b.disk.hold(&sample);
    let mirror = Mirror::start(&[&sample], Manners::default()).await;
    let context = zone.context(&me, &[&mirror], patient());
    let order = FetchOrder { from_mirror: true, ..from_peers(&sample, &[&a, &b]) };
    let (result, progress) = fetch_once(&context, order).await;
    result.unwrap();
    me.assert_holds(&sample);
    assert_eq!(mirror.requests(), 0);
    let bytes = progress.bytes_from_peers;
    assert_eq!(context.counters.received(SourceKind::Peer), bytes);
    // The unit hashes, an index for each unit, and heartbeats.
    let least = sample.release.length + 61 * (32 + 4);
    assert!((least..least + 1_000).contains(&bytes), "{bytes}");
    assert_eq!(context.counters.received(SourceKind::Mirror), 0);
    assert!(progress.sources.iter().all(|source| source.last_error.is_none()), "{progress:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_is_gone_wrong_or_somebody_else_does_not_matter() {
    let (zone, sample, me) = (Zone::new(), sample(), Disk::new());
    let good = zone.server("good", ServeLimits::default()).await;
    let rotten = zone.server("rotten", ServeLimits::default()).await;
    let empty = zone.server("empty", ServeLimits::default()).await;
    let impostor = zone.server("impostor", ServeLimits::default()).await;
    good.disk.hold(&sample);
    rotten.disk.hold(&sample);
    impostor.disk.hold(&sample);
    // The disk rots after verification.
    let path = rotten.disk.store.path(sample.digest()).unwrap();
    let flipped: Vec<u8> = sample.bytes.iter().map(|byte| byte ^ 1).collect();
    std::fs::write(path, flipped).unwrap();
    let gone = zone.server("gone", ServeLimits::default()).await;
    drop(gone.stop);
    let mut order = from_peers(&sample, &[&rotten, &empty, &impostor, &good]);
    order.sources[2].server = "president".parse().unwrap();
    order.sources.push(gone.source.clone());
    let context = zone.context(&me, &[], quick());
    let (result, progress) = fetch_once(&context, order).await;
    result.unwrap();
    me.assert_holds(&sample);
    let of = |name: &str| {
        let mut sources = progress.sources.iter();
        sources.find(|source| source.source.to_string() == name).unwrap()
    };
    assert!(of("rotten").refused_units > 0, "{progress:?}");
    assert!(of("president").last_error.is_some(), "{progress:?}");
    assert_eq!(of("good").refused_units, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_still_fetching_passes_on_what_it_has() {
    let (zone, sample, me) = (Zone::new(), sample(), Disk::new());
    let gate = Arc::new(Semaphore::new(0));
    let manners =
        Manners { gate: Some((30 * UNIT as u64, Arc::clone(&gate))), ..Manners::default() };
    let mirror = Mirror::start(&[&sample], manners).await;
    let middle = zone.server("middle", ServeLimits::default()).await;
    let upstream = zone.context(&middle.disk, &[&mirror], patient());
    let (_orders, receiver) = watch::channel(sample.order());
    let (progress, mut shown) = watch::channel(Progress::default());
    let leader = tokio::spawn(async move {
        Box::pin(fetch(&upstream, receiver, &progress, &CancellationToken::new())).await
    });
    let enough = shown.wait_for(|progress| progress.bytes_held >= 30 * UNIT as u64);
    drop(tokio::time::timeout(DEADLINE, enough).await.unwrap().unwrap());
    let (orders, receiver) = watch::channel(from_peers(&sample, &[&middle]));
    let (progress, mut shown) = watch::channel(Progress::default());
    let context = zone.context(&me, &[], patient());
    let follower = tokio::spawn(async move {
        Box::pin(fetch(&context, receiver, &progress, &CancellationToken::new())).await
    });
    let enough = shown.wait_for(|progress| progress.bytes_held >= 30 * UNIT as u64);
    drop(tokio::time::timeout(DEADLINE, enough).await.unwrap().unwrap());
    assert!(!leader.is_finished() && !follower.is_finished());
    gate.add_permits(10_000);
    tokio::time::timeout(DEADLINE, leader).await.unwrap().unwrap().unwrap();
    tokio::time::timeout(DEADLINE, follower).await.unwrap().unwrap().unwrap();
    me.assert_holds(&sample);
    drop(orders);
    let sent = mirror.state.sent.load(Ordering::Relaxed);
    assert_eq!(sent, sample.release.length, "the follower took nothing through the downlink");
}

/// A subscription to some units.
fn subscribe(digest: &str, lacks: Vec<UnitRun>) -> Call {
    let path = format!("/v1/artifacts/{digest}/subscription");
    let mut call = Call::post(path, &SubscribeRequest { lacks });
    call.content_type = "application/json";
    call.response_bytes_max(u64::MAX)
}

fn run(first: u32, count: u32) -> UnitRun {
    UnitRun { first, count }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_agents_get_artifacts_and_nothing_else_is_there() {
    let (zone, sample) = (Zone::new(), sample());
    let server = zone.server("a", ServeLimits::default()).await;
    server.disk.hold(&sample);
    std::fs::write(server.disk.folder.path().join("secret"), "s").unwrap();
    let target = Target {
        address: server.source.address.clone(),
        peer: Peer::new(Role::Agent, "a").unwrap(),
        alpn: Alpn::Bulk,
    };
    let d = sample.digest();
    for role in [Role::Viewer, Role::Operator, Role::Publisher, Role::Hub] {
        let client = zone.client(role, "x");
        let hashes = Call::get(format!("/v1/artifacts/{d}/unit-hashes"));
        for call in [hashes, subscribe(d.as_str(), vec![run(0, 2)])] {
            let error = client.call(&target, call).await.unwrap_err();
            assert_eq!(error.status(), Some(403), "{role}");
        }
    }
    let agent = zone.client(Role::Agent, "x");
    let good = agent.call(&target, subscribe(d.as_str(), vec![run(59, u32::MAX)])).await.unwrap();
    let mut frames = 59_u32.to_be_bytes().to_vec();
    frames.extend_from_slice(sample.unit(59));
    frames.extend_from_slice(&60_u32.to_be_bytes());
    frames.extend_from_slice(sample.unit(60));
    assert!(good[..] == frames, "all that is left, in frames");
    let many = (0..=u32::try_from(RUNS_MAX).unwrap()).map(|n| run(2 * n, 1)).collect();
    for lacks in [vec![], many, vec![run(5, 1), run(0, 1)], vec![run(0, 9), run(5, 9)]] {
        let error = agent.call(&target, subscribe(d.as_str(), lacks)).await.unwrap_err();
        assert_eq!(error.status(), Some(400), "{error}");
    }
    let other = "0".repeat(64);
    for (path, status) in [
        (format!("/v1/artifacts/{other}/unit-hashes"), 404),
        ("/v1/artifacts/..%2Fsecret/unit-hashes".to_owned(), 400),
        ("/v1/artifacts/%2Fetc%2Fpasswd/unit-hashes".to_owned(), 400),
        (format!("/v1/artifacts/../artifacts/{d}"), 404),
        (format!("/v1/artifacts/{d}.units/unit-hashes"), 400),
        ("/".to_owned(), 404),
    ] {
        let error = agent.call(&target, Call::get(path.clone())).await.unwrap_err();
        assert_eq!(error.status(), Some(status), "{path}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn past_its_limit_a_server_says_busy_and_the_fetch_comes_back() {
    let (zone, sample, me) = (Zone::new(), Sample::new("large", 400 * UNIT), Disk::new());
    let one = ServeLimits { streams_max: 1, ..ServeLimits::default() };
    let server = zone.server("a", one).await;
    server.disk.hold(&sample);
    let target = Target {
        address: server.source.address.clone(),
        peer: Peer::new(Role::Agent, "a").unwrap(),
        alpn: Alpn::Bulk,
    };
    // A subscriber takes the only slot, and does not read: 25 MiB fit in no socket's buffer.
    let hog = zone.client(Role::Agent, "hog");
    let call = subscribe(sample.digest().as_str(), vec![run(0, 400)]);
    let taken = hog.stream(&target, call).await.unwrap();
    let context = zone.context(&me, &[], quick());
    let (_orders, receiver) = watch::channel(from_peers(&sample, &[&server]));
    let (progress, mut shown) = watch::channel(Progress::default());
    let fetching = tokio::spawn(async move {
        Box::pin(fetch(&context, receiver, &progress, &CancellationToken::new())).await
    });
    let busy =
        shown.wait_for(|progress| matches!(progress.waiting_on, Some(FetchWait::Sources { .. })));
    drop(tokio::time::timeout(DEADLINE, busy).await.unwrap().unwrap());
    drop(taken);
    tokio::time::timeout(DEADLINE, fetching).await.unwrap().unwrap().unwrap();
    me.assert_holds(&sample);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_server_may_not_take_every_place() {
    let (zone, sample) = (Zone::new(), Sample::new("large", 400 * UNIT));
    let limits = ServeLimits { streams_max: 3, streams_per_peer_max: 2, ..ServeLimits::default() };
    let server = zone.server("a", limits).await;
    server.disk.hold(&sample);
    let target = Target {
        address: server.source.address.clone(),
        peer: Peer::new(Role::Agent, "a").unwrap(),
        alpn: Alpn::Bulk,
    };
    let call = || subscribe(sample.digest().as_str(), vec![run(0, 400)]);
    let hog = zone.client(Role::Agent, "hog");
    let _first = hog.stream(&target, call()).await.unwrap();
    let _second = hog.stream(&target, call()).await.unwrap();
    assert_eq!(hog.stream(&target, call()).await.unwrap_err().status(), Some(503));
    let other = zone.client(Role::Agent, "other");
    let _third = other.stream(&target, call()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn downloads_follow_the_orders() {
    // The third one does not fit on the disk, which is known immediately: nothing here depends on
    // time.
    let (zone, me) = (Zone::new(), Disk::with(|| 20 << 20));
    let (first, second, mut third) =
        (sample(), Sample::new("second", 3 * UNIT), Sample::new("third", 3 * UNIT));
    third.release.length = 1 << 30;
    let mirror = Mirror::start(&[&first, &second], Manners::default()).await;
    let downloads = Downloads::new(zone.context(&me, &[&mirror], patient()));
    let mut statuses = downloads.statuses();
    let waiting = FetchOrder { from_mirror: false, ..second.order() };
    downloads.set_orders(&[first.order(), waiting.clone(), third.order(), waiting]);
    // The first succeeds; the second has no source and waits; the third is too large.
    let settled = statuses.wait_for(|all| {
        let underway = matches!(all.get(second.digest()), Some(FetchStatus::UnderWay { .. }));
        let failed = matches!(all.get(third.digest()), Some(FetchStatus::Failed { .. }));
        all.get(first.digest()) == Some(&FetchStatus::Held) && underway && failed
    });
    drop(tokio::time::timeout(DEADLINE, settled).await.unwrap().unwrap());
    me.assert_holds(&first);
    // The second gets permission, the third is withdrawn, the first is still ordered.
    downloads.set_orders(&[first.order(), second.order()]);
    let settled = statuses
        .wait_for(|all| all.len() == 2 && all.values().all(|status| *status == FetchStatus::Held));
    drop(tokio::time::timeout(DEADLINE, settled).await.unwrap().unwrap());
    me.assert_holds(&second);
    downloads.set_orders(&[third.order()]);
    downloads.set_orders(&[]);
    assert!(downloads.statuses().borrow().is_empty());
    tokio::time::timeout(DEADLINE, downloads.stop()).await.unwrap();
    // A thread that is working on a file releases it when done.
    let free = async {
        while me.store.claim(third.digest(), third.release.length).is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, free).await.unwrap();
}
