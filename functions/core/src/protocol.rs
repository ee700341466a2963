//! How a request becomes exactly one job, as a state machine without input and output: [`Protocol::next`] takes what the
//! last call was answered, and says which call comes next. Submit makes the calls; `tests/model` checks every order of
//! them.
//!
//! ```text
//! name taken? ── yes ─> ours, replay, replace (and read again), or refuse
//!      └─ no ─> whose is the run? ─> prepare ─> claim the run ─> create ─> hold the run ─> record
//!                                                 └─ lost ─┴─ name taken by now ─> read again
//! ```
//! The API server decides which of several equal requests makes the job: names are unique. The run's `owner` object says
//! which job may write checkpoints; it is claimed before the job exists, so that a claim without a job harms nobody.

use crate::owner::{Owner, RunState};

/// A call that the protocol wants to be made.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// Read the job that has the request's name.
    ReadJob,
    /// Read the run's owner.
    ReadOwner,
    /// Read the job that this owner names, which has another name than the request's.
    ReadOwnersJob(Owner),
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
    /// Wait a moment, and give up when the request's time is over.
    Pause,
    /// Answer.
    End(Ending),
}

/// What a call was answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reply {
    /// Nothing was called yet, or the call has nothing to tell.
    Done,
    /// The job of the name.
    Job(Option<Found>),
    /// The run's owner.
    Owner(Option<OwnerRead>),
    /// The job that the owner names: whether it has finished, and `None` where none trains this run.
    OwnersJob(Option<bool>),
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
    /// What this request writes into `owner`.
    claim: Owner,
    /// Whether the request is only rehearsed: nothing is written, and creations are the API server's dry runs.
    is_dry_run: bool,
    /// Whether this request has become the run's owner.
    has_claimed: bool,
    /// Whether a job of the name was found that is to be replaced.
    is_replacing: bool,
    state: State,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum State {
    Reading,
    Pausing,
    ReadingOwner,
    ReadingOwnersJob(OwnerRead),
    /// And `true` when the run cannot be claimed yet.
    Preparing(Option<OwnerRead>, bool),
    Claiming,
    Creating,
    /// No good answer came to the creation.
    ReadingAfterCreate,
    ReadingToRelease,
    Releasing,
    Rehearsing,
    Replacing,
    Holding(Hold),
    TakingBack(Ending),
    Recording,
    Ended,
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
    Writing,
    Pausing,
}

// === impl Protocol ===

impl Protocol {
    /// A request that writes this claim, unless it is only rehearsed.
    #[must_use]
    pub fn new(claim: Owner, is_dry_run: bool) -> Self {
        Self { claim, is_dry_run, has_claimed: false, is_replacing: false, state: State::Pausing }
    }

