//! A service's output: from its named pipe into a log file that is rotated by size.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::Mode;
use tokio::net::unix::pipe;

use crate::output::Tail;

/// The file is rotated at this size, and one old file is kept. 4 MiB per service hold minutes of a
/// verbose service's output, and even forty services need little disk.
const FILE_BYTES_MAX: u64 = 2 * 1024 * 1024;

/// How much of the last output a status includes, in bytes: as much as a report carries.
const TAIL_BYTES_MAX: usize = 2 * 1024;

/// What is noted when a process is started, before its number.
const STARTED: &str = "cohort: started process ";

const READ_BYTES: usize = 16 * 1024;

/// Whose line it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Author {
    Guard,
    Service,
}

/// The output of one service.
#[derive(Debug)]
pub(crate) struct ServiceLog {
    pipe: PathBuf,
    log: PathBuf,
    tail: Mutex<Tail>,
    file: Mutex<LogFile>,
}

/// The file that is written to.
#[derive(Debug, Default)]
struct LogFile {
    /// And its length in bytes.
    open: Option<(File, u64)>,
    /// Whether its last line has not ended.
    in_line: bool,
}

impl ServiceLog {
    /// Opens the service's pipe and reads it until the runtime ends. A guard that is killed between
    /// a read and its write loses what it read; the rest waits in the pipe.
    pub(crate) fn open(folder: &Path, name: &str) -> io::Result<Arc<Self>> {
        let pipe = folder.join("pipes").join(name);
        let log = folder.join("logs").join(format!("{name}.log"));
        for path in [&pipe, &log] {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
        }
        match rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, Mode::RUSR | Mode::WUSR) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let receiver = pipe::OpenOptions::new().read_write(true).open_receiver(&pipe)?;
        let tail = Tail::new(TAIL_BYTES_MAX);
        let service =
            Arc::new(ServiceLog { pipe, log, tail: Mutex::new(tail), file: Mutex::default() });
        tokio::spawn(Arc::clone(&service).read(receiver));
        Ok(service)
    }

    /// The end that a service writes to. Also open for reading, so that the pipe never breaks.
    pub(crate) fn writer(&self) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(&self.pipe)
    }

    pub(crate) fn tail(&self) -> String {
        self.tail.lock().text()
    }

    async fn read(self: Arc<Self>, receiver: pipe::Receiver) {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            if receiver.readable().await.is_err() {
                return;
            }
            match receiver.try_read(&mut buffer) {
                Ok(count) => {
                    let bytes = &buffer[..count];
                    self.tail.lock().push(bytes);
                    self.keep(bytes, Author::Service);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
            // A service that floods its log must not starve the guard's other work.
            tokio::task::yield_now().await;
        }
    }

    /// What comes from now on is of another start of the service: it explains no earlier one.
    pub(crate) fn forget(&self) {
        self.tail.lock().clear();
    }

    /// Notes in the log that a process was started.
    pub(crate) fn started(&self, pid: i32) {
        let begin = if self.file.lock().in_line { "\n" } else { "" };
        self.keep(format!("{begin}{STARTED}{pid}\n").as_bytes(), Author::Guard);
    }

    fn keep(&self, bytes: &[u8], author: Author) {
        let mut file = self.file.lock();
        if let Err(error) = self.write(&mut file, bytes, author) {
            // A full disk loses the log, but never stops the service.
            *file = LogFile::default();
            let path = self.log.display();
            tracing::debug!(%path, %error, "lost a service's output");
        }
    }

    fn write(&self, file: &mut LogFile, bytes: &[u8], author: Author) -> io::Result<()> {
        if file.open.as_ref().is_some_and(|(_, length)| *length > FILE_BYTES_MAX) {
            fs::rename(&self.log, self.log.with_extension("log.1"))?;
            file.open = None;
        }
        if file.open.is_none() {
            let mut options = OpenOptions::new();
            let open = options.create(true).append(true).read(true).open(&self.log)?;
            let length = open.metadata()?.len();
            let mut last = [b'\n'];
            open.read_at(&mut last, length.saturating_sub(1))?;
            file.in_line = length > 0 && last != [b'\n'];
            file.open = Some((open, length));
        }
        let LogFile { open: Some((open, length)), in_line } = file else { return Ok(()) };
        let text = stamped(bytes, in_line, &now(), author);
        open.write_all(&text)?;
        *length += text.len() as u64;
        Ok(())
    }
}

/// The time, as lines begin with it.
fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ ").to_string()
}

/// Puts the time before every line that begins here and is not empty; and, where a service's line
/// begins as the guard's own do, or may do so with the next bytes, a space.
fn stamped(bytes: &[u8], in_line: &mut bool, now: &str, author: Author) -> Vec<u8> {
    let mut text = Vec::with_capacity(bytes.len() + now.len());
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        if !*in_line && line != b"\n" {
            text.extend_from_slice(now.as_bytes());
            let own = STARTED.as_bytes();
            if author == Author::Service && (line.starts_with(own) || own.starts_with(line)) {
                text.push(b' ');
            }
        }
        text.extend_from_slice(line);
        *in_line = !line.ends_with(b"\n");
    }
    text
}

#[cfg(test)]
mod log_test {
    use super::{Author, STARTED, stamped};

    #[test]
    fn every_line_begins_with_the_time_of_its_begin() {
        let mut in_line = false;
        let mut stamp = |bytes: &str, now: &str| {
            String::from_utf8(stamped(bytes.as_bytes(), &mut in_line, now, Author::Service))
                .unwrap()
        };
        assert_eq!(stamp("one\n\ntw", "1 "), "1 one\n\n1 tw");
        assert_eq!(stamp("o\nthree\n", "2 "), "o\n2 three\n");
        assert_eq!(stamp("\n", "3 "), "\n");
    }

    #[test]
    fn no_service_writes_that_it_was_started() {
        for parts in [vec!["cohort: started process 7\n"], vec!["coh", "ort: started process 7\n"]]
        {
            let mut in_line = false;
            let parts = parts
                .into_iter()
                .flat_map(|part| stamped(part.as_bytes(), &mut in_line, "1 ", Author::Service));
            let text = String::from_utf8(parts.collect()).unwrap();
            assert_eq!(text, format!("1  {STARTED}7\n"));
        }
        let own = stamped(STARTED.as_bytes(), &mut false, "1 ", Author::Guard);
        assert_eq!(own, format!("1 {STARTED}").into_bytes());
    }
}
