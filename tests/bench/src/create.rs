//! Rounds of Create, `ctr run -d` and `ctr version`, in turn, and what they say together.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use berth_api::v1::{
    Container, CreateRequest, DeleteRequest, Port, SandboxSpec,
    sandbox_service_client::SandboxServiceClient,
};
use serde_json::json;
use tonic::transport::Channel;

use crate::{
    Arguments,
    peer::Ctr,
    statistics::{Sample, rounded},
};

const PORT: u32 = 8080;
/// Rounds that are not counted: page cache, first connection, first cgroup.
const WARM_UP: usize = 3;

pub(crate) async fn measure(arguments: Arguments) -> anyhow::Result<()> {
    let channel = berth_api::connect(&arguments.address).await?;
    let mut berth = SandboxServiceClient::new(channel);
    let ctr = Ctr {
        socket: &arguments.containerd,
        namespace: &arguments.namespace,
    };
    let mut all = Figures::default();
    for round in 0..WARM_UP + arguments.rounds {
        let (up, down, phases) = one_create(&mut berth, &arguments.image, round).await?;
        let id = format!("peer-{round}");
        let run = ctr.run(&arguments.image, &id, &["/bin/busybox", "sleep", "600"])?;
        let removed = ctr.remove(&id)?;
        let overhead = ctr.overhead()?;
        if round < WARM_UP {
            continue;
        }
        all.create.add(up);
        all.delete.add(down);
        all.ctr_run.add(run);
        all.ctr_remove.add(removed);
        all.ctr_overhead.add(overhead);
        for (name, start, took) in phases {
            let (starts, times) = all.phases.entry(name).or_default();
            starts.add(start);
            times.add(took);
        }
    }
    let text = all.in_words();
    if let Some(dir) = arguments.output.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let json = serde_json::to_string_pretty(&all.to_json())?;
    std::fs::write(&arguments.output, json + "\n").context("writing the figures")?;
    #[expect(clippy::print_stdout, reason = "the result of the program")]
    {
        println!("{text}");
    }
    Ok(())
}

#[derive(Debug, Default)]
struct Figures {
    create: Sample,
    delete: Sample,
    ctr_run: Sample,
    ctr_remove: Sample,
    ctr_overhead: Sample,
    /// Start and duration by phase.
    phases: BTreeMap<String, (Sample, Sample)>,
}

impl Figures {
    fn ratio(&self) -> f64 {
        self.create.quantile(0.5) / self.ctr_run.quantile(0.5)
    }

    /// Against the peer without the cost of its process.
    fn ratio_without_client(&self) -> f64 {
        let peer = self.ctr_run.quantile(0.5) - self.ctr_overhead.quantile(0.5);
        self.create.quantile(0.5) / peer
    }

    fn to_json(&self) -> serde_json::Value {
        let phases: BTreeMap<_, _> = self
            .phases
            .iter()
            .map(|(name, (start, took))| {
                (
                    name,
                    json!({ "start": start.to_json(), "took": took.to_json() }),
                )
            })
            .collect();
        json!({
            "n": self.create.len(),
            "ratio_p50": rounded(self.ratio()),
            "ratio_p50_without_ctr_process": rounded(self.ratio_without_client()),
            "create": self.create.to_json(),
            "delete": self.delete.to_json(),
            "ctr_run": self.ctr_run.to_json(),
            "ctr_remove": self.ctr_remove.to_json(),
            "ctr_process": self.ctr_overhead.to_json(),
            "phases": phases,
        })
    }

    fn in_words(&self) -> String {
        let mut text = format!(
            "n = {}, rounds interleaved; median (min-max)\n\
             Create to RUNNING, pause + app, bridged, port open  {}\n\
             ctr run -d, one container, no network               {}\n\
             \x20 of it the ctr process itself (ctr version)        {}\n\
             Delete until all is gone                            {}\n\
             ctr tasks delete -f + containers delete             {}\n\
             ratio of medians, Create / ctr run -d               {:7.2}\n\
             the same without the ctr process                    {:7.2}\n\
             where the time of a Create goes, by phase (start, then how long):\n",
            self.create.len(),
            self.create.in_words(),
            self.ctr_run.in_words(),
            self.ctr_overhead.in_words(),
            self.delete.in_words(),
            self.ctr_remove.in_words(),
            self.ratio(),
            self.ratio_without_client(),
        );
        let mut phases: Vec<_> = self.phases.iter().collect();
        phases.sort_by(|a, b| a.1.0.quantile(0.5).total_cmp(&b.1.0.quantile(0.5)));
        for (name, (start, took)) in phases {
            let start = start.quantile(0.5);
            writeln!(text, "  {name:28} at {start:6.1} ms  {}", took.in_words())
                .expect("writing to a string cannot fail");
        }
        text
    }
}

type Phases = Vec<(String, Duration, Duration)>;

async fn one_create(
    berth: &mut SandboxServiceClient<Channel>,
    image: &str,
    round: usize,
) -> anyhow::Result<(Duration, Duration, Phases)> {
    let id = format!("bench-{round}");
    let spec = SandboxSpec {
        containers: vec![Container {
            name: "app".into(),
            image: image.into(),
            args: ["/bin/busybox", "httpd", "-f", "-p", "8080"]
                .map(String::from)
                .to_vec(),
            ports: vec![Port {
                port: PORT,
                ..Port::default()
            }],
            // As the first process of its namespace httpd does not hear SIGTERM; what is measured is not its grace.
            shutdown_timeout: Some(prost_types::Duration::default()),
            ..Container::default()
        }],
        ..SandboxSpec::default()
    };
    let request = CreateRequest {
        id: id.clone(),
        spec: Some(spec),
        ..CreateRequest::default()
    };
    let begun = Instant::now();
    let created = berth.create(request).await.context("Create")?.into_inner();
    let up = begun.elapsed();
    let begun = Instant::now();
    berth
        .delete(DeleteRequest {
            id,
            expected_generation: 0,
        })
        .await
        .context("Delete")?;
    let down = begun.elapsed();
    let phases = created.sandbox.map(|it| it.phases).unwrap_or_default();
    let phases = phases
        .into_iter()
        .map(|it| {
            let name = format!("{} {}", it.name, it.container).trim().to_owned();
            let read = |it: Option<_>| {
                it.and_then(|it| Duration::try_from(it).ok())
                    .unwrap_or_default()
            };
            (name, read(it.start), read(it.took))
        })
        .collect();
    Ok((up, down, phases))
}
