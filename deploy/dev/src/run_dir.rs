//! Private folder of a run, and its reaper. No process or file of a run outlives this process.
//!
//! This holds even after SIGKILL, when no destructor runs. A shell, the reaper, reads from a pipe
//! whose other end only this process holds. The kernel closes the pipe when this process ends. Then
//! the reaper ends every process recorded in `pids/` and removes the folder. The reaper also
//! creates the folder, so that the folder never exists without the reaper.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

/// Script of the reaper.
const REAPER: &str = include_str!("reaper.sh");
/// Maximum time that `drop` waits for the reaper.
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(10);

/// Folder of one run. `drop` waits until the folder is removed.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    reaper: Child,
    count: AtomicU64,
}

impl RunDir {
    /// Starts a reaper, which creates a new folder for the run `name`.
    ///
    /// # Errors
    /// If the state root cannot be used or no shell can be started.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let runs = state_root()?.join("runs");
        make_dir(&runs)?;
        let random = getrandom::u64().context("failed to choose a random folder name")?;
        let path = runs.join(format!("{name}-{random:016x}"));
        let mut reaper = Command::new("/bin/sh")
            .args(["-c", REAPER, "tidegate-reaper"])
            .arg(&path)
            .arg(if is_root() { "022" } else { "077" })
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("failed to start /bin/sh, which cleans up after a run")?;
        let mut ready = String::new();
        let stdout = reaper.stdout.take().context("the reaper's output is a pipe")?;
        BufReader::new(stdout).read_line(&mut ready).context("failed to read from the reaper")?;
        ensure!(ready == "ready\n", "failed to create {}", path.display());
        Ok(Self { path, reaper, count: AtomicU64::new(0) })
    }

    /// Returns the path of the folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the process id of the reaper, which ends with the run.
    #[must_use]
    pub fn reaper_pid(&self) -> u32 {
        self.reaper.id()
    }

    /// Returns a new path in `pids/`. The reaper sends SIGQUIT first to processes whose file ends
    /// in `.quit`.
    pub(crate) fn pid_file(&self, name: &str, quit: bool) -> PathBuf {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let extension = if quit { "quit" } else { "kill" };
        self.path.join("pids").join(format!("{name}.{count}.{extension}"))
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        drop(self.reaper.stdin.take());
        let started = Instant::now();
        while matches!(self.reaper.try_wait(), Ok(None)) && started.elapsed() < CLEANUP_TIMEOUT {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Returns true if this process runs as root, as which Postgres does not start.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Returns the folder of runs and fetched servers.
///
/// For root it is outside root's home, because an unprivileged Postgres must be able to read it.
///
/// # Errors
/// If there is no home folder, or the folder belongs to another user.
pub fn state_root() -> anyhow::Result<PathBuf> {
    let root = if is_root() {
        PathBuf::from("/var/tmp/tidegate")
    } else {
        cache_home()
            .context("failed to find a folder for state; set HOME or XDG_CACHE_HOME")?
            .join("tidegate")
    };
    make_dir(&root)?;
    // All users can write to /var/tmp. Programs are run from the folder, so only its owner may
    // write to it.
    let found = fs::symlink_metadata(&root)?;
    ensure!(
        found.is_dir()
            && found.uid() == rustix::process::geteuid().as_raw()
            && found.mode() & 0o022 == 0,
        "{} is not a folder that only you can write to; remove it",
        root.display()
    );
    Ok(root)
}

fn cache_home() -> Option<PathBuf> {
    let set = |key| std::env::var_os(key).map(PathBuf::from).filter(|path| path.is_absolute());
    set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")))
}

/// Creates a folder with its parents, independent of the umask.
///
/// The folder is readable for all users if this process is root, and private otherwise.
///
/// # Errors
/// If the folder cannot be created.
pub fn make_dir(path: &Path) -> anyhow::Result<()> {
    let mode = if is_root() { 0o755 } else { 0o700 };
    if !path.is_dir() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(path)
            .with_context(|| format!("failed to create {}", path.display()))?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .with_context(|| format!("failed to set the mode of {}", path.display()))?;
    }
    Ok(())
}

/// Copies a folder with its content. Replaces the target.
///
/// # Errors
/// If a file cannot be read or written.
pub async fn copy_dir(from: &Path, to: &Path) -> anyhow::Result<()> {
    let (from, to) = (from.to_owned(), to.to_owned());
    // In a blocking thread, so that other tasks continue.
    tokio::task::spawn_blocking(move || {
        if to.exists() {
            fs::remove_dir_all(&to)
                .with_context(|| format!("failed to remove {}", to.display()))?;
        }
        let copied = Command::new("cp").arg("-a").arg(&from).arg(&to).status()?;
        ensure!(copied.success(), "failed to copy {}", from.display());
        Ok(())
    })
    .await?
}
