use std::sync::Arc;

use cohort_consensus::{Role, Term};

use super::{pass_on_contacts, still_leads, until_deposed, until_leading};
use crate::testing::{Lab, handle};

#[tokio::test]
async fn a_leadership_lasts_until_another_member_leads_or_the_term_changes() {
    let lab = Lab::new().await;
    let leading = lab.leading();
    let term = leading.raft.term;
    let (mut handle, views, _queue) = handle(leading.clone());
    assert_eq!(until_leading(&mut handle).await, Some(term));
    assert!(still_leads(&handle, term));
    let mut deposed = leading.clone();
    deposed.raft.role = Role::Follower;
    views.send_replace(Arc::new(deposed));
    until_deposed(&handle, term).await;
    assert!(!still_leads(&handle, term));
    let mut again = leading;
    again.raft.term = Term(term.0 + 1);
    views.send_replace(Arc::new(again));
    until_deposed(&handle, term).await;
    assert!(!still_leads(&handle, term), "entries of another leader may be in between");
    assert_eq!(until_leading(&mut handle).await, Some(Term(term.0 + 1)));
}

#[tokio::test(start_paused = true)]
async fn the_errands_end_with_their_member_also_if_it_led_to_its_end() {
    let lab = Lab::new().await;
    let shared = lab.agent("s1", None).await;
    let leading = lab.leading();
    let term = leading.raft.term;
    let (mut handle, views, _queue) = handle(leading);
    assert_eq!(until_leading(&mut handle).await, Some(term));
    drop(views);
    assert_eq!(until_leading(&mut handle).await, None);
    until_deposed(&handle, term).await;
    pass_on_contacts(shared, handle).await;
}
