//! The real controller, with the permissions of its own service account.

use std::{
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::Value;

use super::{
    ControlPlane, eventually,
    webhook::{child, get, lines, metric, peak_memory},
};

/// A running controller. It stops with the test, or with the test process.
pub(crate) struct Controller {
    pub(crate) name: String,
    admin: SocketAddr,
    log: PathBuf,
    tether: Child,
}

impl Controller {
    /// Starts a replica with this name and these flags.
    pub(crate) fn start(plane: &ControlPlane, name: &str, flags: &[&str]) -> Self {
        Self::start_as(plane, name, &plane.kubeconfig_for("spillway-system", "spillway-controller"), flags)
    }

    /// Starts a replica with the permissions of this kubeconfig.
    pub(crate) fn start_as(plane: &ControlPlane, name: &str, kubeconfig: &Path, flags: &[&str]) -> Self {
        Self::start_with(plane, name, kubeconfig, flags, &[])
    }

    /// Starts a replica with environment variables.
    pub(crate) fn start_with(
        plane: &ControlPlane,
        name: &str,
        kubeconfig: &Path,
        flags: &[&str],
        env: &[(&str, &str)],
    ) -> Self {
        let log = plane.dir.join(format!("{name}.log"));
        let mut command = Command::new(&plane.program);
        command.args(["tether", "--", env!("CARGO_BIN_EXE_spillway"), "controller", "--admin-bind=127.0.0.1:0"]);
        command.args(["--health-probe-bind=127.0.0.1:0", "--pod-name", name]).args(flags);
        command.env("KUBECONFIG", kubeconfig).envs(env.iter().copied());
        let tether = command.stdin(Stdio::piped()).stderr(File::create(&log).unwrap()).spawn().unwrap();
        let line = || lines(&log).into_iter().find(|line| line["message"] == "listening");
        let listening = eventually("the controller to listen", line);
        let admin = listening["admin"].as_str().unwrap().parse().unwrap();
        Self { name: name.to_owned(), admin, log, tether }
    }

    /// Sends a GET to the admin port and returns status and body.
    pub(crate) fn admin(&self, path: &str) -> (u16, String) {
        get(self.admin, path)
    }

    /// Returns the value of a metric by its name with labels, or 0 if it does not exist yet.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        metric(self.admin, name)
    }

    /// Returns whether this replica is the leader.
    pub(crate) fn leads(&self) -> bool {
        self.metric("spillway_leader") == 1
    }

    /// Returns the log lines so far.
    pub(crate) fn log(&self) -> Vec<Value> {
        lines(&self.log)
    }

    /// Sends a signal to the program.
    pub(crate) fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args(["-s", signal, &self.pid()]).status().unwrap().success());
    }

    /// Returns the peak memory of the program in KiB.
    pub(crate) fn peak_memory(&self) -> u64 {
        peak_memory(&self.pid())
    }

    /// Returns the process ID of the program.
    pub(crate) fn pid(&self) -> String {
        child(&self.tether)
    }

    pub(crate) fn is_alive(&mut self) -> bool {
        self.tether.try_wait().unwrap().is_none()
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        drop(self.tether.stdin.take());
        let _ = self.tether.wait();
    }
}
