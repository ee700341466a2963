//! How a request becomes exactly one job, as a state machine without input and output: [`Protocol::next`] takes what the
//! last call was answered, and says which call comes next. Submit makes the calls; `tests/model` checks every order of
//! them.
//!
//! ```text
//! read the owner ─> read the name ── taken ─> ours, replay, replace (and read again), or refuse
//!                        └─ free ─> prepare ─> claim the run, or join an equal request's claim ─> create ─> record ─> confirm
//!                                                   └─ lost: read again                            └─ refused ─> read the name;
//!                                                                                          a job there is judged as above;
//!                                                                                          else give the claim up
//! ```
//! The API server decides which of several equal requests makes the job: names are unique. The run's `owner` object says
//! which job may write checkpoints. It is claimed before the job exists, and names the job's submission from then on:
//!
//! - A claim is written over only when its job cannot appear any more: it was released, it is older than any request, or
//!   its job has a record. The owner is read before the job, so what the job's absence means cannot change unnoticed:
//!   the claim is a compare-and-swap.
//! - An equal request joins a pending claim. It creates the job with the claim's submission, so the owner is right whichever
//!   of the two creates it.
//! - A request whose creation was refused puts back what it wrote over: whoever made the claim gives it up, whoever joined it
//!   leaves it. Either works only while nobody has joined since; so what is left of a claim that many shared is what the
//!   last of those wrote whose creation may still be under way.
//! - A claim settles nothing until its job exists. Whoever creates or finds a job confirms the owner with the job's uid, by
//!   compare-and-swap, before the request is answered. The job's record is written before that: whatever becomes of the
//!   owner, a job that was made can be found and deleted. Over another owner that is done only after the job was read once
//!   more and has not ended: a slow request never writes over the job that has taken the place of its own, because that
//!   job's confirmation changes the owner too. Where the bucket fails, a created job is answered without a confirmation,
//!   unless another request is known to have written the owner.
//! - A request never joins the claim of a submission whose job it has seen, so a job that it replaces and the new one have
//!   submissions of their own.
//! - A job that is there is believed only where the owner or its record confirms it; [`Found::submission`] is `None` else.

mod call;

pub use call::{Call, Ending, Found, OwnerRead, Reply, Verdict};

use training_run::{
    names::Submission,
    owner::{Claimant, Evidence, LeaseState, Owner, OwnersJob},
};

/// How long a request whose creation was refused waits for the job of those who share its claim, in milliseconds. A quota
/// counts a job a moment before the job can be read.
pub const OTHERS_MS: u64 = 5_000;

/// One request on its way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Protocol {
    /// Each claim has a submission of its own.
    claimant: Claimant,
    /// Whether the request is only rehearsed: nothing is written, and creations are the API server's dry runs.
    is_dry_run: bool,
    /// What this request wrote as the run's owner last.
    claim: Option<Claim>,
    /// A claim that was refused as if another writer had been quicker. It may be there: a client repeats a call whose answer
    /// is lost, and then the owner is what it wrote itself.
    attempted: Option<Claim>,
    /// Whether the job of the claim may be this request's creation.
    may_have_created: bool,
    /// Whether a job of the name was found that is to be replaced.
    is_replacing: bool,
    /// The submission of the job that was found last: it has existed, whether it has a record or not.
    has_existed: Option<Submission>,
    /// The claim that this request waits for.
    waits_for: Option<Owner>,
    state: State,
}

/// A claim that this request has made or joined.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Claim {
    owner: Owner,
    etag: String,
    /// What was there before.
    before: Option<Owner>,
    /// Whether it is another request's that was joined.
    is_joined: bool,
}

