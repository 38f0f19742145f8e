//! What servers will say of a release, for its publisher.

use std::path::Path;

use cohort_base::archive::{Content, Contents, Lost, SERVICE_FILE};
use cohort_base::chain;
use cohort_core::ids::Platform;

use crate::hooks::{HOOKS_FOLDER, Hook};
use crate::service_file::ServiceFile;

/// Where an ELF file says which machine it is for, and how long it is up to there.
const ELF_MACHINE: std::ops::Range<usize> = 18..20;

/// Processors by the name in a platform, and the numbers of their machines in ELF files: their own,
/// and the one whose programs they run as well.
const MACHINES: [(&str, [u16; 2]); 6] = [
    ("amd64", [62, 3]),
    ("386", [3, 3]),
    ("arm64", [183, 40]),
    ("arm", [40, 40]),
    ("riscv64", [243, 243]),
    ("s390x", [22, 22]),
];

/// Judges a release: refuses what no server of its platform could run, and returns what is
/// probably wrong, for people.
///
/// # Errors
/// Why no server could run it, for people.
pub fn judge_release(
    contents: &Contents,
    service_file: Option<&[u8]>,
    platform: &Platform,
) -> Result<Vec<String>, String> {
    let mut warnings = judge_programs(contents, service_file, platform)?;
    warnings.extend(contents.lost().iter().map(|(path, lost)| lost_in_words(path, *lost)));
    Ok(warnings)
}

fn lost_in_words(path: &Path, lost: Lost) -> String {
    let path = path.display();
    let what = match lost {
        Lost::SetId => "servers do not make it setuid or setgid",
        Lost::Capabilities => "its capabilities are not kept",
        Lost::Attributes => return format!("{path}: its extended attributes are not kept"),
    };
    format!("{path}: {what}: a service has those in `service.capabilities` of {SERVICE_FILE}")
}

fn judge_programs(
    contents: &Contents,
    service_file: Option<&[u8]>,
    platform: &Platform,
) -> Result<Vec<String>, String> {
    let Some(bytes) = service_file else { return judge_bare(contents, platform) };
    let text = std::str::from_utf8(bytes).map_err(|error| chain(&error))?;
    let file = ServiceFile::parse(text).map_err(|error| chain(&error))?;
    let mut judge = Judge { contents, platform, warnings: Vec::new() };
    let service = file.service.iter().filter(|it| !it.command.is_empty());
    let commands = service.map(|it| ("service.command".to_owned(), &it.command));
    let checks = file.checks.iter();
    let checks = checks.map(|(name, check)| (format!("checks.{name}.command"), &check.command));
    for (key, words) in commands.chain(checks) {
        judge.command(&key, words)?;
    }
    judge.hooks()?;
    if file.service.is_none() && !judge.has_hooks() {
        judge.warnings.push(format!("{SERVICE_FILE} names no service, and there is no hook"));
    }
    Ok(judge.warnings)
}

/// A release without a `cohort.toml`.
fn judge_bare(contents: &Contents, platform: &Platform) -> Result<Vec<String>, String> {
    let mut judge = Judge { contents, platform, warnings: Vec::new() };
    judge.hooks()?;
    for (name, _) in contents.in_folder(Path::new("")) {
        if contents.at(&name.join(SERVICE_FILE)).is_some() {
            let name = name.display();
            return Err(format!(
                "{SERVICE_FILE} is in `{name}/`, and servers look for it at the top: pack what \
                 is in `{name}/`"
            ));
        }
    }
    if !judge.has_hooks() {
        judge.warnings.push(format!(
            "there is no {SERVICE_FILE} and no hook: servers unpack the release, and run nothing"
        ));
    }
    Ok(judge.warnings)
}

struct Judge<'a> {
    contents: &'a Contents,
    platform: &'a Platform,
    warnings: Vec<String>,
}

impl Judge<'_> {
    fn command(&mut self, key: &str, words: &[String]) -> Result<(), String> {
        let Some(program) = words.first() else { return Ok(()) };
        // Looked up on the server, or filled in there.
        if !program.contains('/') || program.starts_with('/') || program.contains('{') {
            return Ok(());
        }
        self.program(&format!("{key}: `{program}`"), Path::new(program))
    }

    fn hooks(&mut self) -> Result<(), String> {
        let folder = Path::new(HOOKS_FOLDER);
        for hook in Hook::ALL {
            if self.has(hook) {
                let path = folder.join(hook.name());
                self.program(&path.display().to_string(), &path)?;
            }
        }
        let known: Vec<&str> = Hook::ALL.into_iter().map(Hook::name).collect();
        for (name, content) in self.contents.in_folder(folder) {
            let (path, name) = (folder.join(&name), name.to_string_lossy());
            if known.contains(&&*name) || !matches!(content, Content::Program { .. }) {
                continue;
            }
            // As other tools name them.
            let plain = name.replace('_', "-");
            let plain = plain.split('.').next().unwrap_or_default();
            let meant = match known.contains(&plain) {
                true => format!("name it `{plain}`"),
                false => format!("hooks are named {}", known.join(", ")),
            };
            self.warnings.push(format!("{} is not run: {meant}", path.display()));
        }
        Ok(())
    }

    fn has(&self, hook: Hook) -> bool {
        self.contents.at(&Path::new(HOOKS_FOLDER).join(hook.name())).is_some()
    }

    fn has_hooks(&self) -> bool {
        Hook::ALL.into_iter().any(|hook| self.has(hook))
    }

    fn program(&mut self, shown: &str, path: &Path) -> Result<(), String> {
        let head = match self.contents.at(path) {
            None => return Err(format!("{shown} is not in the release")),
            Some(Content::Folder) => return Err(format!("{shown} is a directory")),
            Some(Content::File | Content::Link(_)) => {
                return Err(format!("{shown} is not executable: chmod +x {}", path.display()));
            }
            Some(Content::Program { head }) => head,
        };
        if let Some(line) = head.strip_prefix(b"#!") {
            let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
            if line.ends_with(b"\r") {
                return Err(format!(
                    "{shown} has Windows line ends, and the kernel looks for an interpreter \
                     whose name ends with one: dos2unix {}",
                    path.display()
                ));
            }
            if line.trim_ascii_start().first() != Some(&b'/') {
                self.warnings.push(format!("{shown}: its `#!` line names no absolute path"));
            }
        } else if head.starts_with(b"\x7fELF") {
            self.machine(shown, head)?;
        } else {
            self.warnings.push(format!("{shown} is neither an ELF program nor a `#!` script"));
        }
        Ok(())
    }

    fn machine(&self, shown: &str, head: &[u8]) -> Result<(), String> {
        let (Some(number), Some(order)) = (head.get(ELF_MACHINE), head.get(5)) else {
            return Err(format!("{shown} is cut off"));
        };
        let number: [u8; 2] = number.try_into().expect("a range of two bytes");
        let number = match order {
            2 => u16::from_be_bytes(number),
            _ => u16::from_le_bytes(number),
        };
        let processor = self.platform.as_str().split('/').nth(1).unwrap_or_default();
        let runs = MACHINES.iter().find(|(name, _)| *name == processor).map(|(_, runs)| runs);
        let built_for = MACHINES.iter().find(|(_, runs)| runs[0] == number).map(|(name, _)| *name);
        match (runs, built_for) {
            (Some(runs), Some(built_for)) if !runs.contains(&number) => {
                Err(format!("{shown} is built for {built_for}, not for {}", self.platform))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
#[path = "judge_test.rs"]
mod judge_test;
