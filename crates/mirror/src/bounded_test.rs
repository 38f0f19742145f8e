use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Barrier;
use std::thread;

use super::{Bounded, Usage};

const MAX: Usage = Usage { files: 8, bytes: 1000 };

fn open(dir: &Path) -> Bounded {
    Bounded::open(dir.to_owned(), MAX, 0).unwrap()
}

fn on_disk(dir: &Path) -> BTreeMap<String, u64> {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
    let entry = |entry: fs::DirEntry| {
        (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().len())
    };
    entries.map(entry).collect()
}

#[test]
fn what_was_not_used_for_longest_makes_room() {
    let dir = tempfile::tempdir().unwrap();
    let folder = open(dir.path());
    for name in ["a", "b", "c"] {
        folder.write(name, &[0; 300]).unwrap();
    }
    assert!(folder.note_use("a"));
    folder.write("d", &[0; 300]).unwrap();
    assert_eq!(on_disk(dir.path()).into_keys().collect::<Vec<_>>(), ["a", "c", "d"]);
    // Those that may not go stay, and what does not fit is not stored.
    assert!(!folder.reserve("e", 300, |name| name == "x").unwrap());
    assert!(!folder.reserve("e", 1001, |_| true).unwrap());
    assert_eq!(folder.usage(), Usage { files: 3, bytes: 900 });
    // Replacing a file evicts another one, not the one being replaced.
    folder.write("c", &[0; 200]).unwrap();
    assert_eq!(folder.usage(), Usage { files: 2, bytes: 500 });
    drop(folder);
    assert_eq!(open(dir.path()).usage(), Usage { files: 2, bytes: 500 });
}

#[test]
fn a_file_without_a_place_is_removed_when_it_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let folder = open(dir.path());
    folder.write("kept", &[0; 10]).unwrap();
    // The state left by a writer whose place was given away before it was done.
    fs::write(dir.path().join("late"), [0; 10]).unwrap();
    assert!(!folder.note_use("late"));
    folder.remove_if("kept", || false);
    assert_eq!(on_disk(dir.path()), BTreeMap::from([("kept".to_owned(), 10)]));
    folder.remove("kept");
    assert_eq!((folder.usage(), on_disk(dir.path()).len()), (Usage { files: 0, bytes: 0 }, 0));
}

#[test]
fn writers_of_a_full_folder_do_not_disturb_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let folder = open(dir.path());
    let begin = Barrier::new(4);
    thread::scope(|scope| {
        for writer in 0..4 {
            let (folder, begin) = (&folder, &begin);
            scope.spawn(move || {
                begin.wait();
                for round in 0..100 {
                    let name = format!("{writer}-{}", round % 5);
                    folder.write(&name, &vec![0; 50 + 10 * round % 200]).unwrap();
                }
            });
        }
    });
    let held =
        folder.held.lock().files.iter().map(|(name, at)| (name.clone(), at.length)).collect();
    assert_eq!(on_disk(dir.path()), held, "what is counted is what is there");
    let Usage { files, bytes } = folder.usage();
    assert!(files <= MAX.files && bytes <= MAX.bytes && bytes == held.values().sum::<u64>());
}
