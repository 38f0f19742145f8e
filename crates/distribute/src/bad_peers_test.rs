//! Groups with one bad server or mirror: nothing wrong is forwarded, the offender is named and
//! barred, and all others get everything.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt as _, StreamExt as _};

use crate::group_test::{Group, Server, gated, hardly_twice, limits};
use crate::testing::{DEADLINE, Disk, Manners, Mirror, Sample, UNIT, quick};
use crate::{Limits, Offence, Progress, SourceName};

/// What a bad server does to its subscribers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Evil {
    /// One bit of every unit is flipped.
    WrongBytes,
    /// The hashes do not match the root.
    WrongHashes,
    /// Half a unit, then the end.
    Short,
    /// It accepts the request and never responds.
    Silent,
    /// It sends the response head, then nothing.
    Mute,
    /// One byte now and then.
    Trickles,
    /// The first unit, again and again.
    Repeats,
    /// A unit beyond the last.
    WrongIndex,
    /// Heartbeats as fast as possible.
    Babbles,
    /// Proper heartbeats, and nothing else.
    Empty,
    Busy,
}

type Pieces = BoxStream<'static, Result<Bytes, Infallible>>;

fn frame(sample: &Sample, index: u32, flip: bool) -> Bytes {
    let mut frame = index.to_be_bytes().to_vec();
    frame.extend_from_slice(sample.unit(index));
    frame[10] ^= u8::from(flip);
    frame.into()
}

fn again(piece: Bytes, pause: Duration) -> Pieces {
    let pieces = stream::repeat(piece).then(move |piece| async move {
        tokio::time::sleep(pause).await;
        Ok(piece)
    });
    pieces.boxed()
}

fn pieces(evil: Evil, sample: &Sample) -> Pieces {
    let alive = Bytes::from_static(&[0xff; 4]);
    let none = Duration::ZERO;
    let once = |bytes: Bytes| stream::iter([Ok(bytes)]).boxed();
    match evil {
        Evil::WrongBytes => once(frame(sample, 0, true)),
        Evil::Short => once(frame(sample, 0, false).slice(..UNIT / 2)),
        Evil::Mute => stream::pending().boxed(),
        Evil::Trickles => again(Bytes::from_static(&[0]), Duration::from_millis(20)),
        Evil::Repeats => again(frame(sample, 0, false), none),
        Evil::WrongIndex => once(Bytes::from_static(&[0, 1, 0, 0, 7, 7, 7, 7])),
        Evil::Babbles => again(alive, none),
        Evil::Empty | Evil::WrongHashes => again(alive, Duration::from_millis(50)),
        Evil::Silent | Evil::Busy => stream::empty().boxed(),
    }
}

fn routes(evil: Evil, sample: &Sample) -> Router {
    let mut hashes = sample.hashes.to_bytes();
    hashes[3] ^= u8::from(evil == Evil::WrongHashes);
    let sample = sample.clone();
    let answer = move || {
        let sample = sample.clone();
        async move {
            if evil == Evil::Silent {
                std::future::pending::<()>().await;
            }
            if evil == Evil::Busy {
                let answer = http::Response::builder().status(503).header("retry-after", "1");
                return answer.body(Body::empty()).unwrap();
            }
            http::Response::new(Body::from_stream(pieces(evil, &sample)))
        }
    };
    Router::new()
        .route("/v1/artifacts/{digest}/unit-hashes", get(move || async move { hashes }))
        .route("/v1/artifacts/{digest}/subscription", post(answer))
}

/// Each honest server's last reports about its sources.
fn last(server: &Server) -> Progress {
    server.downloads.ended().pop().map(|ended| ended.progress).unwrap_or_default()
}

/// Limits under which faults show within a second or two.
fn hasty() -> Limits {
    let Limits { no_leader_ms, pull_after_ms, .. } = Limits::default();
    let (silence_ms_max, link_begin_ms_max) = (2_000, 500);
    Limits { silence_ms_max, link_begin_ms_max, no_leader_ms, pull_after_ms, ..quick() }
}

