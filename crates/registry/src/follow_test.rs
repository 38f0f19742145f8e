use std::collections::BTreeMap;

use async_trait::async_trait;

use crate::api::{
    Op, RangeAnswer, RangeRequest, Registry, RegistryError, Txn, TxnAnswer, WatchAnswer,
    WatchRequest,
};
use crate::follow::{Follower, Refreshed};
use crate::memory::MemoryRegistry;
use crate::state::HISTORY_EVENTS_MAX;

async fn put(registry: &dyn Registry, key: &str, value: &str) {
    let txn = Txn { then: vec![Op::put(key, value)], ..Txn::default() };
    registry.txn(txn).await.expect("put");
}

fn values(follower: &Follower) -> BTreeMap<&str, &str> {
    follower.view().iter().map(|(key, pair)| (key.as_str(), pair.value.as_str())).collect()
}

#[tokio::test]
async fn a_view_follows_what_concerns_it() {
    let registry = MemoryRegistry::new();
    put(&registry, "/a/1", "one").await;
    let mut follower = Follower::new("/a/");
    assert!(!follower.is_current());
    let first = follower.refresh(&registry, 0).await.expect("reads");
    assert_eq!(first, Refreshed::Changed);
    assert_eq!(values(&follower), BTreeMap::from([("/a/1", "one")]));
    put(&registry, "/b/1", "elsewhere").await;
    assert_eq!(follower.refresh(&registry, 0).await.expect("watches"), Refreshed::Unchanged);
    put(&registry, "/a/2", "two").await;
    let delete = Txn { then: vec![Op::Delete { key: "/a/1".into() }], ..Txn::default() };
    registry.txn(delete).await.expect("delete");
    assert_eq!(follower.refresh(&registry, 0).await.expect("watches"), Refreshed::Changed);
    assert_eq!(values(&follower), BTreeMap::from([("/a/2", "two")]));
    assert!(follower.is_current());
}

#[tokio::test]
async fn forgotten_history_is_made_good_by_reading_everything() {
    let registry = MemoryRegistry::new();
    put(&registry, "/a/1", "one").await;
    let mut follower = Follower::new("/a/");
    assert_eq!(follower.refresh(&registry, 0).await.expect("reads"), Refreshed::Changed);
    put(&registry, "/a/1", "changed").await;
    for _ in 0..=HISTORY_EVENTS_MAX {
        put(&registry, "/b", "x").await;
    }
    assert_eq!(follower.refresh(&registry, 0).await.expect("reads again"), Refreshed::Changed);
    assert_eq!(values(&follower), BTreeMap::from([("/a/1", "changed")]));
    // A registry that was put back to the beginning.
    let other = MemoryRegistry::new();
    put(&other, "/a/1", "another life").await;
    assert_eq!(follower.refresh(&other, 0).await.expect("reads again"), Refreshed::Changed);
    assert_eq!(values(&follower), BTreeMap::from([("/a/1", "another life")]));
    assert_eq!(follower.refresh(&other, 0).await.expect("watches"), Refreshed::Unchanged);
}

/// A registry that is away.
struct Away;

#[async_trait]
impl Registry for Away {
    async fn range(&self, _: RangeRequest) -> Result<RangeAnswer, RegistryError> {
        Err(RegistryError::Unavailable { reason: "away".into() })
    }
    async fn txn(&self, _: Txn) -> Result<TxnAnswer, RegistryError> {
        Err(RegistryError::Unavailable { reason: "away".into() })
    }
    async fn watch(&self, _: WatchRequest) -> Result<WatchAnswer, RegistryError> {
        Err(RegistryError::Unavailable { reason: "away".into() })
    }
}

#[tokio::test]
async fn a_registry_that_is_away_leaves_the_view_and_says_that_it_is_old() {
    let registry = MemoryRegistry::new();
    put(&registry, "/a/1", "one").await;
    let mut follower = Follower::new("/a/");
    assert_eq!(follower.refresh(&registry, 0).await.expect("reads"), Refreshed::Changed);
    follower.refresh(&Away, 0).await.expect_err("away");
    assert!(!follower.is_current());
    assert_eq!(values(&follower), BTreeMap::from([("/a/1", "one")]));
    assert_eq!(follower.refresh(&registry, 0).await.expect("back"), Refreshed::Unchanged);
    assert!(follower.is_current());
}
