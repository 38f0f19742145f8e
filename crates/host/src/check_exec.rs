//! `exec` checks: a policy names a check, and the signed release or the server's own list says what
//! it runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cohort_base::chain;
use cohort_core::ids::{CheckName, ProgramName, Version};
use serde::{Deserialize, Serialize};

use crate::cgroup::Limits;
use crate::check::{CheckContext, CheckFailure};
use crate::confine::Confined;
use crate::isolation::Isolation;
use crate::output::Tail;
use crate::process::Exit;
use crate::program::{End, Program, ProgramError, base_environment, run};
use crate::run_service::program_path;
use crate::service_file::check_words;

/// How much output of a check is kept, in bytes: a line or two.
const OUTPUT_BYTES_MAX: usize = 512;

/// A program of the server and its arguments; the program's path is absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Words", into = "Vec<String>")]
pub struct HostProgram(Vec<String>);

/// As in `agent.toml`: a path, or a list that starts with one.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a path, or a list of a path and its arguments")]
enum Words {
    Path(String),
    List(Vec<String>),
}

impl TryFrom<Words> for HostProgram {
    type Error = String;

    fn try_from(words: Words) -> Result<Self, String> {
        let words = match words {
            Words::Path(path) => vec![path],
            Words::List(words) => words,
        };
        check_words(&words)?;
        if !words.first().is_some_and(|program| Path::new(program).is_absolute()) {
            return Err("a program of the server needs an absolute path".to_owned());
        }
        Ok(HostProgram(words))
    }
}

impl From<HostProgram> for Vec<String> {
    fn from(program: HostProgram) -> Self {
        program.0
    }
}

/// What checks need to know about the release in use.
#[derive(Debug, Clone)]
pub(crate) struct ReleaseChecks {
    pub(crate) version: Version,
    pub(crate) folder: PathBuf,
    /// Programs that its `cohort.toml` declares, with their arguments.
    pub(crate) declared: BTreeMap<ProgramName, Vec<String>>,
    /// As its service.
    pub(crate) isolation: Isolation,
    pub(crate) limits: Limits,
}

/// What a check's name stands for on this server.
enum Found<'a> {
    /// A program of the release, which is confined like its service.
    Declared(&'a ReleaseChecks, &'a [String]),
    /// The server's own runs as the agent, with all that it may do.
    Own(&'a HostProgram),
}

impl CheckContext {
    fn find(&self, name: &CheckName) -> Result<Found<'_>, CheckFailure> {
        if let Some(own) = name.of_host() {
            let found = self.host_programs.get(own).map(Found::Own);
            return found.ok_or_else(|| CheckFailure::NotListed(own.to_owned()));
        }
        let Some(release) = &self.release else {
            return Err(CheckFailure::CannotCheck("no release is installed".to_owned()));
        };
        let undeclared =
            || CheckFailure::Undeclared { name: name.clone(), version: release.version.clone() };
        let words = release.declared.get(name.as_str()).ok_or_else(undeclared)?;
        Ok(Found::Declared(release, words))
    }

    /// Checks that `name` stands for something here.
    pub(crate) fn check_known(&self, name: &CheckName) -> Result<(), CheckFailure> {
        self.find(name).map(drop)
    }
}

fn own(
    mut env: BTreeMap<String, String>,
    own: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    env.extend(own.clone());
    env
}

/// Runs the check's program once, for at most `limit`.
pub(crate) async fn look(
    name: &CheckName,
    limit: Duration,
    context: &CheckContext,
) -> Result<(), CheckFailure> {
    let found = context.find(name)?;
    let words = match &found {
        Found::Declared(_, words) => *words,
        Found::Own(program) => &program.0,
    };
    let words: Vec<String> =
        words.iter().map(|word| context.fill_in(word)).collect::<Result<_, _>>()?;
    let (program, args) = words.split_first().expect("commands without a word are refused");
    let limits = match &found {
        Found::Declared(release, _) => release.limits,
        Found::Own(_) => Limits::default(),
    };
    let mut confined = match found {
        Found::Declared(release, _) => Confined {
            run_as: context.run_as,
            isolation: release.isolation.clone(),
            env: own(base_environment(context.home.as_deref()), &context.own_env),
            ..Confined::new(program_path(&release.folder, program), release.folder.clone())
        },
        Found::Own(_) => Confined {
            gains: true,
            env: base_environment(None),
            ..Confined::new(program.into(), "/".into())
        },
    };
    confined.args = args.to_vec();
    confined.env.extend(context.variables.clone());
    let program = Program { programs: &context.programs, confined, limits, limit, note: None };
    let mut tail = Tail::new(OUTPUT_BYTES_MAX);
    match run(&program, &mut tail).await {
        Ok(End::Exited(Exit::Status(0))) => Ok(()),
        Ok(End::Exited(exit)) => {
            let output = tail.text().trim().to_owned();
            Err(CheckFailure::Exited { exit, output })
        }
        Ok(End::TimedOut) => Err(CheckFailure::TimedOut),
        Err(error @ ProgramError::Spawn { .. }) => {
            let exit = Exit::NotStarted { reason: chain(&error) };
            Err(CheckFailure::Exited { exit, output: String::new() })
        }
        Err(error @ ProgramError::Watch { .. }) => Err(CheckFailure::CannotCheck(chain(&error))),
    }
}
