//! `spillway identity check`: checks every link from pods to federated credentials, and prints the command that fixes a
//! broken one.

mod args;
mod documents;
mod entra_error;
mod files;
mod json;
mod junit;
mod live;
mod preflight;
mod report;
mod sarif;
mod text;

use anyhow::bail;
use clap::Subcommand;

use self::{
    args::{Args, Output},
    documents::Documents,
    live::Live,
    preflight::Preflight,
    report::Report,
};
use super::output::{ExitStatus, print_stdout};
use crate::identity::catalogue;

/// Check the workload identities of pods
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Check(Box<Args>),
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
        let (seen, documents) = files::read(args)?;
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
