//! All wiring is here: everything is built from the top down, run, and stopped in order.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use futures_util::FutureExt;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::cache::Cache;
use crate::config::{self, Config, Loaded};
use crate::health::Health;
use crate::http::{self, middleware::Observer};
use crate::jobs::{Failure, Job, Kind, Runner};
use crate::lifecycle::{Lifecycle, State, Stop, StopSignals, Trigger};
use crate::queue::Queue;
use crate::server::{self, InFlight, Limits};
use crate::store::Store;
use crate::tasks::Tasks;
use crate::telemetry::{Telemetry, metrics};
use crate::webhook::Webhook;

/// Connections to the admin listener, which serves probes and scrapes, not the public.
const ADMIN_CONNECTIONS: usize = 100;
/// How long one of them may wait for its client. One that holds them all must not make probes fail.
const ADMIN_WAIT: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    Clean = 0,
    Fault = 1,
    DrainCutShort = 3,
}

/// Serves until told to stop. Returns the exit code.
pub fn serve() -> Result<ExitCode> {
    let (runtime, signals) = runtime()?;
    let loaded = config::load()?;
    let telemetry = Telemetry::install(&loaded.config)?;
    run_in(runtime, async {
        let exit = Box::pin(catch_panic(run(&loaded, &telemetry, signals))).await.unwrap_or_else(|error| {
            error!(cause = format!("{error:#}"), category = "internal", "service.failed");
            Exit::Fault
        });
        // Still inside the runtime, so that a second signal is noticed meanwhile.
        telemetry.flush();
        info!(code = exit as u8, "service.exit");
        Ok(ExitCode::from(exit as u8))
    })
}
//@ if postgres

/// Brings the database's schema up to date.
pub fn migrate(loaded: &Loaded) -> Result<()> {
    let _telemetry = Telemetry::install(&loaded.config)?;
    in_runtime(async { Store::open(&loaded.config)?.migrate().await.context("migrate") })
}
//@ end

/// Runs a command to its end, or until a signal.
pub fn in_runtime<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let (runtime, mut signals) = runtime()?;
    run_in(runtime, async {
        tokio::select! {
            done = work => done,
            signal = signals.next() => bail!("stopped by {signal}"),
        }
    })
}

/// Listens for signals first of all: process 1 of a container, unlike others, is not ended by one that nobody awaits.
fn runtime() -> Result<(Runtime, StopSignals)> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("runtime")?;
    let signals = runtime.block_on(async { StopSignals::listen() }).context("signals")?;
    Ok((runtime, signals))
}

fn run_in<T>(runtime: Runtime, work: impl Future<Output = Result<T>>) -> Result<T> {
    let result = runtime.block_on(catch_panic(work));
    // Aborted work may still be blocking a thread; the process does not wait for it.
    runtime.shutdown_background();
    result
}

/// Turns a panic in the wiring itself into an ordinary error: the hook has logged it, the exit code reports it.
async fn catch_panic<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|_| Err(anyhow!("panicked")))
}

/// Runs the service, from binding the listeners until everything but telemetry is closed.
async fn run(loaded: &Loaded, telemetry: &Telemetry, mut signals: StopSignals) -> Result<Exit> {
    let config = &loaded.config;
    let public = server::listen(SocketAddr::new(config.http.host, config.http.port))?;
    let admin = server::listen(SocketAddr::new(config.admin.host, config.admin.port))?;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        commit = metrics::commit(),
        env = loaded.environment.to_string(),
        bind = public.local_addr()?.to_string(),
        admin = admin.local_addr()?.to_string(),
        "service.start"
    );
    let (service, mut background) = Service::start(config, telemetry, public, admin)?;
    let started = tokio::select! {
        up = service.bring_up(config) => up.map(|()| Trigger::DependenciesUp),
        _ = signals.next() => Ok(Trigger::StopRequested),
        ended = background.join_next() => Err(anyhow!("a background task ended: {ended:?}")),
    };
    if service.lifecycle.apply(*started.as_ref().unwrap_or(&Trigger::StartFailed)) == State::Stopped {
        exit_on_second_signal(signals, telemetry);
        service.close().await;
        return started.map(|_| Exit::Clean);
    }
    info!("service.ready");
    let (trigger, reason) = why_stop(&mut signals, &mut background).await;
    exit_on_second_signal(signals, telemetry);
    service.lifecycle.apply(trigger);
    Ok(exit(trigger, service.drain(config, reason).await))
}

/// How the process ends once it has drained.
fn exit(trigger: Trigger, finished: bool) -> Exit {
    match trigger {
        Trigger::BackgroundEnded => Exit::Fault,
        _ if finished => Exit::Clean,
        _ => Exit::DrainCutShort,
    }
}

/// Ends the process at once on a second request to stop.
fn exit_on_second_signal(signals: StopSignals, telemetry: &Telemetry) {
    let lines = telemetry.lines.clone();
    tokio::spawn(async move {
        let signal = signals.second().await;
        warn!(signal, "shutdown.forced");
        info!(code = Exit::DrainCutShort as u8, "service.exit");
        lines.finish();
        std::process::exit(Exit::DrainCutShort as i32);
    });
}

