//! A model of everybody who takes part in a run's one job: submitters that run the code's own protocol
//! (`training_core::protocol`), an API server that refuses or loses answers, S3 with compare-and-swap, people who delete
//! jobs, and trainers that ask the code's own rule whether they may write.
//!
//! ```text
//! Start(i) ─> Step(i, fault) ... ─> answer        Tick, Land, Finish, Cancel, Kill in between, anywhere
//! ```
//! The clock is bounded, so that every property can be an `always`: stateright's `eventually` is sound on acyclic paths
//! only.

use std::collections::HashMap;

use serde_json::json;
use stateright::{Model, Property};
use training_core::{
    existing::{Decision, Restart},
    fingerprint::Fingerprint,
    owner::{CLAIM_LIFETIME_MS, Known, Owner, Standing, Write},
    protocol::{Call, Ending, Found, OwnerRead, Protocol, Reply, Verdict},
    pytorchjob::{PyTorchJob, key},
};

/// One step of the clock, in milliseconds: a claim is young for less than two.
const TICK_MS: u64 = 20_000;
/// When the model's time begins, in milliseconds since 1970.
const EPOCH_MS: u64 = 1_795_000_000_000;
/// Ticks after which a function is certainly dead: its answer is cut at 27 s.
const DEAD_AFTER: u64 = 2;
/// Ticks after which a request gives up at its next pause, and after which no creation has its effect any more.
const GIVES_UP_AFTER: u64 = 1;

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
    tick: u64,
    owner: Option<Owner>,
    records: Vec<String>,
    jobs: Vec<Job>,
    requests: Vec<Request>,
    in_flight: Vec<InFlight>,
    faults: u8,
    cancels: u8,
    ends: u8,
}

/// A job that was made at some time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Job {
    name: &'static str,
    submission: String,
    body: u8,
    is_there: bool,
    is_finished: bool,
    /// Somebody was answered that it is theirs, while it was there and not finished.
    is_accepted: bool,
    /// Its trainers could have read, while it was there and not finished, that the run is another's.
    was_superseded: bool,
}

