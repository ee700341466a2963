//! The process between the node and a container. It starts the program, writes each line of its output with the time
//! into the attempt's log, and writes how the program ended. It outlives the node, so the next node finds the output
//! and the exit code in the attempt's folder.
//!
//! The node starts it under `unshare --pid`, so its one child is the first process of a new process-id namespace. When
//! that child ends, the kernel ends all others of the namespace. A process cannot start threads after `unshare`, so the
//! shim has none. Both output streams go through one pipe, which keeps their order.

use std::{
    fs::{self, OpenOptions},
    io::{self, BufRead as _, BufReader, Read, Write},
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    process::{Command, ExitStatus, Stdio},
};

use anyhow::Context as _;
use clap::Args;
use k8s_openapi::jiff::Timestamp;

use crate::attempt::{AttemptFolder, Exit};

/// A longer line is split into parts, as container runtimes do.
const LONGEST_PART: u64 = 16 * 1024;

/// The arguments from the node. The environment of the shim is the container's.
#[derive(Args, Debug)]
pub(crate) struct ShimArguments {
    /// The attempt's folder.
    #[arg(long)]
    folder: PathBuf,
    /// The file with the id of the container's first process while that runs.
    #[arg(long)]
    pid_file: PathBuf,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Runs one attempt of a container to its end. An error becomes the exit of the attempt, because nobody reads it here.
pub(crate) fn run(arguments: &ShimArguments) -> anyhow::Result<()> {
    let folder = AttemptFolder::new(arguments.folder.clone());
    let _claim = folder.claim()?;
    let exit = watch(arguments, &folder).unwrap_or_else(|error| Exit::of_refused(format!("{error:#}")));
    folder.write_exit(&exit)
}

fn watch(arguments: &ShimArguments, folder: &AttemptFolder) -> anyhow::Result<Exit> {
    let started_at = Timestamp::now();
    let (program, options) = arguments.command.split_first().context("no command")?;
    let log = OpenOptions::new().append(true).create(true).open(folder.log()).context("cannot open the log")?;
    let (output, input) = io::pipe()?;
    // The command is dropped with this statement, which closes this process's writing ends of the pipe.
    let mut child = Command::new(program)
        .args(options)
        .stdin(Stdio::null())
        .stdout(input.try_clone()?)
        .stderr(input)
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    folder.write_process(child.id())?;
    let unfinished = arguments.pid_file.with_extension("pid.new");
    fs::write(&unfinished, format!("{}\n", child.id()))?;
    fs::rename(&unfinished, &arguments.pid_file)?;
    copy(BufReader::new(output), log)?;
    let status = child.wait()?;
    // The file is gone when the node has removed the pod's folder.
    drop(fs::remove_file(&arguments.pid_file));
    Ok(Exit { code: exit_code(status), started_at, finished_at: Timestamp::now(), refused: None })
}

/// A container killed by signal n ends with 128 + n.
fn exit_code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(255)
}

/// Copies the container's output into its log, each line as soon as it is complete.
fn copy(mut output: BufReader<impl Read>, mut log: impl Write) -> io::Result<()> {
    let mut part = Vec::new();
    loop {
        part.clear();
        output.by_ref().take(LONGEST_PART).read_until(b'\n', &mut part)?;
        if part.is_empty() {
            return Ok(());
        }
        let whole = part.last() == Some(&b'\n');
        let tag = if whole { 'F' } else { 'P' };
        let mut entry = format!("{:.9} stdout {tag} ", Timestamp::now()).into_bytes();
        entry.append(&mut part);
        if !whole {
            entry.push(b'\n');
        }
        if log.write_all(&entry).is_err() {
            // On a full disk the program loses its log but keeps running.
            return io::copy(&mut output, &mut io::sink()).map(drop);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log_format;

    #[test]
    fn output_is_kept_byte_for_byte() {
        let line = "x".repeat(40_000);
        let cases = [
            ("lines", "one\ntwo\n", 2),
            ("an unfinished line", "one\ntw", 2),
            ("a line in parts", &format!("{line}\nend\n"), 4),
            ("empty lines", "\n\n", 2),
            ("carriage returns", "10%\r20%\r\n", 1),
            ("nothing", "", 0),
        ];
        for (label, output, entries) in cases {
            let mut log = Vec::new();
            copy(BufReader::new(output.as_bytes()), &mut log).unwrap();
            assert_eq!(String::from_utf8(log_format::text(&log)).unwrap(), output, "{label}");
            assert_eq!(String::from_utf8(log).unwrap().lines().count(), entries, "{label}");
        }
    }
}
