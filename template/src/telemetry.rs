//! Logs, metrics and traces: built once, flushed once.

use anyhow::{Context as _, Result};
use tracing::info;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use self::filter::Filter;
use self::lines::Lines;
use self::metrics::Metrics;

pub mod context;
pub mod filter;
mod lines;
pub mod logs;
pub mod metrics;
//@ if otlp
pub mod otlp;
//@ end
mod panic;

/// The parts that live as long as the process and are flushed at its end.
#[derive(Debug)]
pub struct Telemetry {
    pub metrics: Metrics,
    pub lines: Lines,
    pub filter: Filter,
    //@ if otlp
    pub traces: otlp::Exporter,
    //@ end
}

impl Telemetry {
    /// Installs the process's subscriber, recorder and panic hook.
    pub fn install(config: &crate::config::Config) -> Result<Self> {
        let (events, lines, filter) = logs::layer(&config.log)?;
        let metrics = Metrics::install()?;
        let subscriber = tracing_subscriber::registry().with(events);
        //@ if otlp
        let (spans, traces) = otlp::layer(&config.otlp, config.shutdown.flush_timeout)?;
        let subscriber = subscriber.with(spans);
        //@ end
        subscriber.try_init().context("log subscriber")?;
        panic::install_hook();
        Ok(Self {
            metrics,
            // Finished when this is dropped.
            lines,
            filter,
            //@ if otlp
            traces,
            //@ end
        })
    }

    /// Sends what is buffered for export, if anything, within `shutdown.flush_timeout`, and logs the outcome.
    pub fn flush(&self) {
        let status = "disabled";
        //@ if otlp
        let status = self.traces.flush().unwrap_or(status);
        //@ end
        info!(status, "telemetry.flush");
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        self.lines.finish();
    }
}
