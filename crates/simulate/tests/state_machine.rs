//! The drawing in `docs/state-machine.md` is what the code does, and every arrow is taken.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use cohort_core::phase::{ARROWS, End, PhaseName, arrow};
use cohort_simulate::fleet::chaos::Chaos;
use cohort_simulate::fleet::script::Script;

type Arrow = (PhaseName, PhaseName);

/// Seeds that are played to find arrows that no scenario takes; some 10 s on one core
/// for 40; rare arrows need luck.
const SEEDS: u64 = 120;

fn root() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn the_drawing_is_the_code() {
    let text = fs::read_to_string(root().join("docs/state-machine.md")).expect("the drawing");
    let end = |name: &str| {
        let name = name.replace('_', "-");
        let state = PhaseName::ALL.into_iter().find(|phase| phase.as_str() == name);
        if name == "forward" { Some(End::Forward) } else { state.map(End::At) }
    };
    let mut drawn = BTreeSet::new();
    for line in text.lines() {
        let Some((from, rest)) = line.trim().split_once(" --> ") else { continue };
        let Some((to, by)) = rest.split_once(": ") else { continue };
        let (from, to) = (end(from).expect(from), end(to).expect(to));
        assert!(drawn.insert((from, to, by.to_owned())), "{line} is drawn twice");
    }
    let coded: BTreeSet<_> =
        ARROWS.iter().map(|(from, to, by)| (*from, *to, (*by).to_owned())).collect();
    let missing: Vec<_> = coded.difference(&drawn).collect();
    let invented: Vec<_> = drawn.difference(&coded).collect();
    assert!(missing.is_empty(), "not drawn: {missing:?}");
    assert!(invented.is_empty(), "drawn, and not in the code: {invented:?}");
}

fn taken_by_scenarios() -> BTreeSet<Arrow> {
    let mut taken = BTreeSet::new();
    for entry in fs::read_dir(root().join("scenarios")).expect("the scenarios") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "txt") {
            let text = fs::read_to_string(&path).expect("a script");
            let (_, script) = Script::play(&text);
            taken.extend(script.arrows());
        }
    }
    taken
}

#[test]
fn every_arrow_is_taken_by_a_scenario_or_a_simulation() {
    let mut taken = taken_by_scenarios();
    let untaken = |taken: &BTreeSet<Arrow>| -> Vec<Arrow> {
        let from_each = PhaseName::ALL.into_iter();
        let all = from_each.flat_map(|from| PhaseName::ALL.map(|to| (from, to)));
        let drawn = all.filter(|(from, to)| arrow(*from, *to).is_some());
        drawn.filter(|arrow| !taken.contains(arrow)).collect()
    };
    for seed in 0..SEEDS {
        if untaken(&taken).is_empty() {
            return;
        }
        taken.extend(Chaos::new(seed).play().arrows);
    }
    let left = untaken(&taken);
    assert!(left.is_empty(), "nobody took {left:?}");
}
