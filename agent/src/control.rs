//! What commands ask of a running job's supervisor: messages through the socket `control` in the job's folder.
//!
//! A connection carries one request and its [`Reply`]; after an [`Request::Exec`] or [`Request::Attach`] it lives on: it
//! then takes [`Request::Resize`] and [`Request::Signal`] for what it started, and brings [`Reply::Ended`]. Who may ask is
//! said in [`crate::admission`]: each request brings a proof that it comes from outside of all jobs.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use mica_launcher::{ExecSpec, LaunchError, Limits, message};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect,
    listen, socket_with, sockopt,
};
use serde::{Deserialize, Serialize};

use crate::admission::{self, Admission};
use crate::config::Restart;
use crate::files::FileError;
use crate::job::JobDir;
use crate::status::Failure;

/// A terminal's size in characters; 0 where it is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// From a command to a supervisor.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// Run a program in the job. Descriptors: its [`ExecSpec`] in a memory file, and three streams if it gets no terminal.
    Exec { terminal: Option<Size> },
    /// Take part in the job's output, and in its input. Descriptors: output, errors, and what to read input from if `input`.
    Attach { input: bool },
    /// Say when the job ends.
    Wait,
    /// The terminal has another size now.
    Resize(Size),
    /// A signal for what the connection started, else for the job's own program.
    Signal(i32),
    /// End the job, and don't start it again. What is `None` is as the job was told.
    Stop { signal: Option<i32>, timeout: Option<u64> },
    /// Stop all processes where they are, or let them go on.
    Pause(bool),
    /// Stop them for as long as the connection lives.
    Hold,
    /// Change what can be changed; what is `None` stays.
    Update { limits: Limits, restart: Option<Restart> },
}

/// From a supervisor to a command.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    /// It is done, or has begun. Descriptor: the other end of the program's terminal, if it got one.
    Done,
    /// It could not be done.
    Failed(Failure),
    /// What the connection started, or attached to, has ended with this exit code.
    Ended(i32),
}

/// A supervisor that did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens.
    #[error("job {0} is not running")]
    NotRunning(String),
    /// The socket failed, or nobody answered in time.
    #[error("cannot talk to the supervisor of job {id}")]
    Talk {
        /// The job.
        id: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It hangs in the kernel, where nobody can kill it.
    #[error("job {id} cannot be ended: {} in the kernel", processes(pids))]
    Stuck {
        /// The job.
        id: String,
        /// The processes that have it.
        pids: Vec<i32>,
    },
    /// It says why.
    #[error("job {id} refuses")]
    Refused {
        /// The job.
        id: String,
        /// The supervisor's error.
        failure: Failure,
    },
    /// The job's record cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
}

fn processes(pids: &[i32]) -> String {
    match pids {
        [] => "a process hangs".to_owned(),
        [pid] => format!("process {pid} hangs"),
        pids => format!("processes {pids:?} hang"),
    }
}

/// The address of a job's socket. Its path goes through a descriptor: addresses are short, paths of folders may be long.
fn address(folder: &OwnedFd) -> rustix::io::Result<SocketAddrUnix> {
    use std::os::fd::AsRawFd;
    SocketAddrUnix::new(format!("/proc/self/fd/{}/control", folder.as_raw_fd()))
}

fn socket() -> rustix::io::Result<OwnedFd> {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

fn open_folder(path: &Path) -> rustix::io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags, open};
    open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// The supervisor's end.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: OwnedFd,
    admission: Admission,
}

