//! Workload processes from outside: started (also under another program, for mount namespaces), stopped, killed, judged.

use super::{cli, record::Report, work::Plan};
use anyhow::{Context, Result, bail};
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::Duration,
};

/// How long a process may take beyond its own hang limit.
const SLACK: Duration = Duration::from_secs(20);
/// A plan of steps must have ended after this.
pub const LONG: Duration = Duration::from_secs(600);

/// A child that talks in lines. It is killed, never waited for without a limit: a thread of it may hang in the kernel.
struct Talker {
    child: Child,
    lines: Receiver<String>,
}

impl Talker {
    fn start(mut command: Command) -> Result<Talker> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {:?}", command.get_program()))?;
        let out = child.stdout.take().context("no pipe")?;
        let (tx, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if tx.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Talker { child, lines })
    }
    /// Lines until one is among `words` or the process ends; that word, if any.
    fn wait_for(&self, words: &[&str], limit: Duration, mut other: impl FnMut(String)) -> Result<Option<String>> {
        loop {
            match self.lines.recv_timeout(limit) {
                Ok(line) if words.contains(&line.as_str()) => return Ok(Some(line)),
                Ok(line) => other(line),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => bail!("no answer within {limit:?}"),
            }
        }
    }
    fn tell(&mut self, word: &str) {
        if let Some(input) = self.child.stdin.as_mut() {
            let _ = writeln!(input, "{word}"); // it may have ended
        }
    }
}

impl Drop for Talker {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
            std::thread::spawn(move || nix::sys::wait::waitpid(pid, None));
        }
    }
}

/// This test executable.
pub fn program() -> Result<PathBuf> {
    Ok(std::env::current_exe()?)
}

/// A running workload.
pub struct Worker {
    talker: Talker,
    plan: Plan,
}

impl Worker {
    /// Starts it and waits until all its jobs stand.
    pub fn start(plan: &Plan) -> Result<Worker> {
        Worker::start_under(&[], plan)
    }
    /// The same below another program, which gets the command as its last arguments.
    pub fn start_under(wrap: &[String], plan: &Plan) -> Result<Worker> {
        fs::create_dir_all(&plan.out)?;
        let own = program()?.display().to_string();
        let mut words: Vec<String> = wrap.to_vec();
        words.extend([own, "work".into()]);
        words.extend(cli::words(plan));
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        let talker = Talker::start(command)?;
        let ready = talker.wait_for(&["ready", "hang"], plan.hang + SLACK, |l| println!("{l}"))?;
        let worker = Worker { talker, plan: plan.clone() };
        match ready.as_deref() {
            Some("ready") => Ok(worker),
            _ => bail!("the workload did not start: {}", worker.report().map_or(String::new(), |r| r.problems_text())),
        }
    }
    /// Process id, for killing the application.
    pub fn pid(&self) -> u32 {
        self.talker.child.id()
    }
    /// Tells it to stop and waits for its report.
    pub fn stop(mut self) -> Result<Report> {
        self.talker.tell("stop");
        let limit = self.plan.hang + SLACK;
        self.wait(limit)
    }
    /// Waits for the report of a plan with a number of steps.
    pub fn join(self) -> Result<Report> {
        self.wait(LONG)
    }
    fn wait(self, limit: Duration) -> Result<Report> {
        let word = self.talker.wait_for(&["done", "hang"], limit, |l| println!("{l}"));
        let word = word.context("the workload neither ends nor tells that it hangs")?;
        let report = self.report()?;
        if word.is_none() {
            bail!("the workload died: {}", report.problems_text());
        }
        Ok(report)
    }
    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.talker.child.try_wait(), Ok(None))
    }
    /// SIGKILL to the application; its status when it ended within `limit`.
    pub fn kill(mut self, limit: Duration) -> Result<ExitStatus> {
        self.talker.child.kill()?;
        // Its output ends when its last thread has ended.
        self.talker.wait_for(&[], limit, drop).context("the killed application does not end")?;
        Ok(self.talker.child.wait()?)
    }
    fn report(&self) -> Result<Report> {
        read_report(&self.plan.report())
    }
}

fn read_report(path: &Path) -> Result<Report> {
    let text = fs::read(path).with_context(|| format!("the workload left no report at {}", path.display()))?;
    Ok(serde_json::from_slice(&text)?)
}

/// Compares the tree at `dir` with what the workload told, in a process of its own.
pub fn verify(plan: &Plan, dir: &Path, limit: Duration) -> Result<Vec<String>> {
    verify_under(&[], plan, dir, limit)
}

/// The same below another program, which gets the command as its last arguments.
pub fn verify_under(wrap: &[String], plan: &Plan, dir: &Path, limit: Duration) -> Result<Vec<String>> {
    let mut words: Vec<String> = wrap.to_vec();
    words.extend([program()?.display().to_string(), "verify".into()]);
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).arg("--dir").arg(dir).arg("--shadow").arg(plan.shadow());
    let talker = Talker::start(command)?;
    let mut wrong = Vec::new();
    match talker.wait_for(&["done"], limit, |l| wrong.push(l))? {
        Some(_) => Ok(wrong),
        None => bail!("the comparison failed: {wrong:?}"),
    }
}

/// One process of the fcntl job, started by the workload.
pub struct Locker {
    talker: Talker,
    report: PathBuf,
    steps: bool,
}

impl Locker {
    /// Starts number `me` on the counter in `dir`.
    pub fn start(plan: &Plan, dir: &Path, me: u64) -> Result<Locker> {
        let mut own = plan.clone();
        own.dir = dir.into();
        own.out = plan.out.join(format!("locker{me}"));
        fs::create_dir_all(&own.out)?;
        let mut command = Command::new(program()?);
        command.arg("locker").args(cli::words(&own)).arg("--me").arg(me.to_string());
        Ok(Locker { talker: Talker::start(command)?, report: own.report(), steps: plan.steps.is_some() })
    }
    /// Tells it to stop; its report and its increments.
    pub fn end(mut self, hang: Duration) -> Result<(Report, u64)> {
        self.talker.tell("stop");
        let limit = if self.steps { LONG } else { hang + SLACK };
        if self.talker.wait_for(&["hang"], limit, drop)?.is_some() {
            return Ok((read_report(&self.report)?, 0));
        }
        let text = fs::read(&self.report).context("a locker left no report")?;
        Ok(serde_json::from_slice(&text)?)
    }
}
