//! The same work on several things, a few at a time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

/// `work` on every item, on at most `threads` threads, of which this is one; results in the order of the items.
pub(crate) fn map<T: Sync, R: Send>(
    threads: usize,
    items: &[T],
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let (results, done) = mpsc::channel();
    let some = |results: &mpsc::Sender<(usize, R)>| {
        while let Some((i, item)) = {
            let i = next.fetch_add(1, Ordering::Relaxed);
            items.get(i).map(|item| (i, item))
        } {
            // The receiver lives until all threads have ended.
            drop(results.send((i, work(item))));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.clamp(1, items.len().max(1)) {
            let (results, some) = (results.clone(), &some);
            let helper = std::thread::Builder::new().spawn_scoped(scope, move || some(&results));
            // Where there can be no more threads, those there are do the work.
            if helper.is_err() {
                break;
            }
        }
        some(&results);
    });
    drop(results);
    let mut results: Vec<(usize, R)> = done.into_iter().collect();
    results.sort_by_key(|(i, _)| *i);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn results_keep_their_order() {
        let items: Vec<u32> = (0..100).collect();
        for threads in [0, 1, 7, 1000] {
            assert_eq!(
                super::map(threads, &items, |i| i * 2),
                (0..200).step_by(2).collect::<Vec<_>>()
            );
        }
        assert!(super::map(4, &[] as &[u32], |i| *i).is_empty());
    }
}
