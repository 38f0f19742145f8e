use cohort_base::archive::{ArchiveLimits, Contents, Judge as ArchiveJudge};

use super::judge_release;
use crate::testing::{File, tar_of};

/// As a publisher reads an archive.
fn contents(files: &[File<'_>]) -> Contents {
    let bytes = tar_of(files);
    let limits = ArchiveLimits { bytes_max: 1 << 20, entries_max: 100 };
    let (mut judge, mut contents) = (ArchiveJudge::new(limits), Contents::default());
    for entry in tar::Archive::new(&bytes[..]).entries().unwrap().raw(true) {
        let mut entry = entry.unwrap();
        if let Some(judged) = judge.next(&mut entry).unwrap() {
            contents.add(&judged, &mut entry).unwrap();
        }
    }
    contents
}

fn judge(files: &[File<'_>]) -> Result<Vec<String>, String> {
    let service_file = files.iter().find(|(path, ..)| *path == "cohort.toml");
    let service_file = service_file.map(|(_, _, text)| text.as_bytes());
    judge_release(&contents(files), service_file, &"linux/amd64".parse().unwrap())
}

const RUN: File<'_> = ("cohort.toml", 0o644, "[service]\ncommand = [\"./bin/run\"]\n");
const SCRIPT: &str = "#!/bin/sh\nexit 0\n";

#[test]
fn a_release_that_a_server_can_run_has_nothing_wrong() {
    assert_eq!(judge(&[RUN, ("bin/run", 0o755, SCRIPT)]), Ok(Vec::new()));
    let named = ("cohort.toml", 0o644, "[service]\ncommand = [\"java\", \"-jar\", \"x.jar\"]\n");
    assert_eq!(judge(&[named, ("x.jar", 0o644, "PK")]), Ok(Vec::new()));
    assert_eq!(judge(&[("hooks/after-install", 0o755, SCRIPT)]), Ok(Vec::new()));
    assert_eq!(
        judge(&[("scripts/after-install", 0o755, SCRIPT), ("hooks", 0, "scripts")]),
        Ok(Vec::new()),
        "a link"
    );
    let helper = ("hooks/common.sh", 0o644, "x=1");
    assert_eq!(judge(&[("hooks/after-install", 0o755, SCRIPT), helper]), Ok(Vec::new()));
}

#[test]
fn what_no_server_could_run_is_refused() {
    let elf = |machine: u8| {
        format!("\x7fELF\x02\x01\x01{}\x02\x00{}\x00", "\0".repeat(9), char::from(machine))
    };
    let (amd64, sparc) = (elf(62), elf(43));
    assert_eq!(judge(&[RUN, ("bin/run", 0o755, &amd64)]), Ok(Vec::new()));
    assert_eq!(
        judge(&[RUN, ("bin/run", 0o755, &sparc)]),
        Ok(Vec::new()),
        "we know no such machine"
    );
    let arm = elf(40);
    let refused: [(&[File<'_>], &str); 8] = [
        (&[RUN, ("bin/ran", 0o755, SCRIPT)], "is not in the release"),
        (&[RUN, ("bin/run", 0o644, SCRIPT)], "chmod +x ./bin/run"),
        (&[RUN, ("bin/run/x", 0o755, SCRIPT)], "is a directory"),
        (&[RUN, ("bin/run", 0o755, "#!/bin/sh\r\nexit 0\r\n")], "Windows line ends"),
        (&[RUN, ("bin/run", 0o755, &arm)], "is built for arm, not for linux/amd64"),
        (&[("hooks/after-install", 0o644, SCRIPT)], "is not executable"),
        (&[("web-1.0/cohort.toml", 0o644, RUN.2)], "is in `web-1.0/`"),
        (&[("cohort.toml", 0o644, "[service]\ncomand = [\"x\"]\n")], "comand"),
    ];
    for (files, why) in refused {
        let refusal = judge(files).unwrap_err();
        assert!(refusal.contains(why), "{refusal}");
    }
}

#[test]
fn what_is_probably_wrong_is_told() {
    let told: [(&[File<'_>], &str); 5] = [
        (&[("data", 0o644, "x")], "run nothing"),
        (&[("cohort.toml", 0o644, "rollback = \"revert\"\n")], "names no service"),
        (&[("hooks/post-install", 0o755, SCRIPT)], "hooks are named"),
        (&[("hooks/after_install.sh", 0o755, SCRIPT)], "name it `after-install`"),
        (&[RUN, ("bin/run", 0o755, "echo hello\n")], "neither an ELF program"),
    ];
    for (files, why) in told {
        let warnings = judge(files).unwrap();
        assert!(warnings.iter().any(|warning| warning.contains(why)), "{warnings:?}");
    }
}
