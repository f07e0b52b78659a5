//! `spillway identity check`: checks every link from pods to federated credentials, and prints the command that fixes a
//! broken one.

mod documents;
mod entra_error;
mod json;
mod junit;
mod live;
mod preflight;
mod report;
mod sarif;
mod text;

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use clap::Subcommand;
use k8s_openapi::jiff::Timestamp;

use self::{
    documents::Documents,
    live::Live,
    preflight::Preflight,
    report::{Report, Scope},
};
use super::{ExitStatus, config::read_text, manifest, print_stdout};
use crate::{
    azure::{Cloud, ResourceId, is_guid},
    config,
    credentials::issuer::Discovery,
    identity::{Observation, Severity, az_output, catalogue, managed_identity::ManagedIdentities, observation::Issuer},
};

/// Check the workload identities of pods
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Check(Box<Args>),
}

/// Check every link from pods to federated credentials, and show how to fix broken ones
///
/// Reads the cluster of the kubeconfig. With -f it reads manifests, and connects to nothing. It writes nothing.
///
/// Credentials come from these sources; without any of them, they are not checked. Azure: with --subscription,
/// --resource-id or the identity section of --config. It authenticates with workload identity or "az login". The
/// cluster: custom resources of Azure Service Operator and Crossplane. Files: output of the Azure CLI, with
/// --credentials and --identity. The issuer of tokens comes from the cluster; with -f it has to be given.
///
/// It reads these kinds of manifests, also in lists: ServiceAccount, Pod, the workloads, MutatingWebhookConfiguration,
/// Endpoints, EndpointSlice, Namespace, Node, Service, ClusterRole and ClusterRoleBinding.
///
/// Exits with 1 if a finding reaches --fail-on.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("what").args(["files", "explain", "findings"]))]
pub(super) struct Args {
    /// Manifest, YAML or JSON, or - for standard input; may be repeated
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Output of "az identity list" or "az identity federated-credential list"; may be repeated
    ///
    /// The resource ids connect identities and credentials. An identity can also have its credentials in
    /// federatedIdentityCredentials.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["explain", "findings"])]
    credentials: Vec<PathBuf>,

    /// Output of "az identity federated-credential list" for the identity with this client id; may be repeated
    #[arg(long = "identity", value_name = "CLIENT_ID=FILE", value_parser = client_id_and_file, conflicts_with_all = ["explain", "findings"])]
    identities: Vec<(String, PathBuf)>,

    /// Issuer of the cluster's tokens: az aks show --query oidcIssuerProfile.issuerUrl --output tsv
    #[arg(long, value_name = "URL", conflicts_with_all = ["explain", "findings"])]
    issuer: Option<String>,

    /// Output of "kubectl get --raw /.well-known/openid-configuration": the issuer and its signing algorithms
    #[arg(long, value_name = "FILE", conflicts_with_all = ["explain", "findings"])]
    discovery: Option<PathBuf>,

    /// Read the managed identities of this subscription id from Azure; may be repeated
    #[arg(long = "subscription", value_name = "ID", value_parser = subscription, conflicts_with = "what")]
    subscriptions: Vec<String>,

    /// Read the identity with this client id at this resource id from Azure, without a list; may be repeated
    #[arg(long = "resource-id", value_name = "CLIENT_ID=RESOURCE_ID", value_parser = client_id_and_resource, conflicts_with = "what")]
    resource_ids: Vec<(String, ResourceId)>,

    /// Path of the SpillwayConfiguration file; its identity section has the cloud, and without -f the Azure sources
    #[arg(long, env = "SPILLWAY_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    /// Context of the kubeconfig
    #[arg(long, value_name = "NAME", conflicts_with = "what")]
    context: Option<String>,

    /// Also request a token of the service account, and compare it with the credentials as Entra would
    ///
    /// This needs permission to create serviceaccounts/token. The token is not printed.
    #[arg(long, conflicts_with = "what", requires = "namespace", requires = "service_account")]
    token: bool,

