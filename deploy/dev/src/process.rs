//! Child processes that can be killed, frozen and restarted.
//!
//! A child writes its process id to a file before it becomes the program (`exec` keeps the id), so
//! the reaper knows every running child. The file is removed before the child is reaped: until then
//! the kernel does not reuse the id, so the reaper kills no other process. Each child leads its own
//! process group, so Ctrl-C reaches only this process, which stops the children in order.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::process::{self as sys, Pid, Signal, WaitId, WaitIdOptions};

use crate::eventually::try_eventually;
use crate::run_dir::RunDir;

/// Script that writes its process id to the file `$0` and becomes the program `$1`.
const RECORD_AND_EXEC: &str = r#"echo $$ > "$0" && exec "$@""#;

/// Environment variables that children inherit. Others would make runs differ between machines.
const INHERITED: &[&str] = &[
    "HOME",
    "LANG",
    "LLVM_PROFILE_FILE",
    "PATH",
    "RUST_BACKTRACE",
    "RUST_LOG",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "TMPDIR",
];

/// Signals with which the reaper ends a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ending {
    /// SIGKILL.
    #[default]
    Kill,
    /// SIGQUIT, then SIGKILL, so that Postgres frees its shared memory.
    Quit,
}

/// Options of a start.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// User and group of the process, which needs root. Default: those of this process.
    pub uid: Option<u32>,
    /// Signals of the reaper.
    pub ending: Ending,
    /// File to which the output is appended. Default: `<run>/<name>.log`.
    pub log: Option<PathBuf>,
}

/// Child process. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    program: PathBuf,
    args: Vec<OsString>,
    envs: Vec<(String, String)>,
    uid: Option<u32>,
    ending: Ending,
    log: PathBuf,
    state: Mutex<ChildState>,
    run: Arc<RunDir>,
}

/// State of the latest start.
#[derive(Debug)]
struct ChildState {
    child: Child,
    record: PathBuf,
    exit_status: Option<ExitStatus>,
}

impl Process {
    /// Starts `program` in the folder of the run. Its output is appended to `<run>/<name>.log`.
    /// With `uid`, which needs root, it runs as that user and the group of the same number.
    ///
    /// # Errors
    /// If the program does not exist or cannot be started.
    pub fn start<A: AsRef<OsStr>>(
        run: &Arc<RunDir>,
        name: &str,
        program: &Path,
        args: &[A],
        envs: &[(String, String)],
        uid: Option<u32>,
    ) -> anyhow::Result<Self> {
        let options = Options { uid, ..Options::default() };
        Self::start_with(run, name, program, args, envs, options)
    }

    /// Starts `program` as [`Process::start`] does, with options.
    ///
    /// # Errors
    /// If the program does not exist or cannot be started.
    pub fn start_with<A: AsRef<OsStr>>(
        run: &Arc<RunDir>,
        name: &str,
        program: &Path,
        args: &[A],
        envs: &[(String, String)],
        options: Options,
    ) -> anyhow::Result<Self> {
        let Options { uid, ending, log } = options;
        let log = log.unwrap_or_else(|| run.path().join(format!("{name}.log")));
        let args: Vec<OsString> = args.iter().map(|arg| arg.as_ref().to_owned()).collect();
        let state = spawn(run, name, program, &args, envs, uid, ending, &log)?;
        Ok(Self {
            name: name.to_owned(),
            program: program.to_owned(),
            args,
            envs: envs.to_vec(),
            uid,
            ending,
            log,
            state: Mutex::new(state),
            run: Arc::clone(run),
        })
    }

