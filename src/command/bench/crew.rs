//! The processes of a bench: started, told, listened to, and ended with this value.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use super::child::{Message, Order, Task};

/// How often a signal is looked for while waiting.
const LOOK_UP_EVERY: Duration = Duration::from_millis(50);

/// A process. Ended with this value.
#[derive(Debug)]
struct Member {
    name: String,
    process: Child,
    /// Closed, it tells the process to end.
    orders: ChildStdin,
}

impl Drop for Member {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Which process, in the order they were started in.
pub type MemberId = usize;

/// All processes.
#[derive(Debug)]
pub struct Crew {
    members: Vec<Member>,
    sender: Sender<(MemberId, Message)>,
    messages: Receiver<(MemberId, Message)>,
    stop: Arc<AtomicBool>,
}

impl Crew {
    /// None yet. Whatever waits for them gives up once `stop` is set.
    pub fn new(stop: Arc<AtomicBool>) -> Self {
        let (sender, messages) = mpsc::channel();
        Self {
            members: Vec::new(),
            sender,
            messages,
            stop,
        }
    }

    /// Starts this program anew for a task.
    ///
    /// # Errors
    ///
    /// Where the system has no process to give.
    pub fn start(&mut self, name: String, task: &Task) -> anyhow::Result<MemberId> {
        let is_bus = matches!(task, Task::Serve(_));
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("bench-child").stdin(Stdio::piped());
        match is_bus {
            true => command.stdout(Stdio::null()).stderr(Stdio::piped()),
            false => command.stdout(Stdio::piped()),
        };
        // A terminal's interrupt is for the bench alone, which then ends all others.
        command.process_group(0);
        let mut process = command
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let orders = process.stdin.take().context("no standard input")?;
        let stdout = process.stdout.take();
        let stderr = process.stderr.take();
        let id = self.members.len();
        self.members.push(Member {
            name,
            process,
            orders,
        });
        if let Some(stderr) = stderr {
            self.listen(id, stderr, read_log);
        } else if let Some(stdout) = stdout {
            self.listen(id, stdout, |line| serde_json::from_str(line).ok());
        }
        self.write(id, &serde_json::to_string(task)?);
        Ok(id)
    }

    /// Orders a process.
    ///
    /// # Errors
    ///
    /// None that a process can bring about: that it is gone is heard of by its end.
    pub fn tell(&mut self, id: MemberId, order: Order) -> anyhow::Result<()> {
        self.write(id, &serde_json::to_string(&order)?);
        Ok(())
    }

    fn write(&mut self, id: MemberId, line: &str) {
        if let Some(member) = self.members.get_mut(id) {
            let _ = member.orders.write_all(format!("{line}\n").as_bytes());
        }
    }

    /// Passes on what a process says, on a thread that ends with it.
    fn listen(
        &self,
        id: MemberId,
        output: impl Read + Send + 'static,
        read: fn(&str) -> Option<Message>,
    ) {
        let sender = self.sender.clone();
        std::thread::spawn(move || {
            let mut last = "it said nothing".to_owned();
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let Some(message) = read(&line) else {
                    last = line;
                    continue;
                };
                let is_result = matches!(message, Message::Published(_) | Message::Received(_));
                // Nobody listens any more where this fails.
                if sender.send((id, message)).is_err() || is_result {
                    return;
                }
            }
            let _ = sender.send((id, Message::Ended(last)));
        });
    }

    /// What one of the processes tells next.
    ///
    /// # Errors
    ///
    /// One failed or ended, a signal came, or nothing did till the deadline.
    pub fn hear(&self, deadline: Instant) -> anyhow::Result<(MemberId, Message)> {
        loop {
            ensure!(!self.stop.load(Ordering::Relaxed), "interrupted");
            match self.messages.recv_timeout(LOOK_UP_EVERY) {
                Ok((id, Message::Failed(why))) => bail!("{}: {why}", self.name(id)),
                Ok((id, Message::Ended(last))) => bail!("{} ended early: {last}", self.name(id)),
                Ok(heard) => return Ok(heard),
                Err(_) => ensure!(Instant::now() < deadline, "some process does not answer"),
            }
        }
    }

    /// Waits till `count` processes have told what `pick` takes, and sorts it by process.
    ///
    /// # Errors
    ///
    /// As [`Crew::hear`].
    pub fn gather<T>(
        &self,
        count: usize,
        patience: Duration,
        pick: impl Fn(Message) -> Option<T>,
    ) -> anyhow::Result<Vec<T>> {
        let deadline = Instant::now() + patience;
        let mut told = Vec::new();
        while told.len() < count {
            let (id, message) = self.hear(deadline)?;
            told.extend(pick(message).map(|told| (id, told)));
        }
        told.sort_by_key(|(id, _)| *id);
        Ok(told.into_iter().map(|(_, told)| told).collect())
    }

    /// The process's own id, as the system has it.
    pub fn system_id(&self, id: MemberId) -> Option<u32> {
        self.members.get(id).map(|member| member.process.id())
    }

    fn name(&self, id: MemberId) -> &str {
        self.members.get(id).map_or("a process", |m| &m.name)
    }
}

/// What a bus's log says of where it listens.
fn read_log(line: &str) -> Option<Message> {
    let record: serde_json::Value = serde_json::from_str(line).ok()?;
    let address = record.get("address")?.as_str()?.to_owned();
    match record.get("message")?.as_str()? {
        "listening" => Some(Message::Listening(address)),
        "admin listening" => Some(Message::Admin(address)),
        _ => None,
    }
}
