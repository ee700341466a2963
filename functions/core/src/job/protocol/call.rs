//! The calls that the protocol wants to be made, what they are answered, and how a request ends.

use training_run::{
    names::Submission,
    owner::{Owner, OwnersJob},
};

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
    /// Read whether the job that has the request's name is still this one, and has not ended.
    ReadWhetherActive {
        /// The job's uid.
        uid: String,
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
        submission: Submission,
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
    /// Whether the job is still there, and has not ended.
    IsActive(bool),
    /// The job was created, and has this uid.
    Created(String),
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
    pub submission: Option<Submission>,
    /// Its uid.
    pub uid: String,
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
