//! An agent whose `data_dir` lost a part, or has one of another version. The table
//! in `docs/on-disk.md` names these tests.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use cohort_base::chain;
use cohort_core::ids::{AppId, BootEpoch};
use cohort_core::steps::AppRecord;
use cohort_store::DurableFile;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::reporter::Reporter;
use crate::shared::Shared;
use crate::testing::{Guard, Lab, install, runner, web};

/// An agent with something of everything on its disk.
async fn agent(lab: &Lab) -> Arc<Shared> {
    let shared = lab.agent("s1", Some(lab.repository.dir())).await;
    let (channel, platform) =
        ("stable".parse().unwrap(), crate::testing::PLATFORM.parse().unwrap());
    let repository = shared.repository.as_ref().unwrap();
    repository.latest(&web(), &channel, &platform).await.unwrap();
    shared
}

/// What the agent finds of `web`.
async fn found(shared: &Arc<Shared>, app: &AppId) -> Result<Option<String>, String> {
    let guard = Arc::<Guard>::default();
    let opened = runner(shared, &guard).open_app(app, &Reporter::spawn(shared)).await;
    let mut task = opened.map_err(|error| chain(&error))?;
    task.boot().await.unwrap();
    let current = task.host.local().current.as_ref();
    Ok(current.map(|release| release.version.to_string()))
}

#[tokio::test]
async fn a_part_that_is_lost_is_made_again_and_what_runs_is_found() {
    let lab = Lab::new().await;
    lab.publish("1.0.0").await;
    let shared = agent(&lab).await;
    install(&shared);
    assert_eq!(found(&shared, &web()).await, Ok(Some("1.0.0".to_owned())));
    let (data, first) = (shared.config.data_dir.clone(), shared.boot_epoch);
    drop(shared);
    for part in ["apps/web/record", "apps", "artifacts", "trust", "kill", "boot-epoch", "ballast"] {
        let path = data.join(part);
        let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        assert!(!path.exists(), "{part}");
        let shared = agent(&lab).await;
        assert_eq!(found(&shared, &web()).await, Ok(Some("1.0.0".to_owned())), "without {part}");
        assert!(shared.boot_epoch >= first, "peers drop what is of an earlier start: {part}");
    }
}

/// Writes a record as a later version would.
fn of_next_version<T: Serialize + DeserializeOwned>(path: &Path, value: &T) -> String {
    let _ = fs::remove_file(path);
    let (mut file, _) = DurableFile::open(path, u32::MAX).unwrap();
    file.save(value).unwrap();
    fs::read_to_string(path).unwrap()
}

#[tokio::test]
async fn a_record_of_another_version_is_refused_by_name_and_stays() {
    let lab = Lab::new().await;
    lab.publish("1.0.0").await;
    let shared = agent(&lab).await;
    let data = shared.config.data_dir.clone();
    let record = data.join("apps/web/record");
    fs::create_dir_all(record.parent().unwrap()).unwrap();
    let text = of_next_version(&record, &AppRecord::default());
    let refused = found(&shared, &web()).await.unwrap_err();
    assert!(refused.contains(&record.display().to_string()), "{refused}");
    assert_eq!(fs::read_to_string(&record).unwrap(), text);
    let epoch = data.join("boot-epoch");
    let text = of_next_version(&epoch, &BootEpoch(7));
    let refused = chain(&cohort_host::next_boot_epoch(&data).unwrap_err());
    assert!(refused.contains(&epoch.display().to_string()), "{refused}");
    assert_eq!(fs::read_to_string(&epoch).unwrap(), text);
}
