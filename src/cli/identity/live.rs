//! Reading what there is: the cluster that kubectl talks to, and Azure.

use std::time::Duration;

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use kube::Client;

use super::{Args, preflight};
use crate::{
    cli::{cluster, config as file},
    cluster::identity,
    config::{self, did_you_mean},
    credentials::{
        self, Source, Wanted,
        custom_resources::CustomResources,
        issuer::Issuers,
        merged,
        resource_manager::{Progress, ResourceManager, Settings},
    },
    identity::{
        Seen,
        azure::Azure,
        preflight::Claims,
        seen::{self, Issuer},
    },
};

/// How long Azure may be asked while a person waits: at two requests a second, for a thousand identities.
const PATIENCE: Duration = Duration::from_secs(10 * 60);

/// What is there, and a token of the service account if that was asked for.
pub(super) struct Live {
    pub(super) seen: Seen,
    pub(super) token: Option<Claims>,
}

pub(super) async fn live(args: &Args) -> anyhow::Result<Live> {
    let config = file::load(args.config.as_deref())?.identity;
    let cloud = args.cloud(&config);
    let client = Client::try_from(cluster::find(args.context.as_deref(), "spillway").await?)?;
    let cluster = cluster(&client, args.namespace.as_deref()).await?;
    let token = match (&args.namespace, &args.service_account, args.token) {
        (Some(namespace), Some(name), true) => {
            find_account(&cluster, namespace, name)?;
            Some(preflight::token(&client, namespace, name, cloud).await?)
        }
        _ => None,
    };
    let issuers = issuers(args, &client, token.as_ref()).await?;
    let wanted = wanted(args, &cluster);
    let azure = azure(args, settings(args, config, cloud), &client, &wanted).await?;
    let at = args.at.unwrap_or_else(k8s_openapi::jiff::Timestamp::now);
    Ok(Live { seen: Seen { cluster, issuers, cloud: cloud.into(), azure, at }, token })
}

async fn cluster(client: &Client, namespace: Option<&str>) -> anyhow::Result<seen::Cluster> {
    let found = identity::read(client, namespace).await.map_err(cluster::told).context("cannot read the cluster")?;
    for unread in &found.refused {
        if unread.action == "list serviceaccounts" {
            bail!("cannot list the service accounts of {}: {}", unread.scope, unread.because);
        }
        eprintln!("not taken into account: {} (may not {} of {})", unread.because, unread.action, unread.scope);
    }
    let cluster = found.cluster;
    if let Some(namespace) = namespace
        && !cluster.namespaces.is_empty()
        && !cluster.namespaces.contains_key(namespace)
    {
        let names: Vec<_> = cluster.namespaces.keys().map(String::as_str).collect();
        let hint = did_you_mean(namespace, &names);
        bail!("--namespace: no namespace \"{namespace}\" in the cluster{hint}");
    }
    Ok(cluster)
}

fn find_account(cluster: &seen::Cluster, namespace: &str, name: &str) -> anyhow::Result<()> {
    let mut accounts = cluster.service_accounts.iter().map(|account| &account.name);
    if accounts.any(|own| own.namespace == namespace && own.name == name) {
        return Ok(());
    }
    let names: Vec<_> = cluster.service_accounts.iter().map(|account| account.name.name.as_str()).collect();
    let hint = did_you_mean(name, &names);
    bail!("--service-account: no service account \"{name}\" in the cluster{hint}");
}

/// What was given counts, then what stands in a token, then what the API server says of itself.
async fn issuers(args: &Args, client: &Client, token: Option<&Claims>) -> anyhow::Result<Vec<Issuer>> {
    let mut issuers = super::issuers(args)?;
    if !issuers.is_empty() {
        return Ok(issuers);
    }
    let read = Issuers::new(client.clone()).read().await;
    if let (Some(unread), None) = (&read.unread, token) {
        eprintln!(
            "the issuer of tokens is not known: {} (may not {}); give it with --issuer",
            unread.because, unread.action
        );
    }
    issuers = read.issuers;
    let Some(Claims { issuer: url, .. }) = token else { return Ok(issuers) };
    match issuers.iter().position(|issuer| issuer.url == *url) {
        Some(place) => issuers.swap(0, place),
        None => issuers.insert(
            0,
            Issuer { url: url.clone(), source: "a token of the service account".to_owned(), algorithms: None },
        ),
    }
    Ok(issuers)
}

/// What the service accounts that are asked about name.
fn wanted(args: &Args, cluster: &seen::Cluster) -> Wanted {
    let is_chosen = |account: &&seen::ServiceAccount| {
        args.namespace.as_ref().is_none_or(|namespace| *namespace == account.name.namespace)
            && args.service_account.as_ref().is_none_or(|name| *name == account.name.name)
    };
    credentials::wanted(cluster.service_accounts.iter().filter(is_chosen))
}

/// What to ask of Azure: what the configuration says and what the flags add to it.
fn settings(args: &Args, mut config: config::Identity, cloud: crate::azure::Cloud) -> Option<Settings> {
    let azure = &mut config.resource_manager;
    azure.subscriptions.extend(args.subscriptions.iter().cloned());
    azure.identities.extend(args.resource_ids.iter().cloned());
    if cloud != config.cloud {
        cloud.resource_manager().clone_into(&mut azure.endpoint);
        config.cloud = cloud;
    }
    Settings::of(&config).map(|settings| Settings { patience: PATIENCE, ..settings })
}

async fn azure(
    args: &Args,
    settings: Option<Settings>,
    client: &Client,
    wanted: &Wanted,
) -> anyhow::Result<Option<Azure>> {
    let mut answers = Vec::new();
    if let Some(settings) = settings {
        let bar = progress();
        let shown = bar.clone();
        let source = ResourceManager::new(settings)?.watched_by(move |progress| show(&shown, progress));
        answers.push(source.read(wanted).await);
        bar.finish_and_clear();
    }
    answers.extend(super::azure(args)?);
    match CustomResources::find(client).await {
        Ok(found) => {
            if let Some(source) = found {
                answers.push(source.read(wanted).await);
            }
        }
        Err(error) => eprintln!("not taken into account: custom resources ({})", cluster::told(error)),
    }
    Ok((!answers.is_empty()).then(|| merged(answers)))
}

/// A line on standard error, which is drawn on a terminal alone.
fn progress() -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_style(ProgressStyle::default_spinner());
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

fn show(bar: &ProgressBar, progress: Progress) {
    bar.set_message(match progress {
        Progress::Identities => "Azure: looking for managed identities".to_owned(),
        Progress::Credentials { known, wanted } => {
            format!("Azure: federated credentials of {known} of {wanted} identities")
        }
    });
}
