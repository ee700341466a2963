//! The settings of this function, read once at start.

use training_cluster::ClusterSettings;
use training_core::{
    job::manifest::Platform,
    request::{Rules, image::AllowedImages},
    settings::{SettingError, Settings},
};

/// All settings; the README's table explains them.
pub(crate) struct Config {
    pub(crate) cluster: ClusterSettings,
    pub(crate) token_secret_arn: String,
    pub(crate) rules: Rules,
    pub(crate) platform: Platform,
}

// === impl Config ===

impl Config {
    pub(crate) fn read<F: Fn(&'static str) -> Option<String>>(settings: &Settings<F>) -> Result<Self, SettingError> {
        let cluster = ClusterSettings::read(settings)?;
        let allowed_images: Option<String> = settings.optional("ALLOWED_IMAGES")?;
        Ok(Self {
            token_secret_arn: settings.required("TOKEN_SECRET_ARN")?,
            rules: Rules {
                runs_base_uris: settings.list("RUNS_BASE_URIS")?,
                default_image: settings.required("DEFAULT_IMAGE")?,
                allowed_images: AllowedImages::from_list(&allowed_images.unwrap_or_default()),
                allowed_secrets: settings.list_or_none("ALLOWED_SECRETS")?,
                namespaces: cluster.namespaces.clone(),
            },
            platform: Platform {
                train_script: settings.required("TRAIN_SCRIPT")?,
                service_account: settings.required("TRAINER_SERVICE_ACCOUNT")?,
                job_ttl_seconds: settings.required("JOB_TTL_SECONDS")?,
                max_restarts: settings.required("MAX_RESTARTS")?,
                grace_seconds: settings.required("GRACE_SECONDS")?,
            },
            cluster,
        })
    }
}
