//! The only wiring: everything is built here from the top down, run, and stopped in order.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use axum::Router;
use axum::http::header;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout_at};
use tracing::{error, info, warn};

use crate::cache::Cache;
use crate::config::{Config, Loaded};
use crate::health::{self, Check, Health};
//@ if rate_limit
use crate::http::rate_limit::RateLimit;
//@ end
use crate::http::{self, middleware::Observer};
use crate::jobs::Runner;
use crate::lifecycle::{self, Lifecycle, State, StopSignals};
use crate::queue::Queue;
use crate::server::{self, InFlight, Limits, Stop};
use crate::store::Store;
use crate::tasks::Tasks;
use crate::telemetry::Telemetry;
use crate::telemetry::metrics::{self, Metrics};
use crate::webhook::Webhook;

/// Connections to the admin listener: probes and scrapes, never a crowd.
const ADMIN_CONNECTIONS: usize = 100;

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    Clean = 0,
    Fault = 1,
    DrainCutShort = 3,
}

/// Serves until told to stop. Returns the exit code.
pub fn serve(loaded: &Loaded) -> Result<ExitCode> {
    let telemetry = Telemetry::install(&loaded.config)?;
    let exit = in_runtime(run(loaded, &telemetry)).unwrap_or_else(|error| {
        error!(cause = format!("{error:#}"), category = "internal", "service.failed");
        Exit::Fault
    });
    telemetry.flush();
    info!(code = exit as u8, "service.exit");
    Ok(ExitCode::from(exit as u8))
}
//@ if postgres

/// Brings the database's schema up to date.
pub fn migrate(loaded: &Loaded) -> Result<()> {
    let _telemetry = Telemetry::install(&loaded.config)?;
    in_runtime(async { Store::open(&loaded.config)?.migrate().await.context("migrate") })
}
//@ end

/// Asks the service that runs with this configuration whether it lives.
pub fn healthcheck(config: &Config) -> Result<()> {
    let host =
        if config.admin.host.is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { config.admin.host };
    let url = format!("http://{}/health/live", SocketAddr::new(host, config.admin.port));
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Inside the runtime from the first step on: the request's deadline is one of its timers.
    let answer = runtime.block_on(async { client.get(&url).send().await });
    let answer = answer.context("the service does not answer")?;
    if !answer.status().is_success() {
        bail!("the service answered {}", answer.status());
    }
    Ok(())
}

fn in_runtime<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("runtime")?;
    let result = runtime.block_on(work);
    // What was aborted may still block a thread; the process does not wait for it.
    runtime.shutdown_background();
    result
}

/// From the listeners' binding to the last event but the flush.
async fn run(loaded: &Loaded, telemetry: &Telemetry) -> Result<Exit> {
    let config = &loaded.config;
    let mut signals = StopSignals::listen().context("signals")?;
    let public = bind(SocketAddr::new(config.http.host, config.http.port)).await?;
    let admin = bind(SocketAddr::new(config.admin.host, config.admin.port)).await?;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        commit = metrics::commit(),
        env = loaded.environment.to_string(),
        bind = public.local_addr()?.to_string(),
        admin = admin.local_addr()?.to_string(),
        "service.start"
    );
    let mut service = Service::start(config, telemetry, public, admin)?;
    let stopped_by = tokio::select! {
        started = service.ready(config) => match started {
            Ok(()) => {
                service.lifecycle.advance(State::Ready);
                info!("service.ready");
                tokio::select! {
                    signal = signals.next() => Ok(signal),
                    ended = service.background.join_next() => Err(ended),
                }
            }
            Err(error) => {
                service.stop_at_once().await;
                return Err(error);
            }
        },
        _ = signals.next() => {
            service.stop_at_once().await;
            return Ok(Exit::Clean);
        }
    };
    tokio::spawn(async move {
        let signal = signals.next().await;
        warn!(signal, "shutdown.forced");
        // Long enough for the line above to be written, no longer.
        tokio::time::sleep(Duration::from_millis(50)).await;
        std::process::exit(Exit::DrainCutShort as i32);
    });
    if let Err(ended) = &stopped_by {
        error!(cause = format!("{ended:?}"), category = "internal", "background.ended");
    }
    let drained = service.stop(&config.shutdown, stopped_by.as_ref().copied().unwrap_or("fault")).await;
    Ok(match (stopped_by, drained) {
        (Err(_), _) => Exit::Fault,
        (Ok(_), true) => Exit::Clean,
        (Ok(_), false) => Exit::DrainCutShort,
    })
}

async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("can't listen on {address}"))
}

/// Everything that runs.
struct Service {
    lifecycle: Lifecycle,
    health: Health,
    checks: Vec<Check>,
    store: Store,
    in_flight: InFlight,
    public: (JoinHandle<()>, Stop),
    admin: (JoinHandle<()>, Stop),
    jobs: (JoinHandle<usize>, Stop),
    /// Tasks that end only with the process: one that ends before is a fault.
    background: JoinSet<()>,
}

