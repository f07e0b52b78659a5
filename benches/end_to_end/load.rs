//! Generates load on one server with oha.

use std::{
    net::SocketAddr,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::{
    REVIEW, process,
    report::{Paced, RATE, Row},
};

/// The number of rounds. The report has the medians.
pub(crate) const ROUNDS: usize = 7;
const PACED: Duration = Duration::from_secs(6);
const SATURATED: Duration = Duration::from_secs(3);
const CONNECTIONS: &str = "16";

/// A server under load.
pub(crate) struct Load {
    pub(crate) pid: u32,
    pub(crate) address: SocketAddr,
}

impl Load {
    pub(crate) fn row(&self) -> anyhow::Result<Row> {
        let before = process::cpu_seconds(self.pid)?;
        let (oha, resident_mib) = self.oha(PACED, Some(RATE))?;
        let used = process::cpu_seconds(self.pid)? - before;
        let paced = Paced {
            requests_per_second: number(&oha, "/summary/requestsPerSec")?,
            cpu_us: used * 1e6 / number(&oha, "/statusCodeDistribution/200")?,
            p50_ms: number(&oha, "/latencyPercentiles/p50")? * 1e3,
            p99_ms: number(&oha, "/latencyPercentiles/p99")? * 1e3,
            rss_mib: resident_mib,
        };
        let (oha, _) = self.oha(SATURATED, None)?;
        Ok(Row { paced, saturated_per_second: number(&oha, "/summary/requestsPerSec")? })
    }

    /// Runs oha. Returns its output, and the memory of the server in the middle of the run.
    fn oha(&self, time: Duration, rate: Option<u32>) -> anyhow::Result<(Value, f64)> {
        let mut oha = Command::new(env!("CARGO_MANIFEST_DIR").to_owned() + "/target/tools/bin/oha");
        oha.args(["--no-tui", "--output-format=json", "--insecure", "--http-version=1.1", "-c", CONNECTIONS]);
        oha.args(["-m", "POST", "-T", "application/json", "-D", REVIEW, "-z", &format!("{}s", time.as_secs())]);
        if let Some(rate) = rate {
            oha.args(["-q", &rate.to_string(), "--latency-correction"]);
        }
        oha.arg(format!("https://{}/mutate-v1-pod", self.address)).stdout(Stdio::piped());
        let oha = oha.spawn().context("start target/tools/bin/oha, which `make bench` installs")?;
        thread::sleep(time / 2);
        let resident_mib = process::resident_mib(self.pid)?;
        let output = oha.wait_with_output()?;
        ensure!(output.status.success(), "oha failed");
        let report: Value = serde_json::from_slice(&output.stdout).context("the output of oha is not JSON")?;
        let statuses = report.pointer("/statusCodeDistribution").and_then(Value::as_object).context("no responses")?;
        ensure!(statuses.keys().eq(["200"]), "expected only responses with status 200, got {statuses:?}");
        Ok((report, resident_mib))
    }
}

fn number(report: &Value, pointer: &str) -> anyhow::Result<f64> {
    report.pointer(pointer).and_then(Value::as_f64).with_context(|| format!("the output of oha has no {pointer}"))
}
