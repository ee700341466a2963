//! Who made a job. Its annotations name its run and its submission, but whoever may write jobs may write annotations. They
//! are believed only where the bucket agrees: the run's `owner`, or the record of the job. Only submit writes these two.

use training_run::{
    layout::{RunPrefix, S3Uri, job_record_key},
    names::{JobName, Namespace, Submission},
    owner::{JobRecord, Owner},
};

use crate::job::pytorchjob::{PyTorchJob, key};

/// The run and the submission that a job's annotations name, and which job it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attribution {
    /// The run.
    pub prefix: RunPrefix,
    /// The submission.
    pub submission: Submission,
    namespace: Namespace,
    job: JobName,
    uid: Option<String>,
}

/// Who made a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provenance {
    /// The submission that its annotations name: they may be followed.
    Proven,
    /// The same, but the run has gone to another namespace since. What is the submission's own may be read, and what is the
    /// run's may not: it is the other namespace's by now.
    Former,
    /// This API, as far as can be told: the run's owner is a job of this name, by another submission, and there is no
    /// record. An equal request may have claimed the run a moment ago. The job may be changed; its annotations are not
    /// followed, because nothing confirms the submission.
    Plausible,
    /// Another tool.
    Foreign,
}

// === impl Attribution ===

impl Attribution {
    /// Read a job's annotations; `None` when they name no run below one of the bases, or no submission.
    ///
    /// The namespace and the name are those that the job was asked for by, and not what it says of itself.
    #[must_use]
    pub fn of(job: &PyTorchJob, namespace: &Namespace, name: &JobName, bases: &[S3Uri]) -> Option<Self> {
        let prefix: RunPrefix = job.annotation(key::CHECKPOINT_PREFIX)?.parse().ok()?;
        bases.iter().any(|base| prefix.is_within(base)).then_some(())?;
        let submission = job.annotation(key::SUBMISSION)?.parse().ok()?;
        let uid = job.metadata.uid.clone();
        Some(Self { prefix, submission, namespace: namespace.clone(), job: name.clone(), uid })
    }

    /// The full key of the job's record, if submit made the job.
    #[must_use]
    pub fn record_key(&self) -> String {
        job_record_key(self.prefix.base(), &self.namespace, &self.job, &self.submission)
    }

    /// Who made the job, as the run's owner and the object at [`Attribution::record_key`] say. Without a record the answer
    /// is final when it is [`Provenance::Proven`].
    ///
    /// The owner's uid is not compared: it is written after the job is made, and two jobs of one submission may follow each
    /// other. So a job that somebody deletes and makes again in its place, under its name and with its annotations, counts
    /// as the first one while it is the run's owner. It tells nobody more than the first one did.
    #[must_use]
    pub fn provenance(&self, owner: Option<&Owner>, record: Option<&JobRecord>) -> Provenance {
        let is_elsewhere = owner.is_some_and(|owner| owner.namespace != self.namespace);
        let owner = owner.filter(|owner| owner.is_job(&self.namespace, &self.job));
        if owner.is_some_and(|owner| owner.submission == self.submission) {
            return Provenance::Proven;
        }
        match record {
            Some(record) if self.is_of(record) && is_elsewhere => Provenance::Former,
            Some(record) if self.is_of(record) => Provenance::Proven,
            None if owner.is_some() => Provenance::Plausible,
            // A record that is there is of the job that the annotations were copied from.
            Some(_) | None => Provenance::Foreign,
        }
    }

    /// Whether a record is of this very job. Its uid is not known where the cluster did not tell.
    fn is_of(&self, record: &JobRecord) -> bool {
        record.namespace == self.namespace
            && record.job == self.job
            && record.submission == self.submission
            && record.checkpoint_prefix == self.prefix
            && (record.uid.is_none() || self.uid.as_deref().is_some_and(|uid| record.has(uid)))
    }
}

// === impl Provenance ===

impl Provenance {
    /// Whether the submission that the annotations name is the job's: its progress, attempts and logs may be read.
    #[must_use]
    pub fn may_be_followed(self) -> bool {
        match self {
            Self::Proven | Self::Former => true,
            Self::Plausible | Self::Foreign => false,
        }
    }

    /// Whether all checkpoints of the run may be read for the job.
    #[must_use]
    pub fn shows_the_run(self) -> bool {
        match self {
            Self::Proven => true,
            Self::Former | Self::Plausible | Self::Foreign => false,
        }
    }

