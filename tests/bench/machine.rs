//! Where it was measured: the machine, the versions, and what else the machine did meanwhile. Reads `/proc`.

use serde::Serialize;
use std::{fs, process::Command, time::Duration};

/// Ticks a second in `/proc`: 100 on every Linux, whatever its kernel's own clock.
const TICKS: u64 = 100;

/// The machine and the versions.
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
    /// This one, with these servers.
    pub fn here(nats_server: &std::path::Path, postgres: &std::path::Path) -> Self {
        let said = |program: &std::path::Path, args: &[&str]| {
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
        let git = |args: &[&str]| said("git".as_ref(), args);
        Self {
            cpu: field("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_gib: kib / (1024 * 1024),
            kernel: said("uname".as_ref(), &["-sr"]),
            rustc: said("rustc".as_ref(), &["--version"]),
            nats_server: said(nats_server, &["--version"]),
            postgres: said(&postgres.join("postgres"), &["--version"]),
            commit: git(&["rev-parse", "--short", "HEAD"]),
            changed_files: git(&["status", "--porcelain"]).lines().count(),
        }
    }

    /// One line for people.
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

/// CPU time that a process has used, children that ended included.
pub fn cpu(pid: u32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = text.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default();
    let ticks: u64 = fields.split_whitespace().skip(11).take(4).flat_map(str::parse::<u64>).sum();
    Duration::from_millis(ticks * 1000 / TICKS)
}

/// Bytes of memory that are a process's own, neither files nor shared.
pub fn own_memory(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or_default() * 1024
}

/// How busy the machine was, and with what.
pub struct Watch {
    busy: u64,
    total: u64,
    ours: Duration,
}

impl Watch {
    /// Begins to watch.
    pub fn start() -> Self {
        let (busy, total) = jiffies();
        Self { busy, total, ours: cpu(std::process::id()) }
    }

    /// The share of the machine that others used since, once all that we started has ended: what is left of the busy time.
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
