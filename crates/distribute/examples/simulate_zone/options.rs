//! The options of the simulator.

use std::str::FromStr;

use super::setup::{Lie, Setup};

pub(crate) const USAGE: &str = "\
simulate_zone [OPTIONS]          without any: a table of zones

  --servers N                    servers of the group [10]
  --mib N                        size of the artifact, in MiB [64]
  --downlink MBIT                the zone's downlink [50]
  --link MBIT                    every server's link, each way [250]
  --slow PLACE:MBIT              another link for one server, counted from 0; may be repeated
  --slow-percent N:MBIT          another link for so many of a hundred, evenly spread
  --rack N                       servers per rack, known to the leader
  --die PLACE:MS                 a server dies at that time; may be repeated
  --fail-percent N:MS            so many of a hundred die, evenly spread, over that time
  --head-dies MS                 whoever is the first head then dies
  --no-leader FROM_MS:FOR_MS     there is no leader for a while, then another one
  --lie PLACE:LIE                holds, hoards, trickles, counts, wavers or complains
  --groups N                     so many groups of the same making behind one origin
  --origin MBIT                  what that origin gives [1000]
  --places N                     answers that it gives at once; 503 beyond [64]";

/// What was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) setup: Setup,
    pub(crate) groups: usize,
    pub(crate) origin_mbit: u64,
    pub(crate) places: usize,
}

impl Options {
    pub(crate) fn parse(words: &[String]) -> Result<Self, String> {
        let (mut servers, mut mib, mut downlink, mut link) = (10, 64, 50, 250);
        for pair in words.chunks(2) {
            match (pair[0].as_str(), pair.get(1)) {
                ("--servers", Some(value)) => servers = number(value, 1, 5_000)?,
                ("--mib", Some(value)) => mib = number(value, 1, 16 << 10)?,
                ("--downlink", Some(value)) => downlink = number(value, 1, 100_000)?,
                ("--link", Some(value)) => link = number(value, 1, 100_000)?,
                _ => {}
            }
        }
        let setup = Setup::new(servers, mib, downlink, link);
        let mut options = Self { setup, groups: 1, origin_mbit: 1_000, places: 64 };
        for pair in words.chunks(2) {
            let value = pair.get(1).ok_or_else(|| format!("`{}` needs a value", pair[0]))?;
            options.take(&pair[0], value)?;
        }
        Ok(options)
    }

    fn take(&mut self, name: &str, value: &str) -> Result<(), String> {
        let setup = &mut self.setup;
        let last = setup.servers - 1;
        match name {
            "--servers" | "--mib" | "--downlink" | "--link" => {}
            "--slow" => {
                let (place, mbit) = two(value)?;
                let rate = number::<u64>(mbit, 1, 100_000)? * 125_000;
                setup.links.insert(number(place, 0, last)?, rate);
            }
            "--slow-percent" => {
                let (percent, mbit) = two(value)?;
                let rate = number::<u64>(mbit, 1, 100_000)? * 125_000;
                setup.links.extend(spread(setup.servers, percent)?.map(|place| (place, rate)));
            }
            "--rack" => setup.rack = Some(number(value, 1, 5_000)?),
            "--die" => {
                let (place, ms) = two(value)?;
                setup.die.insert(number(place, 0, last)?, number(ms, 0, 3_600_000)?);
            }
            "--fail-percent" => {
                let (percent, over) = two(value)?;
                let over: u64 = number(over, 1, 3_600_000)?;
                let places: Vec<usize> = spread(setup.servers, percent)?.collect();
                let count = places.len() as u64;
                let times = (1..).map(|n| over * n / count);
                setup.die.extend(places.into_iter().zip(times));
            }
            // Steps are five milliseconds.
            "--head-dies" => setup.head_dies = Some(number::<u64>(value, 0, 3_600_000)? / 5 * 5),
            "--no-leader" => {
                let (from, over) = two(value)?;
                let from = number::<u64>(from, 0, 3_600_000)? / 5 * 5;
                setup.no_leader = Some((from, number(over, 0, 3_600_000)?));
            }
            "--lie" => {
                let (place, name) = two(value)?;
                let lie = Lie::ALL.iter().find(|(known, _)| *known == name);
                let (_, lie) = lie.ok_or_else(|| format!("`{name}` is no lie"))?;
                setup.lies.insert(number(place, 0, last)?, *lie);
            }
            "--groups" => self.groups = number(value, 1, 1_000)?,
            "--origin" => self.origin_mbit = number(value, 1, 1_000_000)?,
            "--places" => self.places = number(value, 1, 1_000_000)?,
            _ => return Err(format!("`{name}` is no option")),
        }
        Ok(())
    }
}

/// Places of so many of a hundred servers, never the first.
fn spread(servers: usize, percent: &str) -> Result<impl Iterator<Item = usize>, String> {
    let count = servers * number::<usize>(percent, 1, 99)? / 100;
    Ok((0..count).map(move |n| n * servers / count.max(1) + 1).filter(move |n| *n < servers))
}

fn two(value: &str) -> Result<(&str, &str), String> {
    value.split_once(':').ok_or_else(|| format!("`{value}` must be two values with a colon"))
}

fn number<T: FromStr + PartialOrd + std::fmt::Display + Copy>(
    text: &str,
    least: T,
    most: T,
) -> Result<T, String> {
    let known = text.parse::<T>().ok().filter(|number| *number >= least && *number <= most);
    known.ok_or_else(|| format!("`{text}` is no number from {least} to {most}"))
}