/// The owner, and whether its job has a record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Snapshot {
    read: Option<OwnerRead>,
    is_recorded: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum State {
    Pausing,
    ReadingOwner,
    ReadingRecord(OwnerRead),
    /// `None` where the bucket did not say whose the run is.
    ReadingName(Option<Snapshot>),
    ReadingOwnersJob(Snapshot),
    /// Whether the job of the claim that is to be written over has existed.
    ReadingLastRecord(Snapshot),
    Preparing(Option<Snapshot>, LeaseState),
    /// Over what was read.
    Claiming(Claim),
    Creating,
    /// The creation failed; how others are waited for, where they are.
    ReadingAfterFailure {
        is_final: bool,
        wait: Option<Wait>,
    },
    /// How the request ends then; `None` where others are waited for first.
    GivingUp(Option<Ending>),
    PausingForOthers(Wait),
    Rehearsing,
    Replacing,
    RecordingFirst(Confirmation),
    Confirming(Confirmation),
    TakingBack(Ending),
    Recording(Ending),
    Ended,
}

/// A wait for the job of those who share a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Wait {
    since: u64,
    /// Whether this request's part in the claim was taken back.
    has_given_up: bool,
}

/// Seeing to it that the run's owner is a job which exists.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Confirmation {
    /// The job as an owner.
    owner: Owner,
    /// How the request ends then; `Created` also takes the job back where its run is another's.
    ending: Ending,
    /// Whether another request is known to have written the owner meanwhile.
    is_contested: bool,
    /// Whether the bucket refused to take the confirmation.
    has_failed: bool,
    step: ConfirmationStep,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum ConfirmationStep {
    ReadingOwner,
    ReadingOwnersJob(OwnerRead),
    /// Over the owner of this `ETag`.
    ReadingWhetherActive(String),
    Writing,
}

// === impl Protocol ===

impl Protocol {
    /// A request that was sent.
    #[must_use]
    pub fn new(claimant: Claimant, is_dry_run: bool) -> Self {
        Self {
            claimant,
            is_dry_run,
            claim: None,
            attempted: None,
            may_have_created: false,
            is_replacing: false,
            has_existed: None,
            waits_for: None,
            state: State::Pausing,
        }
    }