impl Service {
    fn start(
        config: &Config,
        telemetry: &Telemetry,
        public: TcpListener,
        admin: TcpListener,
    ) -> Result<Self> {
        let lifecycle = Lifecycle::default();
        let health = Health::new(config.health, lifecycle.clone());
        let in_flight = InFlight::default();
        let mut background = JoinSet::new();
        background.spawn(telemetry.metrics.clone().upkeep());

        let store = Store::open(config)?;
        let cache = Cache::open(config)?;
        let checks = store.checks();
        //@ if redis
        background.spawn(cache.clone().follow());
        let checks = checks.into_iter().chain([cache.check()]).collect();
        //@ end
        let webhook = Webhook::new(&config.webhook)?;
        let queue = Arc::new(Queue::new(&store, config.jobs.queue_capacity, config.webhook.timeout));
        let tasks = Tasks { store: store.clone(), cache, queue: queue.clone(), notify: webhook.enabled() };
        let stop = Stop::default();
        let work = move |job| webhook.clone().deliver(job);
        let (runner, until, ready) = (Runner::new(config.jobs, queue), stop.clone(), lifecycle.clone());
        let jobs = tokio::spawn(async move {
            ready.reached(State::Ready).await;
            runner.run(work, until.drain, until.abort).await
        });

        let around = http::Surroundings {
            health: health.clone(),
            observer: Observer::new(&config.http, &config.log, lifecycle.clone()),
            //@ if rate_limit
            rate_limit: RateLimit::new(&config.rate_limit),
            //@ end
        };
        //@ if rate_limit
        background.spawn(around.rate_limit.clone().sweep());
        //@ end
        let limits = Limits {
            header_read: config.http.header_read_timeout,
            idle: config.http.idle_timeout,
            stalled_write: config.http.body_timeout,
            max_connections: config.http.max_connections,
        };
        let router = http::router(&config.http, tasks, around)?;
        let public = listen(public, router, limits, &in_flight);
        let limits = Limits { max_connections: ADMIN_CONNECTIONS, ..limits };
        let router = admin_router(&health, &telemetry.metrics, &store);
        let admin = listen(admin, router, limits, &InFlight::default());
        let jobs = (jobs, stop);
        Ok(Self { lifecycle, health, checks, store, in_flight, public, admin, jobs, background })
    }

    /// Waits until what the service depends on is there.
    async fn ready(&mut self, config: &Config) -> Result<()> {
        let deadline = Instant::now() + config.health.startup_timeout;
        //@ if postgres
        if config.database.migrate_on_start {
            let migrated = timeout_at(deadline, migrate_when_up(&self.store)).await;
            migrated.context("the schema could not be brought up to date within health.startup_timeout")?;
        }
        //@ end
        // Not before: what has just been set up is what the checks should find.
        self.background.spawn(self.health.clone().probe(std::mem::take(&mut self.checks)));
        let Err(missing) = self.health.all_up(deadline).await else { return Ok(()) };
        bail!("not available within health.startup_timeout: {missing}")
    }

    /// Stops in order: take no more, finish what was taken, close what it used. Returns whether all was finished.
    async fn stop(mut self, config: &lifecycle::Config, reason: &str) -> bool {
        self.lifecycle.advance(State::Draining);
        info!(in_flight = self.in_flight.count(), reason, "shutdown.begin");
        // Load balancers need a moment to notice; until then new requests are still served.
        tokio::time::sleep(config.grace_delay).await;
        let deadline = Instant::now() + config.drain_timeout;
        let (requests, stop) = &mut self.public;
        stop.drain.cancel();
        let served = timeout_at(deadline, requests).await.is_ok();
        let (jobs, stop) = &mut self.jobs;
        stop.drain.cancel();
        let worked = timeout_at(deadline, &mut *jobs).await;
        let (worked, lost) = if let Ok(lost) = worked {
            (true, lost.unwrap_or(0))
        } else {
            stop.abort.cancel();
            (false, jobs.await.unwrap_or(0))
        };
        let finished = served && worked && lost == 0;
        if finished {
            info!(in_flight = self.in_flight.count(), "shutdown.drain_complete");
        } else {
            warn!(in_flight = self.in_flight.count(), jobs_lost = lost, "shutdown.drain_timeout");
        }
        self.stop_at_once().await;
        finished
    }

    /// Aborts what is left and closes what it used.
    async fn stop_at_once(self) {
        self.lifecycle.advance(State::Stopped);
        for stop in [&self.public.1, &self.admin.1, &self.jobs.1] {
            stop.drain.cancel();
            stop.abort.cancel();
        }
        // Bounded, as all is from here on: what does not answer must not hold the process.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.store.close()).await;
    }
}
//@ if postgres

/// Migrates as soon as the database can be reached. A database that starts late is no fault.
async fn migrate_when_up(store: &Store) {
    while let Err(error) = store.migrate().await {
        warn!(cause = format!("{error:#}"), category = "unavailable", "schema.migration_failed");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
//@ end

fn listen(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    in_flight: &InFlight,
) -> (JoinHandle<()>, Stop) {
    let stop = Stop::default();
    (tokio::spawn(server::serve(listener, router, limits, in_flight.clone(), stop.clone())), stop)
}

fn admin_router(health: &Health, metrics: &Metrics, store: &Store) -> Router {
    let (metrics, store) = (metrics.clone(), store.clone());
    let page = async move || {
        store.observe();
        ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.render())
    };
    health::admin_routes(health.clone()).route("/metrics", get(page)).fallback(http::not_found)
}
