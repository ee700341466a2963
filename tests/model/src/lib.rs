//! A model of everybody who takes part in a run's one job: submitters that run the code's own protocol
//! (`training_core::job::protocol`), an API server that refuses or loses answers, S3 with compare-and-swap, people who delete
//! jobs, and trainers that ask the code's own rule whether they may write.
//!
//! ```text
//! Send(i) ─> Step(i, fault) ... ─> answer        Tick, Land, Finish, Cancel, Kill in between, anywhere
//! ```
//! [`Protocols`] is the model. Its [`Bounds`] say what may happen and how often, and which requests may be sent, each an
//! [`Asked`]. A [`State`] is everything at one moment, an [`Action`] what happens next, and a [`Fault`] what goes wrong with
//! a call.
//!
//! The clock is bounded, so that every property can be an `always`: stateright's `eventually` is sound on acyclic paths
//! only.

mod state;

use std::collections::HashMap;

use serde_json::json;
use stateright::{Model, Property};
use training_core::{
    job::{
        protocol::{Call, Ending, Found, OwnerRead, Protocol, Reply, Verdict},
        pytorchjob::{PyTorchJob, key},
        replay::{Decision, Restart},
    },
    request::fingerprint::Fingerprint,
};
use training_run::{
    names::Submission,
    owner::{CLAIM_LIFETIME_MS, Claimant, Evidence, LeaseState, Owner, OwnersJob, Write},
};

pub use state::{Action, Asked, Bounds, Fault, State};
use state::{InFlight, Job, Life, Request, Turn, uid};