/// Four servers, and a bad one that claims to hold everything.
async fn with_one(evil: Evil) {
    let group = Group::new(hasty());
    let sample = Sample::new("bad", 150 * UNIT + 3);
    let mirror = Mirror::start(&[&sample], Manners::default()).await;
    let disk = Disk::new();
    disk.hold(&sample);
    let bad = group.server_with("bad", disk, &[], Some(routes(evil, &sample))).await;
    bad.order(&sample);
    let tracker = Arc::clone(&group.leader.tracker.lock());
    until(|| tracker.view().iter().any(|view| view.whole == 1)).await;
    let servers = group.servers(4, &mirror).await;
    for server in &servers {
        server.order(&sample);
    }
    // Whether the leader ever barred it.
    let barred = Arc::new(AtomicBool::new(false));
    let (seen, leader) = (Arc::clone(&barred), Arc::clone(&tracker));
    let watching = tokio::spawn(async move {
        loop {
            let view = leader.view();
            let now = view.iter().flat_map(|view| &view.servers).any(|s| s.barred);
            seen.fetch_or(now, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    for server in &servers {
        server.until_held(&sample).await;
    }
    watching.abort();
    assert!(barred.load(Ordering::Relaxed), "{evil:?} was no parent for anyone any more");
    let most = sample.release.length + 64 * UNIT as u64;
    assert!(mirror.sent() <= most, "{evil:?}: {} of {most}", mirror.sent());
    let bad_name = SourceName::Server("bad".parse().unwrap());
    let mut said: BTreeSet<Offence> = BTreeSet::new();
    for server in &servers {
        for source in last(server).sources {
            let offended = !source.offences.is_empty() || source.refused_units > 0;
            assert!(
                !offended || source.source == bad_name || !matches!(evil, Evil::WrongBytes),
                "{source:?}"
            );
            if source.source == bad_name {
                said.extend(source.offences.keys());
            }
        }
    }
    let expected = match evil {
        Evil::WrongBytes | Evil::WrongHashes | Evil::WrongIndex => Some(Offence::WrongBytes),
        Evil::Short | Evil::Repeats | Evil::Babbles => Some(Offence::WrongLength),
        Evil::Silent | Evil::Mute => Some(Offence::Silent),
        Evil::Trickles => Some(Offence::Slow),
        // It does nothing that is wrong by itself: only the leader detects it.
        Evil::Empty | Evil::Busy => None,
    };
    assert!(expected.is_none_or(|expected| said.contains(&expected)), "{evil:?}: {said:?}");
}

async fn until(mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "never came about");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_sends_wrong_bytes() {
    with_one(Evil::WrongBytes).boxed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_sends_wrong_hashes() {
    with_one(Evil::WrongHashes).boxed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_ends_too_early() {
    with_one(Evil::Short).boxed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_never_answers() {
    with_one(Evil::Silent).boxed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_answers_and_says_nothing() {
    with_one(Evil::Mute).boxed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_sends_byte_by_byte() {
    with_one(Evil::Trickles).boxed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_repeats_itself_for_ever() {
    with_one(Evil::Repeats).boxed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_sends_units_that_do_not_exist() {
    with_one(Evil::WrongIndex).boxed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_only_says_that_it_lives_too_often() {
    with_one(Evil::Babbles).boxed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_holds_nothing_of_what_it_says() {
    with_one(Evil::Empty).boxed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_always_busy() {
    with_one(Evil::Busy).boxed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_mirror_is_left_for_the_next_and_named_and_no_server_sees_its_bytes() {
    let bad: Vec<(&str, Manners)> = vec![
        (
            "flips",
            Manners {
                flips: [5].into_iter().collect::<BTreeSet<u32>>().into(),
                ..Manners::default()
            },
        ),
        ("endless", Manners { endless: true, ..Manners::default() }),
        ("short", Manners { short: true, ..Manners::default() }),
        ("hangs", Manners { hangs: AtomicBool::new(true), ..Manners::default() }),
        ("trickles", Manners { trickles: true, ..Manners::default() }),
        ("wrong hashes", Manners { wrong_hashes: true, ..Manners::default() }),
    ];
    for (name, manners) in bad {
        let group = Group::new(hasty());
        let sample = Sample::new(name, 40 * UNIT + 9);
        let bad = Mirror::start(&[&sample], manners).await;
        let good = Mirror::start(&[&sample], Manners::default()).await;
        let mut servers = Vec::new();
        for n in 0..3 {
            let (id, disk) = (format!("s{n}"), Disk::new());
            servers.push(group.server_with(&id, disk, &[&bad, &good], None).await);
        }
        for server in &servers {
            server.order(&sample);
        }
        for server in &servers {
            server.until_held(&sample).await;
        }
        let all: Vec<_> = servers.iter().flat_map(|server| last(server).sources).collect();
        let named = all.iter().filter(|source| !source.offences.is_empty());
        let mirror = SourceName::mirror(&format!("{}/", bad.url));
        assert!(named.clone().any(|named| named.source == mirror), "{name}: {all:?}");
        let servers = all.iter().filter(|source| source.source.server().is_some());
        assert!(servers.clone().all(|source| source.refused_units == 0), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_child_blocks_neither_its_parent_nor_the_others() {
    let group = Group::new(limits());
    let sample = Sample::new("slow child", 300 * UNIT);
    let (manners, gate) = gated(8);
    let mirror = Mirror::start(&[&sample], manners).await;
    let servers = group.servers(4, &mirror).await;
    // It accepts next to nothing: 64 KiB a second of 19 MiB.
    servers[2].downloads.context().download.set(Some(64 << 10));
    for server in &servers {
        server.order(&sample);
    }
    gate.add_permits(1_000_000);
    for server in [&servers[0], &servers[1], &servers[3]] {
        server.until_held(&sample).await;
    }
    assert!(!servers[2].disk.store.is_whole(sample.digest()));
    servers[2].downloads.context().download.set(None);
    servers[2].until_held(&sample).await;
    hardly_twice(&mirror, &sample);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_killed_and_comes_back_goes_on_from_what_it_has() {
    let group = Group::new(limits());
    let sample = Sample::new("back", 200 * UNIT);
    let (manners, gate) = gated(64);
    let mirror = Mirror::start(&[&sample], manners).await;
    let mut servers = group.servers(4, &mirror).await;
    for server in &servers {
        server.order(&sample);
    }
    for server in &servers {
        server.until_units(&sample, 48).await;
    }
    let mut killed = servers.remove(2);
    killed.dies().await;
    let disk = Disk { store: killed.disk.reopened(), folder: killed.disk.folder };
    let back = group.server_with("s2", disk, &[&mirror], None).await;
    back.order(&sample);
    gate.add_permits(1_000_000);
    servers.push(back);
    for server in &servers {
        server.until_held(&sample).await;
    }
    let progress = last(&servers[3]);
    assert!(progress.bytes_resumed >= 48 * UNIT as u64, "{progress:?}");
    assert!(
        progress.bytes_from_peers
            <= sample.release.length - progress.bytes_resumed + (16 * UNIT) as u64,
        "{progress:?}"
    );
    hardly_twice(&mirror, &sample);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_parents_brings_few_bytes_twice() {
    let group = Group::new(limits());
    let sample = Sample::new("parents", 200 * UNIT);
    let (manners, gate) = gated(80);
    let mirror = Mirror::start(&[&sample], manners).await;
    let mut servers = group.servers(6, &mirror).await;
    for server in &servers {
        // As fast as a wire of 32 Mbit/s: what arrives twice depends on time there.
        server.downloads.context().download.set(Some(4_000_000));
        server.order(&sample);
    }
    for server in &servers {
        server.until_units(&sample, 64).await;
    }
    let tracker = Arc::clone(&group.leader.tracker.lock());
    for depth in [2, 1] {
        let view = &tracker.view()[0];
        let gone =
            view.servers.iter().find(|s| s.there && s.depth == depth).unwrap().server.clone();
        let place = servers.iter().position(|server| server.id == gone).unwrap();
        servers.remove(place).dies().await;
    }
    gate.add_permits(1_000_000);
    for server in &servers {
        server.until_held(&sample).await;
    }
    for server in &servers {
        let progress = last(server);
        let received = progress.bytes_from_peers + progress.bytes_from_mirrors;
        // The unit hashes, indices and heartbeats; and twice what was in transit at a change, until
        // the old link ends.
        let most = sample.release.length + 128 * UNIT as u64;
        assert!(received <= most, "{}: {received} of {most}", server.id);
    }
    hardly_twice(&mirror, &sample);
}
