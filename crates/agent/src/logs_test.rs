use std::fs;
use std::path::PathBuf;

use cohort_wire::agent::{LogAnswer, LogFrom, LogRequest};

use super::Log;

struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("guard/logs")).unwrap();
        fs::create_dir_all(dir.path().join("apps/web/hooks")).unwrap();
        World { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("guard/logs").join(name)
    }

    fn write(&self, text: &str) {
        let path = self.path("web.log");
        let before = fs::read_to_string(&path).unwrap_or_default();
        fs::write(path, before + text).unwrap();
    }

    fn rotate(&self) {
        fs::rename(self.path("web.log"), self.path("web.log.1")).unwrap();
    }

    fn read(&self, from: &LogFrom) -> LogAnswer {
        let request = LogRequest { app: None, hook: None, from: from.clone(), wait_ms: 0 };
        Log::find(self.dir.path(), &request).unwrap().read(from).unwrap()
    }

    /// Reads on from an answer; returns the lines, and the next answer.
    fn after(&self, answer: &LogAnswer) -> LogAnswer {
        self.read(&LogFrom::After { place: answer.end.unwrap() })
    }
}

#[test]
fn whoever_follows_sees_every_line_once_also_over_a_rotation() {
    let world = World::new();
    world.write("one\ntwo\nhal");
    let answer = world.read(&LogFrom::Last { lines: 1 });
    assert_eq!(answer.output, ["two"]);
    let nothing = world.after(&answer);
    assert_eq!((nothing.output.len(), nothing.gap), (0, false), "half a line is none");
    world.write("f\nthree\n");
    world.rotate();
    world.write("four\n");
    let mut answer = world.after(&nothing);
    let mut seen = answer.output.clone();
    while answer.more {
        answer = world.after(&answer);
        seen.extend(answer.output.clone());
    }
    assert_eq!(seen, ["half", "three", "four"]);
    // It was away for too long.
    world.rotate();
    world.write("five\n");
    world.rotate();
    world.write("six\n");
    let late = world.after(&answer);
    assert!(late.gap, "{late:?}");
    assert_eq!(late.output, ["five"]);
}

#[test]
fn a_whole_log_is_read_in_parts() {
    let world = World::new();
    world.write(&"x".repeat(1000).repeat(300));
    world.write("\n");
    world.rotate();
    let lines: String = (0..40_000).map(|nth| format!("line {nth}\n")).collect();
    world.write(&lines);
    let mut answer = world.read(&LogFrom::Start);
    let mut seen = answer.output.clone();
    while answer.more {
        answer = world.after(&answer);
        seen.extend(answer.output.clone());
    }
    assert_eq!(seen.last().unwrap(), "line 39999");
    assert_eq!(seen.iter().filter(|line| line.starts_with("line ")).count(), 40_000);
    assert_eq!(world.read(&LogFrom::Last { lines: 7 }).output.len(), 7);
}

#[test]
fn an_app_is_named_where_there_are_several_and_only_hooks_are_hooks() {
    let world = World::new();
    let find = |app: Option<&str>, hook: Option<&str>| {
        let (app, hook) = (app.map(|app| app.parse().unwrap()), hook.map(str::to_owned));
        let request = LogRequest { app, hook, from: LogFrom::Start, wait_ms: 0 };
        Log::find(world.dir.path(), &request).map(|log| log.app.to_string())
    };
    assert_eq!(find(None, None).unwrap_err().status, 404, "nothing was written");
    world.write("one\n");
    assert_eq!(find(None, None).unwrap(), "web");
    assert_eq!(find(None, Some("../../x")).unwrap_err().status, 400);
    assert_eq!(find(None, Some("after-install")).unwrap_err().status, 404);
    let hook = world.dir.path().join("apps/web/hooks/after-install.log");
    fs::write(hook, "migrated\n").unwrap();
    assert_eq!(find(None, Some("after-install")).unwrap(), "web");
    fs::create_dir_all(world.dir.path().join("apps/api")).unwrap();
    assert_eq!(find(None, None).unwrap_err().status, 400);
    assert_eq!(find(Some("web"), None).unwrap(), "web");
}
