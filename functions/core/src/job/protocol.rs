//! How a request becomes exactly one job, as a state machine without input and output: [`Protocol::next`] takes what the
//! last call was answered, and says which call comes next. Submit makes the calls; `tests/model` checks every order of
//! them.
//!
//! ```text
//! read the owner ─> read the name ── taken ─> ours, replay, replace (and read again), or refuse
//!                        └─ free ─> prepare ─> claim the run, or join an equal request's claim ─> create ─> hold ─> record
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
//! - A job that is there is believed only where the owner or its record confirms it; [`Found::submission`] is `None` else.

use training_run::owner::{Known, Owner, OwnersJob, Standing};

/// How long a request whose creation was refused waits for the job of those who share its claim, in milliseconds. A quota
/// counts a job a moment before the job can be read.
pub const OTHERS_MS: u64 = 5_000;

/// A call that the protocol wants to be made.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// Read the run's owner.
    ReadOwner,
    /// Read whether the job that this owner names has a record.
    ReadRecord(Owner),
    /// Read the job that has the request's name.
    ReadJob,
    /// Read the job that this owner names, which has another name than the request's.
    ReadOwnersJob(Owner),
    /// Read whether the job that has the request's name is still that of this submission.
    ReadWhetherThere {
        /// The submission.
        submission: String,
    },
    /// Find out all that the manifest needs; nothing is changed.
    Prepare,
    /// Find out whether the job that was found could be deleted, and the new one be made in its place.
    RehearseReplacing,
    /// Write the run's owner over the one that was read, by compare-and-swap.
    WriteOwner {
        /// The new owner.
        owner: Owner,
        /// The `ETag` of the one that was read; `None` where there was none.
        over: Option<String>,
    },
    /// Create the job.
    Create {
        /// Its submission.
        submission: String,
    },
    /// Delete the finished job that was found, or wait for one that is being deleted, until its name is free.
    Replace,
    /// Delete the job that was created: its run is another's.
    TakeBack,
    /// Keep a record of the job.
    Record,
    /// Wait a moment. It is refused when the request's time is over.
    Pause,
    /// Answer.
    End(Ending),
}

/// What a call was answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reply {
    /// The call was made, and has nothing to say.
    Done,
    /// The run's owner.
    Owner(Option<OwnerRead>),
    /// Whether the job has a record.
    Recorded(bool),
    /// The job of the name.
    Job(Option<Found>),
    /// The job that the owner names.
    OwnersJob(OwnersJob),
    /// Whether the job is still there.
    IsThere(bool),
    /// The `ETag` of what was written; `None` when another writer was quicker.
    Written(Option<String>),
    /// The old job's name is free now; `false` when the job changed before it could be deleted, or would be.
    Replaced(bool),
    /// The name was taken.
    AlreadyExists,
    /// The call failed, and had no effect.
    Refused,
    /// The call failed, and may have had its effect, or may have it still.
    Unanswered,
}

/// A job that has the request's name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Found {
    /// Its submission.
    pub submission: Option<String>,
    /// What the request is to it.
    pub verdict: Verdict,
    /// Whether it has ended.
    pub is_finished: bool,
}

/// What a request does about the job that has its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It is what was asked for.
    Replay,
    /// It is to be replaced.
    Replace,
    /// The request is refused.
    Refuse,
}

/// The run's owner as it was read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OwnerRead {
    /// The owner.
    pub owner: Owner,
    /// The object's `ETag`.
    pub etag: String,
    /// Whether the caller sees the owner's namespace.
    pub is_visible: bool,
}

/// How a request ends.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    /// This request made the job.
    Created,
    /// An earlier, equal request made it.
    Replayed,
    /// The job that was found is not what was asked for.
    Conflict,
    /// The owner's job trains the run.
    RunActive(Owner),
    /// Another request has claimed the run, and its job may still appear.
    ClaimPending(Owner),
    /// The run belongs to a namespace that the caller does not see.
    RunHidden,
    /// The creation failed, which says why.
    NotCreated,
    /// The last call that failed says why.
    Failed,
}

/// One request on its way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Protocol {
    /// Namespace, job and digest of the request; each claim has a submission of its own.
    request: Owner,
    /// Whether the request is only rehearsed: nothing is written, and creations are the API server's dry runs.
    is_dry_run: bool,
    /// What this request wrote as the run's owner last.
    claim: Option<Claim>,
    /// Whether the job of the claim may be this request's creation.
    may_have_created: bool,
    /// Whether a job of the name was found that is to be replaced.
    is_replacing: bool,
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
    Preparing(Option<Snapshot>, Standing),
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
    Holding(Hold),
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
struct Hold {
    /// The job as an owner.
    owner: Owner,
    /// Where the request ends then; `Created` also takes the job back where its run is another's.
    ending: Ending,
    step: HoldStep,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum HoldStep {
    ReadingOwner,
    ReadingOwnersJob(OwnerRead),
    /// Over the owner of this `ETag`.
    ReadingWhetherThere(String),
    Writing,
    Pausing,
}

// === impl Protocol ===

impl Protocol {
    /// A request for the job that `request` names, with the digest of its fields.
    #[must_use]
    pub fn new(namespace: &str, job: &str, digest: &str, is_dry_run: bool) -> Self {
        let request = Owner {
            submission: String::new(),
            namespace: namespace.to_owned(),
            job: job.to_owned(),
            claimed_by: None,
            request: Some(digest.to_owned()),
            previous: None,
            released: false,
        };
        Self {
            request,
            is_dry_run,
            claim: None,
            may_have_created: false,
            is_replacing: false,
            waits_for: None,
            state: State::Pausing,
        }
    }

