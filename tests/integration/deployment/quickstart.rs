//! Commands of `deploy/QUICKSTART.md`, which are run or listed with a reason, and units of systemd,
//! whose programs start with the files that they name.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};
use tests::{
    binaries::Binaries, eventually::eventually, fetch::nats_server, port, postgres::Postgres,
    process::Process, run_dir::RunDir, test_env::TIMEOUT,
};

const UNITS: [&str; 5] = ["nats", "migrate", "ingest", "worker", "control"];

/// Commands that a test runs, by their beginning, with the test.
const RUN: [(&str, &str); 16] = [
    ("cargo build --workspace --bins", "the harness builds them"),
    ("tidegate init", "local_development::leads_newcomer_to_answer, asks_for_secrets"),
    ("tidegate init --base-url", "local_development::prints_webhook_urls"),
    ("tidegate dev --slack", "local_development::leads_newcomer_to_answer"),
    (". ~/.local/share/tidegate-dev", "local_development::restarts_in_three_seconds"),
    ("tidegate status", "local_development::restarts_in_three_seconds"),
    ("tidegate doctor", "doctor::"),
    ("tidegate tail", "audit_and_redrive::"),
    ("tidegate listen --connection", "local_development::mirrors_webhooks_in_order"),
    ("tidegate keygen --out", "this file"),
    ("bash deploy/systemd/passwords", "this file"),
    ("install -D -m 0644", "this file"),
    (". deploy/systemd/operator.env", "this file"),
    ("tidegate manifest", "doctor::"),
    ("tidegate apply", "apply::"),
    ("sudo -u postgres psql", "this file, with its own Postgres"),
];

/// Commands that no test runs, by their beginning, with the reason.
const NOT_RUN: [(&str, &str); 10] = [
    ("export PATH", "tests call the programs by path"),
    ("python3 deploy/compose/agent.py", "it takes port 8000; agents of tests take free ports"),
    ("cargo build --release", "takes long; the same crates as the debug build"),
    ("install -t /usr/local/bin", "writes outside of the folder of the run"),
    ("install -m 0644 -t /etc/systemd", "writes outside of the folder of the run"),
    ("apt-get install", "changes the machine"),
    ("sudo -u postgres createdb", "tests have a Postgres of their own"),
    ("systemctl", "needs a running systemd; the units are verified and their programs started"),
    ("docker compose", "needs Docker; deploy/check validates compose.yaml"),
    ("cp -r deploy/compose/declared", "copies a folder for Docker"),
];

fn root() -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).to_owned()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Each command of the quickstart is in one of the lists, and the lists name no other command.
#[test]
fn covers_every_command() {
    let text = read("deploy/QUICKSTART.md");
    let commands: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("$ ")).collect();
    assert!(commands.len() > 20, "{commands:?}");
    let listed = || RUN.iter().chain(&NOT_RUN);
    for command in &commands {
        let is_alias = command.starts_with("alias ");
        let is_listed = listed().any(|(start, _)| command.starts_with(start));
        assert!(
            is_alias || is_listed,
            "no test runs this command, and no reason is given: {command}"
        );
    }
    for (start, _) in listed() {
        let is_there = commands.iter().any(|command| command.starts_with(start));
        assert!(is_there, "the quickstart has no command {start}");
    }
    for (command, reason) in NOT_RUN {
        eprintln!("not run: {command}: {reason}");
    }
}

/// Every file that a command names exists.
#[test]
fn names_existing_files() {
    let text = read("deploy/QUICKSTART.md");
    let commands = text.lines().filter_map(|line| line.strip_prefix("$ "));
    let words = commands.flat_map(|command| command.split([' ', '"']));
    let paths: BTreeSet<&str> = words
        .map(|word| word.trim_start_matches("$PWD/"))
        .filter(|word| word.starts_with("deploy/"))
        .collect();
    assert!(paths.len() > 8, "{paths:?}");
    for path in paths {
        assert!(root().join(path).exists(), "{path}");
    }
}