impl Listener {
    /// Takes requests from whoever is in this process's namespaces, as they are now.
    pub(crate) fn bind(job: &JobDir) -> io::Result<Self> {
        let folder = open_folder(job.path())?;
        // Left by a supervisor that was killed: the lock says that it is gone.
        match std::fs::remove_file(job.path().join("control")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = socket()?;
        bind(&listener, &address(&folder)?)?;
        listen(&listener, 64)?;
        Ok(Self { socket: listener, admission: Admission::here()? })
    }

    /// The next connection; `None` if there is none, or it was refused.
    pub(crate) fn accept(&self) -> io::Result<Option<OwnedFd>> {
        let socket = accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        match self.admission.check_peer(&socket) {
            Ok(()) => Ok(Some(socket)),
            Err(failure) => {
                // One that doesn't listen won't hear it.
                message::send(&socket, &Reply::Failed(failure), &[]).ok();
                Ok(None)
            }
        }
    }

    /// What a message asks for, and the descriptors that it needs for that.
    pub(crate) fn understand(
        &self,
        mut message: message::Message,
    ) -> Result<(Request, Vec<OwnedFd>), Failure> {
        self.admission.check_proof(&mut message.descriptors)?;
        let request = serde_json::from_slice(&message.bytes).map_err(|error| Failure {
            chain: vec!["it does not know such a request".to_owned(), error.to_string()],
            hint: Some("was the job started by another version of mica?".to_owned()),
            exit_code: 125,
        })?;
        Ok((request, message.descriptors))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// How long a supervisor may take to do what is done at once.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long a program may take to start in a job.
const STARTING: Duration = Duration::from_secs(120);

/// A connection to the supervisor of a running job.
#[derive(Debug)]
pub struct Remote {
    id: String,
    socket: OwnedFd,
    /// Where this process was when it connected: it may go to other namespaces afterwards.
    proof: [OwnedFd; 2],
}

/// A job that is stopped where it is for as long as this lives, or this process.
#[derive(Debug)]
pub struct Held(Remote);

/// A program, or a job's streams, that a command is connected with.
#[derive(Debug)]
pub struct Connected {
    remote: Remote,
    /// The other end of a program's new terminal.
    pub terminal: Option<OwnedFd>,
}

/// Sends a request with its descriptors, and the proof that it may be made.
fn ask(to: &Remote, request: &Request, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let proof = to.proof.iter().map(AsFd::as_fd);
    let all: Vec<_> = descriptors.iter().copied().chain(proof).collect();
    message::send(&to.socket, request, &all)
}

fn connect_once(job: &JobDir, patience: Duration) -> rustix::io::Result<OwnedFd> {
    let folder = open_folder(job.path())?;
    let socket = socket()?;
    // For connecting too: nobody may take what waits.
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(patience))?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(patience))?;
    connect(&socket, &address(&folder)?)?;
    Ok(socket)
}

impl Remote {
    /// Connects to the job's supervisor; waits for one that is just starting.
    ///
    /// # Errors
    /// The job does not run.
    pub fn connect(job: &JobDir) -> Result<Self, ControlError> {
        Self::connect_within(job, PATIENCE)
    }

