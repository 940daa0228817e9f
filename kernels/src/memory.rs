//! Reuses memory: a shelf keeps the buffers that a step drops, for the next step. New memory from the system is expensive,
//! because the system zeroes it page by page.
//!
//! Not here: the contents. A buffer from the shelf holds the values of its last user.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// Commits after which an idle buffer is freed: a measurement may come between two steps that need it.
const IDLE_MAX: u64 = 2;
/// Idle memory is at most this multiple of the most memory in use.
const IDLE_SHARE: usize = 2;
/// A buffer is reused for a tensor if it is at most this many times as long.
const SLACK: usize = 2;

/// What a tensor is made of.
pub trait Element: Copy + Default {
    /// The content of an unwritten tensor where memory is dirty. No result may depend on it.
    const DIRT: Self;
}

impl Element for f32 {
    const DIRT: Self = f32::NAN;
}

impl Element for u32 {
    const DIRT: Self = u32::MAX;
}

/// Idle buffers.
#[derive(Debug, Default)]
pub(super) struct Shelf<T> {
    idle: Mutex<Idle<T>>,
}

#[derive(Debug, Default)]
struct Idle<T> {
    buffers: Vec<Buffer<T>>,
    /// Commits so far.
    commits: u64,
    /// Jobs so far. Buffers of an earlier job are not taken back.
    jobs: u64,
    /// Whether each tensor begins with [`Element::DIRT`].
    is_dirty: bool,
    /// Elements of the job's buffers that are in use, and the most that were at once.
    in_use: usize,
    most: usize,
}

#[derive(Debug)]
struct Buffer<T> {
    values: Vec<T>,
    /// The commit after which it was last used.
    used: u64,
}

impl<T: Element> Shelf<T> {
    /// From now on, each tensor begins with [`Element::DIRT`].
    pub(super) fn soil(&self) {
        self.with(|idle| idle.is_dirty = true);
    }

    /// A tensor of `length` elements, whatever they are.
    pub(super) fn tensor(self: &Arc<Self>, length: usize) -> Tensor<T> {
        let (found, job, is_dirty) = self.with(|idle| {
            let best = best_fit(idle.buffers.iter().map(|buffer| buffer.values.len()), length);
            let found = best.map(|best| idle.buffers.swap_remove(best).values);
            idle.in_use += found.as_ref().map_or(length, Vec::len);
            idle.most = idle.most.max(idle.in_use);
            (found, idle.jobs, idle.is_dirty)
        });
        let mut values = found.unwrap_or_else(|| vec![T::default(); length]);
        if is_dirty {
            values.fill(T::DIRT);
        }
        Tensor { values, length, home: Some(Home { shelf: self.clone(), job }) }
    }

    /// To be called after each commit. Frees buffers that have been idle for long.
    pub(super) fn commit(&self) {
        self.with(|idle| {
            idle.commits += 1;
            let oldest = idle.commits.saturating_sub(IDLE_MAX);
            idle.buffers.retain(|buffer| buffer.used >= oldest);
        });
    }

    /// To be called when the job is over. Frees all buffers. Those that are still being sent are freed when they have been sent.
    pub(super) fn clear(&self) {
        self.with(|idle| *idle = Idle { commits: idle.commits, jobs: idle.jobs + 1, ..Idle::default() });
    }

    fn put(&self, values: Vec<T>, job: u64) {
        self.with(|idle| {
            if job != idle.jobs {
                return;
            }
            let used = idle.commits;
            idle.in_use -= values.len();
            idle.buffers.push(Buffer { values, used });
            // Batches of varying sizes would otherwise leave buffers that fit no tensor.
            let mut all: usize = idle.buffers.iter().map(|buffer| buffer.values.len()).sum();
            while all > IDLE_SHARE * idle.most {
                all -= idle.buffers.remove(0).values.len();
            }
        });
    }

    fn with<R>(&self, work: impl FnOnce(&mut Idle<T>) -> R) -> R {
        work(&mut self.idle.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Which of several buffers serves for `length` elements: the shortest that is long enough, unless that is far too long.
pub fn best_fit(lengths: impl Iterator<Item = usize>, length: usize) -> Option<usize> {
    let fitting = lengths.enumerate().filter(|(_, held)| *held >= length && held / SLACK <= length);
    fitting.min_by_key(|(_, held)| *held).map(|(index, _)| index)
}

/// Elements that go back to their shelf when they are no longer needed.
#[derive(Debug)]
pub struct Tensor<T: Element = f32> {
    /// At least as long as the tensor.
    values: Vec<T>,
    length: usize,
    home: Option<Home<T>>,
}

/// Where a tensor's memory goes in the end, unless the job that took it is over by then.
#[derive(Debug)]
struct Home<T> {
    shelf: Arc<Shelf<T>>,
    job: u64,
}

impl<T: Element> From<Vec<T>> for Tensor<T> {
    fn from(values: Vec<T>) -> Self {
        Self { length: values.len(), values, home: None }
    }
}

impl<T: Element> Clone for Tensor<T> {
    fn clone(&self) -> Self {
        let Some(home) = &self.home else { return Self::from(self.to_vec()) };
        let mut copy = home.shelf.tensor(self.length);
        copy.copy_from_slice(self);
        copy
    }
}

impl<T: Element> Drop for Tensor<T> {
    fn drop(&mut self) {
        if let Some(Home { shelf, job }) = &self.home {
            shelf.put(std::mem::take(&mut self.values), *job);
        }
    }
}

impl<T: Element> Deref for Tensor<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.values[..self.length]
    }
}

impl<T: Element> AsRef<[T]> for Tensor<T> {
    fn as_ref(&self) -> &[T] {
        self
    }
}

impl<T: Element> DerefMut for Tensor<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.values[..self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_finds_what_the_last_one_dropped_and_idle_memory_is_given_back() {
        let shelf = Arc::new(Shelf::<f32>::default());
        let mut first = shelf.tensor(100);
        first.fill(7.0);
        let place = first.as_ptr();
        drop(first);
        let second = shelf.tensor(60);
        assert_eq!((second.as_ptr(), second.len()), (place, 60));
        assert!(shelf.tensor(100).as_ptr() != place, "it is in use");
        drop(second);
        assert!(shelf.tensor(20).len() == 20 && shelf.with(|idle| idle.buffers.len()) == 3, "too long for it");
        (0..=IDLE_MAX).for_each(|_| shelf.commit());
        assert_eq!(shelf.with(|idle| idle.buffers.len()), 0);
    }

    #[test]
    fn what_is_still_sent_when_the_job_is_over_does_not_come_back() {
        let shelf = Arc::new(Shelf::<f32>::default());
        let sent = shelf.tensor(8);
        shelf.clear();
        let of_the_next_job = shelf.tensor(4);
        std::thread::spawn(move || drop(sent)).join().unwrap();
        let held = || shelf.with(|idle| (idle.in_use, idle.most, idle.buffers.len()));
        assert_eq!(held(), (4, 4, 0));
        drop(of_the_next_job);
        assert_eq!(held(), (0, 4, 1));
    }
}
