//! File descriptors: each connection takes one, as does everything else that the process opens.

use metrics::gauge;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{debug, warn};

/// Reserved for probes, dependencies, files, and what libraries open: even when clients take all they are allowed,
/// the service must still be able to answer that it is alive.
const RESERVE: u64 = 256;

/// Raises the descriptor limit as far as needed and allowed for `wanted` connections, and returns how many of them fit.
pub fn connections_within_limit(wanted: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let needed = (wanted as u64).saturating_add(RESERVE);
    let mut current = limit.current.unwrap_or(u64::MAX);
    if current < needed {
        // The soft limit is low for the sake of old programs; the hard one is what the operator allows.
        let raised = limit.maximum.unwrap_or(u64::MAX).min(needed);
        match setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum: limit.maximum }) {
            Ok(()) => current = raised,
            Err(error) => debug!(%error, "descriptors.not_raised"),
        }
    }
    let allowed = usize::try_from(usable(current)).unwrap_or(usize::MAX).min(wanted);
    if allowed < wanted {
        warn!(limit = current, wanted, allowed, "descriptors.few");
    }
    gauge!("http_connections_max").set(allowed as f64);
    allowed
}

/// How many connections fit into a limit. Of a small limit, half is reserved.
fn usable(limit: u64) -> u64 {
    (limit - RESERVE.min(limit / 2)).max(1)
}

#[cfg(test)]
mod tests {
    use super::usable;

    #[test]
    fn something_is_kept_back_of_every_limit() {
        assert_eq!(usable(10_256), 10_000);
        assert_eq!(usable(512), 256);
        assert_eq!(usable(64), 32);
        assert_eq!(usable(1), 1);
    }
}
