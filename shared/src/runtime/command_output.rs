//! Output of a command that prints a keyring: a client of Vault, KMS or SOPS.
//!
//! The command runs once, at the start of the process, without a shell. Time and output are
//! bounded. Errors name the program, and neither its arguments nor its output, which may be secret.

use std::{
    io::Read,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

/// Maximum run time of a command. Key services respond within a few seconds.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum size of the output: about a thousand keys.
const MAX_OUTPUT_BYTES: u64 = 64 * 1024;
/// Interval between checks whether the command has exited.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Runs a command and returns its output. A command is words separated by spaces, or a JSON array
/// of words that may contain spaces.
pub(super) fn read(command: &str) -> Result<String, String> {
    read_within(command, TIMEOUT)
}

fn read_within(command: &str, timeout: Duration) -> Result<String, String> {
    let words = words(command)?;
    let (program, arguments) = words.split_first().ok_or("the command is empty")?;
    let failed = |why: String| format!("command {program} {why}");
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| failed(format!("does not start: {error}")))?;
    let ended = wait(&mut child, timeout);
    if ended.is_err() {
        // Both fail if the command has exited meanwhile.
        let _ = child.kill();
        let _ = child.wait();
    }
    ended.map_err(failed)
}

/// Waits for a command and returns its output. Fails unless the command succeeds in time.
#[expect(clippy::disallowed_methods, reason = "settings are read before anything else runs")]
fn wait(child: &mut Child, timeout: Duration) -> Result<String, String> {
    let deadline = Instant::now() + timeout;
    let late = || format!("did not end within {timeout:?}");
    let stdout = child.stdout.take().ok_or("has no output")?;
    let (send, receive) = mpsc::channel();
    // Reads of a pipe have no timeout. The thread ends when the pipe is closed.
    thread::spawn(move || {
        let mut output = Vec::new();
        let read = stdout.take(MAX_OUTPUT_BYTES + 1).read_to_end(&mut output);
        // Fails only after the timeout.
        let _ = send.send(read.map(|_| output));
    });
    let output = receive.recv_timeout(timeout).map_err(|_| late())?;
    let output = output.map_err(|error| format!("has unreadable output: {error}"))?;
    if output.len() as u64 > MAX_OUTPUT_BYTES {
        return Err(format!("printed more than {MAX_OUTPUT_BYTES} bytes"));
    }
    let status = loop {
        let ended = child.try_wait().map_err(|error| format!("has no exit status: {error}"))?;
        match ended {
            Some(status) => break status,
            None if Instant::now() >= deadline => return Err(late()),
            None => thread::sleep(POLL_INTERVAL),
        }
    };
    if !status.success() {
        return Err(format!("failed ({status}); run it by hand to see why"));
    }
    let text = String::from_utf8(output).map_err(|_| "printed invalid UTF-8".to_owned())?;
    Ok(text.trim().to_owned())
}

fn words(command: &str) -> Result<Vec<String>, String> {
    match command.trim_start().starts_with('[') {
        true => serde_json::from_str(command)
            .map_err(|_| "expected a JSON array of words after exec:".to_owned()),
        false => Ok(command.split_whitespace().map(str::to_owned).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returns_output_without_shell() {
        assert_eq!(read("echo  k1:abc").as_deref(), Ok("k1:abc"));
        assert_eq!(read("echo $HOME;").as_deref(), Ok("$HOME;"));
        assert_eq!(read(r#"["sh","-c","printf 'a %s' b"]"#).as_deref(), Ok("a b"));
    }

    #[test]
    fn names_program_in_errors() {
        for (command, expected) in [
            ("", "the command is empty"),
            ("/none/vault read secret-argument", "command /none/vault does not start"),
            (r#"["sh","-c","echo secret-output; exit 3"]"#, "command sh failed (exit status: 3)"),
            (
                r#"["sh","-c","echo secret-output >&2; head -c 70000 /dev/zero"]"#,
                "command sh printed more than 65536 bytes",
            ),
            (r#"["sh","-c"#, "expected a JSON array"),
        ] {
            let error = read(command).expect_err(command);
            assert!(error.starts_with(expected), "{error}");
            assert!(!error.contains("secret-"), "{error}");
        }
    }

    #[test]
    fn ends_slow_command() {
        let begun = Instant::now();
        for command in ["sleep 60", r#"["sh","-c","exec 1>&-; exec sleep 60"]"#] {
            let error = read_within(command, Duration::from_millis(100)).expect_err("too slow");
            assert!(error.ends_with("did not end within 100ms"), "{error}");
        }
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}