    /// Returns the process id of the latest start.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.state().child.id()
    }

    /// Returns the resident memory in bytes.
    ///
    /// # Errors
    /// If the process has ended.
    pub fn resident(&self) -> anyhow::Result<u64> {
        self.memory("VmRSS:")
    }

    /// Returns the peak resident memory in bytes since the latest start.
    ///
    /// # Errors
    /// If the process has ended.
    pub fn peak_resident(&self) -> anyhow::Result<u64> {
        self.memory("VmHWM:")
    }

    fn memory(&self, line: &str) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|text| text.strip_prefix(line));
        let kib: Option<u64> = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
        Ok(kib.with_context(|| format!("{} has ended", self.name))? * 1024)
    }

    /// Returns true if the process has not ended. A frozen process counts as running.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.state().reap_if_ended().is_none()
    }

    /// Sends SIGKILL to the process group and waits until the process is gone.
    pub fn kill(&self) {
        let mut state = self.state();
        if state.reap_if_ended().is_none() {
            let _gone_already = sys::kill_process_group(state.pid(), Signal::KILL);
            state.reap();
        }
    }

    /// Sends SIGTERM. [`Process::wait`] waits for the end.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Waits for the end of the process.
    ///
    /// # Errors
    /// If `deadline` passes first.
    pub async fn wait(&self, deadline: Duration) -> anyhow::Result<ExitStatus> {
        let what = format!("{} ends", self.name);
        try_eventually(&what, deadline, async || self.state().reap_if_ended()).await
    }

    /// Sends SIGSTOP and waits until the process is stopped. Its connections stay open, but it does
    /// not respond.
    pub fn freeze(&self) {
        let mut state = self.state();
        if state.reap_if_ended().is_none() {
            let _gone_already = sys::kill_process(state.pid(), Signal::STOP);
            let stopped = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            let _already_ended = sys::waitid(WaitId::Pid(state.pid()), stopped);
        }
    }

    /// Continues a frozen process with SIGCONT.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Kills the process if it is running, and starts the same command again. Appends to the log.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn restart(&self) -> anyhow::Result<()> {
        self.kill();
        *self.state() = spawn(
            &self.run,
            &self.name,
            &self.program,
            &self.args,
            &self.envs,
            self.uid,
            self.ending,
            &self.log,
        )?;
        Ok(())
    }

    /// Returns the path of the log.
    #[must_use]
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Returns the output of all starts.
    #[must_use]
    pub fn log(&self) -> String {
        // A test may have replaced the log by a pipe, which has no end.
        let bytes = match fs::metadata(&self.log) {
            Ok(log) if log.is_file() => fs::read(&self.log).unwrap_or_default(),
            _ => Vec::new(),
        };
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Returns the last lines of the output, for error messages.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.trim_end().lines().collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }

    /// Sends a signal, unless the process has ended.
    pub fn signal(&self, signal: Signal) {
        let mut state = self.state();
        if state.reap_if_ended().is_none() {
            let _gone_already = sys::kill_process(state.pid(), signal);
        }
    }

    fn state(&self) -> MutexGuard<'_, ChildState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

impl ChildState {
    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn reap_if_ended(&mut self) -> Option<ExitStatus> {
        if self.exit_status.is_none() {
            let without_reaping =
                WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            if let Ok(Some(_)) = sys::waitid(WaitId::Pid(self.pid()), without_reaping) {
                self.reap();
            }
        }
        self.exit_status
    }

    /// Waits for a child that has ended or been killed, and removes its record. Blocks.
    fn reap(&mut self) {
        let _removed_with_the_run = fs::remove_file(&self.record);
        self.exit_status = self.child.wait().ok();
    }
}

#[expect(clippy::too_many_arguments, reason = "two callers, each with all arguments")]
fn spawn(
    run: &RunDir,
    name: &str,
    program: &Path,
    args: &[OsString],
    envs: &[(String, String)],
    uid: Option<u32>,
    ending: Ending,
    log: &Path,
) -> anyhow::Result<ChildState> {
    ensure!(program.is_file(), "program {} not found", program.display());
    let out = OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("failed to write {}", log.display()))?;
    let record = run.pid_file(name, ending == Ending::Quit);
    File::create(&record).with_context(|| format!("failed to write {}", record.display()))?;

    let mut command = Command::new("/bin/sh");
    command.args(["-c", RECORD_AND_EXEC]).arg(&record).arg(program).args(args);
    command.env_clear();
    command.envs(INHERITED.iter().filter_map(|key| Some((key, std::env::var_os(key)?))));
    command.envs(envs.iter().map(|(key, value)| (key, value)));
    command.current_dir(run.path()).process_group(0);
    command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
    if let Some(uid) = uid {
        // The child writes its record as this user.
        std::os::unix::fs::chown(&record, Some(uid), Some(uid))
            .context("failed to change the owner of the record")?;
        command.uid(uid).gid(uid);
    }
    match command.spawn() {
        Ok(child) => Ok(ChildState { child, record, exit_status: None }),
        Err(error) => {
            let _removed_with_the_run = fs::remove_file(&record);
            Err(error).with_context(|| format!("failed to start {name}"))
        }
    }
}

/// Returns true if a process with this id is running. A zombie is not running, even if no parent
/// reaps it, as in a container.
#[must_use]
pub fn process_exists(pid: u32) -> bool {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return false };
    let zombie = || stat(pid.as_raw_nonzero().get()).is_some_and(|(state, _)| state == 'Z');
    sys::test_kill_process(pid).is_ok() && !zombie()
}

/// Returns the state and parent id of a process.
///
/// In `/proc/<id>/stat` they follow the name in parentheses, which may contain any characters.
pub fn stat(id: i32) -> Option<(char, i32)> {
    let text = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}
