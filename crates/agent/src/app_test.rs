use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cohort_core::doing::{Doing, Download};
use cohort_core::ids::Generation;
use cohort_core::orders::{ActivationOrder, AppOrders, FetchOrder};
use cohort_core::release::Release;
use cohort_core::report::Health;
use cohort_core::steps::BootTime;
use cohort_host::boot_time_ms;
use cohort_server::app::{App, Effect, Sight};
use tokio::time::Instant;

use super::{AppTask, Checks};
use crate::metrics::Checked;
use crate::reporter::Reporter;
use crate::shared::Shared;
use crate::testing::{Guard, Lab, activation, install, received, release, runner, web, web_runs};

thread_local! {
    /// When the test started, by its runtime's clock and by the boot clock.
    static START: (Instant, u64) = (Instant::now(), boot_time_ms());
}

/// The boot clock of a test: it stands still while its runtime's does.
fn clock() -> u64 {
    START.with(|(began, began_ms)| began_ms + u64::try_from(began.elapsed().as_millis()).unwrap())
}

/// `web` on `s1`, which runs the release of its orders.
struct World {
    lab: Lab,
    shared: Arc<Shared>,
    guard: Arc<Guard>,
    installed: Release,
    task: AppTask,
    app: App,
    checks: Checks,
}

impl World {
    async fn new() -> World {
        let lab = Lab::new().await;
        let shared = lab.agent("s1", None).await;
        let installed = install(&shared);
        let guard = Arc::new(Guard::default());
        let reporter = Reporter::spawn(&shared);
        let mut task = runner(&shared, &guard).open_app(&web(), &reporter).await.unwrap();
        task.changes.clock = clock;
        let app = task.boot().await.unwrap();
        ordered(&shared, web_runs(Some(installed.clone())));
        World { lab, shared, guard, installed, task, app, checks: Checks::default() }
    }

    async fn look(&mut self) {
        self.task.turn(&mut self.app, &mut self.checks).await.unwrap();
    }

    /// Looks until something is so, by the test's clock; returns how often.
    async fn looks_until(&mut self, done: impl Fn(&AppTask) -> bool) -> u64 {
        let mut looks = 0;
        while !done(&self.task) {
            self.look().await;
            looks += 1;
            assert!(looks < 1_000, "it does not rest");
        }
        looks
    }

    async fn looks_in_half_a_minute(&mut self) -> u64 {
        let began = Instant::now();
        self.looks_until(|_| began.elapsed() >= Duration::from_secs(30)).await
    }
}

/// How often an app reported that its service is fit, and that it is not.
fn reports(task: &AppTask) -> (u64, u64) {
    let count = |result| {
        let labels = Checked { check: "running", result };
        task.shared.metrics.checks.get_or_create(&labels).get()
    };
    (count("passed"), count("failed"))
}

fn ordered(shared: &Shared, orders: AppOrders) {
    shared.orders.send_replace(Some(Arc::new(received(vec![orders], None))));
}

#[tokio::test(start_paused = true)]
async fn a_change_of_health_is_reported_once_and_is_one_reason_to_look() {
    let mut world = World::new().await;
    let idle = world.looks_in_half_a_minute().await;
    assert!((30..35).contains(&idle), "{idle} looks");
    assert_eq!(reports(&world.task), (0, 0), "no news");
    assert_eq!(world.shared.readiness.now().0, 100);
    for (down, expected, ready) in [(true, (0, 1), 0), (false, (1, 1), 100)] {
        world.guard.down.store(down, Ordering::Relaxed);
        let looks = world.looks_until(|task| reports(task) == expected).await;
        assert!(looks < 5, "{looks} looks");
        // The group believes it.
        let orders = web_runs(Some(world.installed.clone()));
        ordered(&world.shared, AppOrders { in_service: Some(!down), ..orders });
        let looks = world.looks_in_half_a_minute().await;
        assert!(looks <= idle + 1, "{looks} looks, {idle} if idle");
        assert_eq!((reports(&world.task), world.shared.readiness.now().0), (expected, ready));
    }
}

