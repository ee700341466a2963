//! When something was, as a function knows it that is frozen between two requests.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// A wall clock that is set back by no more than this was only corrected.
const CORRECTION: Duration = Duration::from_secs(1);

/// A point in time that is never taken for more recent than it is. While Lambda freezes an environment the monotonic clock
/// stands still, and what was read before would count for ever; and the wall clock can be set.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    monotonic: Instant,
    wall: SystemTime,
}

impl Moment {
    /// This moment.
    #[must_use]
    pub fn now() -> Self {
        Self { monotonic: Instant::now(), wall: SystemTime::now() }
    }

    /// How long ago it was: the longer time of the two clocks', and without end when the wall clock was set back since.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.monotonic.elapsed().max(wall_age(self.wall, SystemTime::now()))
    }
}

fn wall_age(then: SystemTime, now: SystemTime) -> Duration {
    match now.duration_since(then) {
        Ok(age) => age,
        Err(error) if error.duration() <= CORRECTION => Duration::ZERO,
        Err(_) => Duration::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_clock_that_went_further_counts() {
        let moment = Moment::now();
        tokio::time::sleep(Duration::from_mins(2)).await;
        assert!(moment.age() >= Duration::from_mins(2), "the wall clock stood still");
        let frozen = Moment { wall: SystemTime::now() - Duration::from_hours(1), ..Moment::now() };
        assert!(frozen.age() >= Duration::from_hours(1), "the monotonic clock stood still");
    }

    #[test]
    fn a_wall_clock_that_was_set_back_makes_everything_old() {
        let now = SystemTime::now();
        for (ahead, age) in [(0, 0), (1, 0), (2, u64::MAX), (3600, u64::MAX)] {
            let found = wall_age(now + Duration::from_secs(ahead), now);
            assert_eq!(found.as_secs(), age, "{ahead}");
        }
    }
}
