use std::path::Path;

use cohort_identity::{Authority, Identity, LIFETIME, Peer, Role, UnixTime};
use cohort_wire::kill::{KillAnswer, KillRegister, KillScope, Position, SignedKill};

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
    let mut add = |register| {
        let answer = KillAnswer { changed: false, registers: vec![register], damaged: Vec::new() };
        gathered.add(Ok(answer), operator.roots());
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