/// Returns the settings of a unit: name and value, in order.
fn unit_lines(name: &str) -> Vec<(String, String)> {
    let text = read(&format!("deploy/systemd/tidegate-{name}.service"));
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let pairs = lines.filter_map(|line| line.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// `systemd-analyze verify` accepts the units, with the programs of this build in their places.
#[test]
fn verifies_units() {
    let run = RunDir::new("units").expect("a folder");
    for name in UNITS {
        let file = format!("tidegate-{name}.service");
        let text = read(&format!("deploy/systemd/{file}"));
        let programs = Binaries::get().expect("binaries").ingest.parent().expect("a folder");
        let text = text.replace("/usr/local/bin/nats-server", "/bin/true");
        let text = text.replace("/usr/local/bin", &programs.display().to_string());
        std::fs::write(run.path().join(file), text).expect("a file");
    }
    let files = UNITS.map(|name| run.path().join(format!("tidegate-{name}.service")));
    let Ok(verified) = Command::new("systemd-analyze").arg("verify").args(files).output() else {
        eprintln!("not run: systemd-analyze verify: there is no systemd-analyze");
        return;
    };
    let stderr = String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.success() && stderr.is_empty(), "{stderr}");
}

/// Folder that stands for a machine: it has the files that the units read. Servers use other ports.
struct Machine {
    run: Arc<RunDir>,
    ports: BTreeMap<&'static str, u16>,
}

impl Machine {
    fn path(&self, path: &str) -> PathBuf {
        self.run.path().join(path.trim_start_matches('/'))
    }

    /// Returns a text with the paths and ports of this folder.
    fn moved(&self, text: &str) -> String {
        let etc = self.path("/etc/tidegate").display().to_string();
        let store = self.path("/var/lib/tidegate-nats").display().to_string();
        let text = text.replace("/etc/tidegate", &etc).replace("/var/lib/tidegate-nats", &store);
        self.ports.iter().fold(text, |text, (from, to)| {
            text.replace(&format!("127.0.0.1:{from}"), &format!("127.0.0.1:{to}"))
        })
    }

    /// Returns the environment that systemd gives to a unit. Credentials are copied, as systemd
    /// does.
    fn environment(&self, unit: &str) -> Vec<(String, String)> {
        let folder = self.path(&format!("credentials/{unit}"));
        std::fs::create_dir_all(&folder).expect("a folder");
        let mut environment = Vec::new();
        for (name, value) in unit_lines(unit) {
            match name.as_str() {
                "LoadCredential" => {
                    let (name, path) = value.split_once(':').expect("a name and a path");
                    let copied = std::fs::copy(self.moved(path), folder.join(name));
                    copied.unwrap_or_else(|error| panic!("{path}: {error}"));
                }
                "Environment" => {
                    let (name, value) = value.split_once('=').expect("a name and a value");
                    let value = value.replace("%d", &folder.display().to_string());
                    environment.push((name.to_owned(), self.moved(&value)));
                }
                "EnvironmentFile" if !value.starts_with('-') => {
                    let text = std::fs::read_to_string(self.moved(&value)).expect("a file");
                    let lines = text.lines().filter_map(|line| line.split_once('='));
                    environment.extend(lines.map(|(n, v)| (n.to_owned(), v.to_owned())));
                }
                _ => {}
            }
        }
        environment
    }

    /// Runs a command of the quickstart.
    fn bash(&self, command: &str) -> String {
        let program = Binaries::get().expect("binaries").ingest.parent().expect("a folder");
        let path = format!("{}:{}", program.display(), std::env::var("PATH").expect("a path"));
        let mut bash = Command::new("bash");
        bash.args(["-euc", &self.moved(command)]).env("PATH", path).current_dir(root());
        let ran = bash.output().expect("bash");
        assert!(ran.status.success(), "{command}: {}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8(ran.stdout).expect("text")
    }
}

/// The quickstart's commands for one machine succeed, and each program becomes ready with the
/// environment of its unit.
#[tokio::test(flavor = "multi_thread")]
async fn starts_programs_of_units() {
    let _ = rustls::crypto::ring::default_provider().install_default(); // again for every test
    tokio::task::spawn_blocking(Binaries::get).await.expect("built").expect("binaries");
    let run = Arc::new(RunDir::new("machine").expect("a folder"));
    let postgres = Postgres::start(&run, "postgres").await.expect("a Postgres");
    let mut ports: BTreeMap<&str, u16> = ["4222", "8080", "8081", "9090", "9091", "9092"]
        .map(|from| (from, port::free().expect("a port")))
        .into();
    ports.insert("5432", postgres.port());
    let machine = Machine { run: Arc::clone(&run), ports };
    for folder in ["/etc/tidegate", "/var/lib/tidegate-nats"] {
        std::fs::create_dir_all(machine.path(folder)).expect("a folder");
    }
    let text = read("deploy/QUICKSTART.md");
    let command = |start: &str| {
        let commands = text.lines().filter_map(|line| line.strip_prefix("$ "));
        commands.filter(|command| command.starts_with(start)).collect::<Vec<_>>()
    };
    for install in command("install -D -m 0644") {
        machine.bash(install);
    }
    machine.bash(command("tidegate keygen")[0]);
    let (passwords, _) =
        command("bash deploy/systemd/passwords")[0].split_once(" |").expect("a pipe");
    let statements = machine.bash(passwords);
    postgres.create_database("tidegate").await.expect("a database");
    postgres.grant_roles("tidegate").await.expect("the roles");
    let superuser = sqlx::PgPool::connect(&postgres.url("tidegate")).await.expect("Postgres");
    sqlx::raw_sql(sqlx::AssertSqlSafe(statements)).execute(&superuser).await.expect("passwords");
    for role in ["owner", "worker", "operator", "control"] {
        let file = machine.path(&format!("/etc/tidegate/postgres/{role}.url"));
        let url = std::fs::read_to_string(&file).expect("an address");
        let url = url.replace("127.0.0.1/", &format!("127.0.0.1:{}/", postgres.port()));
        std::fs::write(&file, url).expect("written");
    }
    let conf = machine.path("/etc/tidegate/nats.conf");
    let moved = machine.moved(&std::fs::read_to_string(&conf).expect("a file"));
    std::fs::write(&conf, moved).expect("written");
    let nats = nats_server(&run).await.expect("a nats-server");
    let args = ["--config".to_owned(), conf.display().to_string()];
    let _nats = Process::start(&run, "nats", &nats, &args, &machine.environment("nats"), None)
        .expect("nats-server starts");
    let binaries = Binaries::get().expect("binaries");
    eventually("the migrations succeed", TIMEOUT, async || {
        let mut migrate = Command::new(&binaries.tidegate);
        migrate.arg("migrate").envs(machine.environment("migrate"));
        migrate.output().expect("it runs").status.success().then_some(())
    })
    .await;
    postgres.grant_roles("tidegate").await.expect("the roles, once more");
    let none: &[&str] = &[];
    let mut processes = Vec::new();
    for (unit, program, admin) in [
        ("ingest", &binaries.ingest, "9090"),
        ("worker", &binaries.worker, "9091"),
        ("control", &binaries.control, "9092"),
    ] {
        let settings = machine.environment(unit);
        let process = Process::start(&run, unit, program, none, &settings, None).expect("starts");
        let url = format!("http://127.0.0.1:{}/readyz", machine.ports[admin]);
        let ready = async || {
            assert!(process.is_running(), "{unit}: {}", process.log());
            reqwest::get(&url).await.ok()?.status().is_success().then_some(())
        };
        eventually(&format!("{unit} is ready"), TIMEOUT, ready).await;
        processes.push(process);
    }
    let status = format!("{} && tidegate status", command(". deploy/systemd/operator.env")[0]);
    let env = machine.moved(&read("deploy/systemd/operator.env"));
    std::fs::write(machine.path("operator.env"), env).expect("a file");
    let moved = machine.path("operator.env").display().to_string();
    let status = machine.bash(&status.replace("deploy/systemd/operator.env", &moved));
    assert!(status.contains("64 of 64 held"), "{status}");
}
