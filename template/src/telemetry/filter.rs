//! Which events are logged: by the configured filter, or temporarily by another.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use parking_lot::Mutex;
use tokio_util::task::AbortOnDropHandle;
use tracing::info;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::{Registry, reload};

/// Clones change the same filter.
#[derive(Clone, Debug)]
pub struct Filter {
    configured: Targets,
    handle: reload::Handle<Targets, Registry>,
    /// The timer that restores the configured filter, while another is in force.
    restore: Arc<Mutex<Option<AbortOnDropHandle<()>>>>,
}

impl Filter {
    /// The filter for the layer, and the handle that changes it.
    pub(super) fn new(configured: Targets) -> (reload::Layer<Targets, Registry>, Self) {
        let (layer, handle) = reload::Layer::new(configured.clone());
        (layer, Self { configured, handle, restore: Arc::default() })
    }

    /// Applies `filter`, written as `text`, and restores the configured filter after `time`.
    pub fn change(&self, text: &str, filter: Targets, time: Duration) -> Result<()> {
        info!(filter = text, time = ?time, "log.filter_changed");
        // Lock throughout and cancel the old timer: an earlier change must neither undo nor replace this one.
        let mut restore = self.restore.lock();
        *restore = None;
        self.handle.reload(filter)?;
        let Self { configured, handle, .. } = self.clone();
        *restore = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            tokio::time::sleep(time).await;
            if handle.reload(configured).is_ok() {
                info!("log.filter_restored");
            }
        })));
        Ok(())
    }
}

/// The filter that `text` describes, such as `info,service::server=debug`.
pub fn parse(text: &str) -> Option<Targets> {
    // Any other text, such as a misspelt level, would be read as a target that matches nothing, and silence the log.
    let is_filter = |char: char| char.is_alphanumeric() || "_-:=,".contains(char);
    let has_level = |part: &str| {
        let level = part.rsplit_once('=').map_or(part, |(_, level)| level);
        // An empty level would be read as `error`, for all targets.
        !level.is_empty() && level.parse::<LevelFilter>().is_ok()
    };
    text.parse().ok().filter(|_| text.split(',').all(has_level) && text.chars().all(is_filter))
}
