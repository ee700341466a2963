//! What the model consists of: requests, jobs, the owner and the records at one moment, and what may happen next.

use training_core::job::protocol::{Call, Ending, Protocol};
use training_run::{names::Submission, owner::Owner};

/// A request that may be sent.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Name of its job; all requests are for one run.
    pub job: &'static str,
    /// Which body it has: equal ones are equal requests.
    pub body: u8,
    /// Whether it has `?restart=true`.
    pub is_restart: bool,
}

/// What may happen, and how often.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// The requests.
    pub asked: Vec<Asked>,
    /// Jobs for which the namespace's quota has room.
    pub quota: usize,
    /// Calls that go wrong, and deaths.
    pub faults: u8,
    /// Jobs that people delete.
    pub cancels: u8,
    /// Jobs that end.
    pub ends: u8,
    /// Steps of the clock.
    pub ticks: u64,
}

/// Everything at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub(crate) tick: u64,
    pub(crate) owner: Option<Owner>,
    /// Submission and job of each record.
    pub(crate) records: Vec<(Submission, String)>,
    pub(crate) jobs: Vec<Job>,
    pub(crate) requests: Vec<Request>,
    pub(crate) in_flight: Vec<InFlight>,
    pub(crate) faults: u8,
    pub(crate) cancels: u8,
    pub(crate) ends: u8,
}

/// A job that was made at some time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Job {
    pub(crate) name: &'static str,
    pub(crate) submission: Submission,
    pub(crate) body: u8,
    pub(crate) life: Life,
    /// Somebody was answered that it is theirs, while it was there and not finished.
    pub(crate) is_accepted: bool,
    /// Its trainers could have read, while it was there and not finished, that the run is another's.
    pub(crate) was_superseded: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Life {
    Active,
    Finished,
    Gone,
}

/// A creation that nobody waits for any more, and that may still have its effect.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct InFlight {
    pub(crate) by: usize,
    pub(crate) submission: Submission,
    pub(crate) until: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Request {
    NotSent,
    Underway(Box<Turn>),
    Answered {
        ending: Box<Ending>,
        /// The job's submission and body.
        job: Option<(Submission, u8)>,
        /// It was refused although an equal job was there, and is there still.
        was_refused_wrongly: bool,
    },
    Dead,
}

/// A request on its way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Turn {
    pub(crate) protocol: Protocol,
    pub(crate) call: Call,
    pub(crate) sent_at: u64,
    /// How many ids it has made.
    pub(crate) ids: usize,
    pub(crate) may_replace: bool,
    /// The submission that it created a job with last, whatever came of it.
    pub(crate) created: Option<Submission>,
    /// The job that was read or made last, by its place.
    pub(crate) job: Option<usize>,
    /// The equal job that was there when the creation was refused, by its place.
    pub(crate) refused_beside: Option<usize>,
}

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// A request is sent.
    Send(usize),
    /// A request's call is made and answered.
    Step(usize, Fault),
    /// A request's function dies.
    Kill(usize),
    /// A creation that nobody waits for has its effect.
    Land(usize),
    /// A job ends.
    Finish(usize),
    /// Somebody deletes a job.
    Cancel(usize),
    /// Time passes.
    Tick,
}

/// What goes wrong with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Nothing.
    None,
    /// It is refused, and has no effect.
    Refused,
    /// It has its effect, and the answer is lost.
    AnswerLost,
    /// No answer comes, and it has no effect.
    NotDone,
    /// No answer comes, and it has its effect later, or never.
    Late,
}

// === impl State ===

impl State {
    /// The job that has a name, by its place.
    pub(crate) fn there(&self, name: &str) -> Option<usize> {
        self.jobs.iter().position(|job| job.is_there() && job.name == name)
    }

    /// Whether the bucket confirms what a job says of itself: `Attribution::provenance`.
    pub(crate) fn proves(&self, job: usize) -> bool {
        let Some(found) = self.jobs.get(job) else { return false };
        let is_owner = |owner: &Owner| owner.submission == found.submission && owner.job.as_str() == found.name;
        self.owner.as_ref().is_some_and(is_owner) || self.records.contains(&(found.submission.clone(), uid(job)))
    }
}

// === impl Job ===

impl Job {
    pub(crate) fn is_there(&self) -> bool {
        self.life != Life::Gone
    }
}

/// The cluster's id of a job, by its place.
pub(crate) fn uid(job: usize) -> String {
    job.to_string()
}
