//! Builds the functions with `sam build`.

use std::path::PathBuf;

use anyhow::Result;
use tokio::process::Command;

use crate::{
    names::REGION,
    paths::Paths,
    setup::{command, stamp::Stamp, tools::Tools},
};

/// The production profile would take more than a minute to link a function.
const QUICK_BUILD: [(&str, &str); 3] = [
    ("CARGO_PROFILE_RELEASE_LTO", "off"),
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
];

/// The sources of the functions.
fn sources(paths: &Paths) -> Vec<PathBuf> {
    ["template.yaml", "samconfig.toml", "Cargo.toml", "Cargo.lock", "rust-toolchain.toml", ".cargo", "functions"]
        .map(|source| paths.source(source))
        .into()
}

pub(crate) fn build_folder(paths: &Paths) -> PathBuf {
    paths.local().join("sam")
}

/// Builds the three functions. `twin clean` keeps them.
pub(crate) async fn build(paths: &Paths, tools: &Tools) -> Result<Stamp> {
    let stamp = Stamp::new(paths.tool_stamp("sam-build"), &sources(paths), &[architecture()])?;
    let built = build_folder(paths);
    if stamp.is_current() && built.join("template.yaml").exists() {
        return Ok(stamp);
    }
    let mut command = Command::new(paths.venv("sam").join("bin/sam"));
    command
        .current_dir(paths.root())
        .env("PATH", tools.path_with(&["lambda"])?)
        .env("SAM_CLI_TELEMETRY", "0")
        // The folder of the workspace, which the template's build method expects.
        .env_remove("CARGO_TARGET_DIR")
        .envs(QUICK_BUILD)
        .args(["build", "--config-env", "twin", "--region", REGION, "--build-dir"])
        .arg(&built)
        .args(["--parameter-overrides", &format!("Architecture={}", architecture())]);
    let log = paths.log("sam-build");
    stamp.make(tools.progress.step("sam build", command::run(&mut command, &log))).await?;
    Ok(stamp)
}

/// The functions run on this machine, so they are built for it.
pub(crate) fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "x86_64" }
}
