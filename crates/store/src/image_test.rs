//! What batches do to the log, and which ones it refuses.

use crate::*;

fn entry(index: u64, term: u64) -> Entry {
    let data = format!("{index}/{term}").into_bytes();
    Entry { index: Index(index), term: Term(term), kind: EntryKind::Data, data }
}

fn append(entries: &[(u64, u64)]) -> Batch {
    let entries = entries.iter().map(|(index, term)| entry(*index, *term)).collect();
    Batch { entries, ..Batch::default() }
}

fn snapshot(index: u64, term: u64) -> Snapshot {
    let configuration = Configuration::of([RaftId(1)], []);
    Snapshot { index: Index(index), term: Term(term), configuration, data: Vec::new() }
}

fn terms(image: &Image) -> Vec<(u64, u64)> {
    image.entries(Index(0), Index(u64::MAX)).map(|e| (e.index.0, e.term.0)).collect()
}

fn written(batches: &[Batch]) -> FaultyStore {
    let mut store = FaultyStore::open(&Disk::new()).unwrap();
    for batch in batches {
        store.write(batch).unwrap();
    }
    store
}

#[test]
fn appending_replaces_what_comes_after() {
    let store = written(&[append(&[(1, 1), (2, 1), (3, 1)]), append(&[(2, 2)])]);
    assert_eq!(terms(store.image()), [(1, 1), (2, 2)]);
    assert_eq!(store.image().term(Index(2)), Some(Term(2)));
    assert_eq!(store.image().term(Index(3)), None);
    assert_eq!(store.image().term(Index(0)), Some(Term(0)));
}

#[test]
fn a_snapshot_from_the_leader_replaces_the_log() {
    let mut install = append(&[(11, 5)]);
    install.snapshot = Some(snapshot(10, 4));
    install.replace_log = true;
    let store = written(&[append(&[(1, 1), (2, 1)]), install]);
    assert_eq!(terms(store.image()), [(11, 5)]);
    assert_eq!(store.image().base(), (Index(10), Term(4)));
    assert_eq!(store.image().snapshot().map(|s| s.index), Some(Index(10)));
}

#[test]
fn a_cut_keeps_what_is_behind_it() {
    let cut = Batch { snapshot: Some(snapshot(3, 1)), cut: Some(Index(2)), ..Batch::default() };
    let store = written(&[append(&[(1, 1), (2, 1), (3, 1), (4, 2)]), cut]);
    assert_eq!(terms(store.image()), [(3, 1), (4, 2)]);
    assert_eq!(store.image().base(), (Index(2), Term(1)));
    assert_eq!(store.image().first_index(), Index(3));
}

#[test]
fn batches_that_do_not_fit_are_refused_and_change_nothing() {
    let base = append(&[(1, 1), (2, 1)]);
    let refused = [
        append(&[(4, 1)]),
        append(&[(3, 1), (5, 1)]),
        Batch { snapshot: Some(snapshot(2, 9)), ..Batch::default() },
        Batch { snapshot: Some(snapshot(3, 1)), ..Batch::default() },
        Batch { cut: Some(Index(1)), ..Batch::default() },
        Batch { snapshot: Some(snapshot(1, 1)), cut: Some(Index(2)), ..Batch::default() },
    ];
    for batch in refused {
        let mut store = written(std::slice::from_ref(&base));
        let before = store.image().clone();
        let result = store.write(&batch);
        assert!(matches!(result, Err(StoreError::BadBatch { .. })), "{batch:?}: {result:?}");
        assert_eq!(*store.image(), before);
    }
}
