use std::path::Path;

use cohort_identity::{Authority, Identity, LIFETIME, Peer, Role, UnixTime};
use cohort_wire::kill::{KillRegister, KillScope, Position, SignedKill};

use super::Gathered;

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
    let position = |gathered: &Gathered| gathered.registers.position(&KillScope::Fleet);
    assert_eq!(position(&gathered), None);
    gathered.add(Ok((vec![sign(&operator, 3, false)], Vec::new())), operator.roots());
    gathered.add(Ok((vec![sign(&operator, 2, true)], Vec::new())), operator.roots());
    gathered.add(Ok((vec![sign(&agent, 9, true)], Vec::new())), operator.roots());
    assert_eq!(position(&gathered), Some(Position { epoch: 3, on: false }));
    assert_eq!(gathered.answered, 3);
    gathered.add(Ok((vec![sign(&operator, 3, true)], Vec::new())), operator.roots());
    assert_eq!(position(&gathered), Some(Position { epoch: 3, on: true }), "on wins ties");
}
