//! What replicas answered about tasks, and whether clients can rely on it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::clients::Latencies;

/// The version of a task that is gone: none comes after it.
pub const GONE: u64 = u64::MAX;

/// An answer that reports a task's version. Times count from the start of the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub replica: usize,
    pub task: usize,
    /// Whether the request made this version.
    pub wrote: bool,
    pub version: u64,
    pub began: Duration,
    pub ended: Duration,
}

/// A period without Redis, which may come back and go again in the meantime.
#[derive(Clone, Copy)]
pub struct Fault {
    pub began: Duration,
    /// When it first came back.
    pub mended: Duration,
    /// When everything has recovered.
    pub over: Duration,
    /// Whether some replicas could still reach it, and so read from it what those without could not invalidate.
    pub partial: bool,
}

impl Fault {
    fn lasts(&self, at: Duration) -> bool {
        (self.began..self.over).contains(&at)
    }

    /// Whether a version of any age may be read: where others can reach Redis and, for a moment, once it is back, it
    /// still has what was stored before.
    fn excuses(&self, at: Duration) -> bool {
        self.lasts(at) && (self.partial || at >= self.mended)
    }
}

/// How long after a write an older version may still be read.
pub struct Promise {
    /// While there is no fault.
    pub healthy: Duration,
    /// During faults, except where `Fault::excuses` allows any age.
    pub always: Duration,
}

/// What a history that passes the check shows.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    /// Reads that began so long after a write, with no fault since, that they had to reflect it.
    pub judged: usize,
    /// The longest time for which a version that was read had been superseded.
    pub oldest: Duration,
    /// For how long each version that was read after it was superseded had been so, with no fault in between.
    pub ages: Latencies,
}

/// Answers in the order in which they ended, each with the newest one until then.
struct Newest(Vec<(Duration, Answer)>);

impl Newest {
    fn of(answers: impl Iterator<Item = Answer>) -> Self {
        let mut answers: Vec<Answer> = answers.collect();
        answers.sort_by_key(|answer| answer.ended);
        let mut newest: Vec<(Duration, Answer)> = Vec::with_capacity(answers.len());
        for answer in answers {
            let best = newest.last().map_or(answer, |(_, best)| *best);
            newest.push((answer.ended, if answer.version > best.version { answer } else { best }));
        }
        Self(newest)
    }

    /// The newest of the answers that ended before `at`.
    fn before(&self, at: Duration) -> Option<Answer> {
        let count = self.0.partition_point(|(ended, _)| *ended < at);
        Some(self.0[count.checked_sub(1)?].1)
    }

    /// When the first answer newer than `version` ended.
    fn superseded_at(&self, version: u64) -> Option<Duration> {
        let count = self.0.partition_point(|(_, best)| best.version <= version);
        self.0.get(count).map(|(ended, _)| *ended)
    }
}

/// Checks `history` against the promise.
pub fn check(history: &[Answer], faults: &[Fault], promise: &Promise) -> Result<Seen> {
    let (mut by_task, mut by_replica) = (BTreeMap::new(), BTreeMap::new());
    for answer in history {
        by_task.entry(answer.task).or_insert_with(Vec::new).push(*answer);
        by_replica.entry((answer.task, answer.replica)).or_insert_with(Vec::new).push(*answer);
    }
    for answers in by_replica.values() {
        check_monotonic(answers)?;
    }
    let mut seen = Seen { judged: 0, oldest: Duration::ZERO, ages: Latencies::default() };
    for answers in by_task.values() {
        fresh(answers, faults, promise, &mut seen)?;
    }
    Ok(seen)
}

/// Checks the answers of one replica about one task. Requests that overlap may be answered in any order.
fn check_monotonic(answers: &[Answer]) -> Result<()> {
    let newest = Newest::of(answers.iter().copied());
    for answer in answers {
        let before = newest.before(answer.began).filter(|before| before.version > answer.version);
        ensure!(before.is_none(), "a replica went back, from {before:?} to {answer:?}");
    }
    Ok(())
}

/// Checks the answers of all replicas about one task.
fn fresh(answers: &[Answer], faults: &[Fault], promise: &Promise, seen: &mut Seen) -> Result<()> {
    let writes = Newest::of(answers.iter().filter(|answer| answer.wrote).copied());
    for read in answers.iter().filter(|answer| !answer.wrote) {
        let age =
            writes.superseded_at(read.version).map_or(Duration::ZERO, |at| read.began.saturating_sub(at));
        let excused = faults.iter().any(|fault| fault.excuses(read.began));
        ensure!(age <= promise.always || excused, "superseded {age:.1?} before it was read: {read:?}");
        seen.oldest = seen.oldest.max(age);
        let Some(healthy_since) = healthy_since(faults, read.began) else { continue };
        if !age.is_zero() && read.began.saturating_sub(age) >= healthy_since {
            seen.ages.add(age);
        }
        let known_by = read.began.saturating_sub(promise.healthy);
        let Some(write) = writes.before(known_by).filter(|write| write.began >= healthy_since) else {
            continue;
        };
        seen.judged += 1;
        ensure!(read.version >= write.version, "{write:?} was not known to {read:?}, with no fault between");
    }
    Ok(())
}

