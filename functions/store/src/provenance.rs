//! Who made a job, as the run's owner and the job's record in the bucket say.

use serde::de::DeserializeOwned;
use training_core::job::provenance::{Attribution, Provenance};
use training_run::{
    layout::RunKey,
    owner::{JobRecord, Owner},
};

use crate::{Read, Store, StoreError};

/// Largest owner or record that is read, in bytes; submit's have some hundred.
const MAX_STATEMENT_BYTES: usize = 16 * 1024;

// === impl Store ===

impl Store {
    /// Who made a job. The record is read only where the owner does not settle it.
    ///
    /// # Errors
    /// S3 cannot be reached or denies the request.
    pub async fn provenance(&self, attribution: &Attribution) -> Result<Provenance, StoreError> {
        let bucket = attribution.prefix.bucket();
        let owner: Option<Owner> = self.statement(bucket, &attribution.prefix.key(&RunKey::Owner)).await?;
        let by_owner = attribution.provenance(owner.as_ref(), None);
        if by_owner == Provenance::Proven {
            return Ok(by_owner);
        }
        let record: Option<JobRecord> = self.statement(bucket, &attribution.record_key()).await?;
        Ok(attribution.provenance(owner.as_ref(), record.as_ref()))
    }

    /// The record at a key; `None` where there is none, or what is there is no record.
    ///
    /// # Errors
    /// S3 cannot be reached or denies the request.
    pub async fn record(&self, bucket: &str, key: &str) -> Result<Option<JobRecord>, StoreError> {
        self.statement(bucket, key).await
    }

    /// What submit has written at a key; `None` when there is nothing, or nothing of its making: that confirms no job.
    async fn statement<T: DeserializeOwned>(&self, bucket: &str, key: &str) -> Result<Option<T>, StoreError> {
        match self.read(bucket, key, MAX_STATEMENT_BYTES).await? {
            Read::Object(object) => Ok(serde_json::from_slice(&object.body).ok()),
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
}