    /// The next call, after the last one was answered so. `now` is in milliseconds since 1970; `fresh` is a `UUIDv7` of now
    /// that nobody has used.
    pub fn next(&mut self, reply: Reply, now: u64, fresh: &str) -> Call {
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
                    self.go(State::Preparing(Some(snapshot), Standing::Free), Call::Prepare)
                }
                _ => Call::End(Ending::Failed),
            },
            State::Preparing(snapshot, standing) => match reply {
                Reply::Done => self.begin(snapshot, standing, fresh),
                _ => Call::End(Ending::Failed),
            },
            State::Claiming(mut claim) => match reply {
                Reply::Written(Some(etag)) => {
                    claim.etag = etag;
                    let submission = claim.owner.submission.clone();
                    self.claim = Some(claim);
                    self.go(State::Creating, Call::Create { submission })
                }
                Reply::Written(None) => self.pause(),
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
            State::Holding(hold) => self.go_on_holding(hold, reply, now),
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
            Reply::Owner(Some(read)) if read.is_visible && read.owner.is_young(now) => {
                let call = Call::ReadRecord(read.owner.clone());
                self.go(State::ReadingRecord(read), call)
            }
            Reply::Owner(read) => {
                let snapshot = Snapshot { read, is_recorded: false };
                self.go(State::ReadingName(Some(snapshot)), Call::ReadJob)
            }
            // A job that is there is answered all the same.
            _ => self.go(State::ReadingName(None), Call::ReadJob),
        }
    }

    /// The name is taken.
    fn meet(&mut self, found: Found, snapshot: Option<Snapshot>, now: u64) -> Call {
        let is_ours = found.submission.is_some() && found.submission.as_ref() == self.submission();
        let owner = found.submission.map(|submission| Owner { submission, ..self.request.clone() });
        let (ending, is_held) = match found.verdict {
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
        let is_owner = |owner: &Owner| {
            let read = snapshot.as_ref().and_then(|snapshot| snapshot.read.as_ref());
            read.is_some_and(|read| read.owner.submission == owner.submission && !read.owner.released)
        };
        match owner {
            // Whoever made it may have died before the record was written.
            Some(owner) if ending == Ending::Replayed && is_owner(&owner) => self.held(ending),
            Some(owner) if is_held && is_owner(&owner) => self.held(ending),
            Some(owner) if is_held => self.hold(owner, ending),
            _ => Call::End(ending),
        }
    }

    fn submission(&self) -> Option<&String> {
        self.claim.as_ref().map(|claim| &claim.owner.submission)
    }

    /// The name is free, or its job is to be replaced: may the run be claimed?
    fn judge(&mut self, snapshot: Snapshot, job: OwnersJob, now: u64) -> Call {
        let Some(read) = &snapshot.read else {
            return self.go(State::Preparing(None, Standing::Free), Call::Prepare);
        };
        let is_claim = read.owner.claimed_by.is_some() && !read.owner.released;
        let known = Known { is_visible: read.is_visible, is_recorded: snapshot.is_recorded, job };
        match read.owner.standing(&self.request, known, now) {
            Standing::Unknown => {
                let call = Call::ReadOwnersJob(read.owner.clone());
                self.go(State::ReadingOwnersJob(snapshot), call)
            }
            Standing::Hidden => Call::End(Ending::RunHidden),
            Standing::Active => Call::End(Ending::RunActive(read.owner.clone())),
            // A job that is there has existed, and what a rehearsal claims is not kept.
            Standing::Free if is_claim && !snapshot.is_recorded && !self.is_replacing && !self.is_dry_run => {
                let call = Call::ReadRecord(read.owner.clone());
                self.go(State::ReadingLastRecord(snapshot), call)
            }
            standing @ (Standing::Free | Standing::Joinable | Standing::Pending) => {
                self.go(State::Preparing(Some(snapshot), standing), Call::Prepare)
            }
        }
    }

    /// Everything is prepared: claim the run, join its claim, or wait for the claim's job.
    fn begin(&mut self, snapshot: Option<Snapshot>, standing: Standing, fresh: &str) -> Call {
        let is_recorded = snapshot.as_ref().is_some_and(|snapshot| snapshot.is_recorded);
        let read = snapshot.and_then(|snapshot| snapshot.read);
        let (before, over) = read.map(|read| (read.owner, read.etag)).unzip();
        if let (Standing::Pending, Some(owner)) = (standing, &before) {
            self.waits_for = Some(owner.clone());
            return self.pause();
        }
        if self.is_replacing {
            return self.go(State::Rehearsing, Call::RehearseReplacing);
        }
        if self.is_dry_run {
            return self.go(State::Creating, Call::Create { submission: fresh.to_owned() });
        }
        let (owner, is_joined) = match (standing, &before) {
            (Standing::Joinable, Some(owner)) => (owner.joined_by(fresh), true),
            (_, before) => {
                let owner = Owner {
                    submission: fresh.to_owned(),
                    claimed_by: Some(fresh.to_owned()),
                    previous: before.as_ref().and_then(|owner| owner.trained_last(is_recorded)),
                    ..self.request.clone()
                };
                (owner, false)
            }
        };
        let call = Call::WriteOwner { owner: owner.clone(), over };
        self.go(State::Claiming(Claim { owner, etag: String::new(), before, is_joined }), call)
    }

    fn after_creating(&mut self, reply: &Reply) -> Call {
        self.may_have_created = matches!(reply, Reply::Done | Reply::Unanswered);
        match (reply, self.claim.as_ref().map(|claim| claim.owner.clone())) {
            (Reply::Done, Some(owner)) => self.hold(owner, Ending::Created),
            (Reply::Done, None) => Call::End(Ending::Created),
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

    fn hold(&mut self, owner: Owner, ending: Ending) -> Call {
        if self.is_dry_run {
            return Call::End(ending);
        }
        let hold = Hold { owner, ending, step: HoldStep::ReadingOwner };
        self.go(State::Holding(hold), Call::ReadOwner)
    }

    fn go_on_holding(&mut self, mut hold: Hold, reply: Reply, now: u64) -> Call {
        let (read, job) = match (std::mem::replace(&mut hold.step, HoldStep::Pausing), reply) {
            (HoldStep::Pausing, Reply::Done) => return self.hold(hold.owner, hold.ending),
            (HoldStep::ReadingOwner, Reply::Owner(read)) => (read, OwnersJob::NotRead),
            (HoldStep::ReadingOwnersJob(read), Reply::OwnersJob(job)) => (Some(read), job),
            (HoldStep::ReadingWhetherThere(etag), Reply::IsThere(true)) => return self.write_held(hold, Some(etag)),
            (HoldStep::Writing, Reply::Written(None)) => {
                hold.step = HoldStep::Pausing;
                return self.go(State::Holding(hold), Call::Pause);
            }
            // A bucket that fails now does not undo the job.
            _ if hold.ending == Ending::Created => return self.held(hold.ending),
            _ => return Call::End(hold.ending),
        };
        if let Some(read) = read {
            if read.owner.submission == hold.owner.submission && !read.owner.released {
                return self.held(hold.ending);
            }
            // A claim for this name cannot become a job while the name is taken.
            let known = Known { is_visible: read.is_visible, is_recorded: false, job };
            match read.owner.standing(&self.request, known, now) {
                Standing::Unknown => {
                    let call = Call::ReadOwnersJob(read.owner.clone());
                    hold.step = HoldStep::ReadingOwnersJob(read);
                    return self.go(State::Holding(hold), call);
                }
                Standing::Free | Standing::Joinable | Standing::Pending => {}
                Standing::Hidden => return self.lost(hold.ending, Ending::RunHidden),
                Standing::Active => return self.lost(hold.ending, Ending::RunActive(read.owner)),
            }
            // The job may have ended and been replaced meanwhile: then the owner is that of the job that took its place. The
            // owner was read before, so whoever claims the run after this is told by the compare-and-swap.
            let call = Call::ReadWhetherThere { submission: hold.owner.submission.clone() };
            hold.step = HoldStep::ReadingWhetherThere(read.etag);
            return self.go(State::Holding(hold), call);
        }
        self.write_held(hold, None)
    }

    fn write_held(&mut self, mut hold: Hold, over: Option<String>) -> Call {
        let call = Call::WriteOwner { owner: hold.owner.clone(), over };
        hold.step = HoldStep::Writing;
        self.go(State::Holding(hold), call)
    }

    fn held(&mut self, ending: Ending) -> Call {
        match ending {
            Ending::Created | Ending::Replayed if !self.is_dry_run => self.go(State::Recording(ending), Call::Record),
            ending => Call::End(ending),
        }
    }

    /// Another job of the same run was created meanwhile, under another name. Two must not write into one run.
    fn lost(&mut self, ending: Ending, refusal: Ending) -> Call {
        match ending {
            Ending::Created => self.go(State::TakingBack(refusal), Call::TakeBack),
            ending => Call::End(ending),
        }
    }
}
