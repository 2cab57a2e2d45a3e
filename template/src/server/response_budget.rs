//! Room in memory for responses that clients have yet to take: many clients that read nothing must not exhaust it.

use std::collections::HashMap;
use std::sync::Arc;

use arrayvec::ArrayString;
use axum::response::Response;
use http_body::Body;
use hyper::Version;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Client, SLICE};

/// In slices: 64 MiB of responses, which may occupy twice that if their buffers have grown by doubling.
const TOTAL: u32 = 4096;
/// The last of the total, reserved for clients that hold fewer slices than this: one that takes just enough of its
/// responses to keep them alive must not keep others from reading.
const RESERVED: u32 = TOTAL / 4;

#[derive(Debug)]
pub struct ResponseBudget {
    free: Arc<Semaphore>,
    /// What is left of each network's share. Requests without a client address have one in common.
    shares: Mutex<HashMap<ArrayString<19>, Arc<Semaphore>>>,
}

/// A response's extension: what it holds of the budget and (if enough is left) its client's share, until it has left.
pub(super) type Permits = Arc<(OwnedSemaphorePermit, Option<OwnedSemaphorePermit>)>;

impl Default for ResponseBudget {
    fn default() -> Self {
        Self { free: Arc::new(Semaphore::new(TOTAL as usize)), shares: Mutex::default() }
    }
}

impl ResponseBudget {
    /// Takes what `response` needs; false if there is not that much. Over HTTP/1, less than a slice needs no more than
    /// the connection has anyway; an HTTP/2 connection may have many such responses.
    pub fn try_reserve(&self, response: &mut Response, version: Version, client: Option<Client>) -> bool {
        let length = response.body().size_hint().lower();
        let many = version == Version::HTTP_2;
        let slices = if many { length.div_ceil(SLICE as u64) } else { length / SLICE as u64 };
        let Ok(slices @ 1..) = u32::try_from(slices.min(TOTAL.into())) else { return true };
        let mut shares = self.shares.lock();
        // At most `TOTAL` shares are in use, so at least that many new ones must come before the next sweep.
        if shares.len() >= 2 * TOTAL as usize {
            shares.retain(|_, share| share.available_permits() < RESERVED as usize);
        }
        let share = shares.entry(client.map(|client| client.network).unwrap_or_default());
        let share = share.or_insert_with(|| Arc::new(Semaphore::new(RESERVED as usize))).clone();
        let own = share.try_acquire_many_owned(slices.min(RESERVED)).ok();
        if own.is_none() && self.free.available_permits() < (slices + RESERVED) as usize {
            return false;
        }
        let Ok(taken) = self.free.clone().try_acquire_many_owned(slices) else { return false };
        response.extensions_mut().insert(Permits::new((taken, own)));
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
        let budget = ResponseBudget::default();
        let mut kept: Vec<Response> = (0..64).map(|_| answer(1 << 20)).collect();
        let mut clients = (0..64).map(|number| client(number / 16));
        assert!(kept.iter_mut().all(|answer| budget.try_reserve(answer, ONE, clients.next())));
        assert!(!budget.try_reserve(&mut answer(SLICE), ONE, None), "there is no more room");
        assert!(budget.try_reserve(&mut answer(SLICE - 1), ONE, None), "a small one needs none");
        assert!(!budget.try_reserve(&mut answer(1), MANY, None), "over HTTP/2 it needs some");
        kept.pop();
        assert!(budget.try_reserve(&mut answer(1 << 20), ONE, None));
        kept.clear();
        assert!(
            budget.try_reserve(&mut answer(65 << 20), ONE, None),
            "one that is larger than all comes alone"
        );
    }

    #[test]
    fn one_client_can_not_take_what_others_need() {
        let budget = ResponseBudget::default();
        for client in [Some(client(0)), None] {
            let large = || answer(1 << 20);
            let mut kept: Vec<Response> = (0..48).map(|_| large()).collect();
            assert!(kept.iter_mut().all(|answer| budget.try_reserve(answer, MANY, client)));
            // However it releases and takes, it never gets the last quarter.
            for _ in 0..3 {
                assert!(!budget.try_reserve(&mut answer(1), MANY, client), "the rest is for others");
                kept.rotate_left(16);
                kept.truncate(32);
                kept.extend((0..16).map(|_| large()));
                assert!(kept[32..].iter_mut().all(|answer| budget.try_reserve(answer, MANY, client)));
            }
            let mut others: Vec<Response> = (0..16).map(|_| large()).collect();
            assert!(others.iter_mut().all(|answer| budget.try_reserve(answer, MANY, Some(self::client(1)))));
        }
    }

    #[test]
    fn clients_are_known_only_while_they_have_some() {
        let budget = ResponseBudget::default();
        let mut kept = answer(48 << 20);
        assert!(budget.try_reserve(&mut kept, ONE, Some(client(0))));
        assert!((1..3 * TOTAL).all(|number| budget.try_reserve(&mut answer(1), MANY, Some(client(number)))));
        assert!(budget.shares.lock().len() <= 2 * TOTAL as usize);
        assert!(!budget.try_reserve(&mut answer(1), MANY, Some(client(0))), "it still has what it has");
    }
}
