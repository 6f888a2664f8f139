//! `hailmary check`: what is wrong with a configuration.

use std::io::{self, Write};
use std::path::PathBuf;

use crate::config::{Config, ConfigError};

/// Says what is wrong with a configuration, by line.
#[derive(Debug, clap::Args)]
pub struct Check {
    /// The configuration to check.
    file: PathBuf,
}

impl Check {
    /// Checks and says that nothing is wrong.
    ///
    /// # Errors
    ///
    /// All that is wrong.
    pub fn run(&self) -> Result<(), ConfigError> {
        Config::load(&self.file)?;
        // The exit status says it, too, where standard output takes nothing.
        let _ = writeln!(io::stdout(), "{}: nothing wrong", self.file.display());
        Ok(())
    }
}
