use std::fs;

use cohort_identity::{Identity, Role, UnixTime};

use super::*;
use crate::http::testing::Fleet;

fn register(epoch: u64, on: bool) -> KillRegister {
    let reason = format!("epoch {epoch}");
    KillRegister { scope: KillScope::Fleet, epoch, on, reason, at: 1_800_000_000 }
}

fn group(name: &str) -> GroupId {
    GroupId::new(name).unwrap()
}

struct Switch {
    fleet: Fleet,
    operator: Identity,
    dir: tempfile::TempDir,
}

impl Switch {
    fn new() -> Self {
        let fleet = Fleet::new();
        let operator = fleet.identity(Role::Operator, "ann");
        Self { fleet, operator, dir: tempfile::tempdir().unwrap() }
    }

    fn open(&self) -> DurableKill {
        DurableKill::open(self.dir.path(), None).unwrap()
    }

    fn open_for(&self, name: &str) -> DurableKill {
        DurableKill::open(self.dir.path(), Some(group(name))).unwrap()
    }

    fn sign(&self, register: &KillRegister) -> SignedKill {
        SignedKill::sign(&self.operator, register).unwrap()
    }

    fn offer(&self, kill: &DurableKill, signed: &SignedKill) -> Result<bool, KillError> {
        kill.offer(signed, &[self.fleet.authority.certificate().clone()], UnixTime::now())
    }

    fn say(&self, kill: &DurableKill, register: &KillRegister) -> bool {
        self.offer(kill, &self.sign(register)).unwrap()
    }