    /// Azure cloud; by default that of --config, else the public one
    #[arg(long, value_name = "NAME")]
    cloud: Option<CloudName>,

    /// Report only on this namespace; objects without a namespace belong to it
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,

    /// Report only on this service account
    #[arg(long, value_name = "NAME")]
    service_account: Option<String>,

    /// The manifests are the whole cluster: a missing object of a kind among them does not exist
    #[arg(long, requires = "files")]
    whole_cluster: bool,

    /// Time of the check, such as that of the files (RFC 3339); by default now
    #[arg(long, value_name = "TIME")]
    at: Option<Timestamp>,

    /// Lowest severity that exits with 1
    #[arg(long, value_name = "SEVERITY", default_value = "error")]
    fail_on: FailOn,

    /// Output format
    #[arg(short, long, default_value = "text", value_name = "FORMAT")]
    output: Output,

    /// Explain an Entra error code, such as AADSTS700213, or a message with one
    #[arg(long, value_name = "CODE")]
    explain: Option<String>,

    /// Print all findings as Markdown
    #[arg(long)]
    findings: bool,
}

impl Args {
    fn scope(&self) -> Scope<'_> {
        let files = self.credentials.iter().chain(self.identities.iter().map(|(_, file)| file));
        Scope {
            namespace: self.namespace.as_deref(),
            account: self.service_account.as_deref(),
            place: if self.files.is_empty() { "in the cluster" } else { "among the manifests" },
            files: files.map(|file| file.display().to_string()).collect(),
        }
    }

    /// Returns the cloud of the flag, or else that of the configuration.
    fn cloud(&self, config: &config::Identity) -> Cloud {
        self.cloud.map_or(config.cloud, Into::into)
    }
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum CloudName {
    /// The public one
    Public,
    /// Azure US Government
    Usgovernment,
    /// Azure operated by 21Vianet
    China,
}

