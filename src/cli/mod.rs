//! The command line: one file for each command. Results go to standard output, words to standard error.

mod certs;
mod cluster;
mod colours;
mod config;
mod controller;
mod explain;
mod identity;
mod manifest;
mod pod;
mod process;
mod switch;
mod webhook;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::{CommandFactory, Parser, Subcommand};

/// Lets pods overflow from AKS VMs to Azure virtual nodes, as a last resort
#[derive(Debug, Parser)]
#[command(name = "spillway", version, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = "Exit codes: 0 fine, 1 findings or refusals, 2 wrong use or unreadable input")]
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
    /// Switch Spillway off at once, for the whole cluster
    ///
    /// Removes the MutatingWebhookConfiguration aci-spillway, so that the API server no longer calls Spillway, and keeps it in the
    /// ConfigMap spillway-switched-off for `spillway on`. Pods that exist keep what they have. May be repeated, and interrupted.
    Off(switch::Args),
    /// Switch Spillway on again
    ///
    /// Puts back what `spillway off` has removed, with its labels, annotations and field managers, so that kubectl, helm and
    /// GitOps tools find what is theirs.
    On(switch::Args),
    /// Print a completion script for a shell
    ///
    /// For bash: `source <(spillway completions bash)`.
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// How a command ended that could do its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// Nothing to remark.
    Fine,
    /// There are findings or refusals.
    Findings,
}

/// Runs a command; the exit code is 0 when all is well, 1 for findings, 2 for wrong use or input that cannot be read.
pub fn run(cli: Cli) -> ExitCode {
    let ended = match cli.command {
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
    match ended {
        Ok(Ended::Fine) => ExitCode::SUCCESS,
        Ok(Ended::Findings) => ExitCode::from(1),
        // Whoever reads our output has seen enough, as in `spillway explain ... | head`.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&error);
            ExitCode::from(2)
        }
    }
}

fn completions(shell: clap_complete::Shell) -> anyhow::Result<Ended> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "spillway", &mut script);
    print_out(&script)
}

/// Writes a result to standard output.
fn print_out(text: &[u8]) -> anyhow::Result<Ended> {
    let mut out = io::stdout().lock();
    out.write_all(text)?;
    out.flush()?;
    Ok(Ended::Fine)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// The error and each of its causes; never a backtrace.
fn print_error(error: &anyhow::Error) {
    let mut lines = lines(error).into_iter();
    eprintln!("error: {}", lines.next().unwrap_or_default());
    for cause in lines {
        eprintln!("  cause: {cause}");
    }
}

/// The messages of a chain of causes, less those that only repeat a part of one above: many libraries write the cause into the
/// message too.
fn lines(error: &anyhow::Error) -> Vec<String> {
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
    fn a_cause_is_told_once() {
        let error = anyhow::anyhow!("connection refused").context("failed: connection refused").context("no cluster");
        assert_eq!(lines(&error), ["no cluster", "failed: connection refused"]);
    }
}
