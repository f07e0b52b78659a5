//! `spillway explain`: what would happen to the pods of a manifest, and why; offline.

mod facts;
mod render;

use std::path::PathBuf;

use anyhow::Context;
use serde_json::Value;

use self::facts::Facts;
use super::{
    Ended, config,
    manifest::{self, Document, PodTemplate},
    print_out,
};
use crate::{
    burst::{self, Decision, Verdict},
    config::{Overrides, RejectedOverride, Settings},
    pod::Pod,
};

/// Explain what happens to the pods of a manifest, and why
///
/// Makes the decision that the webhook would make, with the same code and without a cluster. Reads Pod, Deployment,
/// StatefulSet, ReplicaSet, DaemonSet, Job, CronJob, Lists of them, and AdmissionReview; Namespace and ServiceAccount objects
/// among the documents are taken as what the cluster knows; other kinds are skipped.
///
/// Exits with 1 when a pod that was to overflow has to stay.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A manifest, YAML or JSON, or - for standard input; may be repeated
    #[arg(short = 'f', long = "filename", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,

    /// The SpillwayConfiguration file; without one, the built-in defaults
    #[arg(long, env = "SPILLWAY_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    /// The namespace of objects that name none
    #[arg(short, long, default_value = "default", value_name = "NAME")]
    namespace: String,

    /// What the namespace's label spillway.dev/burst says, unless a Namespace object among the documents says it
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
    /// The profile that applies; nothing when the namespace has not opted in, so that the API server never calls.
    profile: Option<String>,
    settings: Option<Settings<'a>>,
    rejected: Vec<RejectedOverride>,
    decision: Decision<'a>,
    /// The exact text that the webhook would send.
    patch: Option<Vec<u8>>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Ended> {
    let configuration = config::load(args.config.as_deref())?;
    let mut documents = Vec::new();
    for file in &args.files {
        documents.extend(manifest::read(file)?);
    }
    let mut facts = Facts::new(&args.profile, &args.namespace_annotations);
    facts.learn(&documents);
    for file in &args.service_accounts {
        facts.learn(&manifest::read(file)?);
    }

    let templates = templates(&documents)?;
    let explained: Vec<_> = templates
        .iter()
        .map(|template| explain(template, args, &configuration, &facts))
        .collect::<anyhow::Result<_>>()?;
    print_out(&match args.output {
        Output::Text => render::text(&explained)?,
        Output::Json => render::json(&explained)?,
        Output::Yaml => render::yaml(&explained)?,
        Output::Patch => render::patches(&explained),
    })?;
    let refused = explained.iter().any(Explained::is_refused);
    Ok(if refused { Ended::Findings } else { Ended::Fine })
}

fn templates(documents: &[Document]) -> anyhow::Result<Vec<PodTemplate>> {
    let mut templates = Vec::new();
    for document in documents {
        match document.pod_template()? {
            Some(template) => templates.push(template),
            None if facts::is_fact(document.kind()) => {}
            None => {
                eprintln!("skipped {} {}: it makes no pods", document.kind(), document.name().unwrap_or("?"));
            }
        }
    }
    anyhow::ensure!(!templates.is_empty(), "no pod and no workload among the documents");
    Ok(templates)
}

fn explain<'a>(
    template: &'a PodTemplate,
    args: &Args,
    configuration: &'a crate::config::Configuration,
    facts: &Facts,
) -> anyhow::Result<Explained<'a>> {
    let namespace = template.namespace.clone().unwrap_or_else(|| args.namespace.clone());
    let json = template.pod.to_string();
    let pod: Pod<'_> = serde_json::from_str(&json)
        .with_context(|| format!("{} {}: cannot be read as a pod", template.kind, template.name))?;

    let (profile, annotations) = facts.namespace(&namespace);
    let of_namespace = Overrides::read(annotations.iter().map(|(k, v)| (k.as_str(), v.as_str())));
    let of_pod = Overrides::read(pod.annotations());
    let settings = profile.as_ref().and_then(|profile| configuration.settings(profile, &of_namespace, &of_pod));
    let decision = match &profile {
        None => Decision::opted_out(),
        Some(_) => burst::decide(&pod, settings.as_ref(), facts.service_account(&namespace, pod.service_account())),
    };
    let patch = burst::json_patch(&pod, &decision);
    let rejected = of_namespace.rejected.into_iter().chain(of_pod.rejected).collect();
    Ok(Explained { template, namespace, profile, settings, rejected, decision, patch })
}

impl Explained<'_> {
    fn is_refused(&self) -> bool {
        match &self.decision.verdict {
            Verdict::Stay(reasons) => reasons.iter().any(|reason| reason.is_refusal()),
            Verdict::Burst(_) | Verdict::OptedOut => false,
        }
    }

    /// `spillway.dev/decision` as it would be written, or why nothing is.
    fn decision_text(&self) -> String {
        match (&self.profile, &self.decision.verdict) {
            (None, _) => "not opted in".to_owned(),
            (_, verdict) => verdict.to_string(),
        }
    }

    /// The patch as JSON; an empty list when there is nothing to change.
    fn operations(&self) -> anyhow::Result<json_patch::Patch> {
        Ok(serde_json::from_slice(self.patch.as_deref().unwrap_or(b"[]"))?)
    }

    /// The pod with the patch applied.
    fn admitted(&self) -> anyhow::Result<Value> {
        let mut pod = self.template.pod.clone();
        json_patch::patch(&mut pod, &self.operations()?)?;
        Ok(pod)
    }
}
