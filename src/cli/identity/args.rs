//! Arguments of `spillway identity check`.

use std::path::PathBuf;

use k8s_openapi::jiff::Timestamp;

use super::report::Scope;
use crate::{
    azure::{Cloud, ResourceId, is_guid},
    config,
    identity::Severity,
};

/// Check every link from pods to federated credentials, and show how to fix broken ones
///
/// Reads the cluster of the kubeconfig. With -f, it reads only manifests. It writes nothing.
///
/// It reads credentials from Azure (--subscription, --resource-id or the identity section of --config), from custom
/// resources of Azure Service Operator and Crossplane, and from files (--credentials, --identity). Without a source, it
/// does not check credentials. For Azure, it authenticates with workload identity or "az login". It reads the issuer of
/// tokens from the cluster. With -f, use --issuer or --discovery.
///
/// It reads these kinds of manifests, also in lists: ServiceAccount, Pod, the workloads, MutatingWebhookConfiguration,
/// Endpoints, EndpointSlice, Namespace, Node, Service, ClusterRole and ClusterRoleBinding.
///
/// Exits with 1 if a finding reaches --fail-on.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("what").args(["files", "explain", "findings"]))]
pub(in crate::cli) struct Args {
    /// Manifest, YAML or JSON, or - for standard input; may be repeated
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    pub(super) files: Vec<PathBuf>,

    /// Output of "az identity list" or "az identity federated-credential list"; may be repeated
    ///
    /// The resource ids connect identities and credentials. An identity can also have its credentials in
    /// federatedIdentityCredentials.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["explain", "findings"])]
    pub(super) credentials: Vec<PathBuf>,

    /// Output of "az identity federated-credential list" for the identity with this client id; may be repeated
    #[arg(long = "identity", value_name = "CLIENT_ID=FILE", value_parser = client_id_and_file, conflicts_with_all = ["explain", "findings"])]
    pub(super) identities: Vec<(String, PathBuf)>,

    /// Issuer of the cluster's tokens: az aks show --query oidcIssuerProfile.issuerUrl --output tsv
    #[arg(long, value_name = "URL", conflicts_with_all = ["explain", "findings"])]
    pub(super) issuer: Option<String>,

    /// Output of "kubectl get --raw /.well-known/openid-configuration": the issuer and its signing algorithms
    #[arg(long, value_name = "FILE", conflicts_with_all = ["explain", "findings"])]
    pub(super) discovery: Option<PathBuf>,

    /// Read the managed identities of this subscription id from Azure; may be repeated
    #[arg(long = "subscription", value_name = "ID", value_parser = subscription, conflicts_with = "what")]
    pub(super) subscriptions: Vec<String>,

    /// Read this identity from Azure by its resource id, without a list request; may be repeated
    #[arg(long = "resource-id", value_name = "CLIENT_ID=RESOURCE_ID", value_parser = client_id_and_resource, conflicts_with = "what")]
    pub(super) resource_ids: Vec<(String, ResourceId)>,

    /// Path of the SpillwayConfiguration file; its identity section has the cloud, and without -f the Azure sources
    #[arg(long, env = "SPILLWAY_CONFIG", value_name = "FILE")]
    pub(super) config: Option<PathBuf>,

    /// Context of the kubeconfig
    #[arg(long, value_name = "NAME", conflicts_with = "what")]
    pub(super) context: Option<String>,

    /// Also request a token of the service account, and compare it with the credentials, as Entra does
    ///
    /// This needs permission to create serviceaccounts/token. It does not print the token.
    #[arg(long, conflicts_with = "what", requires = "namespace", requires = "service_account")]
    pub(super) token: bool,

    /// Azure cloud; by default the cloud in --config, or public
    #[arg(long, value_name = "NAME")]
    pub(super) cloud: Option<CloudName>,

    /// Report only on this namespace; objects without a namespace belong to it
    #[arg(short, long, value_name = "NAME")]
    pub(super) namespace: Option<String>,

    /// Report only on this service account
    #[arg(long, value_name = "NAME")]
    pub(super) service_account: Option<String>,

    /// Treat the manifests as the whole cluster: an object of these kinds that is missing does not exist
    #[arg(long, requires = "files")]
    pub(super) whole_cluster: bool,

    /// Time of the check (RFC 3339), such as the time of the files; by default now
    #[arg(long, value_name = "TIME")]
    pub(super) at: Option<Timestamp>,

    /// Lowest severity that exits with 1
    #[arg(long, value_name = "SEVERITY", default_value = "error")]
    pub(super) fail_on: FailOn,

    /// Output format
    #[arg(short, long, default_value = "text", value_name = "FORMAT")]
    pub(super) output: Output,

    /// Explain an Entra error code, such as AADSTS700213, or a message with one
    #[arg(long, value_name = "CODE")]
    pub(super) explain: Option<String>,

    /// Print all findings as Markdown
    #[arg(long)]
    pub(super) findings: bool,
}

impl Args {
    pub(super) fn scope(&self) -> Scope<'_> {
        let files = self.credentials.iter().chain(self.identities.iter().map(|(_, file)| file));
        Scope {
            namespace: self.namespace.as_deref(),
            account: self.service_account.as_deref(),
            place: if self.files.is_empty() { "in the cluster" } else { "among the manifests" },
            files: files.map(|file| file.display().to_string()).collect(),
        }
    }

    /// Returns the cloud of the flag, or the cloud of the configuration.
    pub(super) fn cloud(&self, config: &config::Identity) -> Cloud {
        self.cloud.map_or(config.cloud, Into::into)
    }
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum CloudName {
    /// Azure public cloud
    Public,
    /// Azure US Government
    #[value(name = "us-government", alias = "usgovernment")]
    UsGovernment,
    /// Azure operated by 21Vianet
    China,
}

impl From<CloudName> for Cloud {
    fn from(name: CloudName) -> Self {
        match name {
            CloudName::Public => Self::Public,
            CloudName::UsGovernment => Self::UsGovernment,
            CloudName::China => Self::China,
        }
    }
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum FailOn {
    /// Warnings and errors
    Warning,
    /// Only errors
    Error,
}

impl FailOn {
    /// Returns whether a severity is at least this one. Returns `false` for an unknown result.
    pub(super) const fn is_reached_by(self, severity: Severity) -> bool {
        match self {
            Self::Error => matches!(severity, Severity::Error),
            Self::Warning => matches!(severity, Severity::Error | Severity::Warning),
        }
    }
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum Output {
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
        return Err("expected a subscription id, such as 99999999-8888-4777-8666-555555555555".to_owned());
    }
    Ok(text.to_ascii_lowercase())
}
