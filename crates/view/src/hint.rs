//! What to do next, as data.

use std::fmt::{self, Display, Formatter};

use serde::{Serialize, Serializer};

use crate::command::{Command, Flag};

/// What an operator can do about something. Programs get it as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hint {
    /// Type this command; the text before it says when or where.
    Run(String, Command),
    /// Type the same command again with this flag; the text before it says when.
    Add(String, Flag),
    /// Type this name instead of the given one.
    Meant(String),
    /// Do or check something outside of Cohort.
    Do(String),
}

impl Hint {
    /// A command that explains itself.
    #[must_use]
    pub fn run(command: Command) -> Self {
        Hint::Run(String::new(), command)
    }

    /// A command, and when or where to type it.
    #[must_use]
    pub fn run_to(intro: impl Into<String>, command: Command) -> Self {
        Hint::Run(intro.into(), command)
    }

    /// A flag to add, and when.
    #[must_use]
    pub fn add(intro: impl Into<String>, flag: Flag) -> Self {
        Hint::Add(intro.into(), flag)
    }
}

impl From<String> for Hint {
    fn from(text: String) -> Self {
        Hint::Do(text)
    }
}

impl From<&str> for Hint {
    fn from(text: &str) -> Self {
        Hint::Do(text.to_owned())
    }
}

impl From<Command> for Hint {
    fn from(command: Command) -> Self {
        Hint::run(command)
    }
}

impl Display for Hint {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Hint::Run(intro, command) if intro.is_empty() => write!(f, "{command}"),
            Hint::Run(intro, command) => write!(f, "{intro}: {command}"),
            Hint::Add(intro, flag) => write!(f, "{intro}: {}", flag.words()),
            Hint::Meant(name) => write!(f, "did you mean `{name}`?"),
            Hint::Do(text) => f.write_str(text),
        }
    }
}

impl Serialize for Hint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The lines below a wait. Without hints, no action is needed.
pub(crate) fn lines(hints: &[Hint], indent: &str) -> String {
    match hints {
        [] => format!("{indent}-> no action needed\n"),
        hints => hints.iter().map(|hint| format!("{indent}-> {hint}\n")).collect(),
    }
}
