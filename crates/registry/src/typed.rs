//! Typed reads and writes on any [`Registry`].

use std::collections::BTreeMap;

use cohort_core::ids::{AppId, GroupId, Incarnation, Revision, ServerId, Version};
use cohort_wire::intent::{AppIntent, IntentError, SignedIntent, Wanted};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::{
    Compare, KeyValue, Op, RangeRequest, Registry, RegistryError, Selector, TXN_OPS_MAX, Txn,
};
use crate::keys::{self, Place};
use crate::records::{
    Bootstrap, BootstrapRecord, Fenced, GroupInfo, GroupRecord, GroupVerdict, IntentRecord,
    MembersRecord, SCHEMA, ServerRecord, Stamp, VerdictRecord, bounded, decode, encode,
};

/// All reads and writes fail with the registry's error.
pub type Answer<T> = Result<T, RegistryError>;

/// Compare-and-set attempts. A group's members write rarely, so more than a few lost races in a row
/// mean that something is wrong.
const ATTEMPTS_MAX: u32 = 8;

/// Versions of an app whose verdicts are kept. 32: as many as a group's history, and every leader
/// reads them all.
pub const VERDICT_VERSIONS_MAX: usize = 32;

/// The outcome of a fenced write: a late writer changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum FencedPut {
    Written,
    /// The same record is stored already.
    Unchanged,
    /// A newer record is stored: this writer no longer leads.
    Late,
}

/// Reads one pair; `None` if the key is missing.
pub async fn get(registry: &dyn Registry, key: &str) -> Answer<Option<KeyValue>> {
    let select = Selector::Key(key.to_owned());
    let answer = registry.range(RangeRequest { select, after: None, limit: 1 }).await?;
    Ok(answer.items.into_iter().next())
}

/// Reads all pairs under a prefix, and the revision after which to watch. If it takes several
/// answers, that is the revision of the first: a watch may repeat what was read, but misses
/// nothing.
pub async fn list(registry: &dyn Registry, prefix: &str) -> Answer<(Vec<KeyValue>, u64)> {
    let mut items: Vec<KeyValue> = Vec::new();
    let mut revision = None;
    loop {
        let select = Selector::Prefix(prefix.to_owned());
        let after = items.last().map(|pair| pair.key.clone());
        let answer = registry.range(RangeRequest { select, after, limit: 0 }).await?;
        revision.get_or_insert(answer.revision);
        items.extend(answer.items);
        if !answer.more {
            return Ok((items, revision.unwrap_or(answer.revision)));
        }
    }
}

async fn read<T: DeserializeOwned>(registry: &dyn Registry, key: &str) -> Answer<Option<T>> {
    get(registry, key).await?.map(|pair| decode(&pair)).transpose()
}

/// Reads a server's record.
pub async fn read_server(
    registry: &dyn Registry,
    server: &ServerId,
) -> Answer<Option<ServerRecord>> {
    read(registry, &keys::server(server)).await
}

/// What the registry knew of a server that told it where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// That, already.
    Known,
    /// Another address.
    Moved,
    /// Nothing, or that it was in another group: the registry was lost, or restored from a backup.
    Restored,
}

/// Tells the registry where a server is, and everything else if it has no record of it.
///
/// # Errors
/// Also with `Contended`.
pub async fn tell_server(registry: &dyn Registry, own: &ServerRecord) -> Answer<Told> {
    let key = keys::server(&own.server);
    for _ in 0..ATTEMPTS_MAX {
        let pair = get(registry, &key).await?;
        let seen_revision = pair.as_ref().map_or(0, |pair| pair.mod_revision);
        let there: Option<ServerRecord> = pair.map(|pair| decode(&pair)).transpose()?;
        let (told, record) = match there.filter(|there| there.group == own.group) {
            Some(there) if there.address == own.address => return Ok(Told::Known),
            Some(there) => (Told::Moved, ServerRecord { address: own.address.clone(), ..there }),
            None => (Told::Restored, own.clone()),
        };
        let compare = vec![Compare::unchanged_since(&key, seen_revision)];
        let then = vec![Op::put(&key, encode(&record))];
        if registry.txn(Txn { compare, then, ..Txn::default() }).await?.succeeded {
            return Ok(told);
        }
    }
    Err(RegistryError::Contended { key, attempts: ATTEMPTS_MAX })
}

