//! Gives memory back to the system once a crowd of clients has left. glibc keeps free memory that lies below any live
//! allocation, and so everything that the crowd needed.

use std::time::Duration;

use tokio_util::task::TaskTracker;

/// How often clients are counted.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How many clients make trimming worthwhile: for the milliseconds that it takes, nothing else can allocate.
const TRIM_ABOVE: usize = 250;
/// Once this few of a crowd are left, their memory may stay.
const TRIM_UNTIL: usize = 10;

/// Watches `connections` forever.
pub(super) async fn trim_after_peaks(connections: TaskTracker) {
    let (mut peak, mut trimming) = (0, false);
    loop {
        tokio::time::sleep(CHECK_INTERVAL).await;
        let open = connections.len();
        peak = peak.max(open);
        trimming |= peak >= TRIM_ABOVE;
        if trimming && open < peak / 4 {
            #[cfg(all(target_os = "linux", target_env = "gnu"))]
            #[expect(unsafe_code, reason = "glibc offers this to C alone; it touches nothing of ours")]
            unsafe {
                libc::malloc_trim(0)
            };
            (peak, trimming) = (open, open > TRIM_UNTIL);
        }
    }
}
