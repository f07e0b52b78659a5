//! The command line: one file per command. Results go to standard output, messages to standard error.

mod certs;
mod colors;
mod config;
mod controller;
mod explain;
mod identity;
mod kube_client;
mod manifest;
mod output;
mod pod_args;
mod process;
mod switch;
mod webhook;

use std::{io, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};

use self::output::{ExitStatus, print_stdout};

/// Lets pods overflow from AKS VMs to Azure virtual nodes, as a last resort
#[derive(Debug, Parser)]
#[command(name = "spillway", version, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = "Exit codes: 0 success, 1 findings or refusals, 2 wrong usage or unreadable input")]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Webhook(webhook::Args),
    Controller(controller::Args),
    Explain(explain::Args),
    #[command(subcommand)]
    Identity(identity::Command),
    #[command(subcommand)]
    Config(config::Command),
    #[command(subcommand)]
    Certs(certs::Command),
    /// Switch Spillway off immediately, for the whole cluster
    ///
    /// Removes the MutatingWebhookConfiguration aci-spillway, so that the API server no longer calls Spillway. A
    /// copy stays in the ConfigMap spillway-switched-off for `spillway on`. Existing pods do not change. You can
    /// interrupt and repeat the command.
    Off(switch::Args),
    /// Switch Spillway on again
    ///
    /// Restores the configuration that `spillway off` removed, with its labels, annotations and field managers. kubectl,
    /// helm and GitOps tools still own their fields.
    On(switch::Args),
    /// Print a shell completion script
    ///
    /// For bash: `source <(spillway completions bash)`.
    Completions {
        /// Name of the shell
        shell: clap_complete::Shell,
    },
}

/// Runs a command. The exit code is 0 on success, 1 for findings, and 2 for invalid usage or unreadable input.
pub fn run(cli: Cli) -> ExitCode {
    let outcome = match cli.command {
        Command::Webhook(args) => webhook::run(&args),
        Command::Controller(args) => controller::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Identity(command) => identity::run(&command),
        Command::Config(command) => config::run(&command),
        Command::Certs(command) => certs::run(&command),
        Command::Off(args) => switch::off(&args),
        Command::On(args) => switch::on(&args),
        Command::Completions { shell } => completions(shell),
    };
    crate::telemetry::logs::flush();
    match outcome {
        Ok(ExitStatus::Success) => ExitCode::SUCCESS,
        Ok(ExitStatus::Findings) => ExitCode::from(1),
        // The reader closed the pipe, as in `spillway explain ... | head`.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&error);
            ExitCode::from(2)
        }
    }
}

fn completions(shell: clap_complete::Shell) -> anyhow::Result<ExitStatus> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "spillway", &mut script);
    print_stdout(&script)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Prints the error and each of its causes, without a backtrace.
fn print_error(error: &anyhow::Error) {
    let mut lines = error_messages(error).into_iter();
    eprintln!("error: {}", lines.next().unwrap_or_default());
    for cause in lines {
        eprintln!("  cause: {cause}");
    }
}

/// Returns the messages of an error and its causes. Skips a message that an earlier one contains, because many libraries
/// repeat the cause in the message.
fn error_messages(error: &anyhow::Error) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if !lines.iter().any(|line| line.contains(&cause)) {
            lines.push(cause);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_appears_once() {
        let error = anyhow::anyhow!("connection refused").context("failed: connection refused").context("no cluster");
        assert_eq!(error_messages(&error), ["no cluster", "failed: connection refused"]);
    }
}
