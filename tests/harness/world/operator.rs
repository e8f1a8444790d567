//! The operator of a world: the command line, and other programs with its settings.

use super::{Role, World};
use crate::binaries::Binaries;
use anyhow::ensure;
use std::{
    path::Path,
    process::{Command, Output},
};

impl World {
    /// Runs the operator's command line; gives what it printed.
    pub fn tidegate(&self, args: &[&str]) -> anyhow::Result<String> {
        let ran = self.try_tidegate(args)?;
        ensure!(
            ran.status.success(),
            "tidegate {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&ran.stderr)
        );
        Ok(String::from_utf8(ran.stdout)?)
    }

    /// Runs the operator's command line, which may fail.
    pub fn try_tidegate(&self, args: &[&str]) -> anyhow::Result<Output> {
        Ok(self.operator(args)?.output()?)
    }

    /// Runs the operator's command line while a load goes on beside it.
    pub async fn operate(&self, args: &[&str]) -> anyhow::Result<()> {
        let mut operator = self.operator(args)?;
        let ran = tokio::task::spawn_blocking(move || operator.output()).await??;
        let said = String::from_utf8_lossy(&ran.stderr);
        ensure!(ran.status.success(), "tidegate {}: {said}", args.join(" "));
        Ok(())
    }

    fn operator(&self, args: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(&Binaries::get()?.tidegate);
        let role = if args.first() == Some(&"migrate") { Role::Owner } else { Role::Operator };
        command.args(args).envs(self.settings_of(role));
        Ok(command)
    }

    /// Runs another program with the operator's settings.
    pub fn run(&self, program: &Path, args: &[&str]) -> anyhow::Result<Output> {
        let mut command = Command::new(program);
        Ok(command.args(args).envs(self.settings_of(Role::Operator)).output()?)
    }
}
