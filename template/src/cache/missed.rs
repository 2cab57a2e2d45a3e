//! Versions of tasks that this replica knows but could not store in Redis, which may have older ones.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::shared::NO_VERSION;

/// How many tasks are remembered.
const MAX_TASKS: usize = 10_000;

#[derive(Debug, Default)]
struct Known {
    version: i64,
    /// It was written here, and other replicas have yet to be told.
    written: bool,
    /// The outcome of a write is unknown: Redis may have any older version.
    uncertain: bool,
}

#[derive(Debug, Default)]
pub(super) struct Missed {
    tasks: HashMap<Uuid, Known>,
    /// Set when more was missed than is remembered: until then nothing is believed; by then, all old entries expire.
    distrusted_until: Option<Instant>,
}

impl Missed {
    /// The lowest version that may be believed; `None` while nothing may be.
    pub(super) fn min_version(&self, id: Uuid) -> Option<i64> {
        let distrusted = self.distrusted_until.is_some_and(|until| Instant::now() < until);
        match self.tasks.get(&id) {
            _ if distrusted => None,
            Some(known) => (!known.uncertain).then_some(known.version),
            None => Some(NO_VERSION),
        }
    }

    /// Records a version that was not stored. Entries in Redis live for at most `ttl` and a tenth.
    pub(super) fn add(&mut self, id: Uuid, version: i64, written: bool, ttl: Duration) {
        if self.tasks.len() >= MAX_TASKS && !self.tasks.contains_key(&id) {
            // Versions that were only read go first: no other replica need be told of them.
            self.tasks.retain(|_, known| known.written);
            if self.tasks.len() >= MAX_TASKS {
                self.tasks.clear();
            }
            self.distrusted_until = Some(Instant::now() + ttl.mul_f64(1.1));
        }
        let known = self.tasks.entry(id).or_default();
        known.version = known.version.max(version);
        known.written |= written;
        known.uncertain |= written && version == NO_VERSION;
    }

    /// What Redis has yet to be told, and whether it was written here: such tasks lead the list. An unknown outcome is
    /// told before any version of its task: none that was read before that write settles it.
    pub(super) fn pending(&self) -> Vec<(Uuid, i64, bool)> {
        let version = |known: &Known| if known.uncertain { NO_VERSION } else { known.version };
        let of = |(id, known): (&Uuid, &Known)| (*id, version(known), known.written);
        let mut pending: Vec<_> = self.tasks.iter().map(of).collect();
        pending.sort_unstable_by_key(|missed| !missed.2);
        pending
    }

    /// Forgets a version that has now been stored, unless a later one was missed, or this one written, meanwhile.
    pub(super) fn stored(&mut self, id: Uuid, version: i64, written: bool) {
        let Some(known) = self.tasks.get_mut(&id) else { return };
        known.uncertain &= version != NO_VERSION;
        if known.version == version && !known.uncertain && (written || !known.written) {
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
        assert_eq!(missed.min_version(task), Some(0));
        missed.add(task, 3, true, Duration::from_mins(1));
        missed.add(task, 2, true, Duration::from_mins(1));
        assert_eq!(missed.min_version(task), Some(3));
        missed.stored(task, 2, true);
        assert_eq!(missed.min_version(task), Some(3), "the later one is still missing");
        missed.stored(task, 3, true);
        assert_eq!(missed.min_version(task), Some(0));
    }

    #[test]
    fn version_that_was_written_since_it_was_read_has_yet_to_be_told() {
        let (mut missed, task) = (Missed::default(), Uuid::now_v7());
        missed.add(task, 2, false, Duration::from_mins(1));
        assert_eq!(missed.pending(), [(task, 2, false)]);
        missed.add(task, 2, true, Duration::from_mins(1));
        missed.stored(task, 2, false);
        assert_eq!(missed.pending(), [(task, 2, true)]);
    }

    #[test]
    fn nothing_is_believed_of_a_task_in_doubt() {
        let (mut missed, task) = (Missed::default(), Uuid::now_v7());
        missed.add(task, 3, false, Duration::from_mins(1));
        missed.add(task, NO_VERSION, true, Duration::from_mins(1));
        // Stored before the doubt arose, so it does not settle it.
        missed.stored(task, 3, false);
        assert_eq!((missed.min_version(task), missed.pending()), (None, vec![(task, NO_VERSION, true)]));
        missed.stored(task, NO_VERSION, true);
        assert_eq!((missed.min_version(task), missed.pending()), (Some(3), vec![(task, 3, true)]));
    }

    #[tokio::test]
    async fn too_much_to_remember_is_not_believed_until_it_has_expired() {
        let mut missed = Missed::default();
        let ttl = Duration::from_millis(500);
        let written = Uuid::now_v7();
        missed.add(written, 2, true, ttl);
        (0..=MAX_TASKS).for_each(|_| missed.add(Uuid::now_v7(), 1, false, ttl));
        assert_eq!(missed.min_version(Uuid::now_v7()), None);
        tokio::time::sleep(ttl * 2).await;
        assert_eq!(missed.min_version(Uuid::now_v7()), Some(0));
        assert!(missed.pending().contains(&(written, 2, true)), "other replicas have yet to be told");
        (0..=MAX_TASKS).for_each(|_| missed.add(Uuid::now_v7(), 1, true, ttl));
        assert!(missed.tasks.len() <= MAX_TASKS, "{}", missed.tasks.len());
    }
}
