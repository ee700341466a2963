//! The active faults of one proxy: each one ends by its count, by its time, or when all are cleared.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::http::request::Parts;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::faults::fault::{Door, Fault, Kind};

/// The active faults of one proxy.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    present: Mutex<Vec<Present>>,
    door: watch::Sender<Door>,
}

#[derive(Debug)]
struct Present {
    fault: Fault,
    until: Instant,
}

// === impl Present ===

impl Present {
    /// Whether the fault affects this request. The requests that it lets pass are counted.
    fn strikes(&mut self, request: &Parts) -> bool {
        if !self.fault.is_of(request) {
            return false;
        }
        match &mut self.fault.after {
            None | Some(0) => true,
            Some(after) => {
                *after -= 1;
                false
            }
        }
    }
}

// === impl Faults ===

impl Faults {
    /// How the proxy treats those who connect, and each change of that.
    pub(crate) fn door(&self) -> watch::Receiver<Door> {
        self.door.subscribe()
    }

    /// Adds a fault. It is active when this returns.
    pub(crate) fn add(self: &Arc<Self>, fault: Fault) {
        let until = Instant::now() + Duration::from_secs(fault.seconds);
        self.present().push(Present { fault, until });
        self.settle();
        let faults = Arc::clone(self);
        tokio::spawn(async move {
            sleep_until(until).await;
            faults.settle();
        });
    }

    /// Ends all faults.
    pub(crate) fn clear(&self) {
        self.present().clear();
        self.settle();
    }

    /// What fails for a request: the first fault that affects it.
    pub(crate) fn strike(&self, request: &Parts) -> Option<Kind> {
        let mut present = self.present();
        let now = Instant::now();
        present.retain(|present| present.until > now);
        let index = present.iter_mut().position(|present| present.strikes(request))?;
        let struck = present.get_mut(index)?;
        let kind = struck.fault.kind.clone();
        if let Some(times) = &mut struck.fault.times {
            *times -= 1;
            if *times == 0 {
                present.remove(index);
            }
        }
        Some(kind)
    }

    /// The faults, each with the seconds that it has left.
    pub(crate) fn list(&self) -> Vec<(Fault, u64)> {
        let now = Instant::now();
        let present = self.present();
        let left = |present: &Present| present.until.checked_duration_since(now);
        present.iter().filter_map(|present| Some((present.fault.clone(), left(present)?.as_secs()))).collect()
    }

    fn present(&self) -> MutexGuard<'_, Vec<Present>> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the door to what the faults that have not ended ask for.
    fn settle(&self) {
        let now = Instant::now();
        let doors = self.present();
        let mut doors = doors.iter().filter(|present| present.until > now).map(|present| present.fault.door());
        let wanted = doors.find(|door| *door != Door::Open).unwrap_or_default();
        self.door.send_if_modified(|door| std::mem::replace(door, wanted) != wanted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::fault::tests::{fault, request};

    #[tokio::test(start_paused = true)]
    async fn a_fault_ends_by_its_count_by_its_time_or_when_it_is_cleared() {
        let faults = Arc::new(Faults::default());
        let request = request("GET", "/", "s3");
        faults.add(fault("cut --times 2"));
        faults.add(fault("lose --seconds 5"));
        let struck = || faults.strike(&request);
        assert_eq!([struck(), struck(), struck()], [Some(Kind::Cut), Some(Kind::Cut), Some(Kind::Lose)]);
        assert_eq!(faults.list(), [(fault("lose --seconds 5"), 5)]);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!((struck(), faults.list().len()), (None, 0));
        faults.add(fault("cut --after 2 --times 1"));
        faults.add(fault("lose --method PUT"));
        assert_eq!([struck(), struck(), struck(), struck()], [None, None, Some(Kind::Cut), None]);
        faults.add(fault("cut"));
        faults.clear();
        assert_eq!(struck(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_door_opens_again_by_itself() {
        let faults = Arc::new(Faults::default());
        let mut door = faults.door();
        faults.add(fault("refuse --seconds 2"));
        assert_eq!(*door.borrow_and_update(), Door::Closed);
        door.changed().await.unwrap();
        assert_eq!(*door.borrow_and_update(), Door::Open);
    }
}
