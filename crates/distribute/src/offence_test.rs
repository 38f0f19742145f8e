//! Offenders are named, in the progress of a fetch and in the counters.

use parking_lot::Mutex;

use crate::testing::{DEADLINE, Disk, Manners, Mirror, Sample, UNIT, context, fetch_once, quick};
use crate::{Downloads, FetchStatus, Limits, Offence, Offences, SourceName};

/// The offences of a mirror with this behaviour, next to a good one.
async fn named_for(manners: Manners, limits: Limits) -> (Vec<Offence>, Vec<Offence>) {
    let (disk, sample) = (Disk::new(), Sample::new("offence", 5 * UNIT + 99));
    let bad = Mirror::start(&[&sample], manners).await;
    let good = Mirror::start(&[&sample], Manners::default()).await;
    let downloads = Downloads::new(context(&disk, &[&bad, &good], limits));
    downloads.set_orders(&[sample.order()]);
    let mut statuses = downloads.statuses();
    let held = statuses.wait_for(|all| all.get(sample.digest()) == Some(&FetchStatus::Held));
    drop(tokio::time::timeout(DEADLINE, held).await.unwrap().unwrap());
    disk.assert_holds(&sample);
    let progress = downloads.ended().pop().unwrap().progress;
    let of = |mirror: &Mirror| -> Offences {
        let name = SourceName::mirror(&format!("{}/", mirror.url));
        let named = progress.sources.iter().find(|one| one.source == name);
        named.map_or_else(Offences::new, |source| source.offences.clone())
    };
    assert!(of(&good).is_empty(), "{progress:?}");
    let counted = downloads.context().counters.offences();
    let name = SourceName::mirror(&format!("{}/", bad.url));
    assert!(counted.iter().all(|(source, ..)| *source == name), "{counted:?}");
    (of(&bad).into_keys().collect(), counted.into_iter().map(|(_, what, _)| what).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_offender_is_named_for_what_it_did() {
    let short = Limits { unit_ms_max: 300, ..quick() };
    for (manners, limits, what) in [
        (
            Manners { flips: Mutex::new([2].into()), ..Manners::default() },
            quick(),
            Some(Offence::WrongBytes),
        ),
        (Manners { wrong_hashes: true, ..Manners::default() }, quick(), Some(Offence::WrongBytes)),
        (Manners { endless: true, ..Manners::default() }, quick(), Some(Offence::WrongLength)),
        (Manners { wrong_total: true, ..Manners::default() }, quick(), Some(Offence::WrongLength)),
        (Manners { silent: true, ..Manners::default() }, quick(), Some(Offence::Silent)),
        (Manners { trickles: true, ..Manners::default() }, short, Some(Offence::Slow)),
        // Busy is not an offence.
        (Manners { busy: 1.into(), ..Manners::default() }, quick(), None),
    ] {
        let (named, counted) = named_for(manners, limits).await;
        assert_eq!(named, Vec::from_iter(what), "{what:?}");
        assert_eq!(counted, named, "{what:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ended_is_remembered_until_a_leader_has_heard_of_it() {
    let (disk, sample) = (Disk::new(), Sample::new("ended", 5 * UNIT));
    let mirror = Mirror::start(&[&sample], Manners::default()).await;
    let downloads = Downloads::new(context(&disk, &[&mirror], quick()));
    downloads.set_orders(&[sample.order()]);
    let mut statuses = downloads.statuses();
    let held = statuses.wait_for(|all| all.get(sample.digest()) == Some(&FetchStatus::Held));
    drop(tokio::time::timeout(DEADLINE, held).await.unwrap().unwrap());
    downloads.set_orders(&[]);
    let ended = downloads.ended();
    assert_eq!(ended.len(), 1, "no leader has heard of it, and it is no longer ordered");
    let hashes = sample.hashes.to_bytes().len() as u64;
    assert_eq!(ended[0].progress.bytes_from_mirrors, 5 * UNIT as u64 + hashes);
    downloads.told(&[sample.digest().clone()]);
    assert!(downloads.ended().is_empty());
    // A delta or artifact that is already here is not fetched.
    downloads.set_orders(&[sample.order()]);
    let mut statuses = downloads.statuses();
    let held = statuses.wait_for(|all| all.get(sample.digest()) == Some(&FetchStatus::Held));
    drop(tokio::time::timeout(DEADLINE, held).await.unwrap().unwrap());
    assert!(downloads.ended().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offender_that_was_met_in_one_fetch_only_is_counted_once() {
    let (disk, sample) = (Disk::new(), Sample::new("once", 5 * UNIT));
    let flips = Manners { flips: Mutex::new([0].into()), ..Manners::default() };
    let bad = Mirror::start(&[&sample], flips).await;
    let good = Mirror::start(&[&sample], Manners::default()).await;
    let context = context(&disk, &[&bad, &good], quick());
    fetch_once(&context, sample.order()).await.0.unwrap();
    let counted: Vec<u64> = context.counters.offences().into_iter().map(|(.., n)| n).collect();
    assert_eq!(counted, [1]);
}
