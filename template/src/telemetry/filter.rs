//! Which events become lines: those that are configured, or others for a while.

use std::time::Duration;

use anyhow::Result;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tracing::info;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::{Registry, reload};

/// Clones change the same filter.
#[derive(Clone, Debug)]
pub struct Filter {
    configured: Targets,
    handle: reload::Handle<Targets, Registry>,
    /// When the configured one is back; None while it is in force.
    until: watch::Sender<Option<Instant>>,
}

impl Filter {
    /// The filter for the layer, and what changes it.
    pub(super) fn new(configured: Targets) -> (reload::Layer<Targets, Registry>, Self) {
        let (layer, handle) = reload::Layer::new(configured.clone());
        (layer, Self { configured, handle, until: watch::Sender::new(None) })
    }

    /// Writes what `text` lets through, and after `time` again what is configured.
    pub fn change(&self, text: &str, filter: Targets, time: Duration) -> Result<()> {
        info!(filter = text, time = ?time, "log.filter_changed");
        self.handle.reload(filter)?;
        self.until.send_replace(Some(Instant::now() + time));
        Ok(())
    }

    /// Goes back to what is configured whenever the time for a change is over, for ever.
    pub async fn restore(self) {
        let mut changes = self.until.subscribe();
        loop {
            let asked_for = changes.wait_for(Option::is_some).await.map(|until| *until);
            let Ok(Some(until)) = asked_for else { continue };
            if timeout_at(until, changes.changed()).await.is_err() {
                // First, so that what is changed meanwhile has an end of its own.
                self.until.send_replace(None);
                if self.handle.reload(self.configured.clone()).is_ok() {
                    info!("log.filter_restored");
                }
            }
        }
    }
}

/// The filter that `text` describes, such as `info,service::server=debug`.
pub fn parse(text: &str) -> Option<Targets> {
    // Any other text, such as a level misspelt, would be taken for the name of a target that nothing has, and silence
    // the log.
    let is_filter = |char: char| char.is_alphanumeric() || "_-:=,".contains(char);
    let has_level = |part: &str| {
        let level = part.rsplit_once('=').map_or(part, |(_, level)| level);
        // Nothing would be taken for `error`, of all targets.
        !level.is_empty() && level.parse::<LevelFilter>().is_ok()
    };
    text.parse().ok().filter(|_| text.split(',').all(has_level) && text.chars().all(is_filter))
}
