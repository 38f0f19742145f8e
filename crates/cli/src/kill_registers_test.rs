use std::path::Path;

use cohort_core::ids::GroupId;
use cohort_identity::{Authority, Identity, LIFETIME, Peer, Role, UnixTime};
use cohort_wire::kill::{KillAnswer, KillRegister, KillScope, Position, SignedKill};

use super::{Answered, Gathered, Holds};

fn authority(dir: &Path) -> Authority {
    Authority::create(dir, UnixTime::now()).unwrap()
}

fn identity(authority: &Authority, role: Role) -> Identity {
    let peer = Peer::new(role, "ann").unwrap();
    authority.make_identity(&peer, LIFETIME, UnixTime::now()).unwrap()
}

fn sign(identity: &Identity, epoch: u64, on: bool) -> SignedKill {
    let register = KillRegister {
        scope: KillScope::Fleet,
        epoch,
        on,
        reason: String::new(),
        at: UnixTime::now().as_secs(),
    };
    SignedKill::sign(identity, &register).unwrap()
}

#[test]
fn the_newest_register_of_any_place_holds_and_strangers_count_for_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let (operator, agent) =
        (identity(&authority, Role::Operator), identity(&authority, Role::Agent));
    let mut gathered = Gathered::default();
    let mut add = |register| {
        let answer = KillAnswer { changed: false, registers: vec![register], damaged: Vec::new() };
        let (name, holds) = (String::new(), Holds::Every);
        gathered.add(Ok(Answered { name, holds, answer }), operator.roots());
        gathered.registers.position(&KillScope::Fleet)
    };
    let on = |epoch| Some(Position { epoch, on: true });
    let off = |epoch| Some(Position { epoch, on: false });
    assert_eq!(add(sign(&operator, 3, false)), off(3));
    assert_eq!(add(sign(&operator, 2, true)), off(3));
    assert_eq!(add(sign(&agent, 9, true)), off(3));
    assert_eq!(add(sign(&operator, 3, true)), on(3), "on wins ties");
    assert_eq!(gathered.answered, 4);
}

#[test]
fn a_register_that_only_a_part_of_its_places_has_is_shown_so() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let operator = identity(&authority, Role::Operator);
    let (own, other) = ("intel.zone-a".parse().unwrap(), "arm.zone-b".parse().unwrap());
    let (own, other): (GroupId, GroupId) = (own, other);
    let of_group = |epoch, on| {
        let (scope, reason) = (KillScope::Group(own.clone()), String::new());
        let register = KillRegister { scope, epoch, on, reason, at: UnixTime::now().as_secs() };
        SignedKill::sign(&operator, &register).unwrap()
    };
    let mut gathered = Gathered::default();
    for (name, holds, registers) in [
        ("the hub", Holds::Every, vec![sign(&operator, 4, true)]),
        ("s1", Holds::Of(own.clone()), vec![sign(&operator, 4, true), of_group(7, true)]),
        ("s2", Holds::Of(own.clone()), vec![of_group(6, false)]),
        ("s9", Holds::Of(other), vec![sign(&operator, 3, false)]),
    ] {
        let answer = KillAnswer { changed: false, registers, damaged: Vec::new() };
        let answered = Answered { name: name.to_owned(), holds, answer };
        gathered.add(Ok(answered), operator.roots());
    }
    assert_eq!(gathered.spread(&KillScope::Fleet), (vec!["s2", "s9"], 4));
    assert_eq!(gathered.spread(&KillScope::Group(own)), (vec!["the hub", "s2"], 3));
}
