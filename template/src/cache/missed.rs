//! What this replica knows of tasks and could not store in Redis: what Redis has of them may be older.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::shared::NO_VERSION;

/// How much of it is remembered.
const MOST: usize = 10_000;

#[derive(Debug, Default)]
struct Known {
    version: i64,
    /// Other replicas have yet to be told.
    written: bool,
    /// What a write came to is not known: Redis may have any older version.
    doubted: bool,
}

#[derive(Debug, Default)]
pub(super) struct Missed {
    tasks: HashMap<Uuid, Known>,
    /// More was missed than is remembered: until then nothing is read, and whatever is old has expired.
    distrusted_until: Option<Instant>,
}

impl Missed {
    /// The least version that may be believed; none while nothing may be.
    pub(super) fn least(&self, id: Uuid) -> Option<i64> {
        let distrusted = self.distrusted_until.is_some_and(|until| Instant::now() < until);
        match self.tasks.get(&id) {
            _ if distrusted => None,
            Some(known) => (!known.doubted).then_some(known.version),
            None => Some(NO_VERSION),
        }
    }

    /// Notes a version that was not stored; entries live for `ttl`, and up to a tenth longer.
    pub(super) fn add(&mut self, id: Uuid, version: i64, written: bool, ttl: Duration) {
        if self.tasks.len() >= MOST && !self.tasks.contains_key(&id) {
            // What was only read first: no other replica need be told.
            self.tasks.retain(|_, known| known.written);
            if self.tasks.len() >= MOST {
                self.tasks.clear();
            }
            self.distrusted_until = Some(Instant::now() + ttl.mul_f64(1.1));
        }
        let known = self.tasks.entry(id).or_default();
        known.version = known.version.max(version);
        known.written |= written;
        known.doubted |= written && version == NO_VERSION;
    }

    /// What Redis is to be told. A doubt comes first: a version that was read before it says nothing of it.
    pub(super) fn all(&self) -> Vec<(Uuid, i64)> {
        let version = |known: &Known| if known.doubted { NO_VERSION } else { known.version };
        self.tasks.iter().map(|(id, known)| (*id, version(known))).collect()
    }

    /// Forgets a version that is stored now, unless a later one was missed meanwhile.
    pub(super) fn done(&mut self, id: Uuid, version: i64) {
        let Some(known) = self.tasks.get_mut(&id) else { return };
        known.doubted &= version != NO_VERSION;
        if known.version == version && !known.doubted {
            self.tasks.remove(&id);
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

    #[test]
    fn nothing_is_believed_of_a_task_in_doubt() {
        let (mut missed, task) = (Missed::default(), Uuid::now_v7());
        missed.add(task, 3, false, Duration::from_mins(1));
        missed.add(task, NO_VERSION, true, Duration::from_mins(1));
        // Told before the doubt came up, and so no end of it.
        missed.done(task, 3);
        assert_eq!((missed.least(task), missed.all()), (None, vec![(task, NO_VERSION)]));
        missed.done(task, NO_VERSION);
        assert_eq!((missed.least(task), missed.all()), (Some(3), vec![(task, 3)]));
    }

    #[tokio::test]
    async fn too_much_to_remember_is_not_believed_until_it_has_expired() {
        let mut missed = Missed::default();
        let ttl = Duration::from_millis(500);
        let written = Uuid::now_v7();
        missed.add(written, 2, true, ttl);
        (0..=MOST).for_each(|_| missed.add(Uuid::now_v7(), 1, false, ttl));
        assert_eq!(missed.least(Uuid::now_v7()), None);
        tokio::time::sleep(ttl * 2).await;
        assert_eq!(missed.least(Uuid::now_v7()), Some(0));
        assert!(missed.all().contains(&(written, 2)), "other replicas have yet to be told");
        (0..=MOST).for_each(|_| missed.add(Uuid::now_v7(), 1, true, ttl));
        assert!(missed.tasks.len() <= MOST, "{}", missed.tasks.len());
    }
}
