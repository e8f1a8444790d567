//! The machine of a run: hardware, versions, and other load. Reads `/proc`.

use serde::Serialize;
use std::{fs, process::Command, time::Duration};

/// Ticks per second in `/proc`: 100 on every Linux.
const TICKS: u64 = 100;

/// Machine and versions.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    cpu: String,
    cores: usize,
    memory_gib: u64,
    kernel: String,
    rustc: String,
    nats_server: String,
    postgres: String,
    commit: String,
    changed_files: usize,
}

impl Machine {
    /// Returns this machine with the versions of these servers.
    pub fn here(nats_server: &std::path::Path, postgres: &std::path::Path) -> Self {
        let output_of = |program: &std::path::Path, args: &[&str]| {
            let output = Command::new(program).args(args).output().ok();
            let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
            text.unwrap_or_default().trim().to_owned()
        };
        let field = |file: &str, name: &str| {
            let text = fs::read_to_string(file).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.split_once(':'));
            line.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        let kib: u64 = field("/proc/meminfo", "MemTotal")
            .split_whitespace()
            .next()
            .and_then(|kib| kib.parse().ok())
            .unwrap_or_default();
        let git = |args: &[&str]| output_of("git".as_ref(), args);
        Self {
            cpu: field("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_gib: kib / (1024 * 1024),
            kernel: output_of("uname".as_ref(), &["-sr"]),
            rustc: output_of("rustc".as_ref(), &["--version"]),
            nats_server: output_of(nats_server, &["--version"]),
            postgres: output_of(&postgres.join("postgres"), &["--version"]),
            commit: git(&["rev-parse", "--short", "HEAD"]),
            changed_files: git(&["status", "--porcelain"]).lines().count(),
        }
    }

    /// Returns one line of text.
    pub fn line(&self) -> String {
        format!(
            "{} x {}, {} GiB, {}; {}; {}; {}; commit {}{}",
            self.cores,
            self.cpu,
            self.memory_gib,
            self.kernel,
            self.nats_server,
            self.postgres,
            self.rustc,
            self.commit,
            if self.changed_files > 0 { " and changes" } else { "" },
        )
    }
}

/// Returns the CPU time of a process and its ended children.
pub fn cpu(pid: u32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = text.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default();
    let ticks: u64 = fields.split_whitespace().skip(11).take(4).flat_map(str::parse::<u64>).sum();
    Duration::from_millis(ticks * 1000 / TICKS)
}

/// Returns the private memory of a process in bytes, without mapped files and shared memory.
pub fn own_memory(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or_default() * 1024
}

/// Measures the load of the machine by other processes.
pub struct Watch {
    busy: u64,
    total: u64,
    ours: Duration,
}

impl Watch {
    /// Starts the measurement.
    pub fn start() -> Self {
        let (busy, total) = jiffies();
        Self { busy, total, ours: cpu(std::process::id()) }
    }

    /// Returns the share of the machine (0 to 1) that other processes used since the start. All
    /// children must have ended.
    pub fn others(&self) -> f64 {
        let (busy, total) = jiffies();
        let ours = (cpu(std::process::id()) - self.ours).as_secs_f64() * TICKS as f64;
        let total = (total - self.total).max(1) as f64;
        (((busy - self.busy) as f64 - ours) / total).clamp(0.0, 1.0)
    }
}

fn jiffies() -> (u64, u64) {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().next().unwrap_or_default();
    let fields: Vec<u64> = line.split_whitespace().skip(1).flat_map(str::parse).take(8).collect();
    let total: u64 = fields.iter().sum();
    let idle: u64 = fields.iter().skip(3).take(2).sum();
    (total - idle, total)
}
