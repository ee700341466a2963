//! The settings of this function, read once at start.

use training_cluster::ClusterSettings;
use training_core::settings::{SettingError, Settings};
use training_run::layout::S3Uri;

/// All settings; the README's table explains them.
pub(crate) struct Config {
    pub(crate) cluster: ClusterSettings,
    pub(crate) token_secret_arn: String,
    pub(crate) runs_base_uris: Vec<S3Uri>,
}

// === impl Config ===

impl Config {
    pub(crate) fn read<F: Fn(&'static str) -> Option<String>>(settings: &Settings<F>) -> Result<Self, SettingError> {
        Ok(Self {
            cluster: ClusterSettings::read(settings)?,
            token_secret_arn: settings.required("TOKEN_SECRET_ARN")?,
            runs_base_uris: settings.list("RUNS_BASE_URIS")?,
        })
    }
}
