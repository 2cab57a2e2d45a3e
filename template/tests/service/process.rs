//! The real binary as a process: a clean environment, a folder of its own, and its lines as they arrive.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::contract::assert_documented;
//@ if postgres
use crate::postgres::Database;
//@ end

/// How long a test waits for anything. Long, since only a test that fails waits it out.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// Environment variables, as `(name, value)`.
pub type Variables<'a> = &'a [(&'a str, &'a str)];

/// What a service is started with. Nothing of the test's own environment gets in.
#[derive(Debug)]
pub struct Launch {
    variables: BTreeMap<String, OsString>,
    /// The working directory, where the service looks for `config/` and `.env`.
    folder: PathBuf,
    //@ if postgres
    database: Option<Database>,
    //@ end
}

impl Launch {
    /// Free ports and no delays, with `variables` on top.
    pub fn new(variables: Variables) -> Self {
        let launch = Self::bare().set(&[
            ("APP_ENV", "production"),
            ("APP__HTTP__HOST", "127.0.0.1"),
            ("APP__HTTP__PORT", "0"),
            ("APP__ADMIN__HOST", "127.0.0.1"),
            ("APP__ADMIN__PORT", "0"),
            ("APP__LOG__FORMAT", "json"),
            ("APP__SHUTDOWN__GRACE_DELAY", "0s"),
            ("APP__WEBHOOK__ALLOW_PRIVATE_ADDRESSES", "true"),
            // The service calls others directly, whatever proxy the environment names.
            ("HTTP_PROXY", "http://127.0.0.1:1"),
            ("http_proxy", "http://127.0.0.1:1"),
        ]);
        //@ if postgres
        let launch = launch.set(&[("DATABASE_URL", crate::postgres::NOWHERE)]);
        //@ end
        //@ if redis
        let namespace = uuid::Uuid::now_v7().to_string();
        let launch =
            launch.set(&[("REDIS_URL", &crate::redis::server()), ("APP__REDIS__NAMESPACE", &namespace)]);
        //@ end
        //@ if rate_limit
        let launch = launch.set(crate::rate_limit::UNLIMITED);
        //@ end
        launch.set(variables)
    }

    /// Only the service's own defaults.
    pub fn bare() -> Self {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(uuid::Uuid::now_v7().to_string());
        fs::create_dir_all(&folder).expect("a folder to run in");
        Self {
            variables: BTreeMap::new(),
            // Removed when the launch is dropped.
            folder,
            //@ if postgres
            database: None,
            //@ end
        }
    }

    /// Sets variables; the last value of each wins.
    pub fn set(mut self, variables: Variables) -> Self {
        let owned = variables.iter().map(|(name, value)| ((*name).to_owned(), value.into()));
        self.variables.extend(owned);
        self
    }

    /// Sets a variable to a value that need not be UTF-8.
    pub fn set_bytes(mut self, name: &str, value: &OsStr) -> Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.variables.remove(name);
        self
    }

    /// Writes a file into the working directory.
    pub fn file(self, name: &str, text: &str) -> Self {
        let path = self.folder.join(name);
        fs::create_dir_all(path.parent().expect("a file in the folder")).expect("a folder for the file");
        fs::write(path, text).expect("the file is written");
        self
    }
    //@ if postgres

    /// Gives the service a database of its own, unless it was given one.
    pub async fn with_database(self) -> Self {
        if self.variables["DATABASE_URL"] != crate::postgres::NOWHERE {
            return self;
        }
        let database = Database::create().await;
        let mut launch = self.set(&[("DATABASE_URL", &database.url)]);
        launch.database = Some(database);
        launch
    }
    //@ end

    /// Starts the binary with a command and its arguments, such as `serve`.
    pub fn start(self, command: &str) -> Process {
        let mut child = Command::new(env!(concat!("CARGO_BIN_EXE_", env!("CARGO_PKG_NAME"))))
            .args(command.split(' '))
            .env_clear()
            .envs(&self.variables)
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let out = Lines::of(child.stdout.take().expect("stdout is piped"));
        let err = Lines::of(child.stderr.take().expect("stderr is piped"));
        Process { child, out, err, launch: self }
    }

    /// Runs a command that ends by itself.
    pub async fn run(self, command: &str) -> Ended {
        self.start(command).ended().await
    }
}