/// A creation that nobody waits for any more, and that may still have its effect.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct InFlight {
    by: usize,
    submission: String,
    until: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Request {
    NotSent,
    Underway {
        protocol: Box<Protocol>,
        call: Call,
        sent_at: u64,
        /// How many ids it has made.
        ids: usize,
        may_replace: bool,
        /// The job that was read last, by its place.
        job: Option<usize>,
        /// The equal job that was there when the creation was refused, by its place.
        refused_beside: Option<usize>,
    },
    Answered {
        ending: Ending,
        /// The job's submission and body.
        job: Option<(String, u8)>,
        /// It was refused although an equal job was there, and is there still.
        was_refused_wrongly: bool,
    },
    Dead,
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

/// The model.
#[derive(Clone, Debug)]
pub struct Protocols {
    bounds: Bounds,
    verdicts: HashMap<(bool, bool, bool), Verdict>,
}

// === impl Protocols ===

impl Protocols {
    /// The model with these bounds.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        let mut verdicts = HashMap::new();
        for is_equal in [false, true] {
            for is_finished in [false, true] {
                for may_replace in [false, true] {
                    let verdict = verdict(is_equal, is_finished, may_replace);
                    verdicts.insert((is_equal, is_finished, may_replace), verdict);
                }
            }
        }
        Self { bounds, verdicts }
    }

    /// The call of a request is made; `None` where the fault cannot happen to it.
    fn step(&self, state: &mut State, of: usize, fault: Fault) -> Option<()> {
        let asked = self.bounds.asked.get(of)?;
        let now = now(state.tick);
        let Request::Underway { mut protocol, call, sent_at, mut ids, mut may_replace, mut job, mut refused_beside } =
            state.requests.get(of)?.clone()
        else {
            return None;
        };
        if fault != Fault::None {
            state.faults = state.faults.checked_sub(1)?;
        }
        let there = |state: &State| state.jobs.iter().position(|job| job.is_there && job.name == asked.job);
        let reply = match (call, fault) {
            (Call::Create { submission }, fault) => {
                let effect = |state: &mut State| self.create(state, of, &submission);
                let is_equal = |at: &usize| state.jobs.get(*at).is_some_and(|job| job.body == asked.body);
                refused_beside = there(state).filter(is_equal);
                match fault {
                    Fault::None => {
                        let reply = effect(state);
                        if reply == Reply::Done {
                            job = there(state);
                        }
                        reply
                    }
                    Fault::Refused => Reply::Refused,
                    Fault::NotDone => Reply::Unanswered,
                    Fault::AnswerLost => {
                        effect(state);
                        Reply::Unanswered
                    }
                    Fault::Late => {
                        state.in_flight.push(InFlight { by: of, submission, until: sent_at + GIVES_UP_AFTER });
                        Reply::Unanswered
                    }
                }
            }
            (Call::WriteOwner { owner, over }, Fault::None | Fault::AnswerLost) => {
                if state.owner.as_ref().map(etag) == over {
                    let written = etag(&owner);
                    state.owner = Some(owner);
                    // Where the answer is lost, the client repeats the call, and the condition holds no more.
                    Reply::Written((fault == Fault::None).then_some(written))
                } else {
                    Reply::Written(None)
                }
            }
            (Call::Pause, Fault::None) => {
                if state.tick - sent_at >= GIVES_UP_AFTER {
                    Reply::Refused
                } else {
                    Reply::Done
                }
            }
            (Call::Pause | Call::Prepare | Call::RehearseReplacing, _) if fault != Fault::None => return None,
            (_, Fault::Refused) => Reply::Refused,
            (_, Fault::AnswerLost | Fault::NotDone | Fault::Late) => return None,
            (Call::ReadJob, _) => {
                job = there(state);
                let found = job.and_then(|job| state.jobs.get(job));
                Reply::Job(found.map(|found| {
                    Found {
                        submission: Some(found.submission.clone()),
                        verdict: *self
                            .verdicts
                            .get(&(found.body == asked.body, found.is_finished, may_replace))
                            .unwrap_or(&Verdict::Refuse),
                        is_finished: found.is_finished,
                    }
                }))
            }
            (Call::ReadOwner, _) => Reply::Owner(state.owner.as_ref().map(|owner| OwnerRead {
                owner: owner.clone(),
                etag: etag(owner),
                is_visible: true,
            })),
            (Call::ReadOwnersJob(owner), _) => {
                let found = state.jobs.iter().find(|job| job.is_there && job.name == owner.job);
                Reply::OwnersJob(found.map(|job| job.is_finished))
            }
            (Call::ReadRecord(owner), _) => Reply::Recorded(state.records.contains(&owner.submission)),
            (Call::Prepare | Call::RehearseReplacing, _) => Reply::Done,
            (Call::Replace, _) => {
                let found = state.jobs.get_mut(job?)?;
                found.is_there = false;
                may_replace = false;
                Reply::Replaced(true)
            }
            (Call::TakeBack, _) => {
                let found = there(state)?;
                state.jobs.get_mut(found)?.is_there = false;
                Reply::Done
            }
            (Call::Record, _) => {
                let submission = state.jobs.get(job?)?.submission.clone();
                if !state.records.contains(&submission) {
                    state.records.push(submission);
                }
                Reply::Done
            }
            (Call::End(ending), _) => {
                let made = job.filter(|_| matches!(ending, Ending::Created | Ending::Replayed));
                let job = made.and_then(|job| state.jobs.get_mut(job));
                let job = job.map(|job| {
                    job.is_accepted |= job.is_there && !job.is_finished;
                    (job.submission.clone(), job.body)
                });
                let beside = refused_beside.and_then(|at| state.jobs.get(at));
                let was_refused_wrongly = ending == Ending::NotCreated && beside.is_some_and(|job| job.is_there);
                *state.requests.get_mut(of)? = Request::Answered { ending, job, was_refused_wrongly };
                return Some(());
            }
        };
        let call = protocol.next(reply, now, &id(state.tick, of, ids));
        if matches!(call, Call::WriteOwner { .. }) {
            ids += 1;
        }
        *state.requests.get_mut(of)? =
            Request::Underway { protocol, call, sent_at, ids, may_replace, job, refused_beside };
        Some(())
    }

    /// A creation has its effect, as the API server has it: the quota is judged before the name.
    fn create(&self, state: &mut State, of: usize, submission: &str) -> Reply {
        let Some(asked) = self.bounds.asked.get(of) else { return Reply::Refused };
        if state.jobs.iter().filter(|job| job.is_there).count() >= self.bounds.quota {
            return Reply::Refused;
        }
        if state.jobs.iter().any(|job| job.is_there && job.name == asked.job) {
            return Reply::AlreadyExists;
        }
        state.jobs.push(Job {
            name: asked.job,
            submission: submission.to_owned(),
            body: asked.body,
            is_there: true,
            is_finished: false,
            is_accepted: false,
            was_superseded: false,
        });
        Reply::Done
    }
}

