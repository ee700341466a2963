//! Who made a job, as the run's owner and the job's record in the bucket say.

use training_core::job::provenance::{Attribution, Provenance};
use training_run::{
    MAX_STATEMENT_BYTES, StatementError,
    layout::{RunKey, RunPrefix},
    owner::{JobRecord, Owner},
};

use crate::{Identity, Read, Store, StoreError};

/// What stands where a run's owner is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnerFound {
    /// Nothing: the run is nobody's.
    Nothing,
    /// Its owner.
    Owner(Box<Owner>, Identity),
    /// What cannot be read, or is no owner: whose the run is, nobody can tell.
    NotUnderstood,
}

// === impl Store ===

impl Store {
    /// Who made a job. The record is read only where the owner does not settle it.
    ///
    /// # Errors
    /// S3 cannot be reached or denies the request.
    pub async fn provenance(&self, attribution: &Attribution) -> Result<Provenance, StoreError> {
        let bucket = attribution.prefix.bucket();
        let owner: Option<Owner> =
            self.statement(bucket, &attribution.prefix.key(&RunKey::Owner), Owner::parse).await?;
        let by_owner = attribution.provenance(owner.as_ref(), None);
        if by_owner == Provenance::Proven {
            return Ok(by_owner);
        }
        let record: Option<JobRecord> = self.record(bucket, &attribution.record_key()).await?;
        Ok(attribution.provenance(owner.as_ref(), record.as_ref()))
    }

    /// The record at a key; `None` where there is none, or what is there is no record.
    ///
    /// # Errors
    /// S3 cannot be reached or denies the request.
    pub async fn record(&self, bucket: &str, key: &str) -> Result<Option<JobRecord>, StoreError> {
        self.statement(bucket, key, JobRecord::parse).await
    }

    /// Whose a run is.
    ///
    /// # Errors
    /// S3 cannot be reached or denies the request.
    pub async fn owner(&self, prefix: &RunPrefix) -> Result<OwnerFound, StoreError> {
        Ok(match self.read(prefix.bucket(), &prefix.key(&RunKey::Owner), MAX_STATEMENT_BYTES).await? {
            Read::Nothing => OwnerFound::Nothing,
            Read::Object(object) => Owner::parse(&object.body)
                .map_or(OwnerFound::NotUnderstood, |owner| OwnerFound::Owner(Box::new(owner), object.identity)),
            Read::TooLarge(_) | Read::Withheld(_) => OwnerFound::NotUnderstood,
        })
    }

    /// What submit has written at a key; `None` when there is nothing, or nothing of its making: that confirms no job.
    async fn statement<T>(
        &self,
        bucket: &str,
        key: &str,
        parse: fn(&[u8]) -> Result<T, StatementError>,
    ) -> Result<Option<T>, StoreError> {
        match self.read(bucket, key, MAX_STATEMENT_BYTES).await? {
            Read::Object(object) => Ok(parse(&object.body).ok()),
            Read::Nothing | Read::TooLarge(_) | Read::Withheld(_) => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bucket, denied};
    use serde_json::json;
    use training_core::job::pytorchjob::key;

    const SUBMISSION: &str = "01980000-0000-7000-8000-000000000001";
    const OTHER: &str = "01980000-0000-7000-8000-000000000002";
    const OWNER: &str = "runs/r/framework=hf/owner";

    fn attribution() -> Attribution {
        let job = json!({
            "apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "spec": {},
            "metadata": {"uid": "u1", "annotations": {
                (key::CHECKPOINT_PREFIX): "s3://bucket/runs/r/framework=hf", (key::SUBMISSION): SUBMISSION,
            }},
        });
        let job = serde_json::from_value(job).expect("a job");
        let (namespace, name) = ("training".parse().expect("a namespace"), "hf-r".parse().expect("a name"));
        let bases = ["s3://bucket/runs".parse().expect("a base")];
        Attribution::of(&job, &namespace, &name, &bases).expect("an attribution")
    }

    #[tokio::test]
    async fn the_record_is_read_only_where_the_owner_does_not_settle_it() {
        let owner = |submission: &str| json!({"submission": submission, "namespace": "training", "job": "hf-r"});
        let record = json!({
            "submission": SUBMISSION, "namespace": "training", "job": "hf-r", "uid": "u1",
            "checkpoint_prefix": "s3://bucket/runs/r/framework=hf", "created_at": null,
        });
        let record_key = attribution().record_key();
        for (label, owner, record, provenance, reads) in [
            ("the owner's job", Some(owner(SUBMISSION).to_string()), None, Provenance::Proven, 1),
            ("superseded", Some(owner(OTHER).to_string()), Some(record.to_string()), Provenance::Proven, 2),
            ("an owner that cannot be read", Some("{".to_owned()), Some(record.to_string()), Provenance::Proven, 2),
            ("a lost record", Some(owner(OTHER).to_string()), None, Provenance::Plausible, 2),
            ("a record that cannot be read", None, Some("[]".to_owned()), Provenance::Foreign, 2),
            (
                "a record that is too large",
                None,
                Some(format!("{record}{}", " ".repeat(20_000))),
                Provenance::Foreign,
                2,
            ),
            ("nothing", None, None, Provenance::Foreign, 2),
        ] {
            let objects = [(OWNER.to_owned(), owner), (record_key.clone(), record)];
            let bucket = Bucket::holding(objects.into_iter().filter_map(|(key, body)| Some((key, body?))));
            assert_eq!(bucket.store().provenance(&attribution()).await.expect("an answer"), provenance, "{label}");
            assert_eq!(bucket.take_traffic().calls.len(), reads, "{label}");
        }
        // Who cannot ask does not know.
        assert!(denied().provenance(&attribution()).await.is_err());
    }

    #[tokio::test]
    async fn what_is_there_and_no_owner_is_told_from_nothing() {
        let prefix: RunPrefix = "s3://bucket/runs/r/framework=hf".parse().expect("a prefix");
        let owner = json!({"submission": SUBMISSION, "namespace": "training", "job": "hf-r"}).to_string();
        let doubled = owner.replace('{', &format!("{{\"submission\": \"{OTHER}\","));
        for (label, body, found) in [
            ("nothing", None, Some(None)),
            ("an owner", Some(owner.clone()), Some(Some(SUBMISSION))),
            ("of two fields the last", Some(doubled), Some(Some(SUBMISSION))),
            ("too large", Some(format!("{owner}{}", " ".repeat(MAX_STATEMENT_BYTES))), None),
            ("no owner", Some("{}".to_owned()), None),
        ] {
            let bucket = Bucket::holding(body.map(|body| (OWNER.to_owned(), body)));
            let told = match bucket.store().owner(&prefix).await.expect("an answer") {
                OwnerFound::Nothing => Some(None),
                OwnerFound::Owner(owner, _) => Some(Some(owner.submission.to_string())),
                OwnerFound::NotUnderstood => None,
            };
            assert_eq!(told.as_ref().map(Option::as_deref), found, "{label}");
        }
        assert!(denied().owner(&prefix).await.is_err());
    }
}
