//! Room in memory for answers that their clients have yet to take: many that read nothing must not fill it.

use std::collections::HashMap;
use std::sync::Arc;

use arrayvec::ArrayString;
use axum::response::Response;
use http_body::Body;
use hyper::Version;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Client, SLICE};

/// In slices: 64 MiB, which may take twice as much where buffers have grown by doubling.
const ALL: u32 = 4096;
/// Of them, the last are for clients that have fewer than as many: who takes just enough of its answers to keep them must
/// not keep others from reading.
const SHARE: u32 = ALL / 4;

/// Clones share it.
#[derive(Clone, Debug)]
pub struct Room {
    free: Arc<Semaphore>,
    /// Of each network, by what is left of them. Requests that came over no connection have one together.
    shares: Arc<Mutex<HashMap<ArrayString<19>, Arc<Semaphore>>>>,
}

/// What an answer takes of it, and of what is left of its client's share, until it has left; an extension of the answer.
pub(super) type Taken = Arc<(OwnedSemaphorePermit, Option<OwnedSemaphorePermit>)>;

impl Default for Room {
    fn default() -> Self {
        Self { free: Arc::new(Semaphore::new(ALL as usize)), shares: Arc::default() }
    }
}

impl Room {
    /// Takes what `response` needs, if there is as much. One of less than a slice needs no more than its connection has,
    /// unless that has many of them.
    pub fn holds(&self, response: &mut Response, version: Version, client: Option<Client>) -> bool {
        let length = response.body().size_hint().lower();
        let many = version == Version::HTTP_2;
        let slices = if many { length.div_ceil(SLICE as u64) } else { length / SLICE as u64 };
        let Ok(slices @ 1..) = u32::try_from(slices.min(ALL.into())) else { return true };
        let mut shares = self.shares.lock();
        // At most `ALL` are in use, so that as many new ones have to come before there is something to do again.
        if shares.len() >= 2 * ALL as usize {
            shares.retain(|_, share| share.available_permits() < SHARE as usize);
        }
        let share = shares.entry(client.map(|client| client.network).unwrap_or_default());
        let share = share.or_insert_with(|| Arc::new(Semaphore::new(SHARE as usize))).clone();
        let own = share.try_acquire_many_owned(slices.min(SHARE)).ok();
        if own.is_none() && self.free.available_permits() < (slices + SHARE) as usize {
            return false;
        }
        let Ok(taken) = self.free.clone().try_acquire_many_owned(slices) else { return false };
        response.extensions_mut().insert(Taken::new((taken, own)));
        true
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use axum::body::Body;

    use super::*;

    const ONE: Version = Version::HTTP_11;
    const MANY: Version = Version::HTTP_2;

    fn answer(bytes: usize) -> Response {
        Response::new(Body::from(vec![b'x'; bytes]))
    }

    fn client(number: u32) -> Client {
        Client::new(Ipv4Addr::from_bits(number << 8).into())
    }

    #[test]
    fn answers_take_room_until_they_have_left() {
        let room = Room::default();
        let mut kept: Vec<Response> = (0..64).map(|_| answer(1 << 20)).collect();
        let mut clients = (0..64).map(|number| client(number / 16));
        assert!(kept.iter_mut().all(|answer| room.holds(answer, ONE, clients.next())));
        assert!(!room.holds(&mut answer(SLICE), ONE, None), "there is no more room");
        assert!(room.holds(&mut answer(SLICE - 1), ONE, None), "a small one needs none");
        assert!(!room.holds(&mut answer(1), MANY, None), "but of many");
        kept.pop();
        assert!(room.holds(&mut answer(1 << 20), ONE, None));
        kept.clear();
        assert!(room.holds(&mut answer(65 << 20), ONE, None), "one that is larger than all comes alone");
    }

    #[test]
    fn one_client_can_not_take_what_others_need() {
        let room = Room::default();
        for client in [Some(client(0)), None] {
            let large = || answer(1 << 20);
            let mut kept: Vec<Response> = (0..48).map(|_| large()).collect();
            assert!(kept.iter_mut().all(|answer| room.holds(answer, MANY, client)));
            // However it gives back and takes, the last quarter is not its own.
            for _ in 0..3 {
                assert!(!room.holds(&mut answer(1), MANY, client), "the rest is for others");
                kept.rotate_left(16);
                kept.truncate(32);
                kept.extend((0..16).map(|_| large()));
                assert!(kept[32..].iter_mut().all(|answer| room.holds(answer, MANY, client)));
            }
            let mut others: Vec<Response> = (0..16).map(|_| large()).collect();
            assert!(others.iter_mut().all(|answer| room.holds(answer, MANY, Some(self::client(1)))));
        }
    }

    #[test]
    fn clients_are_known_only_while_they_have_some() {
        let room = Room::default();
        let mut kept = answer(48 << 20);
        assert!(room.holds(&mut kept, ONE, Some(client(0))));
        assert!((1..3 * ALL).all(|number| room.holds(&mut answer(1), MANY, Some(client(number)))));
        assert!(room.shares.lock().len() <= 2 * ALL as usize);
        assert!(!room.holds(&mut answer(1), MANY, Some(client(0))), "it still has what it has");
    }
}