impl From<CloudName> for Cloud {
    fn from(name: CloudName) -> Self {
        match name {
            CloudName::Public => Self::Public,
            CloudName::Usgovernment => Self::UsGovernment,
            CloudName::China => Self::China,
        }
    }
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum FailOn {
    /// Something may fail, or is a risk
    Warning,
    /// Something fails
    Error,
}

impl FailOn {
    /// Returns whether a severity is at least this one. An unknown result never is.
    const fn is_reached_by(self, severity: Severity) -> bool {
        match self {
            Self::Error => matches!(severity, Severity::Error),
            Self::Warning => matches!(severity, Severity::Error | Severity::Warning),
        }
    }
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Output {
    /// Text for people
    Text,
    /// Findings and summary
    Json,
    /// The same as YAML
    Yaml,
    /// SARIF 2.1.0, for code scanning
    Sarif,
    /// JUnit XML, for CI servers
    Junit,
}

fn client_id_and_file(text: &str) -> Result<(String, PathBuf), String> {
    let (client_id, file) = text.split_once('=').ok_or("expected CLIENT_ID=FILE")?;
    if !is_guid(client_id) {
        return Err(format!(
            "expected a client id before \"=\", such as 00000000-1111-4222-8333-444444444444, got {client_id:?}"
        ));
    }
    Ok((client_id.to_owned(), PathBuf::from(file)))
}

fn client_id_and_resource(text: &str) -> Result<(String, ResourceId), String> {
    let expected = "expected CLIENT_ID=RESOURCE_ID, such as 00000000-1111-4222-8333-444444444444=/subscriptions/ID/resourceGroups/NAME/providers/Microsoft.ManagedIdentity/userAssignedIdentities/NAME";
    let (client_id, id) = text.split_once('=').ok_or(expected)?;
    let id = ResourceId::parse(id).filter(|_| is_guid(client_id)).ok_or(expected)?;
    Ok((client_id.to_ascii_lowercase(), id))
}

fn subscription(text: &str) -> Result<String, String> {
    if !is_guid(text) {
        return Err("expected the id of a subscription, such as 99999999-8888-4777-8666-555555555555".to_owned());
    }
    Ok(text.to_ascii_lowercase())
}

pub(super) fn run(command: &Command) -> anyhow::Result<ExitStatus> {
    let Command::Check(args) = command;
    if args.findings {
        return print_stdout(catalogue::markdown().as_bytes());
    }
    if let Some(code) = &args.explain {
        return print_stdout(entra_error::explain(code)?.as_bytes());
    }
    if args.token && matches!(args.output, Output::Sarif | Output::Junit) {
        bail!("--token supports only the output formats text, json or yaml");
    }
    let (seen, documents, token) = if args.files.is_empty() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let Live { seen, token } = runtime.block_on(live::live(args))?;
        (seen, Documents::new("default"), token)
    } else {
        let (seen, documents) = read(args)?;
        (seen, documents, None)
    };
    if seen.managed_identities.is_none() {
        let others = if args.files.is_empty() { "--subscription, --resource-id, " } else { "" };
        eprintln!("credentials not checked: give them with {others}--credentials or --identity");
    }
    let report = Report::new(&seen, &documents, &args.scope())?;
    let preflight = token.as_ref().map(|claims| {
        let client_id = report.accounts.first().and_then(|account| account.client_id);
        Preflight::new(&seen, client_id, claims)
    });
    let token = preflight.as_ref();
    print_stdout(&match args.output {
        Output::Text => {
            let of_token = token.map(Preflight::text).transpose()?.unwrap_or_default();
            (text::text(&report)? + &of_token).into_bytes()
        }
        Output::Json => json::json(&report, token)?,
        Output::Yaml => json::yaml(&report, token)?,
        Output::Sarif => sarif::sarif(&report),
        Output::Junit => junit::junit(&report, args.fail_on).into_bytes(),
    })?;
    let is_reached = report.findings.iter().any(|finding| args.fail_on.is_reached_by(finding.severity));
    let is_refused = token.is_some_and(Preflight::is_refused);
    Ok(if is_reached || is_refused { ExitStatus::Findings } else { ExitStatus::Success })
}

fn read(args: &Args) -> anyhow::Result<(Observation, Documents)> {
    let mut documents = Documents::new(args.namespace.as_deref().unwrap_or("default"));
    for file in &args.files {
        documents.add(&manifest::read(file)?)?;
    }
    let mut cluster = documents.cluster();
    cluster.is_complete = args.whole_cluster;
    let seen = Observation {
        cluster,
        issuers: issuers(args)?,
        cloud: args.cloud(&super::config::load(args.config.as_deref())?.identity),
        managed_identities: azure(args)?,
        at: args.at.unwrap_or_else(Timestamp::now),
    };
    Ok((seen, documents))
}

fn azure(args: &Args) -> anyhow::Result<Option<ManagedIdentities>> {
    if args.credentials.is_empty() && args.identities.is_empty() {
        return Ok(None);
    }
    let mut files = az_output::Files::default();
    let name = |file: &Path| file.display().to_string();
    for file in &args.credentials {
        files.add(&name(file), &read_text(file)?).with_context(|| format!("--credentials {}", name(file)))?;
    }
    for (client_id, file) in &args.identities {
        let added = files.add_for_identity(client_id, &name(file), &read_text(file)?);
        added.with_context(|| format!("--identity {client_id}={}", name(file)))?;
    }
    Ok(Some(files.finish()))
}

fn issuers(args: &Args) -> anyhow::Result<Vec<Issuer>> {
    let given =
        args.issuer.iter().map(|url| Issuer { url: url.clone(), source: "--issuer".to_owned(), algorithms: None });
    let mut issuers: Vec<_> = given.collect();
    if let Some(file) = &args.discovery {
        let found: Discovery = serde_json::from_str(&read_text(file)?)
            .map_err(|error| anyhow!("{}: expected an OpenID discovery document: {error}", file.display()))?;
        issuers.push(found.issuer(&file.display().to_string()));
    }
    Ok(issuers)
}
