//! Ctrl-C and its like: noticed between two steps, so that every step either happens whole or is undone.

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

/// From here on a signal only shows in [`check`].
pub fn watch() -> Result<()> {
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, SEEN.clone())?;
    }
    Ok(())
}

/// Fails once a signal has come.
pub fn check() -> Result<()> {
    if SEEN.load(Ordering::SeqCst) {
        bail!(Interrupted);
    }
    Ok(())
}
