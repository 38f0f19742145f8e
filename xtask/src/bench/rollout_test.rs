use cohort_trial::logs::Line;

use super::{step_ms, waves};

fn lines(log: &str) -> Vec<Line> {
    log.lines()
        .filter_map(|line| {
            let (second, rest) = line.split_once(' ')?;
            Line::parse(&format!("2026-05-04T10:00:{second}Z  INFO cohort: {rest}"))
        })
        .collect()
}

#[test]
fn a_wave_lasts_until_the_next_or_the_end_of_the_last_rollout() {
    let log = lines(
        "00.000 event=\"phase\" app=web from=running to=marked-old\n\
         01.000 event=\"phase\" app=web from=verified to=wave-assigned\n\
         01.100 event=\"granted\" app=web server=old\n\
         02.000 event=\"phase\" app=web from=wave-baked to=running\n\
         10.000 event=\"phase\" app=web from=running to=marked-old\n\
         11.000 event=\"phase\" app=web from=verified to=wave-assigned\n\
         11.100 event=\"granted\" app=web server=a\n\
         12.000 event=\"phase\" app=web from=wave-baked to=wave-assigned\n\
         12.500 event=\"granted\" app=web server=b\n\
         14.000 event=\"phase\" app=web from=wave-baked to=running\n",
    );
    let waves = waves(&log).expect("two waves");
    let found: Vec<(&str, f64)> =
        waves.iter().map(|wave| (wave.server.as_str(), wave.end_ms - wave.begin_ms)).collect();
    assert_eq!(found, [("a", 1000.0), ("b", 2000.0)]);

    let own = lines(
        "11.200 event=\"step-begin\" app=web step=\"stop\" attempt=1\n\
         11.450 event=\"step-done\" app=web step=\"stop\" attempt=1\n",
    );
    assert_eq!(step_ms(&own, "stop", &waves[0]).ok(), Some(250.0));
    assert!(step_ms(&own, "start", &waves[0]).is_err());
    assert!(step_ms(&own, "stop", &waves[1]).is_err(), "of another wave");
}
