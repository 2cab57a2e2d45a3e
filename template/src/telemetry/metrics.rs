//! The Prometheus recorder, and what is read at each scrape.

use std::time::Duration;

use anyhow::{Context as _, Result};
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_process::Collector;

/// Upper bounds of the buckets in seconds, closest together where latency objectives usually lie.
const SECONDS: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// How often samples are folded into buckets. Until then each sample takes eight bytes.
const UPKEEP: Duration = Duration::from_secs(1);

/// Renders all metrics as Prometheus text.
#[derive(Clone, Debug)]
pub struct Metrics {
    handle: PrometheusHandle,
    process: Collector,
}

impl Metrics {
    /// Installs the recorder for the whole process.
    pub fn install() -> Result<Self> {
        let builder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
            .context("histogram buckets")?;
        let handle = builder.install_recorder().context("metrics recorder")?;
        let process = Collector::default();
        process.describe();
        describe();
        gauge!("service_info", "version" => env!("CARGO_PKG_VERSION"), "commit" => commit()).set(1.0);
        // Start each series at zero: an alert on an increase would miss the increment that creates the series.
        counter!("panics_total").increment(0);
        counter!("log_lines_dropped_total").increment(0);
        Ok(Self { handle, process })
    }

    /// The text of one scrape.
    pub fn render(&self) -> String {
        self.process.collect();
        let runtime = tokio::runtime::Handle::current().metrics();
        gauge!("tokio_workers").set(runtime.num_workers() as f64);
        gauge!("tokio_alive_tasks").set(runtime.num_alive_tasks() as f64);
        gauge!("tokio_global_queue_depth").set(runtime.global_queue_depth() as f64);
        let busy = (0..runtime.num_workers()).map(|worker| runtime.worker_total_busy_duration(worker));
        gauge!("tokio_busy_seconds").set(busy.sum::<Duration>().as_secs_f64());
        self.handle.render()
    }

    /// Folds samples into buckets at intervals, forever.
    pub async fn upkeep(self) {
        loop {
            tokio::time::sleep(UPKEEP).await;
            self.handle.run_upkeep();
        }
    }
}

/// The commit that the binary was built from, if the build knew it.
pub fn commit() -> &'static str {
    option_env!("GIT_COMMIT").unwrap_or("unknown")
}

fn describe() {
    describe_counter!("http_requests_total", "Requests that have ended, by method, route and status");
    describe_histogram!("http_request_duration_seconds", Unit::Seconds, "From request head to response end");
    describe_gauge!("http_requests_in_flight", "Requests whose response has not been sent completely");
    describe_gauge!("http_requests_in_flight_max", "Limit of requests handled at once; others are refused");
    describe_gauge!("http_connections", "Open connections, of both listeners");
    describe_gauge!("http_connections_max", "Limit of public connections; further ones wait");
    describe_counter!("errors_total", "Error responses, by category");
    describe_counter!("panics_total", "Panics, wherever they happened");
    describe_gauge!("jobs_queue_depth", "Jobs in the queue");
    describe_gauge!("jobs_queue_depth_max", "Capacity of the job queue");
    describe_gauge!("jobs_queue_oldest_seconds", Unit::Seconds, "How long the oldest due job has waited");
    describe_counter!("jobs_total", "Job runs that have ended, by outcome");
    describe_histogram!("job_duration_seconds", Unit::Seconds, "Duration of one job run");
    describe_counter!("tasks_total", "Tasks created, completed and deleted");
    describe_counter!("cache_requests_total", "Cache lookups, by tier and outcome");
    describe_gauge!("dependency_up", "1 while the dependency answers its checks");
    describe_gauge!("service_state", "1 for the state the process is in");
    describe_gauge!("service_info", "Always 1; version and commit are its labels");
    describe_counter!("log_lines_dropped_total", "Log lines lost to a slow reader of stdout");
    describe_gauge!("tokio_workers", "Threads that run tasks");
    describe_gauge!("tokio_alive_tasks", "Tasks that have not ended");
    describe_gauge!("tokio_global_queue_depth", "Tasks that wait for a worker and were not woken by one");
    describe_gauge!("tokio_busy_seconds", Unit::Seconds, "Total time that workers have been busy");
    //@ if postgres
    describe_gauge!("db_pool_connections", "Connections, by state");
    describe_gauge!("db_pool_connections_max", "Connections that the pool may open");
    describe_histogram!("db_pool_acquire_seconds", Unit::Seconds, "Time spent waiting for a connection");
    describe_histogram!("db_query_duration_seconds", Unit::Seconds, "Query duration, by name");
    //@ end
    //@ if redis
    describe_histogram!("redis_command_duration_seconds", Unit::Seconds, "Command duration, by name");
    //@ end
    //@ if otlp
    describe_counter!("spans_ended_total", "Sampled spans that have ended");
    describe_counter!("spans_exported_total", "Spans in batches that the collector answered with success");
    //@ end
    //@ if rate_limit
    describe_counter!("rate_limited_total", "Requests refused, by policy");
    //@ end
}
