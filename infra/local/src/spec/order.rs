//! The order of starting things that depend on each other, derived from what each one depends on. Stopping is its
//! reverse.

use std::{collections::BTreeMap, fmt::Debug};

use anyhow::{Result, ensure};
use futures::future::try_join_all;
use tokio::sync::SetOnce;

/// Things in an order in which each one comes after those that it depends on.
#[derive(Debug, Clone)]
pub(crate) struct Order<T: 'static> {
    sequence: Vec<T>,
    depends_on: fn(T) -> &'static [T],
}

// === impl Order ===

impl<T: Copy + Ord + Debug + 'static> Order<T> {
    /// Sorts the things and adds those that they depend on. A circle is an error.
    ///
    /// Things that do not depend on each other keep their places.
    pub(crate) fn of(things: &[T], depends_on: fn(T) -> &'static [T]) -> Result<Self> {
        let mut order = Self { sequence: Vec::new(), depends_on };
        for thing in things {
            order.add(*thing, &mut Vec::new())?;
        }
        Ok(order)
    }

    /// The things in the order of starting.
    pub(crate) fn sequence(&self) -> &[T] {
        &self.sequence
    }

    /// Starts each thing once those that it depends on have been started. Others start at the same time.
    pub(crate) async fn start<F>(&self, work: impl Fn(T) -> F) -> Result<()>
    where
        F: Future<Output = Result<()>>,
    {
        let dependencies = |thing| (self.depends_on)(thing).to_vec();
        run(&self.sequence, dependencies, work).await
    }

    /// Stops each thing once those that depend on it have been stopped. Others stop at the same time.
    pub(crate) async fn stop<F>(&self, work: impl Fn(T) -> F) -> Result<()>
    where
        F: Future<Output = Result<()>>,
    {
        let reverse: Vec<T> = self.sequence.iter().rev().copied().collect();
        let depends = |dependent: &T, thing| (self.depends_on)(*dependent).contains(&thing);
        let dependents = |thing| reverse.iter().copied().filter(|dependent| depends(dependent, thing)).collect();
        run(&reverse, dependents, work).await
    }

    /// `path` leads from the thing that was asked for to this one, each depending on the next.
    fn add(&mut self, thing: T, path: &mut Vec<T>) -> Result<()> {
        if self.sequence.contains(&thing) {
            return Ok(());
        }
        ensure!(!path.contains(&thing), "{thing:?} depends on itself: {path:?}");
        path.push(thing);
        for dependency in (self.depends_on)(thing) {
            self.add(*dependency, path)?;
        }
        path.pop();
        self.sequence.push(thing);
        Ok(())
    }
}

/// Does each thing's work after that of the things that it waits for. The first error ends the others' work.
async fn run<T, F>(sequence: &[T], waits_for: impl Fn(T) -> Vec<T>, work: impl Fn(T) -> F) -> Result<()>
where
    T: Copy + Ord,
    F: Future<Output = Result<()>>,
{
    let done: BTreeMap<T, SetOnce<()>> = sequence.iter().map(|thing| (*thing, SetOnce::new())).collect();
    let all = done.iter().map(|(thing, own)| {
        let awaited: Vec<&SetOnce<()>> = waits_for(*thing).iter().filter_map(|other| done.get(other)).collect();
        let work = &work;
        async move {
            for other in awaited {
                other.wait().await;
            }
            work(*thing).await?;
            // Nobody else sets it.
            let _ = own.set(());
            anyhow::Ok(())
        }
    });
    try_join_all(all).await.map(drop)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::task::yield_now;

    use super::*;

    /// 1 is the base; 4 depends on 2 and 3, which depend on 1; 5 stands alone.
    fn diamond(thing: u8) -> &'static [u8] {
        match thing {
            2 | 3 => &[1],
            4 => &[2, 3],
            _ => &[],
        }
    }

    fn circle(thing: u8) -> &'static [u8] {
        match thing {
            1 => &[2],
            2 => &[3],
            3 => &[1],
            _ => &[],
        }
    }

    #[test]
    fn each_thing_comes_after_those_that_it_depends_on() {
        let order = |things: &[u8]| Order::of(things, diamond).unwrap().sequence().to_vec();
        assert_eq!(order(&[1, 2, 3, 4, 5]), [1, 2, 3, 4, 5], "a valid order is kept");
        assert_eq!(order(&[5, 4, 3, 2, 1]), [5, 1, 2, 3, 4]);
        assert_eq!(order(&[4]), [1, 2, 3, 4], "what it depends on is added");
    }

    #[test]
    fn a_circle_is_refused() {
        let error = Order::of(&[4, 1, 2, 3], circle).unwrap_err().to_string();
        assert_eq!(error, "1 depends on itself: [1, 2, 3]");
        assert!(Order::of(&[1_u8], |_| &[1]).is_err(), "of one thing");
    }

    /// The things in the order in which their work began and ended.
    async fn observe(order: &Order<u8>, stop: bool) -> (Vec<u8>, Vec<u8>) {
        let (begun, ended) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
        let work = async |thing: u8| {
            begun.lock().unwrap().push(thing);
            // The smaller ones take longer.
            for _ in thing..10 {
                yield_now().await;
            }
            ended.lock().unwrap().push(thing);
            Ok(())
        };
        let result = if stop { order.stop(&work).await } else { order.start(&work).await };
        result.unwrap();
        (begun.into_inner().unwrap(), ended.into_inner().unwrap())
    }

    #[tokio::test]
    async fn nothing_starts_before_what_it_depends_on_or_stops_before_what_depends_on_it() {
        let order = Order::of(&[1, 2, 3, 4, 5], diamond).unwrap();
        let (begun, ended) = observe(&order, false).await;
        assert_eq!((begun, ended), (vec![1, 5, 2, 3, 4], vec![5, 1, 3, 2, 4]));
        let (begun, ended) = observe(&order, true).await;
        assert_eq!((begun, ended), (vec![4, 5, 2, 3, 1], vec![5, 4, 3, 2, 1]));
    }

    #[tokio::test]
    async fn after_a_failure_nothing_that_depends_on_it_starts() {
        let order = Order::of(&[1, 2, 3, 4, 5], diamond).unwrap();
        let begun = Mutex::new(Vec::new());
        let result = order.start(async |thing: u8| {
            begun.lock().unwrap().push(thing);
            ensure!(thing != 1, "no");
            Ok(())
        });
        assert_eq!(result.await.unwrap_err().to_string(), "no");
        assert!(!begun.into_inner().unwrap().iter().any(|thing| [2, 3, 4].contains(thing)));
    }
}
