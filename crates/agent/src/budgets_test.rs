use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cohort_distribute::{Budget, SharedTracker};
use tokio_util::sync::CancellationToken;

use super::{Budgets, keep};
use crate::config::{AgentConfig, Reload};

const PATIENCE: Duration = Duration::from_secs(20);

fn config(pressure_dir: &Path, rest: &serde_json::Value) -> AgentConfig {
    let mut json = serde_json::json!({
        "server": "web-1", "platform": "linux/amd64", "pressure_dir": pressure_dir,
    });
    json.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
    serde_json::from_value(json).unwrap()
}

struct Kept {
    download: Arc<Budget>,
    upload: Arc<Budget>,
    stop: CancellationToken,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn start(config: AgentConfig, reload: Reload) -> Kept {
    let kept =
        Kept { download: Arc::default(), upload: Arc::default(), stop: CancellationToken::new() };
    let budgets = Budgets {
        download: Arc::clone(&kept.download),
        upload: Arc::clone(&kept.upload),
        tracker: Arc::new(SharedTracker::default()),
    };
    tokio::spawn(keep(config, reload, budgets, kept.stop.clone()));
    kept
}

async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "timed out waiting until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_changed_file_changes_the_limits() {
    let none = PathBuf::from("/nonexistent");
    let next = Arc::new(Mutex::new(config(&none, &serde_json::json!({"download_limit": "5MB/s"}))));
    let first = config(&none, &serde_json::json!({"upload_limit": "1MB/s"}));
    let read = Arc::clone(&next);
    let reload: Reload = Arc::new(move || Ok(read.lock().unwrap().clone()));
    let kept = start(first, reload);
    until("the first limit is set", || kept.upload.limit() == Some(1_000_000)).await;
    until("the second is read", || kept.download.limit() == Some(5_000_000)).await;
    assert_eq!(kept.upload.limit(), None);
    *next.lock().unwrap() = config(&none, &serde_json::json!({}));
    until("none is left", || kept.download.limit().is_none()).await;
}

#[tokio::test]
async fn artifacts_make_way_on_a_busy_machine_and_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let total = Arc::new(Mutex::new(1_u64));
    let put = |total: u64| {
        let line = format!("some avg10=0.00 avg60=0.00 avg300=0.00 total={total}\n");
        fs::write(folder.path().join("next"), line).unwrap();
        fs::rename(folder.path().join("next"), folder.path().join("io")).unwrap();
    };
    put(1);
    let rest = serde_json::json!({"upload_limit": "15MB/s", "yield_floor": "10MB/s"});
    let config = config(folder.path(), &rest);
    let same = config.clone();
    let kept = start(config, Arc::new(move || Ok(same.clone())));
    // Tasks wait all the time, and artifacts move.
    let busy = || {
        let mut total = total.lock().unwrap();
        *total += 10_000_000;
        put(*total);
        kept.download.limit()
    };
    let moves = Arc::clone(&kept.download);
    let stop = kept.stop.clone();
    tokio::spawn(async move {
        while !stop.is_cancelled() {
            moves.take(100_000, || ()).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    until("the floor is reached", || busy() == Some(10_000_000)).await;
    assert_eq!(kept.upload.limit(), Some(10_000_000));
    until("the limit is gone", || kept.download.limit().is_none()).await;
    assert_eq!(kept.upload.limit(), Some(15_000_000), "what the file says holds");
}

#[tokio::test]
async fn who_switches_it_off_is_never_slowed() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("io"), "some avg300=0.00 total=1\n").unwrap();
    let off = config(folder.path(), &serde_json::json!({"yield_to": []}));
    let stop = CancellationToken::new();
    let budgets =
        Budgets { download: Arc::default(), upload: Arc::default(), tracker: Arc::default() };
    assert!(budgets.way(&off, &super::Settings::of(&off)).is_none());
    stop.cancel();
    let same = off.clone();
    keep(off, Arc::new(move || Ok(same.clone())), budgets, stop).await;
}