/// One step of the clock, in milliseconds: a claim is young for less than two.
const TICK_MS: u64 = 20_000;
/// When the model's time begins, in milliseconds since 1970.
const EPOCH_MS: u64 = 1_795_000_000_000;
/// Ticks after which a function is certainly dead: its answer is cut at 27 s.
const DEAD_AFTER: u64 = 2;
/// Ticks after which a request gives up at its next pause, and after which no creation has its effect any more.
const GIVES_UP_AFTER: u64 = 1;

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
        let Request::Underway(turn) = state.requests.get(of)? else { return None };
        let mut turn = turn.clone();
        if fault != Fault::None {
            state.faults = state.faults.checked_sub(1)?;
        }
        let request = match turn.call.clone() {
            Call::End(ending) if fault == Fault::None => Self::answer(state, &turn, ending),
            Call::Create { submission } => {
                let reply = self.creation(state, &mut turn, of, submission, fault);
                Self::next(state, turn, of, reply)
            }
            Call::WriteOwner { owner, over } if matches!(fault, Fault::None | Fault::AnswerLost) => {
                let mut written = None;
                if state.owner.as_ref().map(etag) == over {
                    // Where the answer is lost, the client repeats the call, and the condition holds no more.
                    written = (fault == Fault::None).then(|| etag(&owner));
                    state.owner = Some(owner);
                }
                Self::next(state, turn, of, Reply::Written(written))
            }
            Call::End(_) | Call::Pause | Call::Prepare | Call::RehearseReplacing if fault != Fault::None => {
                return None;
            }
            _ if fault == Fault::Refused => Self::next(state, turn, of, Reply::Refused),
            _ if fault != Fault::None => return None,
            call => {
                let reply = self.call(state, &mut turn, of, call)?;
                Self::next(state, turn, of, reply)
            }
        };
        *state.requests.get_mut(of)? = request;
        Some(())
    }

    /// The protocol's next call after this reply.
    fn next(state: &State, mut turn: Box<Turn>, of: usize, reply: Reply) -> Request {
        turn.call = turn.protocol.next(reply, now(state.tick), &id(state.tick, of, turn.ids));
        turn.ids += usize::from(matches!(turn.call, Call::WriteOwner { .. }));
        Request::Underway(turn)
    }

    /// A call that goes well, and neither creates nor claims.
    fn call(&self, state: &mut State, turn: &mut Turn, of: usize, call: Call) -> Option<Reply> {
        let asked = self.bounds.asked.get(of)?;
        Some(match call {
            Call::ReadOwner => Reply::Owner(state.owner.as_ref().map(|owner| OwnerRead {
                owner: owner.clone(),
                etag: etag(owner),
                is_visible: true,
            })),
            Call::ReadRecord(owner) => {
                Reply::Recorded(state.records.iter().any(|(submission, _)| *submission == owner.submission))
            }
            Call::ReadJob => {
                turn.job = state.there(asked.job);
                Reply::Job(turn.job.and_then(|at| {
                    let found = state.jobs.get(at)?;
                    let is_finished = found.life == Life::Finished;
                    let verdict = self.verdicts.get(&(found.body == asked.body, is_finished, turn.may_replace));
                    // Only what the bucket confirms is replayed, replaced or made the owner.
                    let is_proven = turn.created.as_ref() == Some(&found.submission) || state.proves(at);
                    Some(Found {
                        submission: is_proven.then(|| found.submission.clone()),
                        uid: uid(at),
                        verdict: verdict.copied().filter(|_| is_proven).unwrap_or(Verdict::Refuse),
                        is_finished,
                    })
                }))
            }
            Call::ReadOwnersJob(owner) => {
                // A confirmed job is known by its uid, any other by its name.
                let is_its = |at: usize| owner.uid.as_ref().is_none_or(|wanted| *wanted == uid(at));
                let found = state.there(owner.job.as_str()).filter(|at| is_its(*at)).and_then(|at| state.jobs.get(at));
                Reply::OwnersJob(match found.map(|job| job.life) {
                    None | Some(Life::Gone) => OwnersJob::Absent,
                    Some(Life::Finished) => OwnersJob::Finished,
                    Some(Life::Active) => OwnersJob::Active,
                })
            }
            Call::ReadWhetherActive { uid: wanted } => {
                let found = state.there(asked.job).filter(|at| uid(*at) == wanted).and_then(|at| state.jobs.get(at));
                Reply::IsActive(found.is_some_and(|job| job.life == Life::Active))
            }
            Call::Pause if state.tick - turn.sent_at >= GIVES_UP_AFTER => Reply::Refused,
            Call::Replace => {
                state.jobs.get_mut(turn.job?)?.life = Life::Gone;
                turn.may_replace = false;
                Reply::Replaced(true)
            }
            Call::TakeBack => {
                let created = state.jobs.get_mut(turn.job?)?;
                if created.life != Life::Finished {
                    created.life = Life::Gone;
                }
                Reply::Done
            }
            Call::Record => {
                let (at, submission) = (turn.job?, state.jobs.get(turn.job?)?.submission.clone());
                let record = (submission, uid(at));
                if !state.records.contains(&record) {
                    state.records.push(record);
                }
                Reply::Done
            }
            Call::Prepare
            | Call::RehearseReplacing
            | Call::Pause
            | Call::Create { .. }
            | Call::WriteOwner { .. }
            | Call::End(_) => Reply::Done,
        })
    }

    fn creation(&self, state: &mut State, turn: &mut Turn, of: usize, submission: Submission, fault: Fault) -> Reply {
        let Some(asked) = self.bounds.asked.get(of) else { return Reply::Refused };
        // Who was not answered is told so, whatever is there.
        let is_answered = matches!(fault, Fault::None | Fault::Refused);
        let is_equal = |at: &usize| is_answered && state.jobs.get(*at).is_some_and(|job| job.body == asked.body);
        turn.refused_beside = state.there(asked.job).filter(is_equal);
        turn.created = Some(submission.clone());
        match fault {
            Fault::None => {
                let reply = self.create(state, of, &submission);
                if matches!(reply, Reply::Created(_)) {
                    turn.job = state.there(asked.job);
                }
                reply
            }
            Fault::Refused => Reply::Refused,
            Fault::NotDone => Reply::Unanswered,
            Fault::AnswerLost => {
                self.create(state, of, &submission);
                Reply::Unanswered
            }
            Fault::Late => {
                state.in_flight.push(InFlight { by: of, submission, until: turn.sent_at + GIVES_UP_AFTER });
                Reply::Unanswered
            }
        }
    }

    fn answer(state: &mut State, turn: &Turn, ending: Ending) -> Request {
        let is_jobs = matches!(ending, Ending::Created | Ending::Replayed);
        let job = turn.job.filter(|_| is_jobs).and_then(|job| state.jobs.get_mut(job));
        let job = job.map(|job| {
            job.is_accepted |= job.life == Life::Active;
            (job.submission.clone(), job.body)
        });
        let beside = turn.refused_beside.and_then(|at| state.jobs.get(at));
        let was_refused_wrongly = ending == Ending::NotCreated && beside.is_some_and(Job::is_there);
        Request::Answered { ending: Box::new(ending), job, was_refused_wrongly }
    }

    /// A creation has its effect, as the API server has it: the quota is judged before the name.
    fn create(&self, state: &mut State, of: usize, submission: &Submission) -> Reply {
        let Some(asked) = self.bounds.asked.get(of) else { return Reply::Refused };
        if state.jobs.iter().filter(|job| job.is_there()).count() >= self.bounds.quota {
            return Reply::Refused;
        }
        if state.jobs.iter().any(|job| job.is_there() && job.name == asked.job) {
            return Reply::AlreadyExists;
        }
        state.jobs.push(Job {
            name: asked.job,
            submission: submission.clone(),
            body: asked.body,
            life: Life::Active,
            is_accepted: false,
            was_superseded: false,
        });
        Reply::Created(uid(state.jobs.len() - 1))
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
                Request::Underway(_) => {
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
        for (at, job) in state.jobs.iter().enumerate().filter(|(_, job)| job.is_there()) {
            if job.life == Life::Active && state.ends > 0 {
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
                let mut protocol = Protocol::new(claimant(asked.job, asked.body), false);
                let call = protocol.next(Reply::Done, now(state.tick), &id(state.tick, at, 0));
                *state.requests.get_mut(at)? = Request::Underway(Box::new(Turn {
                    protocol,
                    call,
                    sent_at: state.tick,
                    ids: 0,
                    may_replace: asked.is_restart,
                    created: None,
                    job: None,
                    refused_beside: None,
                }));
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
                state.jobs.get_mut(at)?.life = Life::Finished;
            }
            Action::Cancel(at) => {
                state.cancels -= 1;
                state.jobs.get_mut(at)?.life = Life::Gone;
            }
            Action::Tick => {
                state.tick += 1;
                let tick = state.tick;
                state.in_flight.retain(|landing| tick <= landing.until);
                for request in &mut state.requests {
                    if matches!(request, Request::Underway(turn) if tick - turn.sent_at >= DEAD_AFTER) {
                        *request = Request::Dead;
                    }
                }
            }
        }
        let (owner, now) = (state.owner.clone(), now(state.tick));
        for job in state.jobs.iter_mut().filter(|job| job.life == Life::Active) {
            job.was_superseded |= write(owner.as_ref(), job, now) == Write::Superseded;
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("at most one job may write into the run", |_, state: &State| {
                let may_write = |job: &&Job| {
                    job.life == Life::Active && write(state.owner.as_ref(), job, now(state.tick)) == Write::Allowed
                };
                state.jobs.iter().filter(may_write).count() <= 1
            }),
            Property::always("a job that somebody was promised is never superseded", |_, state: &State| {
                !state.jobs.iter().any(|job| job.is_accepted && job.was_superseded && job.life == Life::Active)
            }),
            Property::always("every answer is true", |model, state: &State| {
                state.requests.iter().zip(&model.bounds.asked).all(|(request, asked)| is_true(state, request, asked))
            }),
            Property::always("a claim without a job never blocks for ever", |_, state: &State| {
                let later = now(state.tick) + CLAIM_LIFETIME_MS;
                let evidence = Evidence { is_visible: true, is_recorded: false, job: OwnersJob::Absent };
                state.owner.as_ref().is_none_or(|owner| {
                    ["a", "b"].iter().all(|job| {
                        // Of a body that nobody else sends.
                        owner.lease_state(&claimant(job, 0), evidence, later) == LeaseState::Free
                    })
                })
            }),
            Property::always(
                "a claim that was refused to all who shared it is no younger than its first",
                |model: &Self, state: &State| {
                    let are_answered = state
                        .requests
                        .iter()
                        .all(|request| matches!(request, Request::Answered { .. } | Request::NotSent));
                    let is_quiet = state.in_flight.is_empty() && state.faults == model.bounds.faults;
                    let is_refused = are_answered && is_quiet && state.jobs.is_empty();
                    let is_first = |owner: &Owner| {
                        owner.released || owner.claimed_by.as_deref() == Some(owner.submission.as_str())
                    };
                    !is_refused || state.owner.as_ref().is_none_or(is_first)
                },
            ),
            Property::sometimes("a request is answered with a job that it made", |model, state: &State| {
                let is_created = |request: &Request| matches!(request, Request::Answered { ending, .. } if **ending == Ending::Created);
                model.bounds.quota == 0 || state.requests.iter().any(is_created)
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
    match &**ending {
        Ending::Created | Ending::Replayed => job.as_ref().is_some_and(|(submission, body)| {
            *body == asked.body && state.jobs.iter().any(|job| job.submission == *submission && job.name == asked.job)
        }),
        Ending::RunActive(owner) => state.jobs.iter().any(|job| job.name == owner.job.as_str()),
        // An equal job that was there when the API server refused ours is what was asked for.
        Ending::NotCreated => !was_refused_wrongly,
        // Only a claim of another request is waited for.
        Ending::ClaimPending(owner) => owner.job.as_str() != asked.job || owner.request != Some(asked.body.to_string()),
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
fn id(tick: u64, by: usize, number: usize) -> Submission {
    let mut rest = [0; 10];
    rest[8] = u8::try_from(number).expect("few ids");
    rest[9] = u8::try_from(by).expect("few requests");
    uuid::Builder::from_unix_timestamp_millis(now(tick), &rest).into_uuid().into()
}

fn claimant(job: &str, body: u8) -> Claimant {
    Claimant {
        namespace: "training".parse().expect("a namespace"),
        job: job.parse().expect("a name"),
        request: body.to_string(),
    }
}