// === impl Model for Protocols ===

impl Model for Protocols {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            tick: 0,
            owner: None,
            records: Vec::new(),
            jobs: Vec::new(),
            requests: vec![Request::NotSent; self.bounds.asked.len()],
            in_flight: Vec::new(),
            faults: self.bounds.faults,
            cancels: self.bounds.cancels,
            ends: self.bounds.ends,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (at, request) in state.requests.iter().enumerate() {
            match request {
                Request::NotSent => actions.push(Action::Send(at)),
                Request::Underway { .. } => {
                    actions.push(Action::Step(at, Fault::None));
                    if state.faults > 0 {
                        let faults = [Fault::Refused, Fault::AnswerLost, Fault::NotDone, Fault::Late];
                        actions.extend(faults.map(|fault| Action::Step(at, fault)));
                        actions.push(Action::Kill(at));
                    }
                }
                Request::Answered { .. } | Request::Dead => {}
            }
        }
        actions.extend((0..state.in_flight.len()).map(Action::Land));
        for (at, job) in state.jobs.iter().enumerate().filter(|(_, job)| job.is_there) {
            if !job.is_finished && state.ends > 0 {
                actions.push(Action::Finish(at));
            }
            if state.cancels > 0 {
                actions.push(Action::Cancel(at));
            }
        }
        if state.tick < self.bounds.ticks {
            actions.push(Action::Tick);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Send(at) => {
                let asked = self.bounds.asked.get(at)?;
                let mut protocol = Box::new(Protocol::new("training", asked.job, &asked.body.to_string(), false));
                let call = protocol.next(Reply::Done, now(state.tick), &id(state.tick, at, 0));
                *state.requests.get_mut(at)? = Request::Underway {
                    protocol,
                    call,
                    sent_at: state.tick,
                    ids: 0,
                    may_replace: asked.is_restart,
                    job: None,
                    refused_beside: None,
                };
            }
            Action::Step(at, fault) => self.step(&mut state, at, fault)?,
            Action::Kill(at) => {
                state.faults = state.faults.checked_sub(1)?;
                *state.requests.get_mut(at)? = Request::Dead;
            }
            Action::Land(at) => {
                let landing = state.in_flight.remove(at);
                self.create(&mut state, landing.by, &landing.submission);
            }
            Action::Finish(at) => {
                state.ends -= 1;
                state.jobs.get_mut(at)?.is_finished = true;
            }
            Action::Cancel(at) => {
                state.cancels -= 1;
                state.jobs.get_mut(at)?.is_there = false;
            }
            Action::Tick => {
                state.tick += 1;
                let tick = state.tick;
                state.in_flight.retain(|landing| tick <= landing.until);
                for request in &mut state.requests {
                    if matches!(request, Request::Underway { sent_at, .. } if tick - *sent_at >= DEAD_AFTER) {
                        *request = Request::Dead;
                    }
                }
            }
        }
        let (owner, now) = (state.owner.clone(), now(state.tick));
        for job in state.jobs.iter_mut().filter(|job| job.is_there && !job.is_finished) {
            job.was_superseded |= write(owner.as_ref(), job, now) == Write::Superseded;
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("at most one job may write into the run", |_, state: &State| {
                let may_write = |job: &&Job| {
                    job.is_there
                        && !job.is_finished
                        && write(state.owner.as_ref(), job, now(state.tick)) == Write::Allowed
                };
                state.jobs.iter().filter(may_write).count() <= 1
            }),
            Property::always("a job that somebody was promised is never superseded", |_, state: &State| {
                !state.jobs.iter().any(|job| job.is_accepted && job.was_superseded && job.is_there && !job.is_finished)
            }),
            Property::always("every answer is true", |model, state: &State| {
                state.requests.iter().zip(&model.bounds.asked).all(|(request, asked)| is_true(state, request, asked))
            }),
            Property::always("a claim without a job never blocks for ever", |_, state: &State| {
                let later = now(state.tick) + CLAIM_LIFETIME_MS;
                let known = Known { is_visible: true, is_recorded: false, job: Some(None) };
                state.owner.as_ref().is_none_or(|owner| {
                    ["a", "b"].iter().all(|job| {
                        let claim = Owner { job: (*job).to_owned(), request: None, ..owner.clone() };
                        owner.standing(&claim, known, later) == Standing::Free
                    })
                })
            }),
            Property::sometimes("a request is answered with a job that it made", |_, state: &State| {
                state
                    .requests
                    .iter()
                    .any(|request| matches!(request, Request::Answered { ending: Ending::Created, .. }))
            }),
        ]
    }
}

