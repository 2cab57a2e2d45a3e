//! File descriptors: each connection takes one, and so does all else that the process opens.

use metrics::gauge;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{debug, warn};

/// Kept back for probes, dependencies, files, and what a library opens: while clients take all that is theirs,
/// the service must still be able to say that it lives.
const RESERVE: u64 = 256;

/// Makes room for `wanted` connections and returns for how many there is.
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
    let allowed = usize::try_from(room(current)).unwrap_or(usize::MAX).min(wanted);
    if allowed < wanted {
        warn!(limit = current, wanted, allowed, "descriptors.few");
    }
    gauge!("http_connections_max").set(allowed as f64);
    allowed
}

/// Connections that fit into a limit. Of a small one half is kept back.
fn room(limit: u64) -> u64 {
    (limit - RESERVE.min(limit / 2)).max(1)
}

#[cfg(test)]
mod tests {
    use super::room;

    #[test]
    fn something_is_kept_back_of_every_limit() {
        assert_eq!(room(10_256), 10_000);
        assert_eq!(room(512), 256);
        assert_eq!(room(64), 32);
        assert_eq!(room(1), 1);
    }
}
