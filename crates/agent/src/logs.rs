//! What services and hooks on this server wrote, for operators.

use std::fs::{File, Metadata};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use axum::Json;
use axum::extract::State as Context;
use cohort_base::chain;
use cohort_core::ids::AppId;
use cohort_host::Hook;
use cohort_wire::agent::{
    LOG_LINES_MAX, LOG_WAIT_MS_MAX, LogAnswer, LogFrom, LogPlace, LogRequest,
};
use cohort_wire::http::{ApiError, ApiJson};
use tokio::time::Instant;

use crate::shared::Shared;

/// Most bytes of a log in one answer.
const PART_BYTES_MAX: u64 = 256 * 1024;
/// Most bytes that are read of one file, which the guard rotates at 2 MiB.
const FILE_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// How often a log is looked at while an operator follows it.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Operators that may read logs of this server at the same time.
pub(crate) const READERS_MAX: usize = 8;

pub(crate) async fn log(
    Context(shared): Context<Arc<Shared>>,
    ApiJson(request): ApiJson<LogRequest>,
) -> Result<Json<LogAnswer>, ApiError> {
    let _turn = shared.log_readers.try_acquire().map_err(|_| {
        ApiError::unavailable("busy", format!("{READERS_MAX} people read logs of this server"))
    })?;
    let wait = Duration::from_millis(request.wait_ms.min(LOG_WAIT_MS_MAX));
    let deadline = Instant::now() + wait;
    let log = Arc::new(Log::find(&shared.config.data_dir, &request)?);
    loop {
        let (log, from) = (Arc::clone(&log), request.from.clone());
        let read = tokio::task::spawn_blocking(move || log.read(&from)).await;
        let answer = read.map_err(io::Error::from).flatten().map_err(|error| {
            ApiError::internal(format!("cannot read the log: {}", chain(&error)))
        })?;
        if !answer.output.is_empty() || Instant::now() >= deadline {
            return Ok(Json(answer));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The files of one log, oldest first.
#[derive(Debug)]
struct Log {
    app: AppId,
    files: Vec<PathBuf>,
}

struct Open {
    file: File,
    id: u64,
    length: u64,
}

impl Log {
    fn find(data_dir: &Path, request: &LogRequest) -> Result<Self, ApiError> {
        let logs = data_dir.join("guard/logs");
        let app = match &request.app {
            Some(app) if apps(data_dir).contains(app) => app.clone(),
            Some(app) => {
                let error = format!("this server has no app {app}");
                return Err(ApiError::not_found(error).hint(named(&apps(data_dir))));
            }
            None => only_app(data_dir)?,
        };
        let files = match &request.hook {
            None => vec![logs.join(format!("{app}.log.1")), logs.join(format!("{app}.log"))],
            Some(hook) => {
                let Some(hook) = Hook::ALL.into_iter().find(|known| known.name() == hook) else {
                    let known: Vec<&str> = Hook::ALL.into_iter().map(Hook::name).collect();
                    let wrong = format!("there is no hook `{hook}`");
                    return Err(ApiError::bad_request(wrong).hint(known.join(", ")));
                };
                let folder = data_dir.join("apps").join(app.as_str()).join("hooks");
                vec![folder.join(format!("{}.log", hook.name()))]
            }
        };
        if !files.iter().any(|path| path.exists()) {
            return Err(match &request.hook {
                Some(hook) => {
                    ApiError::not_found(format!("the hook {hook} of app {app} has not run here"))
                }
                None => ApiError::not_found(format!("app {app} has written nothing here yet"))
                    .hint("a systemd unit writes to the journal: journalctl --unit UNIT"),
            });
        }
        Ok(Log { app, files })
    }

    fn read(&self, from: &LogFrom) -> io::Result<LogAnswer> {
        let mut open = self.open()?;
        let (mut at, gap) = match from {
            LogFrom::Start => (place(open.first(), 0), false),
            LogFrom::Last { lines } => return self.last(&mut open, *lines),
            LogFrom::After { place: after } => {
                match open.iter().find(|it| it.id == after.file && after.offset <= it.length) {
                    Some(_) => (Some(*after), false),
                    None => (place(open.first(), 0), true),
                }
            }
        };
        let mut answer = self.nothing();
        while let Some(here) = at {
            answer.end = Some(here);
            let Some(nth) = open.iter().position(|it| it.id == here.file) else { break };
            let bytes = open[nth].read(here.offset, PART_BYTES_MAX)?;
            let is_full = bytes.len() as u64 == PART_BYTES_MAX;
            let whole = match bytes.iter().rposition(|byte| *byte == b'\n') {
                Some(at) => at + 1,
                // Nothing is added to an older file any more, and a line without end is cut.
                None if is_full || nth + 1 < open.len() => bytes.len(),
                None => 0,
            };
            let offset = here.offset + whole as u64;
            answer.output = lines(&bytes[..whole]);
            answer.end = Some(LogPlace { offset, ..here });
            let rest = open[nth].length.saturating_sub(offset);
            answer.more = (is_full && rest > 0) || nth + 1 < open.len();
            if whole > 0 || nth + 1 == open.len() {
                break;
            }
            at = place(open.get(nth + 1), 0);
        }
        answer.gap = gap && !answer.output.is_empty();
        Ok(answer)
    }

    fn nothing(&self) -> LogAnswer {
        let app = self.app.clone();
        LogAnswer { app, output: Vec::new(), gap: false, more: false, end: None }
    }

    fn last(&self, open: &mut [Open], count: u32) -> io::Result<LogAnswer> {
        let mut answer = self.nothing();
        for file in open.iter_mut() {
            let bytes = file.read(0, FILE_BYTES_MAX)?;
            let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            answer.output.extend(lines(&bytes[..whole]));
            answer.end = Some(LogPlace { file: file.id, offset: whole as u64 });
        }
        let count = count.min(LOG_LINES_MAX) as usize;
        let mut bytes = 0;
        let fits = |line: &&String| {
            bytes += line.len() as u64;
            bytes <= PART_BYTES_MAX
        };
        let kept = answer.output.iter().rev().take(count).take_while(fits).count();
        answer.output.drain(..answer.output.len() - kept);
        Ok(answer)
    }

    fn open(&self) -> io::Result<Vec<Open>> {
        let mut open = Vec::new();
        for path in &self.files {
            match File::open(path) {
                Ok(file) => {
                    let about = file.metadata()?;
                    open.push(Open { file, id: id(&about), length: about.len() });
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        // Between the two, the one was rotated to the other.
        open.dedup_by_key(|it| it.id);
        Ok(open)
    }
}

impl Open {
    fn read(&mut self, offset: u64, most: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.file.seek(SeekFrom::Start(offset))?;
        (&mut self.file).take(most).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// What tells a file from others, also from one that gets its inode after it is gone.
fn id(about: &Metadata) -> u64 {
    let born = about.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    let born = born.map_or(0, |born| u64::try_from(born.as_nanos()).unwrap_or(0));
    about.ino().rotate_left(32) ^ born
}

fn place(open: Option<&Open>, offset: u64) -> Option<LogPlace> {
    open.map(|open| LogPlace { file: open.id, offset })
}

fn lines(bytes: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(bytes).lines().map(str::to_owned).collect()
}

/// The app of a server that has one.
fn only_app(data_dir: &Path) -> Result<AppId, ApiError> {
    match &apps(data_dir)[..] {
        [only] => Ok(only.clone()),
        [] => Err(ApiError::not_found("this server has no app yet")),
        several => {
            let error = "this server has several apps: name one with --app";
            Err(ApiError::bad_request(error).hint(named(several)))
        }
    }
}

fn apps(data_dir: &Path) -> Vec<AppId> {
    let entries = std::fs::read_dir(data_dir.join("apps")).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut apps: Vec<AppId> = names.filter_map(|name| AppId::new(name).ok()).collect();
    apps.sort();
    apps
}

fn named(apps: &[AppId]) -> String {
    let names: Vec<&str> = apps.iter().map(AppId::as_str).collect();
    format!("it has: {}", names.join(", "))
}

#[cfg(test)]
#[path = "logs_test.rs"]
mod logs_test;
