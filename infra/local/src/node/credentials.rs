//! The AWS identity of the containers: a session of the trainer's role. In a cluster, EKS Pod Identity provides it.

use std::{
    fmt,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_sts::config::Credentials;
use tokio::sync::Mutex;

use crate::config::Config;

/// The emulator's root key, which is no secret.
const ROOT_KEY: &str = "test";
/// How long new containers share a session.
const SHARED_FOR: Duration = Duration::from_mins(1);
/// The longest duration that AWS allows. Pod Identity would renew the keys of a running container; the node does not.
const SESSION_SECONDS: i32 = 12 * 3600;

/// Temporary AWS keys.
#[derive(Clone)]
pub(crate) struct Session {
    pub(crate) access_key_id: String,
    pub(crate) secret_access_key: String,
    pub(crate) token: String,
}

/// Assumes the trainer's role at most once a minute.
#[derive(Debug)]
pub(crate) struct SessionSource {
    client: aws_sdk_sts::Client,
    role_arn: String,
    newest: Mutex<Option<(Session, Instant)>>,
}

// === impl Session ===

impl Session {
    pub(crate) fn new(access_key_id: &str, secret_access_key: &str, token: &str) -> Self {
        Self {
            access_key_id: access_key_id.to_owned(),
            secret_access_key: secret_access_key.to_owned(),
            token: token.to_owned(),
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Session").field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}

// === impl SessionSource ===

impl SessionSource {
    pub(crate) async fn new(config: &Config) -> Self {
        let sdk = aws_config::defaults(BehaviorVersion::latest())
            .region(Region::new(config.aws_region.clone()))
            .endpoint_url(&config.aws_endpoint_url)
            .credentials_provider(Credentials::new(ROOT_KEY, ROOT_KEY, None, None, "emulator"))
            .load()
            .await;
        Self {
            client: aws_sdk_sts::Client::new(&sdk),
            role_arn: config.trainer_role_arn.clone(),
            newest: Mutex::new(None),
        }
    }

    /// Returns a session for a container that starts now.
    pub(crate) async fn session(&self) -> anyhow::Result<Session> {
        let mut newest = self.newest.lock().await;
        if let Some((session, taken_at)) = newest.as_ref()
            && taken_at.elapsed() < SHARED_FOR
        {
            return Ok(session.clone());
        }
        let request = self.client.assume_role().role_arn(&self.role_arn).role_session_name("twin-node");
        let answer = request.duration_seconds(SESSION_SECONDS).send();
        let answer = answer.await.with_context(|| format!("cannot assume {}", self.role_arn))?;
        let keys = answer.credentials.context("the assumed role came without keys")?;
        let session = Session::new(&keys.access_key_id, &keys.secret_access_key, &keys.session_token);
        *newest = Some((session.clone(), Instant::now()));
        Ok(session)
    }
}
