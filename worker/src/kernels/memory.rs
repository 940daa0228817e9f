//! Memory that is used again: what a step drops, the next one finds on the shelf, and the system is asked for none. Asking is
//! dear: it hands out zeros, page by page.
//!
//! Not here: what is in it. What comes from the shelf holds what its last user left there.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// Commits that a buffer lies idle before it is given back: an evaluation may come between two that need it.
const IDLE_MAX: u64 = 2;
/// No more lies idle than so many times what has been in use at once.
const IDLE_SHARE: usize = 2;
/// A buffer serves for a tensor of so much less than its length.
const SLACK: usize = 2;

/// What a tensor is made of.
pub(crate) trait Element: Copy + Default {
    /// What tests find in a tensor that nobody has written to: no result may depend on it.
    const DIRT: Self;
}

impl Element for f32 {
    const DIRT: Self = f32::NAN;
}

impl Element for u32 {
    const DIRT: Self = u32::MAX;
}

/// Buffers that nobody uses at the moment.
#[derive(Debug, Default)]
pub(super) struct Shelf<T> {
    idle: Mutex<Idle<T>>,
}

#[derive(Debug, Default)]
struct Idle<T> {
    buffers: Vec<Buffer<T>>,
    /// Commits so far.
    commits: u64,
    /// Elements of the buffers that are in use, and the most that ever were.
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
    /// A tensor of `length` elements, whatever they are.
    pub(super) fn tensor(self: &Arc<Self>, length: usize) -> Tensor<T> {
        let found = self.with(|idle| {
            let best = best_fit(idle.buffers.iter().map(|buffer| buffer.values.len()), length);
            let found = best.map(|best| idle.buffers.swap_remove(best).values);
            idle.in_use += found.as_ref().map_or(length, Vec::len);
            idle.most = idle.most.max(idle.in_use);
            found
        });
        let mut values = found.unwrap_or_else(|| vec![T::default(); length]);
        if cfg!(test) {
            values.fill(T::DIRT);
        }
        Tensor { values, length, shelf: Some(self.clone()) }
    }

    /// A commit has been: what has lain idle for long is given back.
    pub(super) fn commit(&self) {
        self.with(|idle| {
            idle.commits += 1;
            let oldest = idle.commits.saturating_sub(IDLE_MAX);
            idle.buffers.retain(|buffer| buffer.used >= oldest);
        });
    }

    /// Gives everything back, and what is still in use as soon as it isn't.
    pub(super) fn clear(&self) {
        self.with(|idle| {
            idle.buffers.clear();
            idle.most = 0;
        });
    }

    fn put(&self, values: Vec<T>) {
        self.with(|idle| {
            let used = idle.commits;
            idle.in_use = idle.in_use.saturating_sub(values.len());
            idle.buffers.push(Buffer { values, used });
            // Batches of ever new sizes would leave behind buffers that fit nobody.
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
pub(crate) fn best_fit(lengths: impl Iterator<Item = usize>, length: usize) -> Option<usize> {
    let fitting = lengths.enumerate().filter(|(_, held)| *held >= length && held / SLACK <= length);
    fitting.min_by_key(|(_, held)| *held).map(|(index, _)| index)
}

/// Elements that go back to their shelf when they are no longer needed.
#[derive(Debug)]
pub(crate) struct Tensor<T: Element = f32> {
    /// At least as long as the tensor.
    values: Vec<T>,
    length: usize,
    shelf: Option<Arc<Shelf<T>>>,
}

impl<T: Element> From<Vec<T>> for Tensor<T> {
    fn from(values: Vec<T>) -> Self {
        Self { length: values.len(), values, shelf: None }
    }
}

impl<T: Element> Clone for Tensor<T> {
    fn clone(&self) -> Self {
        let Some(shelf) = &self.shelf else { return Self::from(self.to_vec()) };
        let mut copy = shelf.tensor(self.length);
        copy.copy_from_slice(self);
        copy
    }
}

impl<T: Element> Drop for Tensor<T> {
    fn drop(&mut self) {
        if let Some(shelf) = &self.shelf {
            shelf.put(std::mem::take(&mut self.values));
        }
    }
}

impl<T: Element> Deref for Tensor<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.values[..self.length]
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
        let sent = shelf.tensor(8);
        shelf.clear();
        drop(sent);
        assert_eq!(shelf.with(|idle| idle.buffers.len()), 0, "what was in use at the end doesn't come back");
    }
}
