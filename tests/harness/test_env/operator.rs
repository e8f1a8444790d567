//! The command line of operators, and other programs with the operator's settings.

use super::{Role, TestEnv};
use crate::{binaries::Binaries, process::Process};
use anyhow::ensure;
use std::{
    path::Path,
    process::{Command, Output},
};

impl TestEnv {
    /// Runs the command line of operators. Returns its output.
    pub fn tidegate(&self, args: &[&str]) -> anyhow::Result<String> {
        let ran = self.try_tidegate(args)?;
        ensure!(
            ran.status.success(),
            "tidegate {} failed: {}",
            args.join(" "),
            String::from_utf8_lossy(&ran.stderr)
        );
        Ok(String::from_utf8(ran.stdout)?)
    }

    /// Runs the command line of operators. Returns its output and exit status.
    pub fn try_tidegate(&self, args: &[&str]) -> anyhow::Result<Output> {
        Ok(self.operator(args)?.output()?)
    }

    /// Runs the command line of operators without blocking the runtime.
    pub async fn run_tidegate(&self, args: &[&str]) -> anyhow::Result<()> {
        let mut operator = self.operator(args)?;
        let ran = tokio::task::spawn_blocking(move || operator.output()).await??;
        let errors = String::from_utf8_lossy(&ran.stderr);
        ensure!(ran.status.success(), "tidegate {} failed: {errors}", args.join(" "));
        Ok(())
    }

    /// Starts the command line of operators as a process.
    pub fn start_tidegate(&self, name: &str, args: &[&str]) -> anyhow::Result<Process> {
        let settings = self.settings_of(Role::Operator);
        Process::start(&self.run, name, &Binaries::get()?.tidegate, args, &settings, None)
    }

    /// Writes a secret to a file. Returns the argument that names the file.
    pub fn secret_argument(&self, secret: &str) -> anyhow::Result<String> {
        let file = self.write(&format!("secret-{:032x}", super::unique()?), secret)?;
        Ok(format!("file:{}", file.display()))
    }

    fn operator(&self, args: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(&Binaries::get()?.tidegate);
        let role = if args.first() == Some(&"migrate") { Role::Owner } else { Role::Operator };
        command.args(args).envs(self.settings_of(role));
        Ok(command)
    }

    /// Runs another program with the settings of the operator.
    pub fn run(&self, program: &Path, args: &[&str]) -> anyhow::Result<Output> {
        let mut command = Command::new(program);
        Ok(command.args(args).envs(self.settings_of(Role::Operator)).output()?)
    }
}