/// The end of the last fault before `at`; `None` during a fault.
fn healthy_since(faults: &[Fault], at: Duration) -> Option<Duration> {
    let during = faults.iter().any(|fault| fault.lasts(at));
    let ends = faults.iter().map(|fault| fault.over).filter(|over| *over <= at);
    (!during).then(|| ends.max().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const PROMISE: Promise = Promise { healthy: Duration::from_millis(250), always: Duration::from_secs(2) };

    /// Takes 10 ms, like every answer here.
    fn answer(replica: usize, wrote: bool, version: u64, began: u32) -> Answer {
        Answer { replica, task: 0, wrote, version, began: MS * began, ended: MS * (began + 10) }
    }

    fn wrote(version: u64, began: u32) -> Answer {
        answer(0, true, version, began)
    }

    fn read(replica: usize, version: u64, began: u32) -> Answer {
        answer(replica, false, version, began)
    }

    fn judge(history: &[Answer], faults: &[(u32, u32)]) -> Result<Seen, String> {
        let whole = |&(began, over): &(u32, u32)| Fault {
            began: MS * began,
            mended: MS * over,
            over: MS * over,
            partial: false,
        };
        let faults: Vec<_> = faults.iter().map(whole).collect();
        check(history, &faults, &PROMISE).map_err(|error| error.to_string())
    }

    #[test]
    fn old_version_may_be_read_until_the_promise_ends() {
        let history = [wrote(1, 0), wrote(2, 1000), read(1, 1, 1260), read(1, 2, 1300), read(2, 2, 1300)];
        let mut ages = Latencies::default();
        ages.add(MS * 250);
        assert_eq!(judge(&history, &[]), Ok(Seen { judged: 3, oldest: MS * 250, ages }));
        let late = [wrote(1, 0), wrote(2, 1000), read(1, 1, 1261)];
        assert!(judge(&late, &[]).is_err_and(|said| said.contains("was not known")));
    }

    #[test]
    fn fault_gives_more_time_but_not_for_ever() {
        let history = |began| [wrote(1, 0), wrote(2, 1000), read(1, 1, began)];
        for fault in [(900, 1100), (1100, 1200), (1100, 9000)] {
            assert!(judge(&history(3000), &[fault]).is_ok(), "{fault:?}");
            let said = judge(&history(3011), &[fault]);
            assert!(said.is_err_and(|said| said.contains("superseded 2.0s")), "{fault:?}");
        }
        let said = judge(&history(1300), &[(400, 990), (1400, 1500)]);
        assert!(said.is_err(), "neither the fault before nor the one after excuses it");
    }

    #[test]
    fn fault_of_some_excuses_any_age_until_it_is_over_and_one_of_all_once_it_is_mended() {
        let late = [wrote(1, 0), wrote(2, 1000), read(1, 1, 4000)];
        let fault = Fault { began: MS * 900, mended: MS * 3000, over: MS * 4001, partial: false };
        let allowed = |fault: Fault| check(&late, &[fault], &PROMISE).is_ok();
        assert!(allowed(fault));
        assert!(allowed(Fault { mended: MS * 4001, partial: true, ..fault }));
        assert!(!allowed(Fault { mended: MS * 4001, ..fault }));
        assert!(!allowed(Fault { over: MS * 4000, partial: true, ..fault }));
    }

    #[test]
    fn replica_never_goes_back_on_itself() {
        let back = [wrote(1, 0), wrote(2, 100), read(1, 2, 120), read(1, 1, 131)];
        assert!(judge(&back, &[(0, 9000)]).is_err_and(|said| said.contains("went back")));
        let overlapping = [wrote(1, 0), wrote(2, 100), read(1, 2, 120), read(1, 1, 129)];
        assert!(judge(&overlapping, &[]).is_ok(), "which of the two was answered first is not known");
        let others = [wrote(1, 0), wrote(2, 100), read(1, 2, 120), read(2, 1, 131)];
        assert!(judge(&others, &[]).is_ok(), "replicas need not agree at once");
        let writer = [wrote(1, 0), wrote(2, 100), read(0, 1, 120)];
        assert!(judge(&writer, &[]).is_err(), "what a replica has written it has returned");
    }

    #[test]
    fn deleted_task_does_not_come_back() {
        let history = [wrote(1, 0), wrote(GONE, 100), read(1, GONE, 120), read(1, 1, 140)];
        assert!(judge(&history, &[(0, 9000)]).is_err());
    }

    #[test]
    fn tasks_are_apart() {
        let other = Answer { task: 1, ..read(1, 1, 2000) };
        assert!(judge(&[wrote(1, 0), wrote(2, 100), other], &[]).is_ok());
    }
}