/// Reads the descriptions of all groups.
pub async fn group_infos(registry: &dyn Registry) -> Answer<Vec<GroupInfo>> {
    let (items, _) = list(registry, keys::GROUPS).await?;
    items
        .iter()
        .filter(|pair| matches!(keys::parse(&pair.key), Some(Place::GroupInfo { .. })))
        .map(decode)
        .collect()
}

/// Reads a group's description.
pub async fn read_group_info(
    registry: &dyn Registry,
    group: &GroupId,
) -> Answer<Option<GroupInfo>> {
    read(registry, &keys::group_info(group)).await
}

/// Writes a group's description.
///
/// # Errors
/// Also with `Contended`.
pub async fn write_group_info(registry: &dyn Registry, info: &GroupInfo) -> Answer<()> {
    let key = keys::group_info(&info.group);
    for _ in 0..ATTEMPTS_MAX {
        let since = get(registry, &key).await?.map_or(0, |pair| pair.mod_revision);
        let compare = vec![Compare::unchanged_since(&key, since)];
        let then = vec![Op::put(&key, encode(info))];
        if registry.txn(Txn { compare, then, ..Txn::default() }).await?.succeeded {
            return Ok(());
        }
    }
    Err(RegistryError::Contended { key, attempts: ATTEMPTS_MAX })
}

/// Reads a group's incarnation; `None` before its first.
pub async fn read_bootstrap(registry: &dyn Registry, group: &GroupId) -> Answer<Option<Bootstrap>> {
    let Some(pair) = get(registry, &keys::bootstrap(group)).await? else { return Ok(None) };
    Ok(Some(Bootstrap::of(decode(&pair)?, pair.mod_revision)))
}

/// Writes the incarnation that a group is in, if the registry has none or an earlier one: it was
/// lost, or restored from a backup. Returns whether it had.
///
/// # Errors
/// Also with `Contended`.
pub async fn restore_bootstrap(
    registry: &dyn Registry,
    group: &GroupId,
    incarnation: Incarnation,
    server: &ServerId,
) -> Answer<bool> {
    let key = keys::bootstrap(group);
    for _ in 0..ATTEMPTS_MAX {
        let mut seen_revision = 0;
        if let Some(pair) = get(registry, &key).await? {
            if Bootstrap::of(decode(&pair)?, pair.mod_revision).incarnation >= incarnation {
                return Ok(false);
            }
            seen_revision = pair.mod_revision;
        }
        let record = BootstrapRecord::restored(group.clone(), incarnation, server.clone());
        let compare = vec![Compare::unchanged_since(&key, seen_revision)];
        let then = vec![Op::put(&key, encode(&record))];
        if registry.txn(Txn { compare, then, ..Txn::default() }).await?.succeeded {
            return Ok(true);
        }
    }
    Err(RegistryError::Contended { key, attempts: ATTEMPTS_MAX })
}

/// Starts a group's first incarnation with this server, unless there is one already. Every caller
/// gets the same answer; the server named in it bootstraps the group.
///
/// # Errors
/// Also with `RestoredUnconfirmed`.
pub async fn bootstrap_group(
    registry: &dyn Registry,
    group: &GroupId,
    server: &ServerId,
) -> Answer<Bootstrap> {
    let key = keys::bootstrap(group);
    for _ in 0..ATTEMPTS_MAX {
        if let Some(bootstrap) = read_bootstrap(registry, group).await? {
            return Ok(bootstrap);
        }
        let record = BootstrapRecord {
            schema: SCHEMA,
            group: group.clone(),
            incarnation: None,
            first_server: server.clone(),
            recovered_because: None,
        };
        let txn = Txn {
            compare: vec![Compare::absent(&key)],
            then: vec![Op::put(&key, encode(&record))],
            ..Txn::default()
        };
        registry.txn(txn).await?;
    }
    Err(RegistryError::Contended { key, attempts: ATTEMPTS_MAX })
}