/// Waits for a signal, or for a task to end that never should, and returns the reason to stop.
async fn why_stop(signals: &mut StopSignals, tasks: &mut JoinSet<&'static str>) -> (Trigger, &'static str) {
    tokio::select! {
        signal = signals.next() => (Trigger::StopRequested, signal),
        ended = tasks.join_next() => {
            error!(cause = format!("{ended:?}"), category = "internal", "background.ended");
            (Trigger::BackgroundEnded, "fault")
        }
    }
}
//@ if postgres

/// Migrates as soon as the database is reachable. A database that starts late is not an error.
async fn migrate_when_up(store: &Store) {
    while let Err(error) = store.migrate().await {
        warn!(cause = format!("{error:#}"), category = "unavailable", "schema.migration_failed");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
//@ end

/// Runs a job according to its kind.
async fn run_job(job: Job, webhook: Option<Webhook>) -> Result<(), Failure> {
    match job.kind {
        Kind::Webhook => Webhook::deliver(webhook, job).await,
    }
}

/// Handles to everything that is running.
struct Service {
    lifecycle: Lifecycle,
    health: Health,
    store: Store,
    runner: Runner,
    in_flight: InFlight,
    /// Writes in progress, including those whose clients have disconnected.
    writes: TaskTracker,
    public: Stop,
    admin: Stop,
    jobs: Stop,
    begin_probing: CancellationToken,
}

impl Service {
    fn start(
        config: &Config,
        telemetry: &Telemetry,
        public: TcpListener,
        admin: TcpListener,
    ) -> Result<(Self, JoinSet<&'static str>)> {
        let (lifecycle, in_flight) = (Lifecycle::default(), InFlight::default());
        // Tasks that must not end before they are told to.
        let mut running = JoinSet::new();
        let store = Store::open(config)?;
        let cache = Cache::open(config)?;
        let webhook = Webhook::new(&config.webhook)?;
        let queue = Arc::new(Queue::new(&store, config.jobs.queue_capacity, config.webhook.timeout));
        let runner = Runner::new(config.jobs, queue.clone());
        running.spawn(queue.clone().measure().map(|()| "queue watcher"));
        let checks = store.checks().into_iter().chain(webhook.as_ref().map(Webhook::check));
        //@ if redis
        let checks = checks.chain([cache.check()]);
        running.spawn(cache.clone().follow().map(|()| "cache follower"));
        //@ end
        //@ if otlp
        let checks = checks.chain(telemetry.traces.check());
        //@ end
        let checks: Vec<_> = checks.collect();
        let health = Health::new(config.health, lifecycle.clone(), &checks);
        let writes = TaskTracker::new();
        let notify = webhook.is_some();
        let tasks = Tasks { store: store.clone(), cache, queue, notify, writes: writes.clone() };
        let layers = http::Layers {
            health: health.clone(),
            // The outermost layer: sees each request first and its response last.
            observer: Observer::new(config, lifecycle.clone()),
            //@ if rate_limit
            rate_limit: http::rate_limit::RateLimit::open(config)?,
            //@ end
        };
        //@ if rate_limit
        running.spawn(layers.rate_limit.clone().sweep().map(|()| "rate limit sweeper"));
        //@ end
        let api = http::router(&config.http, tasks, layers)?;
        let pages = http::admin::router(&health, telemetry, &store, &in_flight);

        let service = Self {
            lifecycle,
            health,
            store,
            runner,
            writes,
            in_flight,
            public: Stop::default(),
            admin: Stop::default(),
            jobs: Stop::default(),
            begin_probing: CancellationToken::new(),
        };
        let limits = config.http.limits();
        let serving = server::serve(public, api, limits, service.in_flight.clone(), service.public.clone());
        running.spawn(serving.map(|()| "public listener"));
        let (max_connections, wait) = (ADMIN_CONNECTIONS, ADMIN_WAIT);
        let limits = Limits { header_read: wait, idle: wait, stalled_write: wait, max_connections };
        let serving = server::serve(admin, pages, limits, InFlight::default(), service.admin.clone());
        running.spawn(serving.map(|()| "admin listener"));
        let (runner, stop, ready) = (service.runner.clone(), service.jobs.clone(), service.lifecycle.clone());
        running.spawn(async move {
            ready.reached(State::Ready).await;
            // A process that was stopped before it was ready takes no jobs.
            if ready.state() < State::Stopped {
                runner.run(move |job| run_job(job, webhook.clone()), stop).await;
            }
            "job runner"
        });
        let probing = service.health.clone().probe(checks);
        running.spawn(service.begin_probing.clone().cancelled_owned().then(|()| probing).map(|()| "prober"));
        running.spawn(telemetry.metrics.clone().upkeep().map(|()| "metrics upkeep"));
        Ok((service, running))
    }

    /// Waits until the service's dependencies are available.
    async fn bring_up(&self, config: &Config) -> Result<()> {
        let deadline = Instant::now() + config.health.startup_timeout;
        //@ if postgres
        if config.database.migrate_on_start {
            let migrated = timeout_at(deadline, migrate_when_up(&self.store)).await;
            migrated.context("the schema could not be migrated within health.startup_timeout")?;
        }
        // Only now, or the checks would find the schema behind.
        //@ end
        self.begin_probing.cancel();
        let Err(missing) = self.health.all_up(deadline).await else { return Ok(()) };
        bail!("not available within health.startup_timeout: {missing}")
    }

    /// Finishes accepted work before the deadline, then closes everything. Returns whether all of it was finished.
    async fn drain(self, config: &Config, reason: &str) -> bool {
        info!(in_flight = self.in_flight.len(), reason, "shutdown.begin");
        // Load balancers need a moment to notice; until then new requests are still served.
        tokio::time::sleep(config.shutdown.grace_delay).await;
        let deadline = Instant::now() + config.shutdown.drain_timeout;
        //@ if postgres
        // A run that starts after this might not finish in time, so its job is left to another replica. The second is
        // for recording how it ended.
        let late = deadline - config.webhook.timeout - Duration::from_secs(1);
        let stop_claiming = self.jobs.stop_claiming.clone();
        tokio::spawn(tokio::time::sleep_until(late).map(move |()| stop_claiming.cancel()));
        //@ end
        // Jobs come last: requests, and writes whose clients have disconnected, may still queue some.
        let ended = async {
            self.public.drain.cancel();
            self.public.ended.cancelled().await;
            // Responses that were cut off with their connection are dropped by tasks of their own: wait for them.
            self.in_flight.close();
            self.in_flight.wait().await;
            self.writes.close();
            self.writes.wait().await;
            self.jobs.drain.cancel();
            self.jobs.ended.cancelled().await;
        };
        let finished = timeout_at(deadline, ended).await.is_ok();
        self.jobs.abort.cancel();
        self.jobs.ended.cancelled().await;
        let (in_flight, writes) = (self.in_flight.len(), self.writes.len());
        let jobs_lost = self.runner.abandon();
        let finished = finished && jobs_lost == 0;
        if finished {
            info!(in_flight, "shutdown.drain_complete");
        } else {
            warn!(in_flight, writes, jobs_lost, "shutdown.drain_timeout");
        }
        self.lifecycle.apply(Trigger::DrainEnded);
        self.close().await;
        finished
    }

    /// Aborts whatever is still running and closes the rest.
    async fn close(self) {
        for stop in [&self.public, &self.admin, &self.jobs] {
            stop.drain.cancel();
            stop.abort.cancel();
        }
        let closed = async {
            // Requests that were cut off are logged when they are dropped: wait for that.
            self.public.ended.cancelled().await;
            self.in_flight.close();
            self.in_flight.wait().await;
            self.writes.close();
            self.writes.wait().await;
            self.store.close().await;
        };
        // Bounded, like everything from here on: a peer that does not respond must not keep the process from exiting.
        let _ = tokio::time::timeout(Duration::from_secs(1), closed).await;
        // Of a process that was never ready, no job has run.
        self.runner.abandon();
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{Signal, getpid, kill_process};

    use super::*;

    #[tokio::test]
    async fn task_that_ends_or_panics_is_a_reason_to_stop() {
        let mut signals = StopSignals::listen().expect("signals");
        let mut background = JoinSet::new();
        background.spawn(std::future::pending());
        background.spawn(async { "prober" });
        assert_eq!(why_stop(&mut signals, &mut background).await, (Trigger::BackgroundEnded, "fault"));
        background.spawn(async { panic!("planted") });
        assert_eq!(why_stop(&mut signals, &mut background).await, (Trigger::BackgroundEnded, "fault"));

        // The first signal asks for a drain, which has already begun; the second one cuts it short.
        let mut second = std::pin::pin!(signals.second());
        for (ends_it, within) in [(false, Duration::from_millis(100)), (true, Duration::from_secs(10))] {
            kill_process(getpid(), Signal::TERM).expect("a signal");
            let ended = tokio::time::timeout(within, &mut second).await;
            assert_eq!(ended.is_ok(), ends_it);
        }
    }

    /// Without signals: another test sends one to this process.
    fn runtime_alone() -> Runtime {
        runtime().expect("a runtime").0
    }

    #[test]
    fn panic_of_the_wiring_is_a_fault() {
        let result: Result<()> = run_in(runtime_alone(), async { panic!("planted") });
        assert!(result.is_err());
    }

    #[test]
    fn what_blocks_a_thread_does_not_hold_up_the_end() {
        let began = std::time::Instant::now();
        let blocks = || std::thread::park_timeout(Duration::from_secs(5));
        let result = run_in(runtime_alone(), async move {
            tokio::task::spawn_blocking(blocks);
            Ok(())
        });
        assert!(result.is_ok() && began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    }

    #[test]
    fn end_of_a_task_is_a_fault_however_the_drain_goes() {
        assert_eq!([true, false].map(|finished| exit(Trigger::BackgroundEnded, finished)), [Exit::Fault; 2]);
        assert_eq!(exit(Trigger::StopRequested, true), Exit::Clean);
        assert_eq!(exit(Trigger::StopRequested, false), Exit::DrainCutShort);
    }
}