/// Whether a job's trainers may write. A run without an owner is everybody's.
fn write(owner: Option<&Owner>, job: &Job, now: u64) -> Write {
    owner.map_or(Write::Allowed, |owner| owner.write(&job.submission, now))
}

/// Whether what a request was answered is so.
fn is_true(state: &State, request: &Request, asked: &Asked) -> bool {
    let Request::Answered { ending, job, was_refused_wrongly } = request else { return true };
    match ending {
        Ending::Created | Ending::Replayed => job.as_ref().is_some_and(|(submission, body)| {
            *body == asked.body && state.jobs.iter().any(|job| job.submission == *submission && job.name == asked.job)
        }),
        Ending::RunActive(owner) => state.jobs.iter().any(|job| job.name == owner.job),
        // An equal job that was there when the API server refused ours is what was asked for.
        Ending::NotCreated => !was_refused_wrongly,
        // Only a claim of another request is waited for.
        Ending::ClaimPending(owner) => owner.job != asked.job || owner.request != Some(asked.body.to_string()),
        Ending::Conflict | Ending::RunHidden | Ending::Failed => true,
    }
}

/// What a request does about a job of its name, by the code's own decision about two jobs that differ so.
fn verdict(is_equal: bool, is_finished: bool, may_replace: bool) -> Verdict {
    let found = job(1, 1, is_finished);
    let wanted = job(2, if is_equal { 1 } else { 2 }, false);
    match Decision::of(&found, &wanted, may_replace.then_some(&Restart::Finished)) {
        Ok(Decision::Ours | Decision::Replay) => Verdict::Replay,
        Ok(Decision::Replace | Decision::Await) => Verdict::Replace,
        Err(_) => Verdict::Refuse,
    }
}

fn job(by: usize, body: u8, is_finished: bool) -> PyTorchJob {
    let request = json!({"run_id": "r", "extra_args": {"body": body}});
    let fingerprint = Fingerprint::of(request.as_object().expect("an object")).to_annotation();
    let conditions: Vec<_> = is_finished.then(|| json!({"type": "Succeeded", "status": "True"})).into_iter().collect();
    let job = json!({
        "apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "spec": {},
        "metadata": {
            "name": "a", "labels": {(key::FRAMEWORK): "hf", (key::RUN_ID): "r"},
            "annotations": {(key::SUBMISSION): id(0, by, 0), (key::REQUEST): fingerprint},
        },
        "status": {"conditions": conditions},
    });
    serde_json::from_value(job).expect("a job")
}

/// As S3 has it for small objects: equal bodies have equal ones.
fn etag(owner: &Owner) -> String {
    serde_json::to_string(owner).expect("an owner is JSON")
}

fn now(tick: u64) -> u64 {
    EPOCH_MS + tick * TICK_MS
}

/// A `UUIDv7` that a request makes at this time.
fn id(tick: u64, by: usize, number: usize) -> String {
    let mut rest = [0; 10];
    rest[8] = u8::try_from(number).expect("few ids");
    rest[9] = u8::try_from(by).expect("few requests");
    uuid::Builder::from_unix_timestamp_millis(now(tick), &rest).into_uuid().to_string()
}
