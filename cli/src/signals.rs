//! Ctrl-C and other termination signals: checked between steps, so that each step either completes or is undone.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use anyhow::{Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

static SEEN: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// The run was ended by a signal.
#[derive(Debug)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// From here on, a signal no longer ends the process: [`check`] reports it instead.
pub fn watch() -> Result<()> {
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, SEEN.clone())?;
    }
    Ok(())
}

/// Fails once a signal has arrived.
pub fn check() -> Result<()> {
    if SEEN.load(Ordering::SeqCst) {
        bail!(Interrupted);
    }
    Ok(())
}