    /// The next call, after the last one was answered so. `now` is in milliseconds since 1970; `fresh` is a `UUIDv7` of now
    /// that nobody has used.
    pub fn next(&mut self, reply: Reply, now: u64, fresh: &Submission) -> Call {
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Pausing => self.read(&reply),
            State::ReadingOwner => self.read_name(reply, now),
            State::ReadingRecord(read) => match reply {
                Reply::Recorded(is_recorded) => {
                    let snapshot = Snapshot { read: Some(read), is_recorded };
                    self.go(State::ReadingName(Some(snapshot)), Call::ReadJob)
                }
                _ => self.go(State::ReadingName(None), Call::ReadJob),
            },
            State::ReadingName(snapshot) => match (reply, snapshot) {
                // Nothing is deleted for a run whose owner nobody knows.
                (Reply::Job(Some(found)), None) if found.verdict == Verdict::Replace => Call::End(Ending::Failed),
                (Reply::Job(Some(found)), snapshot) => self.meet(found, snapshot, now),
                (Reply::Job(None), Some(snapshot)) => self.judge(snapshot, OwnersJob::NotRead, now),
                _ => Call::End(Ending::Failed),
            },
            State::ReadingOwnersJob(snapshot) => match reply {
                Reply::OwnersJob(job) => self.judge(snapshot, job, now),
                _ => Call::End(Ending::Failed),
            },
            State::ReadingLastRecord(snapshot) => match reply {
                Reply::Recorded(is_recorded) => {
                    let snapshot = Snapshot { is_recorded, ..snapshot };
                    self.go(State::Preparing(Some(snapshot), LeaseState::Free), Call::Prepare)
                }
                _ => Call::End(Ending::Failed),
            },
            State::Preparing(snapshot, lease) => match reply {
                Reply::Done => self.begin(snapshot, lease, fresh),
                _ => Call::End(Ending::Failed),
            },
            State::Claiming(mut claim) => match reply {
                Reply::Written(Some(etag)) => {
                    claim.etag = etag;
                    let submission = claim.owner.submission.clone();
                    self.claim = Some(claim);
                    self.go(State::Creating, Call::Create { submission })
                }
                Reply::Written(None) => {
                    self.attempted = Some(claim);
                    self.pause()
                }
                _ => Call::End(Ending::Failed),
            },
            State::Creating => self.after_creating(&reply),
            State::ReadingAfterFailure { is_final, wait } => match reply {
                Reply::Job(Some(found)) => self.meet(found, None, now),
                Reply::Job(None) if is_final => self.give_up(wait, now),
                // Whether the refusal is the whole truth is not known: an equal job may be there.
                _ if is_final => Call::End(Ending::Failed),
                // It may still come: the caller repeats, and finds it or makes it.
                _ => Call::End(Ending::NotCreated),
            },
            State::GivingUp(Some(ending)) | State::Recording(ending) => Call::End(ending),
            State::GivingUp(None) => match reply {
                // An equal request has joined: its creation may be under way.
                Reply::Written(None) => self.wait_for_others(Wait { since: now, has_given_up: false }),
                // So may that of whoever made the claim.
                Reply::Written(Some(_)) if self.claim.as_ref().is_some_and(|claim| claim.is_joined) => {
                    self.wait_for_others(Wait { since: now, has_given_up: true })
                }
                _ => Call::End(Ending::NotCreated),
            },
            State::PausingForOthers(wait) => match reply {
                Reply::Done => {
                    let state = State::ReadingAfterFailure { is_final: true, wait: Some(wait) };
                    self.go(state, Call::ReadJob)
                }
                // The request's time is over.
                _ if wait.has_given_up => Call::End(Ending::NotCreated),
                _ => self.take_back_claim(Some(Ending::NotCreated)),
            },
            State::Rehearsing => match reply {
                Reply::Replaced(false) => self.pause(),
                Reply::Done if self.is_dry_run => Call::End(Ending::Created),
                Reply::Done => self.go(State::Replacing, Call::Replace),
                _ => Call::End(Ending::Failed),
            },
            State::Replacing => match reply {
                Reply::Replaced(_) => self.pause(),
                _ => Call::End(Ending::Failed),
            },
            State::RecordingFirst(confirmation) => self.begin_confirming(confirmation, fresh),
            State::Confirming(confirmation) => self.go_on_confirming(confirmation, reply, now, fresh),
            State::TakingBack(ending) => Call::End(if reply == Reply::Done { ending } else { Ending::Failed }),
            State::Ended => Call::End(Ending::Failed),
        }
    }

    fn go(&mut self, state: State, call: Call) -> Call {
        self.state = state;
        call
    }

    fn pause(&mut self) -> Call {
        self.go(State::Pausing, Call::Pause)
    }

    /// Read everything again, unless the request's time is over.
    fn read(&mut self, reply: &Reply) -> Call {
        let waits_for = self.waits_for.take();
        if *reply == Reply::Done {
            self.is_replacing = false;
            self.go(State::ReadingOwner, Call::ReadOwner)
        } else {
            Call::End(waits_for.map_or(Ending::Failed, Ending::ClaimPending))
        }
    }

    /// The owner was read, and now the name is: in that order, see the module.
    fn read_name(&mut self, reply: Reply, now: u64) -> Call {
        match reply {
            Reply::Owner(read) => {
                let is_recorded =
                    read.as_ref().is_some_and(|read| Some(&read.owner.submission) == self.has_existed.as_ref());
                match read {
                    Some(read) if !is_recorded && read.is_visible && read.owner.is_young(now) => {
                        let call = Call::ReadRecord(read.owner.clone());
                        self.go(State::ReadingRecord(read), call)
                    }
                    read => self.go(State::ReadingName(Some(Snapshot { read, is_recorded })), Call::ReadJob),
                }
            }
            // A job that is there is answered all the same.
            _ => self.go(State::ReadingName(None), Call::ReadJob),
        }
    }

    /// The name is taken.
    fn meet(&mut self, found: Found, snapshot: Option<Snapshot>, now: u64) -> Call {
        let is_ours = found.submission.is_some() && found.submission.as_ref() == self.submission();
        self.has_existed.clone_from(&found.submission);
        let owner = found.submission.map(|submission| self.claimant.owner(submission));
        let (ending, needs_owner) = match found.verdict {
            _ if is_ours && self.may_have_created => (Ending::Created, true),
            _ if is_ours => (Ending::Replayed, !found.is_finished),
            Verdict::Replay => (Ending::Replayed, !found.is_finished),
            Verdict::Replace => {
                let Some(snapshot) = snapshot else { return self.pause() };
                // Before anything is deleted: the new job must not be refused afterwards.
                self.is_replacing = true;
                return self.judge(snapshot, OwnersJob::NotRead, now);
            }
            // The run that we claimed may belong to the job that was quicker.
            Verdict::Refuse => return self.take_back_claim(Some(Ending::Conflict)),
        };
        let read = snapshot.as_ref().and_then(|snapshot| snapshot.read.as_ref());
        let is_owner =
            |owner: &Owner| read.is_some_and(|read| read.owner.submission == owner.submission && !read.owner.released);
        match owner {
            // Whoever made it may have died before the record was written.
            _ if self.is_dry_run => Call::End(ending),
            Some(owner) if read.is_some_and(|read| read.owner.is_confirmed(&owner.submission, &found.uid)) => {
                self.go(State::Recording(ending), Call::Record)
            }
            Some(owner) if needs_owner || is_owner(&owner) => {
                self.confirm(Owner { uid: Some(found.uid), ..owner }, ending)
            }
            _ => Call::End(ending),
        }
    }

    fn submission(&self) -> Option<&Submission> {
        self.claim.as_ref().map(|claim| &claim.owner.submission)
    }

    /// The name is free, or its job is to be replaced: may the run be claimed?
    fn judge(&mut self, snapshot: Snapshot, job: OwnersJob, now: u64) -> Call {
        let Some(read) = &snapshot.read else {
            return self.go(State::Preparing(None, LeaseState::Free), Call::Prepare);
        };
        let is_claim = read.owner.is_claim() && !read.owner.released;
        let evidence = Evidence { is_visible: read.is_visible, is_recorded: snapshot.is_recorded, job };
        match read.owner.lease_state(&self.claimant, evidence, now) {
            LeaseState::Unknown => {
                let call = Call::ReadOwnersJob(read.owner.clone());
                self.go(State::ReadingOwnersJob(snapshot), call)
            }
            LeaseState::Hidden => Call::End(Ending::RunHidden),
            LeaseState::Active => Call::End(Ending::RunActive(read.owner.clone())),
            // A job that is there has existed, and what a rehearsal claims is not kept.
            LeaseState::Free if is_claim && !snapshot.is_recorded && !self.is_replacing && !self.is_dry_run => {
                let call = Call::ReadRecord(read.owner.clone());
                self.go(State::ReadingLastRecord(snapshot), call)
            }
            lease @ (LeaseState::Free | LeaseState::Joinable | LeaseState::Pending) => {
                self.go(State::Preparing(Some(snapshot), lease), Call::Prepare)
            }
        }
    }

    /// Everything is prepared: claim the run, join its claim, or wait for the claim's job.
    fn begin(&mut self, snapshot: Option<Snapshot>, lease: LeaseState, fresh: &Submission) -> Call {
        let is_recorded = snapshot.as_ref().is_some_and(|snapshot| snapshot.is_recorded);
        let read = snapshot.and_then(|snapshot| snapshot.read);
        let (before, over) = read.map(|read| (read.owner, read.etag)).unzip();
        if let (LeaseState::Pending, Some(owner)) = (lease, &before) {
            self.waits_for = Some(owner.clone());
            return self.pause();
        }
        if self.is_replacing {
            return self.go(State::Rehearsing, Call::RehearseReplacing);
        }
        if self.is_dry_run {
            return self.go(State::Creating, Call::Create { submission: fresh.clone() });
        }
        if let (Some(attempted), Some(etag)) =
            (self.attempted.take().filter(|attempted| Some(&attempted.owner) == before.as_ref()), &over)
        {
            let submission = attempted.owner.submission.clone();
            self.claim = Some(Claim { etag: etag.clone(), ..attempted });
            return self.go(State::Creating, Call::Create { submission });
        }
        let (owner, is_joined) = match (lease, &before) {
            (LeaseState::Joinable, Some(owner)) => (owner.joined_by(fresh), true),
            (_, before) => {
                let owner = Owner {
                    claimed_by: Some(fresh.to_string()),
                    previous: before.as_ref().map(|owner| owner.trained_last(is_recorded)),
                    ..self.claimant.owner(fresh.clone())
                };
                (owner, false)
            }
        };
        let call = Call::WriteOwner { owner: owner.clone(), over };
        self.go(State::Claiming(Claim { owner, etag: String::new(), before, is_joined }), call)
    }

    fn after_creating(&mut self, reply: &Reply) -> Call {
        self.may_have_created = matches!(reply, Reply::Created(_) | Reply::Unanswered);
        match (reply, self.claim.as_ref().map(|claim| claim.owner.clone())) {
            (Reply::Created(uid), Some(owner)) => {
                self.confirm(Owner { uid: Some(uid.clone()), ..owner }, Ending::Created)
            }
            (Reply::Created(_), None) => Call::End(Ending::Created),
            (Reply::AlreadyExists, _) => self.pause(),
            (_, None) => Call::End(Ending::NotCreated),
            (reply, Some(_)) => {
                let is_final = *reply != Reply::Unanswered;
                self.go(State::ReadingAfterFailure { is_final, wait: None }, Call::ReadJob)
            }
        }
    }

    /// The creation was refused, and no job has the name.
    fn give_up(&mut self, wait: Option<Wait>, now: u64) -> Call {
        match wait {
            None => self.take_back_claim(None),
            Some(wait) if now < wait.since + OTHERS_MS => self.wait_for_others(wait),
            Some(Wait { has_given_up: true, .. }) => Call::End(Ending::NotCreated),
            // Those who had joined may have left.
            Some(Wait { has_given_up: false, .. }) => self.take_back_claim(Some(Ending::NotCreated)),
        }
    }

    /// Write what was there before over the claim, if there is one; how the request ends then.
    fn take_back_claim(&mut self, ending: Option<Ending>) -> Call {
        let Some(claim) = &self.claim else { return Call::End(ending.unwrap_or(Ending::NotCreated)) };
        let owner = claim.owner.given_up(claim.before.as_ref());
        let call = Call::WriteOwner { owner, over: Some(claim.etag.clone()) };
        self.go(State::GivingUp(ending), call)
    }

    fn wait_for_others(&mut self, wait: Wait) -> Call {
        self.go(State::PausingForOthers(wait), Call::Pause)
    }

    /// Record the job, and see to it that the run's owner is this job.
    fn confirm(&mut self, owner: Owner, ending: Ending) -> Call {
        let step = ConfirmationStep::ReadingOwner;
        let confirmation = Confirmation { owner, ending, is_contested: false, has_failed: false, step };
        self.go(State::RecordingFirst(confirmation), Call::Record)
    }

    fn begin_confirming(&mut self, confirmation: Confirmation, fresh: &Submission) -> Call {
        match &self.claim {
            // Mostly, the owner is still what this request wrote.
            Some(claim) if claim.owner.submission == confirmation.owner.submission => {
                let over = Some(claim.etag.clone());
                self.write_confirmation(confirmation, over, fresh)
            }
            _ => self.go(State::Confirming(confirmation), Call::ReadOwner),
        }
    }

    fn go_on_confirming(&mut self, mut confirmation: Confirmation, reply: Reply, now: u64, fresh: &Submission) -> Call {
        use ConfirmationStep::{ReadingOwner, ReadingOwnersJob, ReadingWhetherActive, Writing};
        let (read, job) = match (std::mem::replace(&mut confirmation.step, ReadingOwner), reply) {
            (ReadingOwner, Reply::Owner(None)) => return self.write_confirmation(confirmation, None, fresh),
            (ReadingOwner, Reply::Owner(Some(read))) => (read, OwnersJob::NotRead),
            (ReadingOwnersJob(read), Reply::OwnersJob(job)) => (read, job),
            (ReadingWhetherActive(etag), Reply::IsActive(true)) => {
                return self.write_confirmation(confirmation, Some(etag), fresh);
            }
            (ReadingWhetherActive(_), Reply::IsActive(false)) | (Writing, Reply::Written(Some(_))) => {
                return Call::End(confirmation.ending);
            }
            // At once, however late it is: an owner that is another's must not outlive the answer.
            (Writing, Reply::Written(None)) => {
                confirmation.is_contested = true;
                return self.go(State::Confirming(confirmation), Call::ReadOwner);
            }
            (Writing, Reply::Refused) if !confirmation.has_failed => {
                confirmation.has_failed = true;
                return self.go(State::Confirming(confirmation), Call::ReadOwner);
            }
            // With its record, the job is found and confirmed by the same request again.
            _ if confirmation.is_contested => return Call::End(Ending::Failed),
            // A bucket that fails now does not undo the job.
            _ => return Call::End(confirmation.ending),
        };
        let Owner { submission, uid, .. } = &confirmation.owner;
        let uid = uid.clone().unwrap_or_default();
        let is_its = read.owner.submission == *submission && !read.owner.released;
        // Where the bucket takes no confirmation, the job's own claim is as good: others wait for it, and find the job then.
        if read.owner.is_confirmed(submission, &uid) || (confirmation.has_failed && is_its) {
            return Call::End(confirmation.ending);
        }
        confirmation.is_contested |= !is_its;
        // A claim for this name cannot become a job while the name is taken.
        let evidence = Evidence { is_visible: read.is_visible, is_recorded: false, job };
        let (step, call) = match read.owner.lease_state(&self.claimant, evidence, now) {
            LeaseState::Unknown => {
                let call = Call::ReadOwnersJob(read.owner.clone());
                (ReadingOwnersJob(read), call)
            }
            // The job may have ended or gone, and another may train the run.
            LeaseState::Free | LeaseState::Joinable | LeaseState::Pending => {
                (ReadingWhetherActive(read.etag), Call::ReadWhetherActive { uid })
            }
            LeaseState::Hidden => return self.lost(confirmation.ending, Ending::RunHidden),
            LeaseState::Active => return self.lost(confirmation.ending, Ending::RunActive(read.owner)),
        };
        confirmation.step = step;
        self.go(State::Confirming(confirmation), call)
    }

    fn write_confirmation(&mut self, mut confirmation: Confirmation, over: Option<String>, fresh: &Submission) -> Call {
        let owner = Owner { claimed_by: Some(fresh.to_string()), ..confirmation.owner.clone() };
        confirmation.step = ConfirmationStep::Writing;
        self.go(State::Confirming(confirmation), Call::WriteOwner { owner, over })
    }

    /// Another job of the same run was created meanwhile, under another name. Two must not write into one run.
    fn lost(&mut self, ending: Ending, refusal: Ending) -> Call {
        match ending {
            Ending::Created => self.go(State::TakingBack(refusal), Call::TakeBack),
            ending => Call::End(ending),
        }
    }
}
