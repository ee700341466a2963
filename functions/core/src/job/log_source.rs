//! Where a log is read: what the cluster keeps of a pod's output, or what the trainer has written into the bucket. Reading
//! is not done here.

/// Where a log is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// What the cluster keeps of a pod's output.
    Cluster,
    /// What the trainer has written into the runs bucket, a log for each rank and attempt.
    Archive,
}

/// What of a question decides where its log is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// The source that the caller names.
    pub source: Option<Source>,
    /// Whether the caller wants the lines since a time: lines of the archive have none.
    pub has_since: bool,
    /// Whether it is known which rank is meant: the archive has a log for each.
    pub has_rank: bool,
}

/// What came of reading the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Printed {
    /// The log.
    Log,
    /// The cluster has no such log.
    Absent {
        /// Whether the archive may have it. Not where a start of the pod was asked for by its number: the pod of an attempt
        /// may have been replaced, and the archive counts on.
        may_be_archived: bool,
    },
    /// The cluster did not say.
    Unknown {
        /// The same.
        may_be_archived: bool,
    },
}

/// What came of reading the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Archived {
    /// The log.
    Log,
    /// There is none that can be read.
    Absent,
    /// The bucket did not say.
    Unknown,
}

/// What to do next about a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Read the log there.
    Read(Source),
    /// Answer.
    Done(End),
}

/// How a question is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With the log that was read there.
    Serve(Source),
    /// With the cluster's refusal, and what is known of the archive.
    Refuse(Hint),
    /// The archive has no such log.
    RefuseUnarchived,
    /// The bucket did not say.
    RefuseUnknown,
    /// The cluster has no such log and the bucket did not say: there may be one.
    RefuseAbsentAndUnknown,
}

/// What is known of the archive when the cluster has no log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    /// It was not read, and may have the log.
    MayBeArchived,
    /// It has none.
    NotArchived,
    /// Nothing.
    None,
}

// === impl Question ===

impl Question {
    /// What to do next; `None` is what was not read yet.
    #[must_use]
    pub fn next(self, printed: Option<Printed>, archived: Option<Archived>) -> Next {
        let is_absent = match (self.source, printed) {
            (Some(Source::Archive), _) => {
                return match archived {
                    None => Next::Read(Source::Archive),
                    Some(Archived::Log) => Next::Done(End::Serve(Source::Archive)),
                    Some(Archived::Absent) => Next::Done(End::RefuseUnarchived),
                    Some(Archived::Unknown) => Next::Done(End::RefuseUnknown),
                };
            }
            (_, None) => return Next::Read(Source::Cluster),
            (_, Some(Printed::Log)) => return Next::Done(End::Serve(Source::Cluster)),
            (_, Some(Printed::Absent { .. })) => true,
            (_, Some(Printed::Unknown { .. })) => false,
        };
        Next::Done(match archived {
            None if self.is_archive_asked(printed) => return Next::Read(Source::Archive),
            None => End::Refuse(Hint::MayBeArchived),
            Some(Archived::Log) => End::Serve(Source::Archive),
            Some(Archived::Absent) => End::Refuse(Hint::NotArchived),
            // That the cluster has none does not say that there is none.
            Some(Archived::Unknown) if is_absent => End::RefuseAbsentAndUnknown,
            Some(Archived::Unknown) => End::Refuse(Hint::None),
        })
    }

    /// Whether the archive is read for a caller who names no source, after the cluster did not give the log.
    fn is_archive_asked(self, printed: Option<Printed>) -> bool {
        let may_be_archived = match printed {
            Some(Printed::Absent { may_be_archived } | Printed::Unknown { may_be_archived }) => may_be_archived,
            Some(Printed::Log) | None => false,
        };
        may_be_archived && self.source.is_none() && !self.has_since && self.has_rank
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABSENT: Option<Printed> = Some(Printed::Absent { may_be_archived: true });
    const UNKNOWN: Option<Printed> = Some(Printed::Unknown { may_be_archived: true });

    fn question(source: Option<Source>) -> Question {
        Question { source, has_since: false, has_rank: true }
    }

    #[test]
    fn the_cluster_is_read_first_and_the_archive_where_it_may_help() {
        use End::{Refuse, RefuseAbsentAndUnknown, Serve};
        use Next::{Done, Read};
        use Source::{Archive, Cluster};
        for (printed, archived, next) in [
            (None, None, Read(Cluster)),
            (Some(Printed::Log), None, Done(Serve(Cluster))),
            (ABSENT, None, Read(Archive)),
            (UNKNOWN, None, Read(Archive)),
            (Some(Printed::Absent { may_be_archived: false }), None, Done(Refuse(Hint::MayBeArchived))),
            (Some(Printed::Unknown { may_be_archived: false }), None, Done(Refuse(Hint::MayBeArchived))),
            (ABSENT, Some(Archived::Log), Done(Serve(Archive))),
            (UNKNOWN, Some(Archived::Log), Done(Serve(Archive))),
            (ABSENT, Some(Archived::Absent), Done(Refuse(Hint::NotArchived))),
            (UNKNOWN, Some(Archived::Absent), Done(Refuse(Hint::NotArchived))),
            (ABSENT, Some(Archived::Unknown), Done(RefuseAbsentAndUnknown)),
            (UNKNOWN, Some(Archived::Unknown), Done(Refuse(Hint::None))),
        ] {
            assert_eq!(question(None).next(printed, archived), next, "{printed:?} {archived:?}");
        }
        // Where the archive cannot answer the question.
        for question in [
            Question { has_since: true, ..question(None) },
            Question { has_rank: false, ..question(None) },
            question(Some(Cluster)),
        ] {
            assert_eq!(question.next(None, None), Read(Cluster), "{question:?}");
            assert_eq!(question.next(ABSENT, None), Done(Refuse(Hint::MayBeArchived)), "{question:?}");
        }
    }

    #[test]
    fn a_caller_who_names_the_archive_gets_what_it_says() {
        for (archived, next) in [
            (None, Next::Read(Source::Archive)),
            (Some(Archived::Log), Next::Done(End::Serve(Source::Archive))),
            (Some(Archived::Absent), Next::Done(End::RefuseUnarchived)),
            (Some(Archived::Unknown), Next::Done(End::RefuseUnknown)),
        ] {
            assert_eq!(question(Some(Source::Archive)).next(None, archived), next, "{archived:?}");
        }
    }
}
