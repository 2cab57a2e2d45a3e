//! Gives memory back to the system once a crowd of clients has left. glibc keeps what is free below anything that lives
//! on, and so all that a crowd has needed.

use std::time::Duration;

use tokio_util::task::TaskTracker;

/// How often clients are counted.
const EVERY: Duration = Duration::from_secs(1);
/// Clients whose memory is worth the milliseconds in which nobody else can have any.
const CROWD: usize = 250;
/// Those of a crowd whose memory may stay.
const FEW: usize = 10;

/// Watches `connections`, for ever.
pub(super) async fn give_back(connections: TaskTracker) {
    let (mut most, mut crowd) = (0, false);
    loop {
        tokio::time::sleep(EVERY).await;
        let open = connections.len();
        most = most.max(open);
        crowd |= most >= CROWD;
        if crowd && open < most / 4 {
            #[cfg(all(target_os = "linux", target_env = "gnu"))]
            #[expect(unsafe_code, reason = "glibc offers this to C alone; it touches nothing of ours")]
            unsafe {
                libc::malloc_trim(0)
            };
            (most, crowd) = (open, open > FEW);
        }
    }
}
