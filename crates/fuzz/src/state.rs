//! Entries and snapshots of a group's log: commands and states as JSON.

use cohort_base::golden::round_trip;
use cohort_core::ids::{GroupId, Incarnation};
use cohort_core::{Command, State};

use crate::script::lines;

/// Commands, one per line, applied to a new group: none breaks an invariant.
pub(crate) fn entries(bytes: &[u8]) {
    let group = GroupId::new("web").expect("a name");
    apply(State::new(group, Incarnation(1)), lines(bytes));
}

/// A snapshot in the first line, as a member reads it, then commands.
pub(crate) fn snapshot(bytes: &[u8]) {
    let mut lines = lines(bytes);
    let state = lines.next().and_then(round_trip::<State>);
    if let Some(state) = state.filter(|state| state.check().is_ok()) {
        apply(state, lines);
    }
}

fn apply<'a>(mut state: State, lines: impl Iterator<Item = &'a [u8]>) {
    for line in lines {
        let Some(command) = round_trip::<Command>(line) else { continue };
        let before = state.clone();
        match state.apply(&command) {
            Ok(_) => state.check().expect("an applied command breaks no invariant"),
            // Its answer is remembered.
            Err(_) => {
                let requests = state.requests.clone();
                assert_eq!(state, State { requests, ..before }, "a rejected command changes it");
            }
        }
        let bytes = serde_json::to_vec(&state).expect("a state has text keys only");
        let again: State = serde_json::from_slice(&bytes).expect("what was written is read");
        assert_eq!(again, state);
    }
}
