//! A group in which some servers can use a delta and one cannot: the delta crosses the downlink,
//! and the whole artifact does not.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::FetchStatus;
use crate::group_test::{Group, Server, limits};
use crate::store::delta::delta_test::Pair;
use crate::testing::{DEADLINE, Manners, Mirror, Sample};

async fn until_here(server: &Server, sample: &Sample) {
    let mut statuses = server.downloads.statuses();
    let held = statuses.wait_for(|all| all.get(sample.digest()) == Some(&FetchStatus::Held));
    let held = tokio::time::timeout(DEADLINE, held).await.map(|held| held.is_ok());
    assert_eq!(held, Ok(true), "{}: {:?}", server.id, server.downloads.statuses().borrow());
}

fn order(server: &Server, samples: &[&Sample]) {
    let orders: Vec<_> = samples
        .iter()
        .map(|sample| {
            let mut order = sample.order();
            order.from_mirror = false;
            order
        })
        .collect();
    server.downloads.set_orders(&orders);
}

#[tokio::test(flavor = "multi_thread")]
async fn those_with_a_base_feed_the_one_without() {
    let group = Group::new(limits());
    let pair = Arc::new(Pair::new());
    let mirror = Mirror::start(&[&pair.new, &pair.blob], Manners::default()).await;
    let servers = group.servers(5, &mirror).await;
    let (without, with) = servers.split_last().unwrap();
    for server in with {
        server.disk.hold(&pair.old);
        order(server, &[&pair.blob]);
    }
    for server in with {
        until_here(server, &pair.blob).await;
        let store = server.disk.store.clone();
        let applied = Arc::clone(&pair);
        tokio::task::spawn_blocking(move || applied.apply(&store)).await.unwrap().unwrap();
        // As an agent would: it now holds the whole artifact, and keeps the delta for others.
        order(server, &[&pair.new, &pair.blob]);
    }
    let deadline = Instant::now() + DEADLINE;
    let tracker = || Arc::clone(&group.leader.tracker.lock());
    while !tracker().view().iter().any(|view| view.artifact == *pair.new.digest()) {
        assert!(Instant::now() < deadline, "the leader never heard of the whole");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    order(without, &[&pair.new]);
    for server in &servers {
        server.until_held(&pair.new).await;
    }
    assert_eq!(mirror.sent(), pair.blob.release.length, "the delta, once, and nothing else");
}