/// The artifact is a pipe that nobody writes to: unpacking it takes until the test ends that.
#[tokio::test(start_paused = true)]
async fn a_service_that_dies_while_its_server_prepares_is_reported_before_that_ends() {
    let mut world = World::new().await;
    world.looks_in_half_a_minute().await;
    let next = Release { artifact: "ef".repeat(32).parse().unwrap(), ..release("2.0.0") };
    let pipe = world.lab.path("s1").join("artifacts").join(next.artifact.as_str());
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let orders = AppOrders {
        activation: Some(activation(1, Some(next.clone()))),
        ..web_runs(Some(world.installed.clone()))
    };
    let healthy = Health { in_service: true, reason: String::new() };
    let sight = Sight {
        now: BootTime { ms: clock(), ..world.task.host.now() },
        orders: Some(&orders),
        orders_fresh: true,
        refused: false,
        killed: false,
        confirmed: None,
        record: world.task.host.record(),
        reached: world.task.host.reached(),
        held: &[next.artifact],
        health: Some(&healthy),
        trial: None,
        room: true,
        room_for_health: true,
    };
    let effects = world.app.look(&sight);
    let Some(Effect::Act { action, running }) = effects.last().cloned() else {
        panic!("{effects:?}")
    };
    let (shared, guard) = (Arc::clone(&world.shared), Arc::clone(&world.guard));
    let failed = Checked { check: "running", result: "failed" };
    let dies = async {
        guard.down.store(true, Ordering::Relaxed);
        for _ in 0..20 {
            tokio::time::advance(Duration::from_millis(500)).await;
        }
        let prepares = shared.doing.lock().contains_key(&web());
        let told = shared.metrics.checks.get_or_create(&failed).get();
        let ready = shared.readiness.now().0;
        std::fs::write(&pipe, "").unwrap();
        (prepares, told, ready)
    };
    let World { task, app, checks, .. } = &mut world;
    let (acted, seen) = tokio::join!(task.act(app, checks, action, running), dies);
    acted.unwrap();
    assert_eq!(seen, (true, 1, 0), "the group and load balancers are told");
}

#[tokio::test(start_paused = true)]
async fn newer_orders_interrupt_a_drain_and_are_followed() {
    let mut world = World::new().await;
    world.look().await;
    let (began, shared) = (Instant::now(), Arc::clone(&world.shared));
    let change = |generation, drain_ms| {
        let order = activation(generation, None);
        let order = ActivationOrder { drain_ms, ..order };
        AppOrders { activation: Some(order), ..web_runs(Some(release("1.0.0"))) }
    };
    ordered(&shared, change(1, 20_000));
    let newer = async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let step = shared.doing.lock().get(&web()).cloned();
        assert!(matches!(step, Some(Doing::Step { .. })), "{step:?}");
        ordered(&shared, change(2, 0));
    };
    let seen = |task: &AppTask| task.host.local().highest.generation == Generation(2);
    let (looks, ()) = tokio::join!(world.looks_until(seen), newer);
    assert!(looks < 10, "{looks} looks");
    assert_eq!(began.elapsed().as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn what_is_ordered_and_not_here_is_shown_as_queued_until_its_bytes_flow() {
    let mut world = World::new().await;
    let shown = |world: &World| world.shared.doing.lock().get(&web()).cloned();
    world.look().await;
    assert_eq!(shown(&world), None);
    let artifact = "ef".repeat(32).parse().unwrap();
    let release = Release { artifact, ..release("2.0.0") };
    let fetch = FetchOrder { release, from_mirror: true, sources: Vec::new() };
    let orders =
        AppOrders { fetch: vec![fetch.clone()], ..web_runs(Some(world.installed.clone())) };
    ordered(&world.shared, orders);
    world.look().await;
    assert_eq!(shown(&world), Some(Doing::Download(Download::Queued)));
    world.shared.downloads.set_orders(&[fetch]);
    world.look().await;
    world.look().await;
    let running = shown(&world);
    assert!(
        matches!(
            running,
            Some(Doing::Download(Download::Running { .. } | Download::Failed { .. }))
        ),
        "{running:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn only_artifacts_that_the_orders_keep_stay_on_the_disk() {
    let mut world = World::new().await;
    let artifact = |byte: &str| world.lab.path("s1").join("artifacts").join(byte.repeat(32));
    let (kept, old) = (artifact("aa"), artifact("bb"));
    std::fs::write(&kept, "").unwrap();
    std::fs::write(&old, "").unwrap();
    let keep = vec!["aa".repeat(32).parse().unwrap()];
    ordered(&world.shared, AppOrders { keep, ..web_runs(Some(world.installed.clone())) });
    world.look().await;
    assert_eq!((kept.exists(), old.exists()), (true, false));
}

#[tokio::test(start_paused = true)]
async fn an_app_ends_with_its_agent() {
    let mut world = World::new().await;
    world.look().await;
    let stop = world.shared.tasks.stop.clone();
    let end = async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        stop.cancel();
    };
    let (ended, ()) = tokio::join!(world.task.run(), end);
    ended.unwrap();
}
