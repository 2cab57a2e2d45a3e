//! Panics as log lines and a count, wherever they happen.

use metrics::counter;
use tracing::error;

/// Replaces the default hook, which would write to stderr past the log.
pub(super) fn install_hook() {
    std::panic::set_hook(Box::new(|panic| {
        counter!("panics_total").increment(1);
        let location = panic.location().map(ToString::to_string);
        // The text may quote a client's input, but only as a JSON string.
        let reason = panic.payload_as_str().unwrap_or("not a text");
        error!(location, reason, category = "internal", "panic");
    }));
}