    /// Whether the job may be cancelled, suspended and resumed.
    #[must_use]
    pub fn may_be_changed(self) -> bool {
        match self {
            Self::Proven | Self::Former | Self::Plausible => true,
            Self::Foreign => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const SUBMISSION: &str = "01980000-0000-7000-8000-000000000001";
    const OTHER: &str = "01980000-0000-7000-8000-000000000002";
    const PREFIX: &str = "s3://bucket/runs/team/r/framework=hf";

    fn job(annotations: &Value) -> PyTorchJob {
        serde_json::from_value(json!({
            "apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "spec": {},
            "metadata": {"name": "says", "namespace": "says", "uid": "u1", "annotations": annotations},
        }))
        .expect("a job")
    }

    fn read(annotations: &Value) -> Option<Attribution> {
        let (namespace, name) = ("training".parse().expect("a namespace"), "hf-r".parse().expect("a name"));
        Attribution::of(&job(annotations), &namespace, &name, &["s3://bucket/runs".parse().expect("a base")])
    }

    fn attribution() -> Attribution {
        read(&json!({(key::CHECKPOINT_PREFIX): PREFIX, (key::SUBMISSION): SUBMISSION})).expect("an attribution")
    }

    fn owner(namespace: &str, job: &str, submission: &str, released: bool) -> Owner {
        let owner = json!({"submission": submission, "namespace": namespace, "job": job, "released": released});
        Owner::parse(owner.to_string().as_bytes()).expect("an owner")
    }

    fn record(change: impl FnOnce(&mut JobRecord)) -> JobRecord {
        let record = json!({
            "submission": SUBMISSION, "namespace": "training", "job": "hf-r", "uid": "u1", "checkpoint_prefix": PREFIX,
            "created_at": null,
        });
        let mut record = JobRecord::parse(record.to_string().as_bytes()).expect("a record");
        change(&mut record);
        record
    }

    #[test]
    fn owner_and_record_decide_together() {
        use Provenance::{Foreign, Former, Plausible, Proven};
        let records = [
            ("no record", None),
            ("its record", Some(record(|_| {}))),
            ("its record without a uid", Some(record(|record| record.uid = None))),
            ("a record of another uid", Some(record(|record| record.uid = Some("u2".to_owned())))),
            (
                "a record of another run",
                Some(record(|record| {
                    record.checkpoint_prefix = PREFIX.replace("/r/", "/s/").parse().expect("a prefix");
                })),
            ),
            (
                "a record of another submission",
                Some(record(|record| record.submission = OTHER.parse().expect("an id"))),
            ),
            (
                "a record of another namespace",
                Some(record(|record| record.namespace = "two".parse().expect("a namespace"))),
            ),
            ("a record of another name", Some(record(|record| record.job = "hf-s".parse().expect("a name")))),
        ];
        let confirmed = [Proven, Proven, Foreign, Foreign, Foreign, Foreign, Foreign];
        for (label, owner, without_record) in [
            ("its own", Some(owner("training", "hf-r", SUBMISSION, false)), Proven),
            ("its own, given up", Some(owner("training", "hf-r", SUBMISSION, true)), Proven),
            ("an equal request's", Some(owner("training", "hf-r", OTHER, false)), Plausible),
            ("an equal request's, given up", Some(owner("training", "hf-r", OTHER, true)), Plausible),
            ("a job of another name", Some(owner("training", "hf-s", SUBMISSION, false)), Foreign),
            ("another namespace's", Some(owner("two", "hf-r", SUBMISSION, false)), Foreign),
            ("none", None, Foreign),
        ] {
            // Where the owner confirms the submission, the record is not asked.
            let is_elsewhere = owner.as_ref().is_some_and(|owner| owner.namespace.as_str() != "training");
            let expected = [without_record].into_iter().chain(confirmed.map(|by_record| match by_record {
                _ if without_record == Proven => Proven,
                Proven if is_elsewhere => Former,
                by_record => by_record,
            }));
            for ((with, record), expected) in records.iter().zip(expected) {
                let provenance = attribution().provenance(owner.as_ref(), record.as_ref());
                assert_eq!(provenance, expected, "owner: {label}; {with}");
            }
        }
    }

    #[test]
    fn only_what_is_proven_is_followed_and_nothing_foreign_is_changed() {
        let allowed = [Provenance::Proven, Provenance::Former, Provenance::Plausible, Provenance::Foreign]
            .map(|provenance| (provenance.shows_the_run(), provenance.may_be_followed(), provenance.may_be_changed()));
        assert_eq!(allowed, [(true, true, true), (false, true, true), (false, false, true), (false, false, false)]);
    }

    #[test]
    fn annotations_that_name_no_run_or_no_submission_say_nothing() {
        let of = |prefix: &str, submission: &str| {
            read(&json!({(key::CHECKPOINT_PREFIX): prefix, (key::SUBMISSION): submission}))
        };
        assert!(of(PREFIX, SUBMISSION).is_some());
        for (prefix, submission) in [
            ("s3://other/runs/r/framework=hf", SUBMISSION),
            ("s3://bucket/runs-of-others/r/framework=hf", SUBMISSION),
            ("s3://bucket/runs/r", SUBMISSION),
            ("s3://bucket/runs/../r/framework=hf", SUBMISSION),
            ("", SUBMISSION),
            (PREFIX, ""),
            (PREFIX, "../../other"),
        ] {
            assert_eq!(of(prefix, submission), None, "{prefix} {submission}");
        }
        assert_eq!(read(&json!({(key::SUBMISSION): SUBMISSION})), None);
        assert_eq!(read(&json!({(key::CHECKPOINT_PREFIX): PREFIX})), None);
        assert_eq!(read(&json!({})), None);
    }

    #[test]
    fn the_record_is_looked_for_where_submit_writes_it() {
        // By the namespace and the name that were asked for, whatever the job says.
        assert_eq!(attribution().record_key(), format!("runs/team/_jobs/training/hf-r/{SUBMISSION}"));
    }
}
