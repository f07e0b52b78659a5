//! Reads the cluster, the issuer and the managed identities from files.

use std::path::Path;

use anyhow::{Context, anyhow};
use k8s_openapi::jiff::Timestamp;

use super::{args::Args, documents::Documents};
use crate::{
    cli::{
        config::{self, read_text},
        manifest,
    },
    credentials::issuer::Discovery,
    identity::{Observation, az_output, managed_identity::ManagedIdentities, observation::Issuer},
};

pub(super) fn read(args: &Args) -> anyhow::Result<(Observation, Documents)> {
    let mut documents = Documents::new(args.namespace.as_deref().unwrap_or("default"));
    for file in &args.files {
        documents.add(&manifest::read(file)?)?;
    }
    let mut cluster = documents.cluster();
    cluster.is_complete = args.whole_cluster;
    let seen = Observation {
        cluster,
        issuers: issuers(args)?,
        cloud: args.cloud(&config::load(args.config.as_deref())?.identity),
        managed_identities: managed_identities(args)?,
        at: args.at.unwrap_or_else(Timestamp::now),
    };
    Ok((seen, documents))
}

pub(super) fn managed_identities(args: &Args) -> anyhow::Result<Option<ManagedIdentities>> {
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

pub(super) fn issuers(args: &Args) -> anyhow::Result<Vec<Issuer>> {
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
