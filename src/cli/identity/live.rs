//! Reads the cluster of the kubeconfig, and Azure.

use std::time::Duration;

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use kube::Client;

use super::{args::Args, files, preflight};
use crate::{
    cli::{config as file, kube_client},
    cluster::identity,
    config::{self, did_you_mean},
    credentials::{
        self, ClientIds, Source,
        custom_resources::CustomResources,
        issuer::IssuerReader,
        merge,
        resource_manager::{Progress, ResourceManager, Settings},
    },
    identity::{
        Observation,
        managed_identity::ManagedIdentities,
        observation::{self, Issuer},
        preflight::Claims,
    },
};

/// Timeout for reading from Azure. At two requests per second, it suffices for a thousand identities.
const AZURE_READ_TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// The inputs of the checks, and a token of the service account with `--token`.
pub(super) struct Live {
    pub(super) seen: Observation,
    pub(super) token: Option<Claims>,
}

pub(super) async fn live(args: &Args) -> anyhow::Result<Live> {
    let config = file::load(args.config.as_deref())?.identity;
    let cloud = args.cloud(&config);
    let client = Client::try_from(kube_client::config(args.context.as_deref(), "spillway").await?)?;
    let cluster = cluster(&client, args.namespace.as_deref()).await?;
    let token = match (&args.namespace, &args.service_account, args.token) {
        (Some(namespace), Some(name), true) => {
            find_account(&cluster, namespace, name)?;
            Some(preflight::token(&client, namespace, name, cloud).await?)
        }
        _ => None,
    };
    let issuers = issuers(args, &client, token.as_ref()).await?;
    let client_ids = client_ids(args, &cluster);
    let azure = azure(args, settings(args, config, cloud), &client, &client_ids).await?;
    let at = args.at.unwrap_or_else(k8s_openapi::jiff::Timestamp::now);
    Ok(Live { seen: Observation { cluster, issuers, cloud, managed_identities: azure, at }, token })
}

async fn cluster(client: &Client, namespace: Option<&str>) -> anyhow::Result<observation::Cluster> {
    let found =
        identity::read(client, namespace).await.map_err(kube_client::api_message).context("cannot read the cluster")?;
    for unread in &found.refused {
        if unread.action == "list serviceaccounts" {
            bail!("cannot list the service accounts of {}: {}", unread.scope, unread.reason);
        }
        eprintln!("ignored: {} (no permission to {} of {})", unread.reason, unread.action, unread.scope);
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

fn find_account(cluster: &observation::Cluster, namespace: &str, name: &str) -> anyhow::Result<()> {
    let mut accounts = cluster.service_accounts.iter().map(|account| &account.name);
    if accounts.any(|own| own.namespace == namespace && own.name == name) {
        return Ok(());
    }
    let names: Vec<_> = cluster.service_accounts.iter().map(|account| account.name.name.as_str()).collect();
    let hint = did_you_mean(name, &names);
    bail!("--service-account: no service account \"{name}\" in the cluster{hint}");
}

/// Returns the issuers. Flags have priority over the token, and the token over the API server.
async fn issuers(args: &Args, client: &Client, token: Option<&Claims>) -> anyhow::Result<Vec<Issuer>> {
    let mut issuers = files::issuers(args)?;
    if !issuers.is_empty() {
        return Ok(issuers);
    }
    let read = IssuerReader::new(client.clone()).read().await;
    if let (Some(unread), None) = (&read.failure, token) {
        eprintln!(
            "the issuer of tokens is not known: {} (no permission to {}); use --issuer",
            unread.reason, unread.action
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

/// Returns the client ids of the chosen service accounts.
fn client_ids(args: &Args, cluster: &observation::Cluster) -> ClientIds {
    let is_chosen = |account: &&observation::ServiceAccount| {
        args.namespace.as_ref().is_none_or(|namespace| *namespace == account.name.namespace)
            && args.service_account.as_ref().is_none_or(|name| *name == account.name.name)
    };
    credentials::client_ids(cluster.service_accounts.iter().filter(is_chosen))
}

/// Returns the Azure sources of the configuration and the flags.
fn settings(args: &Args, mut config: config::Identity, cloud: crate::azure::Cloud) -> Option<Settings> {
    let azure = &mut config.resource_manager;
    azure.subscriptions.extend(args.subscriptions.iter().cloned());
    azure.identities.extend(args.resource_ids.iter().cloned());
    if cloud != config.cloud {
        cloud.resource_manager().clone_into(&mut azure.endpoint);
        config.cloud = cloud;
    }
    Settings::of(&config).map(|settings| Settings { pass_timeout: AZURE_READ_TIMEOUT, ..settings })
}

async fn azure(
    args: &Args,
    settings: Option<Settings>,
    client: &Client,
    wanted: &ClientIds,
) -> anyhow::Result<Option<ManagedIdentities>> {
    let mut answers = Vec::new();
    if let Some(settings) = settings {
        let bar = progress();
        let shown = bar.clone();
        let source = ResourceManager::new(settings)?.with_progress(move |progress| show(&shown, progress));
        answers.push(source.read(wanted).await);
        bar.finish_and_clear();
    }
    answers.extend(files::managed_identities(args)?);
    match CustomResources::discover(client).await {
        Ok(found) => {
            if let Some(source) = found {
                answers.push(source.read(wanted).await);
            }
        }
        Err(error) => eprintln!("ignored custom resources: {}", kube_client::api_message(error)),
    }
    Ok((!answers.is_empty()).then(|| merge(answers)))
}

/// Returns a progress line for standard error. It is visible only on a terminal.
fn progress() -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_style(ProgressStyle::default_spinner());
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

fn show(bar: &ProgressBar, progress: Progress) {
    bar.set_message(match progress {
        Progress::Identities => "Azure: listing managed identities".to_owned(),
        Progress::Credentials { known, wanted } => {
            format!("Azure: federated credentials of {known} of {wanted} identities")
        }
    });
}
