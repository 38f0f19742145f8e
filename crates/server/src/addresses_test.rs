use super::*;

fn member(number: u64, server: &str, address: &str) -> MemberAddress {
    let (server, address) = (server.parse().unwrap(), address.to_owned());
    MemberAddress { server, address, member: MemberId(number) }
}

fn of(book: &AddressBook, number: u64) -> Option<String> {
    book.of(MemberId(number)).map(|(server, at)| format!("{server} {at}"))
}

#[test]
fn members_that_are_not_named_any_more_are_kept() {
    let mut book = AddressBook::default();
    book.learn(&[member(1, "s1", "a:1"), member(2, "s2", "b:1")]);
    book.learn(&[member(2, "s2", "b:2")]);
    book.learn(&[]);
    assert_eq!(of(&book, 1).as_deref(), Some("s1 a:1"));
    assert_eq!(of(&book, 2).as_deref(), Some("s2 b:2"));
    assert_eq!(of(&book, 3), None);
    assert_eq!(book.current(), [member(2, "s2", "b:2")]);
}

#[test]
fn the_hubs_address_of_a_member_counts_until_the_group_knows_a_new_one() {
    let mut book = AddressBook::default();
    let at = |book: &mut AddressBook, address: &str| {
        book.learn(&[member(1, "s1", address)]);
        book.current()[0].address.clone()
    };
    at(&mut book, "old:1");
    assert!(book.learn_move(&member(1, "s1", "old:1"), "new:1"));
    assert_eq!(of(&book, 1).as_deref(), Some("s1 new:1"));
    assert_eq!(at(&mut book, "old:1"), "new:1", "the group's log is behind");
    assert_eq!(at(&mut book, "new:1"), "new:1");
    assert!(book.learn_move(&member(1, "s1", "new:1"), "newest:1"));
    assert_eq!(at(&mut book, "new:1"), "newest:1");
    assert_eq!(at(&mut book, "other:1"), "other:1");
}

#[test]
fn of_two_addresses_the_one_counts_where_the_member_answers() {
    let mut book = AddressBook::default();
    let s1 = member(1, "s1", "groups:1");
    let learn = |book: &mut AddressBook| {
        book.learn(std::slice::from_ref(&s1));
        book.current()[0].address.clone()
    };
    learn(&mut book);
    // The hub could not be told that the member has moved.
    assert!(book.learn_move(&s1, "stale:1"));
    assert_eq!(learn(&mut book), "stale:1");
    book.missed(&s1.server, "stale:1");
    assert_eq!(book.current(), std::slice::from_ref(&s1));
    assert_eq!(of(&book, 1).as_deref(), Some("s1 groups:1"));
    assert!(!book.learn_move(&s1, "stale:1"), "the same word again is no news");
    assert_eq!(learn(&mut book), "groups:1");
    // Late news of an earlier attempt changes nothing.
    book.missed(&s1.server, "stale:1");
    assert_eq!(learn(&mut book), "groups:1");
    // A newer word of the hub is tried first.
    assert!(book.learn_move(&s1, "new:1"));
    assert_eq!(learn(&mut book), "new:1");
    // Both agree: the earlier word is gone.
    assert!(book.learn_move(&s1, "groups:1"));
    assert_eq!(learn(&mut book), "groups:1");
    book.missed(&s1.server, "groups:1");
    assert_eq!(learn(&mut book), "groups:1");
}