    /// The next call, after the last one was answered so; `now` is in milliseconds since 1970.
    pub fn next(&mut self, reply: Reply, now: u64) -> Call {
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Pausing if reply == Reply::Done => {
                self.is_replacing = false;
                self.go(State::Reading, Call::ReadJob)
            }
            // The request's time is over.
            State::Pausing => Call::End(Ending::Failed),
            State::Reading => match reply {
                Reply::Job(None) => self.go(State::ReadingOwner, Call::ReadOwner),
                Reply::Job(Some(found)) => self.meet(found),
                _ => Call::End(Ending::Failed),
            },
            State::ReadingOwner => match reply {
                Reply::Owner(read) => self.judge(read, None, now),
                _ => Call::End(Ending::Failed),
            },
            State::ReadingOwnersJob(read) => match reply {
                Reply::OwnersJob(job) => self.judge(Some(read), Some(job), now),
                _ => Call::End(Ending::Failed),
            },
            State::Preparing(previous, is_busy) => match reply {
                Reply::Done if is_busy => self.pause(),
                Reply::Done if self.is_replacing => self.go(State::Rehearsing, Call::RehearseReplacing),
                Reply::Done if self.is_dry_run => self.create(),
                Reply::Done => {
                    let call = Call::WriteOwner { owner: self.claim.clone(), over: previous.map(|read| read.etag) };
                    self.go(State::Claiming, call)
                }
                _ => Call::End(Ending::Failed),
            },
            State::Claiming => match reply {
                Reply::Written(Some(_)) => {
                    self.has_claimed = true;
                    self.create()
                }
                Reply::Written(None) => {
                    self.has_claimed = false;
                    self.pause()
                }
                _ => Call::End(Ending::Failed),
            },
            State::Creating => match reply {
                Reply::Done => self.hold(self.claim.clone(), Ending::Created),
                Reply::AlreadyExists => self.pause(),
                _ if self.is_dry_run => Call::End(Ending::NotCreated),
                Reply::Unanswered => self.go(State::ReadingAfterCreate, Call::ReadJob),
                _ => self.go(State::ReadingToRelease, Call::ReadOwner),
            },
            State::ReadingAfterCreate => match reply {
                Reply::Job(Some(found)) if self.is_ours(&found) => self.hold(self.claim.clone(), Ending::Created),
                Reply::Job(Some(_)) => self.pause(),
                // It may still come: the caller repeats, and finds it or makes it.
                _ => Call::End(Ending::NotCreated),
            },
            State::ReadingToRelease => match reply {
                Reply::Owner(Some(read)) if read.owner == self.claim => {
                    let owner = Owner { released: true, ..read.owner };
                    self.go(State::Releasing, Call::WriteOwner { owner, over: Some(read.etag) })
                }
                _ => Call::End(Ending::NotCreated),
            },
            State::Releasing => Call::End(Ending::NotCreated),
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
            State::Recording => Call::End(Ending::Created),
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

    fn create(&mut self) -> Call {
        let submission = self.claim.submission.clone();
        self.go(State::Creating, Call::Create { submission })
    }

    fn is_ours(&self, found: &Found) -> bool {
        found.submission.as_ref() == Some(&self.claim.submission)
    }

    /// The name is taken.
    fn meet(&mut self, found: Found) -> Call {
        if self.is_ours(&found) {
            return self.hold(self.claim.clone(), Ending::Created);
        }
        let owner = found.submission.map(|submission| Owner { submission, ..self.claim.clone() });
        let (ending, is_held) = match found.verdict {
            Verdict::Replace => {
                // Before anything is deleted: the new job must not be refused afterwards.
                self.is_replacing = true;
                return self.go(State::ReadingOwner, Call::ReadOwner);
            }
            Verdict::Replay => (Ending::Replayed, !found.is_finished),
            // The run that we claimed belongs to the job that was quicker.
            Verdict::Refuse => (Ending::Conflict, self.has_claimed && !found.is_finished),
        };
        match owner {
            Some(owner) if is_held => self.hold(owner, ending),
            _ => Call::End(ending),
        }
    }

    /// The name is free: may the run be claimed?
    fn judge(&mut self, read: Option<OwnerRead>, job: Option<Option<bool>>, now: u64) -> Call {
        let Some(read) = read else { return self.go(State::Preparing(None, false), Call::Prepare) };
        match self.claim.standing(&read.owner, read.is_visible, job, now) {
            RunState::Unknown => {
                let call = Call::ReadOwnersJob(read.owner.clone());
                self.go(State::ReadingOwnersJob(read), call)
            }
            RunState::Free => self.go(State::Preparing(Some(read), false), Call::Prepare),
            RunState::Busy => self.go(State::Preparing(Some(read), true), Call::Prepare),
            RunState::Hidden => Call::End(Ending::RunHidden),
            RunState::Active => Call::End(Ending::RunActive(read.owner)),
        }
    }

    fn hold(&mut self, owner: Owner, ending: Ending) -> Call {
        if self.is_dry_run {
            return Call::End(ending);
        }
        let hold = Hold { owner, ending, step: HoldStep::ReadingOwner };
        self.go(State::Holding(hold), Call::ReadOwner)
    }

    fn go_on_holding(&mut self, mut hold: Hold, reply: Reply, now: u64) -> Call {
        let (read, job) = match (hold.step, reply) {
            (HoldStep::Pausing, Reply::Done) => return self.hold(hold.owner, hold.ending),
            (HoldStep::ReadingOwner, Reply::Owner(read)) => (read, None),
            (HoldStep::ReadingOwnersJob(read), Reply::OwnersJob(job)) => (Some(read), Some(job)),
            (HoldStep::Writing, Reply::Written(None)) => {
                hold.step = HoldStep::Pausing;
                return self.go(State::Holding(hold), Call::Pause);
            }
            // A bucket that fails now does not undo the job.
            _ => return self.held(hold.ending),
        };
        let over = read.as_ref().map(|read| read.etag.clone());
        if let Some(read) = read {
            if read.owner == hold.owner {
                return self.held(hold.ending);
            }
            match self.claim.standing(&read.owner, read.is_visible, job, now) {
                RunState::Unknown => {
                    let call = Call::ReadOwnersJob(read.owner.clone());
                    hold.step = HoldStep::ReadingOwnersJob(read);
                    return self.go(State::Holding(hold), call);
                }
                RunState::Free | RunState::Busy => {}
                RunState::Hidden => return self.lost(hold.ending, Ending::RunHidden),
                RunState::Active => return self.lost(hold.ending, Ending::RunActive(read.owner)),
            }
        }
        let call = Call::WriteOwner { owner: hold.owner.clone(), over };
        hold.step = HoldStep::Writing;
        self.go(State::Holding(hold), call)
    }

    fn held(&mut self, ending: Ending) -> Call {
        match ending {
            Ending::Created => self.go(State::Recording, Call::Record),
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
