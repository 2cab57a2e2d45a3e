//! Room in memory for answers that their clients have yet to take: many that read nothing must not fill it.

use std::sync::Arc;

use axum::response::Response;
use http_body::Body;
use hyper::Version;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::SLICE;

/// In slices: 64 MiB, which may take twice as much where buffers have grown by doubling.
const ALL: usize = 4096;

/// Clones share it.
#[derive(Clone, Debug)]
pub struct Room(Arc<Semaphore>);

/// What an answer takes of it until it has left; an extension of the answer.
pub(super) type Taken = Arc<OwnedSemaphorePermit>;

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(ALL)))
    }
}

impl Room {
    /// Takes what `response` needs, if there is as much. One of less than a slice needs no more than its connection has,
    /// unless that has many of them.
    pub fn holds(&self, response: &mut Response, version: Version) -> bool {
        let length = response.body().size_hint().lower();
        let many = version == Version::HTTP_2;
        let slices = if many { length.div_ceil(SLICE as u64) } else { length / SLICE as u64 };
        let Ok(slices @ 1..) = u32::try_from(slices.min(ALL as u64)) else { return true };
        let Ok(taken) = self.0.clone().try_acquire_many_owned(slices) else { return false };
        response.extensions_mut().insert(Taken::new(taken));
        true
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    #[test]
    fn answers_take_room_until_they_have_left() {
        let room = Room::default();
        let answer = |bytes: usize| Response::new(Body::from(vec![b'x'; bytes]));
        let mut kept: Vec<Response> = (0..64).map(|_| answer(1 << 20)).collect();
        let (one, many) = (Version::HTTP_11, Version::HTTP_2);
        assert!(kept.iter_mut().all(|answer| room.holds(answer, one)));
        assert!(!room.holds(&mut answer(SLICE), one), "there is no more room");
        assert!(room.holds(&mut answer(SLICE - 1), one), "a small one needs none");
        assert!(!room.holds(&mut answer(1), many), "but of many");
        kept.pop();
        assert!(room.holds(&mut answer(1 << 20), one));
        kept.clear();
        assert!(room.holds(&mut answer(65 << 20), one), "one that is larger than all comes alone");
    }
}
