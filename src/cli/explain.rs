//! `spillway explain`: what would happen to the pods of a manifest or of the cluster, and why.

mod catalogue;
mod facts;
mod live;
mod placement;
mod render;
mod scope;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use anyhow::Context;
use serde_json::Value;

use self::{
    facts::Facts,
    live::{Live, Surroundings, Target},
    placement::Placement,
    scope::NotCalled,
};
use super::{
    Ended, config,
    manifest::{self, Document, PodTemplate},
    print_out,
};
use json_patch::Patch as JsonPatch;

use crate::{
    burst::{self, Decision, Outcome, Part, Verdict, reasons},
    config::{Configuration, GenerationSetting, Overrides, PodSettings, Settings},
    eligibility::Finding,
};

/// Explain what happens to the pods of a manifest or of the cluster, and why
///
/// Makes the decision that the webhook would make, with the same code. With -f it needs no cluster: it reads Pod, Deployment,
/// StatefulSet, ReplicaSet, DaemonSet, Job, CronJob, Lists of them, and AdmissionReview; Namespace, ServiceAccount, Node,
/// NetworkPolicy and Service objects among the documents are taken as what the cluster knows; other kinds are skipped. With
/// KIND/NAME it reads workload and surroundings from the cluster, which it finds as kubectl does, and the configuration from
/// its ConfigMap spillway-config. Of a pod that exists it also says where it is, and why there. With --missed it lists the pods
/// that exist although the webhook was not asked about them.
///
/// Exits with 1 when a pod that was to overflow has to stay, and when a pod was missed.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["targets", "files", "missed", "reason", "reasons"]))]
pub(super) struct Args {
    /// Workloads of the cluster, such as deploy/web
    #[arg(value_name = "KIND/NAME")]
    targets: Vec<Target>,

    /// A manifest, YAML or JSON, or - for standard input; may be repeated
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    files: Vec<PathBuf>,

    /// List the pods of the cluster that Spillway should have been asked about and was not, with what it would decide
    #[arg(long)]
    missed: bool,

    /// Explain a reason by its name, such as HostPathVolume
    #[arg(long, value_name = "CODE")]
    reason: Option<String>,

    /// Print all reasons, as Markdown
    #[arg(long)]
    reasons: bool,

    /// The SpillwayConfiguration file; without one, the cluster's with KIND/NAME, else the built-in defaults
    #[arg(long, env = "SPILLWAY_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    /// The namespace; with -f, that of objects that name none; with --missed, all that have opted in unless one is given
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,

    /// The kubeconfig's context
    #[arg(long, value_name = "NAME", conflicts_with_all = ["files", "reason", "reasons"])]
    context: Option<String>,

    /// What the namespace's label spillway.dev/burst says, unless a Namespace object says it
    #[arg(long, default_value = "enabled", value_name = "NAME")]
    profile: String,

    /// Annotations of the namespace
    #[arg(long, value_name = "KEY=VALUE,...", value_delimiter = ',', value_parser = key_value)]
    namespace_annotations: Vec<(String, String)>,

    /// A manifest with ServiceAccount objects; one without a namespace stands for its name in every namespace
    #[arg(long = "service-account", value_name = "FILE")]
    service_accounts: Vec<PathBuf>,

    /// How to print it
    #[arg(short, long, default_value = "text", value_name = "FORMAT")]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// For people
    Text,
    /// An array of explanations
    Json,
    /// The same as YAML
    Yaml,
    /// The JSON patch alone, one line for each pod
    Patch,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// A pod, the decision on it, and what it rests on.
struct Explained<'a> {
    template: &'a PodTemplate,
    namespace: String,
    /// The profile that applies, or why the API server never calls.
    profile: Result<&'a str, NotCalled>,
    settings: Option<Settings<'a>>,
    decision: Decision<'a>,
    /// The operations that the webhook would send; empty if there is nothing to change.
    patch: JsonPatch,
    /// The Services that the pod cannot reach without kube-proxy.
    cut_off: Vec<String>,
    /// Whether the pod is held to both generations only because nobody said which there are.
    is_held_to_both: bool,
    /// Where a pod that exists is.
    placement: Option<Placement>,
    /// Whether no virtual node takes pods: closed by a cap or the circuit breaker, cordoned, or not Ready.
    is_closed: bool,
    /// How many pods of its namespace are on virtual nodes, where the namespace has a cap and has reached it.
    at_cap: Option<usize>,
    /// What the decision would rest on but could not be read, by the plurals of its kinds.
    unread: &'a [String],
}

pub(super) fn run(args: &Args) -> anyhow::Result<Ended> {
    if args.reasons {
        return print_out(catalogue::markdown().as_bytes());
    }
    if let Some(code) = &args.reason {
        return print_out(catalogue::entry(code)?.as_bytes());
    }
    let is_live = args.missed || !args.targets.is_empty();
    let Input { configuration, documents, namespace, unread, on_virtual } =
        if is_live { read_cluster(args)? } else { read_files(args)? };
    let mut facts = Facts::new(&args.profile, &args.namespace_annotations, &configuration.virtual_nodes.selector);
    facts.on_virtual = on_virtual;
    facts.learn(&documents)?;
    for file in &args.service_accounts {
        facts.learn(&manifest::read(file)?)?;
    }
    let templates = templates(&documents)?;
    anyhow::ensure!(args.missed || !templates.is_empty(), "no pod and no workload among the documents");
    let explained: Vec<_> = templates
        .iter()
        .map(|template| explain(template, &namespace, &configuration, &facts, &unread))
        .collect::<anyhow::Result<_>>()?;
    print_out(&match args.output {
        Output::Text if args.missed => render::table(&explained)?,
        Output::Text => render::text(&explained)?,
        Output::Json => render::json(&explained)?,
        Output::Yaml => render::yaml(&explained)?,
        Output::Patch => render::patches(&explained),
    })?;
    let has_findings = explained.iter().any(|one| args.missed || one.is_refused());
    Ok(if has_findings { Ended::Findings } else { Ended::Fine })
}

