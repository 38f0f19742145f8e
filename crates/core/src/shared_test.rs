use crate::shared::Shared;

#[test]
fn a_copy_that_is_changed_leaves_the_others_as_they_were() {
    let before = Shared::from(vec![1, 2]);
    let mut after = before.clone();
    assert!(std::ptr::eq(&raw const *before, &raw const *after), "nothing is copied before");
    after.push(3);
    assert_eq!((before.to_vec(), after.to_vec()), (vec![1, 2], vec![1, 2, 3]));
    assert_ne!(before, after);
}