impl Drop for Launch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The lines of a stream that have arrived so far.
#[derive(Clone, Debug)]
struct Lines(watch::Receiver<Vec<String>>);

impl Lines {
    fn of(stream: impl Read + Send + 'static) -> Self {
        let (sender, receiver) = watch::channel(Vec::new());
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                sender.send_modify(|lines| lines.push(line));
            }
        });
        Self(receiver)
    }

    /// All lines, once the stream has ended.
    async fn ended(mut self) -> Vec<String> {
        while self.0.changed().await.is_ok() {}
        self.0.borrow().clone()
    }
}

/// A process of the service, killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    out: Lines,
    err: Lines,
    /// Kept since its folder and the like must outlive the process.
    launch: Launch,
}

/// A process that has ended.
#[derive(Debug)]
pub struct Ended {
    /// None if a signal ended it.
    pub code: Option<i32>,
    pub out: Vec<String>,
    pub err: Vec<String>,
}

impl Process {
    /// The first event of this name, as soon as it has been logged.
    pub async fn event(&mut self, name: &str) -> Value {
        self.event_where(name, |_| true).await
    }

    /// The first event of this name that fits.
    pub async fn event_where(&mut self, name: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let mut found = None;
        let wait = self.out.0.wait_for(|lines| {
            let mut events = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            found = events.find(|event| event["message"] == name && fits(event));
            found.is_some()
        });
        let waited = timeout(PATIENCE, wait).await.is_ok_and(|wait| wait.is_ok());
        match found {
            Some(event) if waited => event,
            _ => panic!(
                "no event {name} of {:?}: {:#?} {:#?}",
                self.launch,
                self.out.0.borrow(),
                self.err.0.borrow()
            ),
        }
    }

    //@ if postgres or redis
    /// Whether an event of this name has been logged.
    pub fn has(&self, name: &str) -> bool {
        events(&self.out.0.borrow()).iter().any(|event| event["message"] == name)
    }

    //@ end
    //@ if postgres
    /// The database that was made for the service.
    pub fn database(&self) -> &Database {
        self.launch.database.as_ref().expect("the test gave it none of its own")
    }

    //@ end
    pub fn signal(&self, signal: Signal) {
        let id = self.child.id().try_into().ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(id, signal).expect("the process takes a signal");
    }

    /// Waits for the process to end.
    pub async fn ended(mut self) -> Ended {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                break status;
            }
            assert!(Instant::now() < deadline, "the process does not end: {:#?}", self.out.0.borrow());
            sleep(Duration::from_millis(5)).await;
        };
        let (out, err) = (self.out.clone().ended().await, self.err.clone().ended().await);
        Ended { code: status.code(), out, err }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if !std::thread::panicking() {
            let lines = self.out.0.borrow();
            lines
                .iter()
                .filter_map(|line| serde_json::from_str(line).ok())
                .for_each(|line| assert_documented(&line));
        }
    }
}

impl Ended {
    pub fn log(&self) -> Vec<Value> {
        events(&self.out)
    }

    /// The names of the events, in order.
    pub fn names(&self) -> Vec<String> {
        self.log().iter().map(|event| event["message"].as_str().unwrap_or_default().to_owned()).collect()
    }

    pub fn event(&self, name: &str) -> Value {
        let found = self.log().into_iter().find(|event| event["message"] == name);
        found.unwrap_or_else(|| panic!("no event {name}: {:#?}", self.out))
    }
}

fn events(lines: &[String]) -> Vec<Value> {
    let parse = |line: &String| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"));
    lines.iter().map(parse).collect()
}
