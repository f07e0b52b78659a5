//! `spillway explain`: explains the decision on the pods of a manifest or of the cluster.

mod explained;
mod known_cluster;
mod live_cluster;
mod placement;
mod reason_docs;
mod render;
mod webhook_scope;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use anyhow::Context;

use self::{
    explained::Explained,
    known_cluster::KnownCluster,
    live_cluster::{ClusterObjects, LiveCluster, Target},
    placement::Placement,
};
use super::{
    config,
    manifest::{self, Document, PodTemplate},
    output::{ExitStatus, print_stdout},
};
use crate::{
    burst::{self, Decision, Outcome, Part, Verdict},
    config::{Configuration, GenerationSetting, Overrides, PodSettings, Settings},
};

/// Explain what happens to the pods of a manifest or of the cluster, and why
///
/// Makes the webhook's decision with the same code. With -f it needs no cluster. It reads Pod, Deployment, StatefulSet,
/// ReplicaSet, DaemonSet, Job, CronJob, lists of them, and AdmissionReview. Namespace, ServiceAccount, Node,
/// NetworkPolicy and Service objects describe the cluster. Other kinds are skipped.
///
/// With KIND/NAME it reads the workload and its context from the cluster, and the configuration from the ConfigMap
/// spillway-config. It finds the cluster as kubectl does. For an existing pod it also shows where the pod runs, and
/// why. With --missed it lists the existing pods that the webhook missed.
///
/// Exits with 1 if a pod that should overflow cannot, or if the webhook missed a pod.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["targets", "files", "missed", "reason", "reasons"]))]
pub(super) struct Args {
    /// Workloads in the cluster, such as deploy/web
    #[arg(value_name = "KIND/NAME")]
    targets: Vec<Target>,

    /// Manifest, YAML or JSON, or - for standard input; may be repeated
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    files: Vec<PathBuf>,

    /// List the pods in the cluster that the webhook missed, with the decision it would make
    #[arg(long)]
    missed: bool,

    /// Explain a reason, such as HostPathVolume
    #[arg(long, value_name = "CODE")]
    reason: Option<String>,

    /// Print all reasons as Markdown
    #[arg(long)]
    reasons: bool,

    /// Path of the SpillwayConfiguration file; by default the cluster's configuration with KIND/NAME, otherwise the
    /// built-in configuration
    #[arg(long, env = "SPILLWAY_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    /// Namespace; with -f, for objects without a namespace; with --missed, by default all opted-in namespaces
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,

    /// Context of the kubeconfig
    #[arg(long, value_name = "NAME", conflicts_with_all = ["files", "reason", "reasons"])]
    context: Option<String>,

    /// Value of the namespace's label spillway.dev/burst, unless a Namespace object has it
    #[arg(long, default_value = "enabled", value_name = "NAME")]
    profile: String,

    /// Annotations of the namespace
    #[arg(long, value_name = "KEY=VALUE,...", value_delimiter = ',', value_parser = key_value)]
    namespace_annotations: Vec<(String, String)>,

    /// Manifest with ServiceAccount objects; one without a namespace applies to all namespaces
    #[arg(long = "service-account", value_name = "FILE")]
    service_accounts: Vec<PathBuf>,

