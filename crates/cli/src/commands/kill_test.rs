use cohort_view::table::Look;

use super::{DamagedKill, KillScope, Spread, Switch, scope, text};

#[test]
fn scopes_are_the_fleet_or_a_group() {
    assert_eq!(scope("fleet"), Ok(KillScope::Fleet));
    assert!(matches!(scope("intel.zone-a"), Ok(KillScope::Group(_))));
    assert!(scope("Intel").is_err());
}

#[test]
fn switches_and_damaged_files_are_shown() {
    let on = Switch {
        scope: "fleet".into(),
        on: true,
        epoch: 3,
        reason: "bad night",
        by: "operator `ann`",
        at: 1000,
        spread: Some(Spread { asked: 3, missing: vec!["web-2"] }),
    };
    let (scope, reason) = (KillScope::Fleet, "the hub: file x is damaged".to_owned());
    assert_eq!(
        text(&[on], &[DamagedKill { scope, epoch: 3, reason }], 1075, Look::PLAIN),
        "SCOPE  SWITCH  FOR     AT             BY              REASON\n\
         fleet  ON      1m 15s  2 of 3 places  operator `ann`  bad night\n\
         fleet: not yet at web-2\n\
         fleet is ON: the hub: file x is damaged\n"
    );
    assert_eq!(text(&[], &[], 0, Look::PLAIN), "no kill switch has ever been on\n");
}
