//! S3 in memory behind the real client, for tests: the SDK's requests are answered at its HTTP layer, so that its
//! signing, retries, time-outs and parsers are in the test, and nothing of ours is faked.

mod wire;

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    hash::{DefaultHasher, Hash, Hasher},
    ops::Range,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use aws_sdk_s3::{
    Client,
    config::{BehaviorVersion, Credentials, Region, timeout::TimeoutConfig},
};

use serde_json::json;
use training_run::{
    layout::{RunKey, RunPrefix},
    names::Step,
};

use crate::Store;

pub use wire::Answer;

/// The `ETag` of every object that was there from the beginning.
pub const ETAG: &str = "\"e\"";

/// Key to body and `ETag`.
type Objects = BTreeMap<String, (String, String)>;

/// A bucket, whatever it is called, that can be read, listed, written and deleted from, also on conditions. Its clones
/// are the same bucket.
#[derive(Clone, Default)]
pub struct Bucket {
    objects: Arc<Mutex<Objects>>,
    traffic: Arc<Mutex<Traffic>>,
}

/// A request that reached the bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// `GET`, `HEAD`, `PUT`, `DELETE`, or `LIST`.
    pub verb: &'static str,
    /// The key, or the prefix that is listed.
    pub key: String,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// It is done and answered.
    Serve,
    /// Refused with this status and code; nothing is done.
    Refuse(u16, &'static str),
    /// Done, and then answered with this status and code.
    DoAndRefuse(u16, &'static str),
    /// Never answered; nothing is done.
    Hang,
    /// Done, and never answered.
    DoAndHang,
    /// Done, and the connection is cut before the answer.
    DoAndCut,
}

/// How many requests there were, and the bytes of their bodies and answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// The requests, in order.
    pub calls: Vec<Call>,
    /// Bytes of the bodies, both ways.
    pub bytes: usize,
}

/// Decides over a request when it arrives; may take its time, and may never end.
type Judge = dyn Fn(&Call) -> Pin<Box<dyn Future<Output = Treatment> + Send>> + Send + Sync;

// === impl Bucket ===

impl Bucket {
    /// A bucket that holds these objects.
    #[must_use]
    pub fn holding<K: Into<String>>(objects: impl IntoIterator<Item = (K, String)>) -> Self {
        let objects = objects.into_iter().map(|(key, body)| (key.into(), (body, ETAG.to_owned())));
        Self { objects: Arc::new(Mutex::new(objects.collect())), ..Self::default() }
    }

    /// A bucket that holds an indexed run, whose owner is the submission that wrote it. Its checkpoints are alike but for
    /// their steps, which have the same number of digits.
    ///
    /// # Panics
    /// When the steps are no such ones.
    pub async fn holding_run(prefix: &RunPrefix, submission: &str, steps: Range<u64>) -> Self {
        let key = |step: u64, key: fn(Step) -> RunKey<'static>| prefix.key(&key(Step::new(step).expect("a step")));
        let first = steps.start;
        let path = format!("checkpoint-{first}/model.safetensors");
        let marker = json!({
            "layout": 1, "framework": prefix.framework(), "step": first, "saved_at": 1_795_468_558.1, "submission": submission,
            "attempt": 1, "parent": null, "world_size": 2, "files": [{"path": path, "size": 4, "etag": ETAG}],
            "metrics": {"loss": 2.31}, "metadata": {"hf_checkpoint_dir": format!("checkpoints/checkpoint-{first}")},
        });
        let file = (format!("{}{path}", prefix.checkpoints_folder()), "data".to_owned());
        let alike = Self::holding([(key(first, RunKey::Marker), marker.to_string()), file]);
        alike.store().index(prefix, Step::new(first).expect("a step")).await.expect("indexed");

        let bucket = Self::default();
        let owner = json!({"submission": submission, "namespace": "training", "job": "hf-r"});
        bucket.write(&prefix.key(&RunKey::Owner), &owner.to_string());
        let at = |text: &str, step: u64| text.replace(&first.to_string(), &step.to_string());
        let down = |step: u64| (Step::MAX - step).to_string();
        let indexed = |name: &str, step: u64| name.replace(&down(first), &down(step));
        bucket.with(|objects| {
            for step in steps {
                for (key, (body, etag)) in &*alike.objects.lock().unwrap_or_else(PoisonError::into_inner) {
                    let (name, etag) = match key.strip_prefix(&prefix.index_folder()) {
                        Some(name) => (format!("{}{}", prefix.index_folder(), indexed(name, step)), ETAG.to_owned()),
                        None => (at(key, step), etag.clone()),
                    };
                    objects.insert(name, (at(body, step), etag));
                }
            }
        });
        bucket
    }

