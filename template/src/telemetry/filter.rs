//! Which events become lines: those that are configured, or others for a while.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::info;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::{Registry, reload};

/// Clones change the same filter.
#[derive(Clone, Debug)]
pub struct Filter {
    configured: Arc<str>,
    handle: reload::Handle<EnvFilter, Registry>,
    /// When the configured one is back; None while it is in force.
    until: watch::Sender<Option<Instant>>,
}

impl Filter {
    /// The filter for the layer, and what changes it. `configured` is valid: [`parse`] was asked before.
    pub(super) fn new(configured: &str) -> (reload::Layer<EnvFilter, Registry>, Self) {
        let (layer, handle) = reload::Layer::new(EnvFilter::new(configured));
        (layer, Self { configured: configured.into(), handle, until: watch::Sender::new(None) })
    }

    /// Writes what `text` lets through, and after `time` again what is configured.
    pub fn change(&self, text: &str, filter: EnvFilter, time: Duration) -> Result<()> {
        info!(filter = text, time = ?time, "log.filter_changed");
        self.handle.reload(filter)?;
        self.until.send_replace(Some(Instant::now() + time));
        Ok(())
    }

    /// Goes back to what is configured whenever the time for a change is over, for ever.
    pub async fn restore(self) {
        let mut changes = self.until.subscribe();
        loop {
            let until = *changes.borrow_and_update();
            let over = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = changes.changed() => continue,
                () = over => {}
            }
            if self.handle.reload(EnvFilter::new(&*self.configured)).is_ok() {
                info!("log.filter_restored");
            }
            self.until.send_replace(None);
        }
    }
}

/// The filter that `text` describes, such as `info,service::jobs=debug`.
pub fn parse(text: &str) -> Option<EnvFilter> {
    // An empty filter lets nearly nothing through, which nobody asks for with nothing.
    text.parse().ok().filter(|_| !text.trim().is_empty())
}
