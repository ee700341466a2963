//! `twin up` from the supervisor's side: tools, components, deployment, `.local/env`. Every step is skipped when what
//! it would make is there, so the same sequence serves the first start, a second one, and a redeployment.

use std::fs;

use anyhow::Result;

use crate::{
    cluster, components, deploy,
    ministack::{self, Cluster},
    paths::Paths,
    pki,
    ports::Ports,
    probe::Probe,
    progress::Progress,
    supervisor::Supervisor,
    tools::Tools,
};

/// Everything that a request works on.
pub(crate) struct Twin {
    pub(crate) paths: Paths,
    pub(crate) ports: Ports,
    pub(crate) cluster: Cluster,
    pub(crate) supervisor: Supervisor,
    pub(crate) probe: Probe,
}

// === impl Twin ===

impl Twin {
    /// Brings everything up and writes `.local/env` last. A bare one has neither node nor functions: for work on those.
    pub(crate) async fn up(&self, progress: &Progress, bare: bool) -> Result<()> {
        let tools = Tools { paths: self.paths.clone(), progress: progress.clone() };
        tools.uv().await?;
        let control_plane = async {
            tools.go_binaries().await?;
            self.start_control_plane(&tools).await
        };
        let aws = async {
            tools.virtual_env("ministack").await?;
            self.start(progress, components::ministack(&self.paths, &self.ports, self.cluster.clone())).await
        };
        if bare {
            tokio::try_join!(control_plane, aws)?;
            return Ok(());
        }
        let control_plane = async {
            control_plane.await?;
            self.start(progress, components::node(&self.paths, &self.ports)?).await
        };
        let functions = async {
            tools.virtual_env("sam").await?;
            tools.virtual_env("lambda").await?;
            deploy::build(&self.paths, &tools).await
        };
        let ((), (), build, ()) = tokio::try_join!(control_plane, aws, functions, tools.trainer())?;

        let deployment = deploy::deploy(self, &tools, &build).await?;
        self.start(progress, components::front(&self.paths, &self.ports, &deployment)?).await?;
        deploy::write_env(&self.paths, &self.ports, &deployment)?;
        progress.say("ready: .local/env is written");
        Ok(())
    }

    async fn start_control_plane(&self, tools: &Tools) -> Result<()> {
        let (paths, ports, progress) = (&self.paths, &self.ports, &tools.progress);
        self.start(progress, components::etcd(paths, ports)).await?;
        self.start(progress, components::apiserver(paths, ports)).await?;
        cluster::apply(paths, ports, tools).await?;
        tokio::try_join!(
            self.start(progress, components::controller_manager(paths, ports)),
            self.start(progress, components::scheduler(paths, ports)),
            self.start(progress, components::operator(paths, ports)),
        )?;
        Ok(())
    }

    async fn start(&self, progress: &Progress, spec: components::Spec) -> Result<()> {
        if self.supervisor.runs(&spec) {
            return Ok(());
        }
        let name = spec.name;
        progress.step(&format!("starting {name}"), self.supervisor.ensure(spec)).await
    }
}

/// What a component reads at its start: made before the first one is started.
pub(crate) fn prepare(paths: &Paths) -> Result<(Ports, Cluster)> {
    fs::create_dir_all(paths.home())?;
    fs::create_dir_all(paths.pods())?;
    let ports = Ports::settle(paths)?;
    pki::make(paths)?;
    pki::make_other(paths)?;
    let cluster = Cluster::new(paths, &ports)?;
    pki::write_kubeconfigs(paths, &ports, &cluster.token_review_url(&ports))?;
    ministack::make_folders(paths)?;
    crate::cluster::make_operator_folders(paths)?;
    Ok((ports, cluster))
}
