//! Where the configuration comes from, each time that it is read: the file, and what the command
//! line says beside it.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

use toml::Spanned;

use crate::config::{Config, ConfigError, Plan};
use crate::confine::Mode;

/// A file and flags.
#[derive(Clone, Debug, Default)]
pub struct Source {
    file: Option<PathBuf>,
    listen: Vec<String>,
    admin: Option<String>,
    confine: Option<Mode>,
}

impl Source {
    /// A file, if there is one, and listeners and an admin that count instead of the file's.
    /// Names of hosts are resolved here and not at each reading, so that all are of the same.
    #[must_use]
    pub fn new(file: Option<PathBuf>, listen: &[String], admin: Option<&str>) -> Self {
        let listen = listen.iter().map(|address| match unix_path(address) {
            Some(_) => address.clone(),
            None => numeric(address),
        });
        Self {
            file,
            listen: listen.collect(),
            admin: admin.map(numeric),
            confine: None,
        }
    }

    /// With a mode of confinement that counts instead of the file's, if there is one.
    #[must_use]
    pub fn confined(mut self, mode: Option<Mode>) -> Self {
        self.confine = mode;
        self
    }

    /// The file, if there is one.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Whether there is a file that may say something else the next time.
    #[must_use]
    pub fn has_file(&self) -> bool {
        self.file.is_some()
    }

    /// The file's path, for people.
    #[must_use]
    pub fn name(&self) -> String {
        let name = self.file.as_deref().map(|file| file.display().to_string());
        name.unwrap_or_default()
    }

    /// Reads the file, of whatever kind it is, and puts the flags in.
    ///
    /// # Errors
    ///
    /// All that is wrong with either.
    pub fn read(&self) -> Result<(Config, Plan), ConfigError> {
        self.read_by(Config::load)
    }

    /// The same of a regular file alone: a bus that runs does not wait for what nobody writes.
    ///
    /// # Errors
    ///
    /// All that is wrong with either.
    pub fn read_anew(&self) -> Result<(Config, Plan), ConfigError> {
        self.read_by(Config::load_regular)
    }

    fn read_by(
        &self,
        load: impl FnOnce(&Path) -> Result<(Config, Plan), ConfigError>,
    ) -> Result<(Config, Plan), ConfigError> {
        let mut config = match &self.file {
            Some(file) => load(file)?.0,
            None => Config::default(),
        };
        if !self.listen.is_empty() {
            (config.listen.udp, config.listen.unix) = (Vec::new(), Vec::new());
        }
        for address in &self.listen {
            match unix_path(address) {
                Some(path) => config.listen.unix.push(Spanned::new(0..0, path.into())),
                None => config.listen.udp.push(Spanned::new(0..0, address.clone())),
            }
        }
        if let Some(admin) = &self.admin {
            config.listen.admin = Spanned::new(0..0, admin.clone());
        }
        if let Some(mode) = self.confine {
            config.confine.mode = Spanned::new(0..0, mode);
        }
        // Lines mean nothing any more where flags were put in: the file itself was checked above.
        let plan = config.check("command line", "")?;
        Ok((config, plan))
    }
}

fn unix_path(address: &str) -> Option<&str> {
    address.strip_prefix("unix://")
}

/// HOST:PORT with the name resolved; what is no such thing is left for the check to refuse.
fn numeric(address: &str) -> String {
    let address = address.strip_prefix("udp://").unwrap_or(address);
    let resolved = address
        .to_socket_addrs()
        .ok()
        .and_then(|mut all| all.next());
    resolved.map_or(address.to_owned(), |ip: SocketAddr| ip.to_string())
}