    fn files(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

#[test]
fn on_is_latched_and_off_needs_a_higher_epoch() {
    let switch = Switch::new();
    let kill = switch.open();
    assert_eq!(kill.is_on(), None);
    assert!(switch.say(&kill, &register(1, true)));
    assert!(!switch.say(&kill, &register(1, true)));
    assert!(!switch.say(&kill, &register(1, false)));
    drop(kill);
    let kill = switch.open();
    assert_eq!(kill.is_on().unwrap().reason(), "epoch 1");
    assert_eq!(kill.is_on().unwrap().position().epoch, 1);
    assert!(switch.say(&kill, &register(2, false)));
    assert_eq!(kill.is_on(), None);
    // A delayed old *on* does not come back.
    assert!(!switch.say(&kill, &register(1, true)));
    assert_eq!(switch.open().is_on(), None);
    assert_eq!(switch.files(), ["fleet@00000000000000000002@off.kill"]);
}

#[test]
fn groups_are_apart_and_the_fleet_is_above_them() {
    let switch = Switch::new();
    let own = KillRegister { scope: KillScope::Group(group("intel.zone-a")), ..register(5, true) };
    let (here, elsewhere) = (switch.open_for("intel.zone-a"), switch.open_for("intel.zone-b"));
    assert!(switch.say(&here, &own));
    let refused = switch.offer(&elsewhere, &switch.sign(&own));
    assert!(matches!(refused, Err(KillError::Refused(Refused::OtherGroup { .. }))), "{refused:?}");
    assert!(here.is_on().is_some() && switch.open_for("intel.zone-a").is_on().is_some());
    assert!(elsewhere.is_on().is_none());
    let moved = switch.open_for("intel.zone-b");
    assert!(moved.is_on().is_none(), "left from an earlier group");
    switch.say(&moved, &register(1, true));
    assert!(moved.is_on().is_some());
}

#[test]
fn it_passes_from_server_to_server() {
    let (switch, other) = (Switch::new(), tempfile::tempdir().unwrap());
    let kill = switch.open();
    switch.say(&kill, &register(1, true));
    let text = serde_json::to_string(&kill.signed()).unwrap();
    let there = DurableKill::open(other.path(), None).unwrap();
    let arrived: Vec<SignedKill> = serde_json::from_str(&text).unwrap();
    for signed in arrived {
        assert!(switch.offer(&there, &signed).unwrap());
    }
    assert_eq!(there.entries(), kill.entries());
}

#[test]
fn only_operators_of_our_authority_throw_it() {
    let switch = Switch::new();
    let kill = switch.open();
    for role in [Role::Agent, Role::Hub, Role::Publisher, Role::Viewer] {
        let identity = switch.fleet.identity(role, "ann");
        let signed = SignedKill::sign(&identity, &register(9, true)).unwrap();
        let refused = switch.offer(&kill, &signed);
        assert!(
            matches!(refused, Err(KillError::Statement(StatementError::Role(_)))),
            "{role}: {refused:?}"
        );
    }
    let stranger = Fleet::new().identity(Role::Operator, "ann");
    let signed = SignedKill::sign(&stranger, &register(9, true)).unwrap();
    let refused = switch.offer(&kill, &signed);
    assert!(matches!(refused, Err(KillError::Statement(_))), "{refused:?}");
    // An operator's *on* cannot be turned into an *off* in transit.
    let mut signed = switch.sign(&register(9, true));
    signed.0.body = serde_json::to_vec(&register(9, false)).unwrap();
    assert!(switch.offer(&kill, &signed).is_err());
    assert!(switch.files().is_empty());
    assert_eq!(kill.is_on(), None);
}

#[test]
fn what_stops_still_spreads_after_its_author_has_expired_and_nothing_else_does() {
    let switch = Switch::new();
    let kill = switch.open();
    let roots = [switch.fleet.authority.certificate().clone()];
    let signed_s = UnixTime::now().as_secs();
    let later_s = signed_s + 20 * 365 * 24 * 3_600;
    let offer = |epoch, on, at| {
        let signed = switch.sign(&KillRegister { at, ..register(epoch, on) });
        kill.offer(&signed, &roots, UnixTime::since_unix_epoch(Duration::from_secs(later_s)))
    };
    assert!(matches!(offer(1, true, later_s), Err(KillError::Statement(_))), "signed too late");
    assert!(matches!(offer(1, true, later_s + 1), Err(KillError::Statement(_))), "in the future");
    assert!(matches!(offer(1, false, signed_s), Err(KillError::Statement(_))), "starts again");
    assert!(offer(1, true, signed_s).unwrap());
    assert!(kill.is_on().is_some());
}

#[test]
fn a_damaged_file_counts_as_on_until_a_higher_epoch() {
    for damage in ["", "{", "{\"body\":\"00\"}"] {
        let switch = Switch::new();
        switch.say(&switch.open(), &register(4, false));
        let path = switch.dir.path().join(switch.files().remove(0));
        fs::write(&path, damage).unwrap();
        let kill = switch.open();
        let on = kill.is_on().unwrap();
        assert!(on.reason().contains("damaged"), "{}", on.reason());
        let (scope, reason) = (KillScope::Fleet, on.reason().to_owned());
        assert_eq!(kill.answer(false).damaged, [DamagedKill { scope, epoch: 4, reason }]);
        // The *off* of the same epoch, forwarded by others, does not heal it; the next one does.
        assert!(!switch.say(&kill, &register(4, false)));
        assert!(switch.say(&kill, &register(5, false)));
        assert_eq!(kill.answer(true).damaged, []);
        assert_eq!(switch.open().is_on(), None);
    }
}

#[test]
fn a_damaged_register_does_not_hide_a_healthy_one() {
    let switch = Switch::new();
    let scope = KillScope::Group(group("intel.zone-a"));
    switch.say(&switch.open(), &KillRegister { scope, ..register(5, true) });
    fs::write(switch.dir.path().join("fleet@00000000000000000004@off.kill"), "").unwrap();
    let answer = switch.open().answer(false);
    assert_eq!((answer.registers.len(), answer.damaged.len()), (1, 1), "{answer:?}");
}

#[test]
fn a_file_under_anothers_name_counts_as_damaged() {
    let switch = Switch::new();
    switch.say(&switch.open(), &register(4, true));
    let from = switch.dir.path().join(switch.files().remove(0));
    fs::rename(from, switch.dir.path().join("fleet@00000000000000000009@off.kill")).unwrap();
    assert!(switch.open().is_on().is_some());
    fs::rename(
        switch.dir.path().join("fleet@00000000000000000009@off.kill"),
        switch.dir.path().join("what.kill"),
    )
    .unwrap();
    assert!(switch.open().is_on().is_some());
}

/// Every state that a crash can leave while epoch 2 replaces epoch 1.
#[test]
fn a_crash_leaves_the_old_or_the_new_position() {
    let switch = Switch::new();
    let kill = switch.open();
    switch.say(&kill, &register(1, false));
    let first = switch.files().remove(0);
    let text = fs::read(switch.dir.path().join(&first)).unwrap();
    // Written to a temporary file, not yet renamed: never acknowledged.
    let aside = switch.dir.path().join(".unfinished-fleet@00000000000000000002@on.kill.abc");
    fs::write(&aside, "{").unwrap();
    assert_eq!(switch.open().is_on(), None);
    // Renamed, the old one not yet removed.
    switch.say(&switch.open(), &register(2, true));
    fs::write(switch.dir.path().join(&first), text).unwrap();
    assert_eq!(switch.open().is_on().unwrap().position().epoch, 2);
}

#[test]
fn long_and_hidden_reasons_are_refused_on_both_sides() {
    let switch = Switch::new();
    for reason in ["x".repeat(KILL_REASON_BYTES_MAX + 1), "bad\u{202e}night".to_owned()] {
        let wrong = KillRegister { reason, ..register(1, true) };
        assert!(matches!(SignedKill::sign(&switch.operator, &wrong), Err(KillError::Reason(_))));
        let body = serde_json::to_vec(&wrong).unwrap();
        let by_hand = SignedKill(sign_statement(&switch.operator, CONTEXT, &body).unwrap());
        let refused = switch.offer(&switch.open(), &by_hand);
        assert!(matches!(refused, Err(KillError::Reason(_))), "{refused:?}");
    }
}

#[test]
fn a_refused_register_leaves_the_current_one_in_force() {
    let switch = Switch::new();
    let kill = switch.open();
    switch.say(&kill, &register(7, true));
    let refused = switch.offer(&kill, &switch.sign(&register(u64::MAX, false)));
    assert!(matches!(refused, Err(KillError::Refused(Refused::Epoch { .. }))), "{refused:?}");
    assert_eq!(kill.is_on().unwrap().position().epoch, 7);
    assert_eq!(switch.files(), ["fleet@00000000000000000007@on.kill"]);
}

#[test]
fn names_of_files_are_held() {
    let group = || KillScope::Group("web.zone-a".parse().unwrap());
    let names = [
        file_name(&KillScope::Fleet, 7, true),
        file_name(&KillScope::Fleet, 8, false),
        file_name(&group(), 1_800_000_000, true),
        file_name(&group(), u64::MAX, false),
    ];
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/kill-files.jsonl");
    cohort_base::golden::hold(Path::new(golden), &names);
}

#[test]
fn what_a_revoked_operator_resumed_is_forgotten_and_what_it_stopped_stays_stopped() {
    use crate::revocation::{Revocation, Revocations, SignedRevocation};
    use cohort_identity::PeerName;

    let lab = Switch::new();
    let ana = lab.fleet.identity(Role::Operator, "ana");
    let eve = lab.fleet.identity(Role::Operator, "eve");
    let latch = lab.open();
    let offer = |scope, epoch, on| {
        let register = KillRegister { scope, ..register(epoch, on) };
        let signed = SignedKill::sign(&eve, &register).unwrap();
        assert!(latch.offer(&signed, eve.roots(), UnixTime::now()).unwrap());
    };
    offer(KillScope::Fleet, 7, false);
    offer(KillScope::Group(group("web.zone-a")), 7, true);
    let revocations = Revocations::default();
    let (name, at) = (PeerName::new("eve").unwrap(), UnixTime::now().as_secs());
    let revocation = Revocation { role: Role::Operator, name, at, again: 0, reason: String::new() };
    let signed = SignedRevocation::sign(&ana, &revocation).unwrap();
    assert!(revocations.offer(&signed, ana.roots(), UnixTime::now()).unwrap());
    assert!(latch.forget_revoked(&revocations) && !latch.forget_revoked(&revocations));
    for latch in [latch, lab.open()] {
        let entries = latch.entries();
        assert_eq!(entries.position(&KillScope::Fleet), None);
        assert!(entries.stopping().is_some());
    }
}