    /// Output format
    #[arg(short, long, default_value = "text", value_name = "FORMAT")]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// Text for people
    Text,
    /// Array of explanations
    Json,
    /// The same as YAML
    Yaml,
    /// Only the JSON patch, one line per pod
    Patch,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitStatus> {
    if args.reasons {
        return print_stdout(reason_docs::markdown().as_bytes());
    }
    if let Some(code) = &args.reason {
        return print_stdout(reason_docs::entry(code)?.as_bytes());
    }
    let is_live = args.missed || !args.targets.is_empty();
    let Input { configuration, documents, namespace, unread, on_virtual } =
        if is_live { read_cluster(args)? } else { read_files(args)? };
    let mut cluster =
        KnownCluster::new(&args.profile, &args.namespace_annotations, &configuration.virtual_nodes.selector);
    cluster.on_virtual = on_virtual;
    cluster.add_documents(&documents)?;
    for file in &args.service_accounts {
        cluster.add_documents(&manifest::read(file)?)?;
    }
    let templates = templates(&documents)?;
    anyhow::ensure!(args.missed || !templates.is_empty(), "the documents contain no pod and no workload");
    let explained: Vec<_> = templates
        .iter()
        .map(|template| explain(template, &namespace, &configuration, &cluster, &unread))
        .collect::<anyhow::Result<_>>()?;
    print_stdout(&match args.output {
        Output::Text if args.missed => render::table(&explained)?,
        Output::Text => render::text(&explained)?,
        Output::Json => render::json(&explained),
        Output::Yaml => render::yaml(&explained)?,
        Output::Patch => render::patches(&explained),
    })?;
    let has_findings = explained.iter().any(|one| args.missed || one.is_refused());
    Ok(if has_findings { ExitStatus::Findings } else { ExitStatus::Success })
}

/// The pods to explain, and the configuration.
struct Input {
    configuration: Configuration,
    documents: Vec<Document>,
    /// The namespace of objects without one.
    namespace: String,
    /// The kinds that could not be read, as plurals.
    unread: Vec<String>,
    /// Number of pods on virtual nodes by namespace, if known.
    on_virtual: BTreeMap<String, usize>,
}

fn read_files(args: &Args) -> anyhow::Result<Input> {
    let configuration = config::load(args.config.as_deref())?;
    let mut documents = Vec::new();
    for file in &args.files {
        documents.extend(manifest::read(file)?);
    }
    let namespace = args.namespace.clone().unwrap_or_else(|| "default".to_owned());
    Ok(Input { configuration, documents, namespace, unread: Vec::new(), on_virtual: BTreeMap::new() })
}

#[tokio::main(flavor = "current_thread")]
async fn read_cluster(args: &Args) -> anyhow::Result<Input> {
    let live = LiveCluster::connect(args.context.as_deref(), args.namespace.as_deref()).await?;
    let configuration = match (&args.config, live.configuration().await) {
        (Some(file), _) => config::load(Some(file))?,
        (None, Some(text)) => crate::config::parse(&text).context("ConfigMap spillway-system/spillway-config")?,
        (None, None) => {
            eprintln!("cannot read ConfigMap spillway-system/spillway-config: using the built-in configuration");
            Configuration::default()
        }
    };
    let mut workloads = live.workloads(&args.targets).await?;
    if args.missed {
        workloads.extend(live.missed(args.namespace.as_deref()).await?);
    }
    let mut namespaces: BTreeSet<_> = workloads.iter().filter_map(Document::namespace).map(str::to_owned).collect();
    if !args.targets.is_empty() {
        namespaces.insert(live.namespace.clone());
    }
    let selector = &configuration.virtual_nodes.selector;
    let ClusterObjects { documents, unread, on_virtual } = live.cluster_objects(&namespaces, selector).await?;
    workloads.extend(documents);
    Ok(Input { configuration, documents: workloads, namespace: live.namespace, unread, on_virtual })
}

fn templates(documents: &[Document]) -> anyhow::Result<Vec<PodTemplate>> {
    let mut templates = Vec::new();
    for document in documents {
        match document.pod_template()? {
            Some(template) => templates.push(template),
            None if known_cluster::is_cluster_object(document) => {}
            None => eprintln!("skipped {}: not a workload", document.title()),
        }
    }
    Ok(templates)
}

fn explain<'a>(
    template: &'a PodTemplate,
    default_namespace: &str,
    configuration: &'a Configuration,
    cluster: &'a KnownCluster,
    unread: &'a [String],
) -> anyhow::Result<Explained<'a>> {
    let name = template.namespace.clone().unwrap_or_else(|| default_namespace.to_owned());
    let seen = template.as_admitted(|account| cluster.mounts_token(&name, account));
    let pod = template.view(&seen)?;

    let namespace = cluster.namespace(&name);
    let of_namespace = Overrides::read(namespace.annotations.iter().map(|(k, v)| (k.as_str(), v.as_str())));
    let profile = webhook_scope::profile(&name, namespace, &pod);
    let settings = profile
        .as_ref()
        .ok()
        .map(|profile| configuration.settings(profile, &of_namespace, &Overrides::read(pod.annotations())));
    let policies = cluster.policies(&name);
    let account = cluster.service_account(&name, pod.service_account());
    let decision = match &settings {
        None => Decision::opted_out(),
        Some(settings) => burst::decide(&pod, settings, &cluster.facts(&name, namespace, account, &policies)),
    };
    let settings = settings.and_then(PodSettings::known);
    let patch = burst::json_patch(&pod, &decision).unwrap_or_default();
    let is_auto = configuration.virtual_nodes.generation == GenerationSetting::Auto;
    let is_called = decision.verdict != Verdict::OptedOut;
    let placement = template.live_object.as_ref().map(|pod| Placement::of(pod, cluster, is_called, settings.as_ref()));
    Ok(Explained {
        generations_unknown: is_auto && !cluster.knows_virtual_nodes(),
        template,
        profile,
        patch,
        unreachable_services: unreachable_services(&decision, cluster, &name),
        placement,
        is_closed: cluster.are_virtual_nodes_closed(),
        at_cap: at_cap(settings.as_ref(), cluster, &name),
        decision,
        unread,
        namespace: name,
        settings,
    })
}

/// Returns the Services that a pod with this decision cannot reach without kube-proxy.
fn unreachable_services(decision: &Decision<'_>, cluster: &KnownCluster, namespace: &str) -> Vec<String> {
    let opts_out = matches!(decision.outcome(Part::KubeProxy), Outcome::Added | Outcome::Kept);
    let services = if opts_out { cluster.cluster_ips(namespace) } else { Vec::new() };
    services.into_iter().map(str::to_owned).collect()
}

/// Returns the number of the namespace's pods on virtual nodes, if it has reached its cap.
fn at_cap(settings: Option<&Settings<'_>>, cluster: &KnownCluster, namespace: &str) -> Option<usize> {
    let (count, cap) = (*cluster.on_virtual.get(namespace)?, settings?.max_pods?);
    (count >= cap as usize).then_some(count)
}