/// What is explained, and by which configuration.
struct Input {
    configuration: Configuration,
    documents: Vec<Document>,
    /// Of objects that name none.
    namespace: String,
    /// The kinds that the cluster did not let us read.
    unread: Vec<String>,
    /// Of each namespace, how many of its pods are on virtual nodes; nothing where it is not known.
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
    let live = Live::connect(args.context.as_deref(), args.namespace.as_deref()).await?;
    let configuration = match (&args.config, live.configuration().await) {
        (Some(file), _) => config::load(Some(file))?,
        (None, Some(text)) => crate::config::parse(&text).context("ConfigMap spillway-system/spillway-config")?,
        (None, None) => {
            eprintln!("ConfigMap spillway-system/spillway-config cannot be read: explained by the built-in defaults");
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
    let Surroundings { documents, unread, on_virtual } = live.surroundings(&namespaces, selector).await?;
    workloads.extend(documents);
    Ok(Input { configuration, documents: workloads, namespace: live.namespace, unread, on_virtual })
}

fn templates(documents: &[Document]) -> anyhow::Result<Vec<PodTemplate>> {
    let mut templates = Vec::new();
    for document in documents {
        match document.pod_template()? {
            Some(template) => templates.push(template),
            None if facts::is_fact(document) => {}
            None => eprintln!("skipped {}: it makes no pods", document.title()),
        }
    }
    Ok(templates)
}

fn explain<'a>(
    template: &'a PodTemplate,
    default_namespace: &str,
    configuration: &'a Configuration,
    facts: &'a Facts,
    unread: &'a [String],
) -> anyhow::Result<Explained<'a>> {
    let name = template.namespace.clone().unwrap_or_else(|| default_namespace.to_owned());
    let seen = template.seen(|account| facts.mounts_token(&name, account));
    let pod = template.view(&seen)?;

    let namespace = facts.namespace(&name);
    let of_namespace = Overrides::read(namespace.annotations.iter().map(|(k, v)| (k.as_str(), v.as_str())));
    let profile = scope::profile(&name, namespace, &pod);
    let settings = profile
        .as_ref()
        .ok()
        .map(|profile| configuration.settings(profile, &of_namespace, &Overrides::read(pod.annotations())));
    let policies = facts.policies(&name);
    let account = facts.service_account(&name, pod.service_account());
    let decision = match &settings {
        None => Decision::opted_out(),
        Some(settings) => burst::decide(&pod, settings, &facts.around(&name, namespace, account, &policies)),
    };
    let settings = settings.and_then(PodSettings::known);
    let patch = burst::json_patch(&pod, &decision).unwrap_or_default();
    let opts_out = matches!(decision.outcome(Part::KubeProxy), Outcome::Added | Outcome::Kept);
    let services = if opts_out { facts.cluster_ips(&name) } else { Vec::new() };
    let cut_off = services.into_iter().map(str::to_owned).collect();
    let is_auto = configuration.virtual_nodes.generation == GenerationSetting::Auto;
    let is_held_to_both = is_auto && !facts.knows_virtual_nodes();
    let is_called = decision.verdict != Verdict::OptedOut;
    let placement = template.living.as_ref().map(|pod| Placement::of(pod, facts, is_called, settings.as_ref()));
    let count = facts.on_virtual.get(&name).copied();
    let cap = settings.as_ref().and_then(|settings| settings.max_pods);
    Ok(Explained {
        is_held_to_both,
        template,
        profile,
        decision,
        patch,
        cut_off,
        placement,
        is_closed: facts.are_virtual_nodes_closed(),
        at_cap: count.filter(|count| cap.is_some_and(|cap| *count >= cap as usize)),
        unread,
        namespace: name,
        settings,
    })
}

impl Explained<'_> {
    fn refusals(&self) -> &[Finding] {
        self.decision.verdict.refusals()
    }

    /// Whether the pod is held back although it was to overflow; that it chose to stay is no refusal.
    fn is_refused(&self) -> bool {
        self.refusals().iter().any(|finding| *finding.reason != reasons::MODE_OFF)
    }

    /// `spillway.dev/decision` as it would be written, or why nothing is.
    fn decision_text(&self) -> String {
        match (&self.profile, &self.decision.verdict) {
            (Err(why), _) => why.as_str().to_owned(),
            (Ok(_), verdict) => verdict.to_string(),
        }
    }

    /// The pod with the patch applied.
    fn admitted(&self) -> anyhow::Result<Value> {
        let mut pod = self.template.pod.clone();
        json_patch::patch(&mut pod, &self.patch)?;
        Ok(pod)
    }
}
