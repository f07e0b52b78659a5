//! `spillway config`: check the configuration file, show the configuration, print its schema.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::Subcommand;

use super::output::{ExitStatus, print_stdout};
use crate::{
    config::{Configuration, file::SpillwayConfiguration},
    reload::configuration,
};

/// Check or show the SpillwayConfiguration file
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Check a configuration file
    ///
    /// Rejects unknown fields, wrong types and values out of range. Errors name the file, the line, the expected
    /// value and the closest valid name.
    Validate {
        /// Path of the file, or - for standard input
        file: PathBuf,
    },
    /// Show the configuration, including all defaults
    Show {
        /// Path of the file, or - for standard input; by default the built-in configuration
        file: Option<PathBuf>,
    },
    /// Print the JSON schema of the file, for editors
    Schema,
}

pub(super) fn run(command: &Command) -> anyhow::Result<ExitStatus> {
    match command {
        Command::Validate { file } => {
            let config = load(Some(file))?;
            let profiles: Vec<_> = config.profile_names().collect();
            print_stdout(format!("{}: valid, profiles: {}\n", file.display(), profiles.join(", ")).as_bytes())
        }
        Command::Show { file } => {
            let shown = load(file.as_deref())?.with_defaults_shown();
            print_stdout(serde_saphyr::to_string(&shown)?.as_bytes())
        }
        Command::Schema => {
            let schema = serde_json::to_string_pretty(&schemars::schema_for!(SpillwayConfiguration))?;
            print_stdout(format!("{schema}\n").as_bytes())
        }
    }
}

/// Reads a configuration file, or returns the built-in configuration.
pub(super) fn load(file: Option<&Path>) -> anyhow::Result<Configuration> {
    let Some(file) = file else { return Ok(Configuration::default()) };
    Ok(configuration::parse(file, &read_text(file)?)?)
}

/// Reads a file, or standard input for `-`.
pub(super) fn read_text(file: &Path) -> anyhow::Result<String> {
    let text = if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().lock().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(file)
    };
    text.with_context(|| format!("cannot read {}", file.display()))
}
