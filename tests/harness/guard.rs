//! In: a name for this run. Out: a private directory, and the promise that nothing outlives us.
//!
//! The promise must hold after SIGKILL, when no destructor runs. So a guardian shell waits for the end
//! of a pipe that only we hold; the kernel closes it however we die, and the guardian then ends every
//! process recorded in `pids/` and removes the directory. It also makes the directory, so that there is
//! no moment at which the directory exists unguarded.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

const GUARDIAN: &str = include_str!("guardian.sh");
const PATIENCE: Duration = Duration::from_secs(10);

/// The directory of one run. The last owner to drop it waits until it is gone.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    guardian: Child,
    count: AtomicU64,
}

impl RunDir {
    /// Makes a fresh directory for the run `name` and sets the guardian over it.
    ///
    /// # Errors
    /// When the state root cannot be used or no shell can be started.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let runs = state_root()?.join("runs");
        make_dir(&runs)?;
        let random = getrandom::u64().context("no randomness for a directory name")?;
        let path = runs.join(format!("{name}-{random:016x}"));
        let mut guardian = Command::new("/bin/sh")
            .args(["-c", GUARDIAN, "tidegate-guardian"])
            .arg(&path)
            .arg(if is_root() { "022" } else { "077" })
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("cannot start /bin/sh, which cleans up after a run")?;
        let mut ready = String::new();
        let stdout = guardian.stdout.take().context("the guardian's output is a pipe")?;
        BufReader::new(stdout).read_line(&mut ready).context("the guardian says nothing")?;
        ensure!(ready == "ready\n", "cannot make {}", path.display());
        Ok(Self { path, guardian, count: AtomicU64::new(0) })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The process that cleans up; it ends by itself once the run is over.
    #[must_use]
    pub fn guardian_pid(&self) -> u32 {
        self.guardian.id()
    }

    /// A new file name in `pids/`. A process whose file ends in `.quit` is ended by SIGQUIT first.
    pub(crate) fn pid_file(&self, name: &str, quit: bool) -> PathBuf {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let ending = if quit { "quit" } else { "kill" };
        self.path.join("pids").join(format!("{name}.{count}.{ending}"))
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        drop(self.guardian.stdin.take());
        let started = Instant::now();
        while matches!(self.guardian.try_wait(), Ok(None)) && started.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Whether we run as root, which Postgres refuses to.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Where runs and fetched servers live. As root it is a place that a Postgres without privileges can
/// reach; a home directory of mode 0700 is not.
///
/// # Errors
/// When there is no home directory, or when the directory belongs to somebody else.
pub fn state_root() -> anyhow::Result<PathBuf> {
    let root = if is_root() {
        PathBuf::from("/var/tmp/tidegate")
    } else {
        cache_home().context("no directory for state: set HOME or XDG_CACHE_HOME")?.join("tidegate")
    };
    make_dir(&root)?;
    // /var/tmp is everybody's: programs are run from here, so it must be ours alone to write.
    let found = fs::symlink_metadata(&root)?;
    ensure!(
        found.is_dir()
            && found.uid() == rustix::process::geteuid().as_raw()
            && found.mode() & 0o022 == 0,
        "{} must be a directory that only you can write: remove it",
        root.display()
    );
    Ok(root)
}

fn cache_home() -> Option<PathBuf> {
    let set = |key| std::env::var_os(key).map(PathBuf::from).filter(|path| path.is_absolute());
    set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")))
}

/// Makes a directory whatever the umask is: open to readers as root, private otherwise.
pub(crate) fn make_dir(path: &Path) -> anyhow::Result<()> {
    let mode = if is_root() { 0o755 } else { 0o700 };
    if !path.is_dir() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .with_context(|| format!("cannot set the mode of {}", path.display()))?;
    }
    Ok(())
}

/// Copies a directory with all that is in it; what was there before at `to` is removed.
pub(crate) async fn copy_dir(from: &Path, to: &Path) -> anyhow::Result<()> {
    let (from, to) = (from.to_owned(), to.to_owned());
    // The load goes on meanwhile.
    tokio::task::spawn_blocking(move || {
        if to.exists() {
            fs::remove_dir_all(&to).with_context(|| format!("cannot remove {}", to.display()))?;
        }
        let copied = Command::new("cp").arg("-a").arg(&from).arg(&to).status()?;
        ensure!(copied.success(), "{} could not be copied", from.display());
        Ok(())
    })
    .await?
}
