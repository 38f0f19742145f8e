//! A service's output: from its named pipe into a log file that is rotated by size.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
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

const READ_BYTES: usize = 16 * 1024;

/// The output of one service.
#[derive(Debug)]
pub(crate) struct ServiceLog {
    pipe: PathBuf,
    log: PathBuf,
    tail: Mutex<Tail>,
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
        let service =
            Arc::new(ServiceLog { pipe, log, tail: Mutex::new(Tail::new(TAIL_BYTES_MAX)) });
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
        let mut file = None;
        let mut buffer = vec![0; READ_BYTES];
        loop {
            if receiver.readable().await.is_err() {
                return;
            }
            match receiver.try_read(&mut buffer) {
                Ok(count) => {
                    let bytes = &buffer[..count];
                    self.tail.lock().push(bytes);
                    if let Err(error) = self.keep(&mut file, bytes) {
                        // A full disk loses the log, but never stops the service.
                        file = None;
                        let path = self.log.display();
                        tracing::debug!(%path, %error, "lost a service's output");
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
            // A service that floods its log must not starve the guard's other work.
            tokio::task::yield_now().await;
        }
    }

    fn keep(&self, file: &mut Option<(File, u64)>, bytes: &[u8]) -> io::Result<()> {
        let (open, length) = match file {
            Some((_, length)) if *length > FILE_BYTES_MAX => {
                fs::rename(&self.log, self.log.with_extension("log.1"))?;
                file.insert((self.open_log()?, 0))
            }
            Some(open) => open,
            None => {
                let open = self.open_log()?;
                let length = open.metadata()?.len();
                file.insert((open, length))
            }
        };
        open.write_all(bytes)?;
        *length += bytes.len() as u64;
        Ok(())
    }

    fn open_log(&self) -> io::Result<File> {
        OpenOptions::new().create(true).append(true).open(&self.log)
    }
}