    /// The same with less patience, also for the answers.
    pub(crate) fn connect_within(job: &JobDir, patience: Duration) -> Result<Self, ControlError> {
        let id = job.id().to_owned();
        let proof = admission::proof();
        let proof = proof.map_err(|source| ControlError::Talk { id: id.clone(), source })?;
        let deadline = Instant::now() + patience;
        loop {
            match connect_once(job, patience) {
                Ok(socket) => return Ok(Self { id, socket, proof }),
                Err(Errno::NOENT | Errno::CONNREFUSED) => {
                    // A folder that is gone looks owned: nobody else can take its lock.
                    let gone = !job.path().exists() || !job.is_owned();
                    if gone || Instant::now() > deadline {
                        return Err(ControlError::NotRunning(id));
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => return Err(ControlError::Talk { id, source: error.into() }),
            }
        }
    }

    /// Runs a program in the job, with a terminal of this size or with these streams.
    ///
    /// # Errors
    /// It could not be started.
    pub fn exec(
        self,
        spec: &ExecSpec,
        streams: Result<[BorrowedFd<'_>; 3], Size>,
    ) -> Result<Connected, ControlError> {
        let memory = message::to_memory("mica-exec", spec).map_err(|source| self.talk(source))?;
        let mut descriptors = vec![memory.as_fd()];
        descriptors.extend(streams.into_iter().flatten());
        // Until the program runs; its file may have to be fetched first.
        sockopt::set_socket_timeout(&self.socket, sockopt::Timeout::Recv, Some(STARTING))
            .map_err(|error| self.talk(error.into()))?;
        let terminal = self.call(&Request::Exec { terminal: streams.err() }, &descriptors)?;
        Ok(Connected { remote: self, terminal })
    }

    /// Connects these streams with the job's: output, errors, and what is typed.
    ///
    /// # Errors
    /// The job has just ended.
    pub fn attach(
        self,
        output: [BorrowedFd<'_>; 2],
        input: Option<BorrowedFd<'_>>,
    ) -> Result<Connected, ControlError> {
        let mut descriptors = output.to_vec();
        descriptors.extend(input);
        self.call(&Request::Attach { input: input.is_some() }, &descriptors)?;
        Ok(Connected { remote: self, terminal: None })
    }

    /// Tells the job's terminal its size.
    ///
    /// # Errors
    /// The job has no terminal.
    pub fn resize(self, size: Size) -> Result<(), ControlError> {
        self.call(&Request::Resize(size), &[]).map(drop)
    }

    /// Sends a signal to the job's own program.
    ///
    /// # Errors
    /// The job has ended.
    pub fn signal(self, signal: i32) -> Result<(), ControlError> {
        self.call(&Request::Signal(signal), &[]).map(drop)
    }

    /// Waits for the job's end, and does nothing else.
    ///
    /// # Errors
    /// The job has just ended.
    pub fn await_end(self) -> Result<Option<i32>, ControlError> {
        self.call(&Request::Wait, &[])?;
        Connected { remote: self, terminal: None }.wait()
    }

    /// Asks the job to end, kills it after `timeout` seconds, and keeps it from being started again. Returns at once.
    ///
    /// # Errors
    /// The job has ended.
    pub fn stop(self, signal: Option<i32>, timeout: Option<u64>) -> Result<(), ControlError> {
        self.call(&Request::Stop { signal, timeout }, &[]).map(drop)
    }

    /// Stops all processes of the job where they are, or lets them go on.
    ///
    /// # Errors
    /// That can't be done here.
    pub fn pause(self, paused: bool) -> Result<(), ControlError> {
        self.call(&Request::Pause(paused), &[]).map(drop)
    }

    /// Stops all processes of the job where they are, until what is returned is dropped, or this process has died.
    ///
    /// # Errors
    /// That can't be done here, or somebody has paused the job.
    pub fn hold(self) -> Result<Held, ControlError> {
        self.call(&Request::Hold, &[])?;
        Ok(Held(self))
    }

    /// Changes limits and the restart policy; what is `None` stays.
    ///
    /// # Errors
    /// A limit can't be had.
    pub fn update(self, limits: Limits, restart: Option<Restart>) -> Result<(), ControlError> {
        self.call(&Request::Update { limits, restart }, &[]).map(drop)
    }

    fn talk(&self, source: io::Error) -> ControlError {
        ControlError::Talk { id: self.id.clone(), source }
    }

    fn call(
        &self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Option<OwnedFd>, ControlError> {
        match ask(self, request, descriptors) {
            // It may have said why before it hung up.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(self.talk(error)),
            _ => {}
        }
        let (reply, terminal) = self.receive()?;
        match reply {
            Reply::Failed(failure) => Err(ControlError::Refused { id: self.id.clone(), failure }),
            Reply::Done | Reply::Ended(_) => Ok(terminal),
        }
    }

    fn receive(&self) -> Result<(Reply, Option<OwnedFd>), ControlError> {
        let message = message::receive(&self.socket, RecvFlags::empty())
            .map_err(|source| self.talk(late(source)))?
            .ok_or_else(|| ControlError::NotRunning(self.id.clone()))?;
        let reply =
            serde_json::from_slice(&message.bytes).map_err(|error| self.talk(error.into()))?;
        Ok((reply, message.descriptors.into_iter().next()))
    }
}

/// A limit of a socket is told as "try again".
fn late(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "it does not answer"),
        _ => error,
    }
}

impl Held {
    /// Lets the job go on, and returns when it does.
    ///
    /// # Errors
    /// The job has ended.
    pub fn release(self) -> Result<(), ControlError> {
        self.0.pause(false)
    }
}

impl Connected {
    /// Waits for the end of what it is connected with; its exit code, or `None` if the supervisor is gone.
    ///
    /// # Errors
    /// The socket can't be read.
    pub fn wait(&self) -> Result<Option<i32>, ControlError> {
        loop {
            if let Some(ended) = self.try_wait()? {
                return Ok(ended);
            }
        }
    }

    /// Reads one message: what [`Connected::wait`] returns if that was the end, `None` if it was something else.
    ///
    /// # Errors
    /// The socket can't be read.
    pub fn try_wait(&self) -> Result<Option<Option<i32>>, ControlError> {
        let socket = &self.remote.socket;
        let forever = sockopt::set_socket_timeout(socket, sockopt::Timeout::Recv, None);
        forever.map_err(|error| self.remote.talk(error.into()))?;
        match self.remote.receive() {
            Ok((Reply::Ended(code), _)) => Ok(Some(Some(code))),
            // The answer to a resize or a signal.
            Ok(_) => Ok(None),
            Err(ControlError::NotRunning(_)) => Ok(Some(None)),
            Err(error) => Err(error),
        }
    }

    /// Passes a new size of the command's terminal on. What has ended has no use for it.
    pub fn resize(&self, size: Size) {
        self.say(&Request::Resize(size));
    }

    /// Passes a signal on.
    pub fn signal(&self, signal: i32) {
        self.say(&Request::Signal(signal));
    }

    fn say(&self, request: &Request) {
        if let Err(error) = ask(&self.remote, request, &[]) {
            tracing::debug!(%error, "the job is gone");
        }
    }
}

/// Becomes readable when [`Connected::wait`] would return.
impl AsFd for Connected {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.remote.socket.as_fd()
    }
}

impl From<&LaunchError> for Failure {
    fn from(error: &LaunchError) -> Self {
        Self::new(error, error.hint().map(Into::into), error.exit_code().into())
    }
}
