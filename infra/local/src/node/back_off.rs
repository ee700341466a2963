//! The kubelet's back-off. The first restart is immediate, the next ones wait for the base, twice the base and so on,
//! up to five minutes. Ten minutes without a failure reset it. Pure: the caller passes the time.

use std::time::{Duration, Instant};

const LONGEST: Duration = Duration::from_mins(5);
const FORGOTTEN_AFTER: Duration = Duration::from_mins(10);

/// The back-off of one container, or of one container's image.
#[derive(Clone, Debug)]
pub(crate) struct BackOff {
    base: Duration,
    /// The delay of the next restart, and the time of the failure that decided it.
    next: Option<(Duration, Instant)>,
}

// === impl BackOff ===

impl BackOff {
    pub(crate) fn new(base: Duration) -> Self {
        Self { base, next: None }
    }

    /// How long something that failed at `failed_at` waits from then on.
    pub(crate) fn delay(&mut self, failed_at: Instant) -> Duration {
        let delay = match self.next {
            Some((delay, decided_at)) if failed_at.duration_since(decided_at + delay) < FORGOTTEN_AFTER => delay,
            _ => Duration::ZERO,
        };
        let following = if delay.is_zero() { self.base } else { (delay * 2).min(LONGEST) };
        self.next = Some((following, failed_at));
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_wait_as_the_kubelet_makes_them() {
        // (label, seconds that each run lasts, seconds that each restart waits)
        let cases: [(&str, &[u64], &[u64]); 4] = [
            ("dies at once", &[0, 0, 0, 0, 0, 0, 0, 0], &[0, 10, 20, 40, 80, 160, 300, 300]),
            ("lives for a minute", &[60, 60, 60], &[0, 10, 20]),
            ("lives for eleven minutes", &[660, 660, 660], &[0, 0, 0]),
            ("recovers after two deaths", &[0, 0, 700, 0], &[0, 10, 0, 10]),
        ];
        for (label, runs, waits) in cases {
            let mut back_off = BackOff::new(Duration::from_secs(10));
            let mut now = Instant::now();
            let seen: Vec<u64> = runs
                .iter()
                .map(|run| {
                    now += Duration::from_secs(*run);
                    let delay = back_off.delay(now);
                    now += delay;
                    delay.as_secs()
                })
                .collect();
            assert_eq!(seen, waits, "{label}");
        }
    }
}
