use super::Moved;

#[test]
fn once_means_about_once_and_not_never() {
    let once = |mirror_bytes| Moved { release_bytes: 100, mirror_bytes, peer_bytes: 900 }.once();
    assert!(!once(0), "nothing came from a mirror");
    assert!(once(100));
    assert!(once(150));
    assert!(!once(151));
}

#[test]
fn figures_of_an_earlier_leader_are_kept() {
    let mut moved = Moved { release_bytes: 100, mirror_bytes: 90, peer_bytes: 10 };
    moved.keep_most(Moved { release_bytes: 100, mirror_bytes: 5, peer_bytes: 20 });
    assert_eq!((moved.mirror_bytes, moved.peer_bytes), (90, 20));
}
