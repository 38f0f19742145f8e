//! `cohort audit`: every change that the hub accepted.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use cohort_base::{chain, text};
use cohort_view::figures::brief;
use cohort_view::table::{cell, render, table};
use cohort_wire::audit::{AUDIT, AuditEntry, AuditPage, ChainEnd};
use cohort_wire::http::Call;

use crate::answer::Answer;
use crate::args::Global;
use crate::commands::context_of;
use crate::connect::Hub;
use crate::failure::{Exit, Failure, OrFail as _};
use crate::layers::read_file;
use crate::output::{look, print};

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Show the latest changes: who, proven how, what, from where
    Show {
        /// How many
        #[arg(long, value_name = "COUNT", default_value_t = 50)]
        last: u64,
    },
    /// Print the whole trail as it is on the hub, one JSON object per line
    Export,
    /// Verify that no line was changed or left out
    Verify {
        /// An earlier export, which the trail must contain
        #[arg(long, value_name = "FILE")]
        export: Option<PathBuf>,
    },
}

pub(crate) async fn run(global: &Global, command: &AuditCommand) -> Result<Exit, Failure> {
    let hub = Hub::of(&context_of(global)?)?;
    match command {
        AuditCommand::Show { last } => {
            let end = page(&hub, u64::MAX - 1).await?.last;
            let lines = after(&hub, end.saturating_sub(*last)).await?;
            let entries: Result<Vec<AuditEntry>, _> =
                lines.iter().map(|line| ChainEnd::at(line).map(|(_, entry)| entry)).collect();
            let entries = entries.or_fail("audit")?;
            global.output.answer(&Answer::AuditShow(&entries), || shown(&entries));
        }
        AuditCommand::Export => {
            let lines = after(&hub, 0).await?;
            print(&lines.into_iter().map(|line| line + "\n").collect::<String>());
        }
        AuditCommand::Verify { export } => {
            let lines = after(&hub, 0).await?;
            let end = verified(&lines)?;
            if let Some(file) = export {
                contains(&lines, file)?;
            }
            let count = lines.len();
            let answer = Answer::AuditVerify { lines: count, last: end.seq, hash: &end.hash };
            global.output.answer(&answer, || {
                let first = end.seq.saturating_sub(count as u64) + 1;
                let before = match (first, export) {
                    (1, _) => "",
                    (_, None) => "what was before is not here: compare with an export (--export)\n",
                    (_, Some(_)) => "what was before is not here\n",
                };
                format!(
                    "{count} lines, from {first}, follow from one another; {} is {}\n{before}",
                    end.seq, end.hash
                )
            });
        }
    }
    Ok(Exit::Done)
}

async fn page(hub: &Hub, seq: u64) -> Result<AuditPage, Failure> {
    Ok(hub.call(Call::get(format!("{AUDIT}?after={seq}"))).await?)
}

async fn after(hub: &Hub, seq: u64) -> Result<Vec<String>, Failure> {
    let (mut lines, mut seq) = (Vec::new(), seq);
    loop {
        let AuditPage { lines: more, last } = page(hub, seq).await?;
        let Some(end) = more.last() else { return Ok(lines) };
        let next = ChainEnd::at(end).or_fail("audit")?.0.seq;
        lines.extend(more);
        // A hub that repeats itself must not keep this command.
        if next >= last || next <= seq {
            return Ok(lines);
        }
        seq = next;
    }
}

/// The end of a chain. The first line may have others before it, which the hub keeps no longer.
fn verified(lines: &[String]) -> Result<ChainEnd, Failure> {
    let broken = |error| {
        Failure::new("broken", chain(&error)).hint(
            "somebody who can write on the hub's machine has changed `audit/`, or its disk has",
        )
    };
    let mut lines = lines.iter();
    let Some(first) = lines.next() else { return Ok(ChainEnd::default()) };
    let (at, entry) = ChainEnd::at(first).map_err(broken)?;
    let start = match entry.seq {
        1 => ChainEnd::default().follow(first).map_err(broken)?.0,
        _ => at,
    };
    lines.try_fold(start, |end, line| end.follow(line).map(|(end, _)| end)).map_err(broken)
}

/// Checks that what an earlier export has is still there, as far as the hub keeps it.
fn contains(lines: &[String], file: &Path) -> Result<(), Failure> {
    let export = read_file(file)?;
    let earlier: Vec<String> = export.lines().map(str::to_owned).collect();
    let of_export = |failure: Failure| Failure {
        error: format!("{}: {}", file.display(), failure.error),
        hints: Vec::new(),
        ..failure
    };
    let end = verified(&earlier).map_err(of_export)?;
    if earlier.is_empty() {
        let error = format!("{} has no entry: there is nothing to compare with", file.display());
        return Err(Failure::usage(error));
    }
    let seq = |line: &String| ChainEnd::at(line).map_or(0, |(at, _)| at.seq);
    let first = lines.first().map_or(u64::MAX, seq);
    let follows = || lines.first().is_some_and(|line| end.follow(line).is_ok());
    if !lines.is_empty() && first > end.seq && !follows() {
        let (last, file) = (end.seq, file.display());
        let error =
            format!("the hub's trail begins at {first}, and does not follow {last} in {file}");
        return Err(Failure::new("broken", error)
            .hint("the trail was rewritten, or the hub no longer keeps what is in between"));
    }
    for line in earlier.iter().filter(|line| seq(line) >= first) {
        let here = usize::try_from(seq(line) - first).ok().and_then(|nth| lines.get(nth));
        if here != Some(line) {
            let error = format!("entry {} is another one than in {}", seq(line), file.display());
            return Err(Failure::new("broken", error)
                .hint("the trail on the hub was rewritten since that export")
                .hint("or the hub was restored from a backup that is older than it"));
        }
    }
    if first == u64::MAX {
        let error = format!("the hub has no audit trail, and {} has one", file.display());
        return Err(Failure::new("broken", error));
    }
    Ok(())
}

fn shown(entries: &[AuditEntry]) -> String {
    let now = cohort_identity::UnixTime::now().as_secs();
    let mut rows = table(look(), &["NR", "AGO", "BY", "FROM", "PROVEN BY", "WHAT"]);
    for AuditEntry { seq, at, by, proof, from, what, .. } in entries {
        let ago = brief(now.saturating_sub(*at) * 1000);
        let line = |it: &str| cell(text::line(it));
        rows.add_row([cell(seq), cell(ago), line(by), line(from), line(proof), line(what)]);
    }
    render(&rows)
}
