//! Subcommand `healthcheck`: queries the admin listener of the local process.
//!
//! Exits with 0 while `/readyz` returns 200, else with 1. Container images without a shell need a
//! subcommand for this. Orchestrators with HTTP probes should use those.

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser};
use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    process::ExitCode,
    time::Duration,
};

/// Name of the subcommand.
const SUBCOMMAND: &str = "healthcheck";
/// Maximum duration of each step of the request.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Invocation of a program: run with settings, or query the running process.
#[derive(Debug)]
pub enum Invocation<C> {
    /// Run the program.
    Run(C),
    /// Query the running process.
    Healthcheck(Healthcheck),
}

/// Check whether the process on this host is ready. Exits with 0 or 1.
#[derive(Debug, Parser)]
#[command(name = SUBCOMMAND)]
pub struct Healthcheck {
    /// Admin listener of the process, as address:port.
    #[arg(
        long,
        env = "TIDEGATE_ADMIN_LISTEN",
        value_name = "ADDR",
        default_value = "0.0.0.0:9090"
    )]
    admin_listen: SocketAddr,
}

impl<C: Parser> CommandFactory for Invocation<C> {
    fn command() -> clap::Command {
        C::command().subcommand_negates_reqs(true).subcommand(Healthcheck::command())
    }

    fn command_for_update() -> clap::Command {
        Self::command()
    }
}

impl<C: Parser> FromArgMatches for Invocation<C> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        match matches.subcommand_matches(SUBCOMMAND) {
            Some(healthcheck) => Healthcheck::from_arg_matches(healthcheck).map(Self::Healthcheck),
            None => C::from_arg_matches(matches).map(Self::Run),
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl<C: Parser> Parser for Invocation<C> {}

impl Healthcheck {
    /// Queries the process and prints a failure to standard error.
    pub fn run(&self) -> ExitCode {
        match self.request() {
            Ok(status) if status.contains(" 200 ") => ExitCode::SUCCESS,
            Ok(status) => {
                eprintln!("{}: not ready: {status}", self.admin_listen);
                ExitCode::FAILURE
            }
            Err(error) => {
                eprintln!("{}: no response: {error}", self.admin_listen);
                ExitCode::FAILURE
            }
        }
    }

    fn request(&self) -> std::io::Result<String> {
        let mut address = self.admin_listen;
        // A process that listens on all addresses also listens on localhost.
        match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
            IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
            _ => {}
        }
        let mut socket = TcpStream::connect_timeout(&address, TIMEOUT)?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        write!(socket, "GET /readyz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
        let mut response = String::new();
        socket.take(1024).read_to_string(&mut response)?;
        Ok(response.lines().next().unwrap_or_default().to_owned())
    }
}