    /// A store of this bucket.
    #[must_use]
    pub fn store(&self) -> Store {
        self.store_judged_by(|_| std::future::ready(Treatment::Serve))
    }

    /// A store of this bucket whose every request is judged first. It has the time-outs and retries of the indexer.
    #[must_use]
    pub fn store_judged_by<F>(&self, judge: impl Fn(&Call) -> F + Send + Sync + 'static) -> Store
    where
        F: Future<Output = Treatment> + Send + 'static,
    {
        let judge: Arc<Judge> = Arc::new(move |call| Box::pin(judge(call)));
        let timeouts = TimeoutConfig::builder()
            .operation_attempt_timeout(Duration::from_secs(5))
            .operation_timeout(Duration::from_secs(15))
            .build();
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::from_static("us-east-1"))
            .credentials_provider(Credentials::new("key", "secret", None, None, "test"))
            .endpoint_url("http://s3.test")
            .force_path_style(true)
            .timeout_config(timeouts)
            .http_client(wire::client(self.clone(), judge));
        Store::new(Client::from_conf(config.build()))
    }

    /// The body of an object.
    #[must_use]
    pub fn body(&self, key: &str) -> Option<String> {
        self.with(|objects| objects.get(key).map(|(body, _)| body.clone()))
    }

    /// The `ETag` of an object.
    #[must_use]
    pub fn etag(&self, key: &str) -> Option<String> {
        self.with(|objects| objects.get(key).map(|(_, etag)| etag.clone()))
    }

    /// All keys.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        self.with(|objects| objects.keys().cloned().collect())
    }

    /// All objects whose keys contain a part, with their bodies.
    #[must_use]
    pub fn objects(&self, part: &str) -> BTreeMap<String, String> {
        let of_part = |objects: &mut Objects| {
            let found = objects.iter().filter(|(key, _)| key.contains(part));
            found.map(|(key, (body, _))| (key.clone(), body.clone())).collect()
        };
        self.with(of_part)
    }

    /// Put an object there past the store, as another writer does.
    pub fn write(&self, key: &str, body: &str) {
        self.with(|objects| objects.insert(key.to_owned(), (body.to_owned(), etag_of(body))));
    }

    /// Take an object away past the store.
    pub fn remove(&self, key: &str) {
        self.with(|objects| objects.remove(key));
    }

    /// What came to the bucket since it was asked last.
    #[must_use]
    pub fn take_traffic(&self) -> Traffic {
        std::mem::take(&mut *self.traffic.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn with<T>(&self, act: impl FnOnce(&mut Objects) -> T) -> T {
        act(&mut self.objects.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bucket").finish_non_exhaustive()
    }
}

/// As in S3, the same content has the same `ETag`.
fn etag_of(body: &str) -> String {
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    format!("\"{:016x}\"", hasher.finish())
}

/// A store whose bucket holds these objects.
#[must_use]
pub fn holding<K: Into<String>>(objects: impl IntoIterator<Item = (K, String)>) -> Store {
    Bucket::holding(objects).store()
}

/// A store whose bucket nobody may use.
#[must_use]
pub fn denied() -> Store {
    Bucket::default().store_judged_by(|_| std::future::ready(Treatment::Refuse(403, "AccessDenied")))
}
