//! The machine that the proof runs on.

use std::fs;
use std::num::NonZero;
use std::thread;

/// How many times more threads want to run than the machine can run, 1 or above: 1 in CI, and what
/// others are doing on a shared machine is no fault of the template.
#[must_use]
pub fn overload() -> f64 {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: f64 = load.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or_default();
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    (load / f64::from(u16::try_from(cores).unwrap_or(u16::MAX))).max(1.0)
}
