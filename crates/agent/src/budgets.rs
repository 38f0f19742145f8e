//! How fast this server may receive and send artifacts: read again while the agent runs.

use std::sync::Arc;
use std::time::Duration;

use cohort_distribute::Budget;
use tokio_util::sync::CancellationToken;

use crate::config::{AgentConfig, ByteRate};

/// How often a changed limit is looked for: it takes effect within a second.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Sets the budgets by the configuration, and again whenever its file says something else.
pub(crate) async fn keep(
    config: AgentConfig,
    download: Arc<Budget>,
    upload: Arc<Budget>,
    stop: CancellationToken,
) {
    let set = |config: &AgentConfig| {
        download.set(config.download_limit.map(ByteRate::bytes_per_second));
        upload.set(config.upload_limit.map(ByteRate::bytes_per_second));
    };
    set(&config);
    let Some(reload) = config.reload.clone() else { return };
    let mut current = (config.download_limit, config.upload_limit);
    let mut complained = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let again = Arc::clone(&reload.0);
        let read = tokio::task::spawn_blocking(move || again()).await;
        match read {
            Ok(Ok(read)) => {
                complained = false;
                let limits = (read.download_limit, read.upload_limit);
                if limits != current {
                    tracing::info!(
                        download = ?read.download_limit, upload = ?read.upload_limit,
                        "the limits of transfers were changed"
                    );
                    current = limits;
                    set(&read);
                }
            }
            Ok(Err(error)) => {
                if !complained {
                    tracing::warn!(error, "the configuration is not read again; limits stay");
                }
                complained = true;
            }
            Err(_) => return,
        }
    }
}