/// Ends a group's incarnation, if it is still `old`, and starts the next one with this server.
/// `None`: it is not `old` any more; read again, then decide.
pub async fn recover_group(
    registry: &dyn Registry,
    group: &GroupId,
    old: Incarnation,
    server: &ServerId,
    because: &str,
) -> Answer<Option<Bootstrap>> {
    let key = keys::bootstrap(group);
    let Some(pair) = get(registry, &key).await? else { return Ok(None) };
    if Bootstrap::of(decode(&pair)?, pair.mod_revision).incarnation != old {
        return Ok(None);
    }
    let record = BootstrapRecord {
        schema: SCHEMA,
        group: group.clone(),
        incarnation: None,
        first_server: server.clone(),
        recovered_because: Some(bounded(because.to_owned())),
    };
    let txn = Txn {
        compare: vec![Compare::unchanged_since(&key, pair.mod_revision)],
        then: vec![Op::put(&key, encode(&record)), Op::Delete { key: keys::members(group) }],
        ..Txn::default()
    };
    let answer = registry.txn(txn).await?;
    Ok(answer.succeeded.then(|| Bootstrap {
        incarnation: Incarnation(answer.revision),
        first_server: server.clone(),
        restored: false,
    }))
}

/// Writes a record unless a newer one is stored. An unreadable record is not overwritten: an
/// operator has to inspect it.
async fn put_fenced<T>(
    registry: &dyn Registry,
    key: String,
    record: &T,
) -> Result<FencedPut, RegistryError>
where
    T: Fenced + Serialize + DeserializeOwned + PartialEq + Sync,
{
    for _ in 0..ATTEMPTS_MAX {
        let mut seen_revision = 0;
        if let Some(pair) = get(registry, &key).await? {
            let there: T = decode(&pair)?;
            if there == *record {
                return Ok(FencedPut::Unchanged);
            }
            if there.stamp() > record.stamp() {
                return Ok(FencedPut::Late);
            }
            seen_revision = pair.mod_revision;
        }
        let txn = Txn {
            compare: vec![Compare::unchanged_since(&key, seen_revision)],
            then: vec![Op::put(&key, encode(record))],
            ..Txn::default()
        };
        match registry.txn(txn).await {
            Ok(answer) if answer.succeeded => return Ok(FencedPut::Written),
            // Lost a race: read again.
            Ok(_) | Err(RegistryError::Conflict { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Err(RegistryError::Contended { key, attempts: ATTEMPTS_MAX })
}

/// Reads a group's members.
pub async fn read_members(
    registry: &dyn Registry,
    group: &GroupId,
) -> Answer<Option<MembersRecord>> {
    read(registry, &keys::members(group)).await
}

/// Writes a group's members, unless a newer record is stored.
pub async fn write_members(registry: &dyn Registry, record: &MembersRecord) -> Answer<FencedPut> {
    put_fenced(registry, keys::members(&record.group), record).await
}

/// Writes an app's state in a group, unless a newer record is stored.
pub async fn write_group_record(
    registry: &dyn Registry,
    record: &GroupRecord,
) -> Answer<FencedPut> {
    put_fenced(registry, keys::group_record(&record.group, &record.app), record).await
}

/// Reads an app's state in a group.
pub async fn read_group_record(
    registry: &dyn Registry,
    group: &GroupId,
    app: &AppId,
) -> Answer<Option<GroupRecord>> {
    read(registry, &keys::group_record(group, app)).await
}

/// Reads what a group has said about the release of this verdict.
pub async fn read_verdict(
    registry: &dyn Registry,
    verdict: &GroupVerdict,
) -> Answer<Option<VerdictRecord>> {
    let GroupVerdict { app, version, platform, group, .. } = verdict;
    read(registry, &keys::verdict(app, version, platform, group)).await
}

/// Writes a group's verdict, unless a newer one is stored.
pub async fn write_verdict(registry: &dyn Registry, verdict: &GroupVerdict) -> Answer<FencedPut> {
    let GroupVerdict { app, version, platform, group, record } = verdict;
    put_fenced(registry, keys::verdict(app, version, platform, group), record).await
}

/// Parses a verdict; `None` when the key is not a verdict's.
///
/// # Errors
/// `Corrupt`.
pub fn decode_verdict(pair: &KeyValue) -> Answer<Option<GroupVerdict>> {
    let Some(Place::Verdict { app, version, platform, group }) = keys::parse(&pair.key) else {
        return Ok(None);
    };
    let record: VerdictRecord = decode(pair)?;
    Ok(Some(GroupVerdict { app, version, platform, group, record }))
}

/// Removes everything that the registry has of a group, with its servers and its verdicts, so that
/// nothing waits for it any more. Idempotent. Returns whether there was anything.
pub async fn remove_group(registry: &dyn Registry, group: &GroupId) -> Answer<bool> {
    let of_it = |pair: &KeyValue| match keys::parse(&pair.key) {
        Some(
            Place::GroupInfo { group: of }
            | Place::Bootstrap { group: of }
            | Place::Members { group: of }
            | Place::GroupRecord { group: of, .. }
            | Place::Verdict { group: of, .. },
        ) => of == *group,
        Some(Place::Server { .. }) => {
            decode::<ServerRecord>(pair).is_ok_and(|server| server.group == *group)
        }
        Some(Place::Policy { .. } | Place::Removed { .. } | Place::Kill { .. }) | None => false,
    };
    let (items, _) = list(registry, keys::ROOT).await?;
    let mut doomed: Vec<KeyValue> = items.into_iter().filter(of_it).collect();
    // The servers first: an agent of a removed server may write nothing.
    doomed.sort_by_key(|pair| !pair.key.starts_with(keys::SERVERS));
    delete_all(registry, &doomed).await?;
    Ok(!doomed.is_empty())
}

/// Deletes pairs, each as it was read last: what stands behind a deletion counts once.
async fn delete_all(registry: &dyn Registry, pairs: &[KeyValue]) -> Answer<()> {
    for batch in pairs.chunks(TXN_OPS_MAX) {
        let mut batch = batch.to_vec();
        let mut attempts = 0;
        while !batch.is_empty() {
            let same = |pair: &KeyValue| Compare::unchanged_since(&pair.key, pair.mod_revision);
            let delete = |pair: &KeyValue| Op::Delete { key: pair.key.clone() };
            let compare = batch.iter().map(same).collect();
            let then = batch.iter().map(delete).collect();
            if registry.txn(Txn { compare, then, ..Txn::default() }).await?.succeeded {
                break;
            }
            attempts += 1;
            if attempts == ATTEMPTS_MAX {
                return Err(RegistryError::Contended { key: batch[0].key.clone(), attempts });
            }
            let mut present = Vec::new();
            for pair in &batch {
                present.extend(get(registry, &pair.key).await?);
            }
            batch = present;
        }
    }
    Ok(())
}

/// Removes a group's record of an app, and its verdicts about the app's releases. Idempotent.
pub async fn forget_app(registry: &dyn Registry, group: &GroupId, app: &AppId) -> Answer<()> {
    let of_it = |pair: &KeyValue| match keys::parse(&pair.key) {
        Some(Place::Verdict { group: of, .. }) => of == *group,
        _ => false,
    };
    let (items, _) = list(registry, &format!("{}{app}/", keys::VERDICTS)).await?;
    let record = get(registry, &keys::group_record(group, app)).await?;
    let doomed: Vec<KeyValue> = items.into_iter().filter(of_it).chain(record).collect();
    delete_all(registry, &doomed).await
}

/// Removes a group's records of apps that it does not have, and for which there is no policy: they
/// were removed before the registry was lost, or in an earlier incarnation. Nothing else would, and
/// the app could never be added again. `stamp`: how far the group's state is that decides; a record
/// that is newer stays.
pub async fn forget_ghosts(
    registry: &dyn Registry,
    group: &GroupId,
    stamp: Stamp,
    has: impl Fn(&AppId) -> bool,
) -> Answer<()> {
    let (items, _) = list(registry, &keys::group_apps(group)).await?;
    for pair in items {
        let Some(Place::GroupRecord { app, .. }) = keys::parse(&pair.key) else { continue };
        // One that is unreadable is an operator's to inspect.
        let Ok(record) = decode::<GroupRecord>(&pair) else { continue };
        let known = (record.stamp.incarnation, record.stamp.index);
        if !has(&app)
            && known <= (stamp.incarnation, stamp.index)
            && get(registry, &keys::policy(&app)).await?.is_none()
        {
            forget_app(registry, group, &app).await?;
        }
    }
    Ok(())
}

/// Reads what operators want of all apps: with [`keys::POLICIES`] their policies, with
/// [`keys::REMOVED`] their removals. Nothing is proven yet.
pub async fn intents(registry: &dyn Registry, prefix: &str) -> Answer<Vec<(AppId, SignedIntent)>> {
    let (items, _) = list(registry, prefix).await?;
    let read = |pair: &KeyValue| match keys::parse(&pair.key) {
        Some(Place::Policy { app } | Place::Removed { app }) => {
            Some(decode(pair).map(|record: IntentRecord| (app, record.signed)))
        }
        _ => None,
    };
    items.iter().filter_map(read).collect()
}

/// What a write of an operator's intent came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum IntentPut {
    Written,
    /// A removal, and there is no such app.
    NoApp,
    /// There is another policy than the writer knows, or this one has no later revision.
    Changed,
}

/// Writes what an operator wants of an app, if its revision is higher than that of everything that
/// was wanted before. With `expected`, only if the policy's revision is still that one (0: there is
/// none). A removal may be written again: a group ignores one that is older than its policy, and
/// the signature of an earlier one may no longer verify.
///
/// The caller has verified the signature.
///
/// # Errors
/// Also with `Contended`, and `Corrupt` for what is there.
pub async fn write_intent(
    registry: &dyn Registry,
    signed: &SignedIntent,
    intent: &AppIntent,
    expected: Option<Revision>,
) -> Answer<IntentPut> {
    let (policy, removed) = (keys::policy(&intent.app), keys::removed(&intent.app));
    for _ in 0..ATTEMPTS_MAX {
        let (known, gone) = (get(registry, &policy).await?, get(registry, &removed).await?);
        let there = revision_of(known.as_ref())?;
        let before = revision_of(gone.as_ref())?;
        let removes = intent.wanted == Wanted::Removal;
        if removes && known.is_none() && gone.is_none() {
            return Ok(IntentPut::NoApp);
        }
        if expected.is_some_and(|expected| expected != there)
            || intent.revision <= there.max(before)
        {
            return Ok(IntentPut::Changed);
        }
        let since = |pair: Option<&KeyValue>| pair.map_or(0, |pair| pair.mod_revision);
        let compare = vec![
            Compare::unchanged_since(&policy, since(known.as_ref())),
            Compare::unchanged_since(&removed, since(gone.as_ref())),
        ];
        let record = encode(&IntentRecord { schema: SCHEMA, signed: signed.clone() });
        let (there, away) = if removes { (&removed, &policy) } else { (&policy, &removed) };
        let then = vec![Op::put(there, record), Op::Delete { key: away.clone() }];
        if registry.txn(Txn { compare, then, ..Txn::default() }).await?.succeeded {
            return Ok(IntentPut::Written);
        }
    }
    Err(RegistryError::Contended { key: policy, attempts: ATTEMPTS_MAX })
}

/// The revision that an operator signed; 0 of nothing.
fn revision_of(pair: Option<&KeyValue>) -> Answer<Revision> {
    let Some(pair) = pair else { return Ok(Revision::default()) };
    let record: IntentRecord = decode(pair)?;
    let corrupt = |source: IntentError| RegistryError::Corrupt {
        key: pair.key.clone(),
        source: source.into(),
    };
    Ok(record.signed.unverified().map_err(corrupt)?.revision)
}

/// Removes the verdicts about all but the last versions of each app, at most
/// [`VERDICT_VERSIONS_MAX`]. Returns how many there were.
///
/// A channel that goes back to such a version waits for new verdicts: the groups roll it out again.
pub async fn forget_old_verdicts(registry: &dyn Registry) -> Answer<usize> {
    let (items, _) = list(registry, keys::VERDICTS).await?;
    let mut of_app: BTreeMap<AppId, BTreeMap<Version, (u64, Vec<KeyValue>)>> = BTreeMap::new();
    for pair in items {
        if let Some(Place::Verdict { app, version, .. }) = keys::parse(&pair.key) {
            let (last, of_version) = of_app.entry(app).or_default().entry(version).or_default();
            *last = pair.mod_revision.max(*last);
            of_version.push(pair);
        }
    }
    let mut doomed = Vec::new();
    for versions in of_app.into_values() {
        let mut versions: Vec<(u64, Vec<KeyValue>)> = versions.into_values().collect();
        versions.sort_by_key(|(last, _)| std::cmp::Reverse(*last));
        doomed.extend(versions.into_iter().skip(VERDICT_VERSIONS_MAX).flat_map(|(_, pairs)| pairs));
    }
    delete_all(registry, &doomed).await?;
    Ok(doomed.len())
}
