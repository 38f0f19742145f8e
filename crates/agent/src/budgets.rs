//! Rate limits for artifacts on this server: as configured, re-read while the agent runs, and lower
//! while the machine is under pressure.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cohort_distribute::{Budget, SharedTracker};
use tokio_util::sync::CancellationToken;

use crate::config::{AgentConfig, ByteRate, Reload, YieldTo};
use crate::pressure::{Gauge, Watched};
use crate::yielding::{Seen, Yielding};

/// How often pressure is read: four times a second.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The configuration is re-read every second time: a change takes effect within a second.
const READ_EVERY_LOOKS: u32 = 2;

/// The limits that follow the configuration.
pub(crate) struct Budgets {
    pub(crate) download: Arc<Budget>,
    pub(crate) upload: Arc<Budget>,
    /// Divides the zone's limit while this server leads.
    pub(crate) tracker: Arc<SharedTracker>,
}

/// The settings that apply without a restart.
#[derive(Debug, Clone, PartialEq)]
struct Settings {
    download: Option<ByteRate>,
    upload: Option<ByteRate>,
    zone_download: Option<ByteRate>,
    yield_to: Vec<YieldTo>,
    yield_floor: ByteRate,
}

impl Settings {
    fn of(config: &AgentConfig) -> Self {
        Self {
            download: config.download_limit,
            upload: config.upload_limit,
            zone_download: config.zone_download_limit,
            yield_to: config.yield_to.clone(),
            yield_floor: config.yield_floor,
        }
    }

    fn watched(&self) -> Option<Watched> {
        let watched = Watched {
            io: self.yield_to.contains(&YieldTo::Io),
            cpu: self.yield_to.contains(&YieldTo::Cpu),
        };
        (watched.io || watched.cpu).then_some(watched)
    }
}

/// Yielding: the kernel's counters, the rule, and the bytes moved at the last look.
struct Way {
    gauge: Gauge,
    rule: Yielding,
    moved: (Instant, u64, u64),
    limit: Option<u64>,
}

/// Keeps the limits in step with the configuration and the machine's pressure, until stopped.
pub(crate) async fn keep(
    config: AgentConfig,
    reload: Reload,
    budgets: Budgets,
    stop: CancellationToken,
) {
    let mut settings = Settings::of(&config);
    let mut way = budgets.way(&config, &settings);
    budgets.set(&settings, None);
    let mut complained = false;
    let mut looks: u32 = 0;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        looks = looks.wrapping_add(1);
        let mut changed = false;
        if looks.is_multiple_of(READ_EVERY_LOOKS) {
            let again = Arc::clone(&reload);
            match tokio::task::spawn_blocking(move || again()).await {
                Ok(Ok(read)) => {
                    complained = false;
                    let read = Settings::of(&read);
                    if read != settings {
                        tracing::info!(?read, "transfer limits changed");
                        if read.yield_to != settings.yield_to {
                            way = budgets.way(&config, &read);
                        } else if let Some(way) = &mut way {
                            way.rule.set_floor(read.yield_floor.bytes_per_second());
                        }
                        settings = read;
                        changed = true;
                    }
                }
                Ok(Err(error)) => {
                    if !complained {
                        tracing::warn!(
                            error,
                            "configuration not re-read, keeping the present limits"
                        );
                    }
                    complained = true;
                }
                Err(_) => return,
            }
        }
        let before = way.as_ref().and_then(|way| way.limit);
        if let Some(way) = &mut way {
            way.look(&budgets, Instant::now());
        }
        let limit = way.as_ref().and_then(|way| way.limit);
        if changed || limit != before {
            budgets.set(&settings, limit);
        }
    }
}

impl Budgets {
    fn set(&self, settings: &Settings, way: Option<u64>) {
        let least = |limit: Option<ByteRate>| {
            let limit = limit.map(ByteRate::bytes_per_second);
            [limit, way].into_iter().flatten().min()
        };
        self.download.set(least(settings.download));
        self.upload.set(least(settings.upload));
        self.tracker.set_zone_limit(settings.zone_download.map(ByteRate::bytes_per_second));
    }

    fn way(&self, config: &AgentConfig, settings: &Settings) -> Option<Way> {
        let gauge = Gauge::new(&config.pressure_dir, settings.watched()?);
        let rule = Yielding::new(settings.yield_floor.bytes_per_second(), gauge.usual());
        let moved = (Instant::now(), self.download.taken(), self.upload.taken());
        Some(Way { gauge, rule, moved, limit: None })
    }
}

impl Way {
    fn look(&mut self, budgets: &Budgets, now: Instant) {
        let (at, down, up) = self.moved;
        self.moved = (now, budgets.download.taken(), budgets.upload.taken());
        // Files of the proc file system: reading them does not block.
        let Some(pressure) = self.gauge.look(now) else { return };
        let bytes = (self.moved.1.saturating_sub(down)).max(self.moved.2.saturating_sub(up));
        let us = u64::try_from(now.saturating_duration_since(at).as_micros()).unwrap_or(u64::MAX);
        let rate = bytes.saturating_mul(1_000_000) / us.max(1);
        let limit = self.rule.look(Seen { pressure, rate });
        match (self.limit, limit) {
            (None, Some(limit)) => {
                tracing::info!(limit, ?pressure, rate, "machine under pressure, slowing transfers");
            }
            (Some(_), None) => tracing::info!("pressure is over, transfers at full speed"),
            (None, None) | (Some(_), Some(_)) => {}
        }
        self.limit = limit;
    }
}

#[cfg(test)]
#[path = "budgets_test.rs"]
mod budgets_test;
