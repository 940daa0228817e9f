//! Turns the panic of somebody else's decoder into a value. Files come from strangers, and no file may end the program.
//!
//! Not here: the decoders.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    /// Whether this thread is in a decoder, whose panics are errors of the file.
    static DECODING: Cell<bool> = const { Cell::new(false) };
}

/// What `decode` returns, or None if it panics. Then nothing is written to standard error. What it changes must not be used after a panic.
pub(crate) fn guarded<T>(decode: impl FnOnce() -> T) -> Option<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let earlier = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !DECODING.get() {
                earlier(panic);
            }
        }));
    });
    DECODING.set(true);
    let decoded = catch_unwind(AssertUnwindSafe(decode));
    DECODING.set(false);
    decoded.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_nothing_and_the_next_call_works() {
        assert_eq!(guarded(|| if "a".len() == 1 { panic!("a decoder's") } else { 1 }), None);
        assert_eq!(guarded(|| 2), Some(2));
    }
}
