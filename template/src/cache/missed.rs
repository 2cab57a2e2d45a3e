//! What this replica knows of tasks and could not store in Redis: what Redis has of them may be older.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use uuid::Uuid;

/// How much of it is remembered.
const MOST: usize = 10_000;

#[derive(Debug, Default)]
pub(super) struct Missed {
    /// And whether they were written, so that other replicas have yet to be told.
    versions: HashMap<Uuid, (i64, bool)>,
    /// More was missed than is remembered: until then nothing is read, and whatever is old has expired.
    distrusted_until: Option<Instant>,
}

impl Missed {
    /// The least version that may be believed; none while nothing may be.
    pub(super) fn least(&self, id: Uuid) -> Option<i64> {
        let distrusted = self.distrusted_until.is_some_and(|until| Instant::now() < until);
        (!distrusted).then(|| self.versions.get(&id).map_or(0, |(version, _)| *version))
    }

    /// Notes a version that was not stored; entries live for `ttl`, and up to a tenth longer.
    pub(super) fn add(&mut self, id: Uuid, version: i64, written: bool, ttl: Duration) {
        if self.versions.len() >= MOST && !self.versions.contains_key(&id) {
            // What was only read first: no other replica need be told.
            self.versions.retain(|_, (_, written)| *written);
            if self.versions.len() >= MOST {
                self.versions.clear();
            }
            self.distrusted_until = Some(Instant::now() + ttl.mul_f64(1.1));
        }
        let known = self.versions.entry(id).or_insert((version, written));
        *known = (version.max(known.0), written || known.1);
    }

    pub(super) fn all(&self) -> Vec<(Uuid, i64)> {
        self.versions.iter().map(|(id, (version, _))| (*id, *version)).collect()
    }

    /// Forgets a version that is stored now, unless a later one was missed meanwhile.
    pub(super) fn done(&mut self, id: Uuid, version: i64) {
        if self.versions.get(&id).is_some_and(|known| known.0 == version) {
            self.versions.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_older_than_what_was_missed_is_believed() {
        let (mut missed, task) = (Missed::default(), Uuid::now_v7());
        assert_eq!(missed.least(task), Some(0));
        missed.add(task, 3, true, Duration::from_mins(1));
        missed.add(task, 2, true, Duration::from_mins(1));
        assert_eq!(missed.least(task), Some(3));
        missed.done(task, 2);
        assert_eq!(missed.least(task), Some(3), "the later one is still missing");
        missed.done(task, 3);
        assert_eq!(missed.least(task), Some(0));
    }

    #[tokio::test]
    async fn too_much_to_remember_is_not_believed_until_it_has_expired() {
        let mut missed = Missed::default();
        let ttl = Duration::from_millis(20);
        let written = Uuid::now_v7();
        missed.add(written, 2, true, ttl);
        (0..=MOST).for_each(|_| missed.add(Uuid::now_v7(), 1, false, ttl));
        assert_eq!(missed.least(Uuid::now_v7()), None);
        tokio::time::sleep(ttl * 2).await;
        assert_eq!(missed.least(Uuid::now_v7()), Some(0));
        assert!(missed.all().contains(&(written, 2)), "other replicas have yet to be told");
    }
}
