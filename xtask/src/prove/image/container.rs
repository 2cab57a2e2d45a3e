//! An image's files, run as a container would: its own root, read-only, as its own user, with no rights.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use crate::children::{Child, Scratch};
use crate::http::{get, request};
use crate::prove::check::Work;
use crate::prove::service::Service;

/// What a container runtime sets up before the program starts: a read-only root, /proc, the devices that the OCI
/// runtime specification promises (those that have a file to be mounted on), and no privileges.
const ENTER: &str = r#"
mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && mount -t proc proc "$0/proc" &&
for device in "$0"/dev/*; do mount --bind "/dev/${device##*/}" "$device" || exit; done &&
exec setpriv --no-new-privs chroot --userspec=65532:65532 "$0" /service "$@"
"#;
/// The container's DNS server. It has an address of its own, since its port can't be chosen.
const NAMESERVER: &str = "127.0.0.77";
const RECEIVER: &str = "receiver.test";
const ROOTS: &str = "etc/ssl/certs/ca-certificates.crt";
const PATIENCE: Duration = Duration::from_secs(15);

pub struct Container {
    pub root: PathBuf,
    _files: Scratch,
    /// The settings that the variant can't do without.
    settings: Vec<(&'static str, String)>,
}

impl Container {
    pub fn of(work: &Work<'_>, files: Scratch) -> Result<Self> {
        let servers = &work.context.servers;
        let mut settings = Vec::new();
        for name in ["APP__HTTP__HOST", "APP__ADMIN__HOST"] {
            settings.push((name, "127.0.0.1".to_owned()));
        }
        settings.push(("APP_ENV", "production".to_owned()));
        settings.push(("APP__HTTP__PORT", "0".to_owned()));
        settings.push(("APP__SHUTDOWN__GRACE_DELAY", "0s".to_owned()));
        if work.subject.has("postgres") {
            settings
                .push(("DATABASE_URL", servers.create_database(&format!("image_{}", work.subject.place))?));
        }
        if work.subject.has("redis") {
            settings.push(("REDIS_URL", servers.redis_url(work.subject.place)));
        }
        Ok(Self { root: files.path().to_path_buf(), _files: files, settings })
    }

    fn command(&self, work: &Work<'_>, settings: &[(&str, &str)], arguments: &[&str]) -> Result<Command> {
        let errors = fs::OpenOptions::new().append(true).open(&work.log)?;
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "sh", "-c", ENTER])
            .arg(&self.root)
            .args(arguments);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stderr(errors);
        command.envs(self.settings.iter().map(|(name, value)| (name, value)));
        command.envs(settings.iter().copied());
        Ok(command)
    }

    /// Creates and completes a task, whose webhook goes to a receiver that has to be found by name and trusted by its
    /// root certificate: once without that root, once with it.
    pub fn run(&self, work: &Work<'_>) -> Result<String> {
        let peers = Peers::start(work)?;
        for (file, text) in
            [("resolv.conf", format!("nameserver {NAMESERVER}\n")), ("hosts", "127.0.0.1 localhost\n".into())]
        {
            fs::write(self.root.join("etc").join(file), text)?;
        }
        for folder in ["proc", "dev"] {
            fs::create_dir(self.root.join(folder))?;
        }
        for device in ["null", "zero", "full", "random", "urandom"] {
            fs::write(self.root.join("dev").join(device), "")?;
        }
        let url = format!("https://{RECEIVER}:{}/hook", peers.port);
        let admin = crate::servers::free_port()?.to_string();
        let settings = [
            ("APP__WEBHOOK__URL", url.as_str()),
            ("APP__WEBHOOK__ALLOW_PRIVATE_ADDRESSES", "true"),
            ("APP__ADMIN__PORT", admin.as_str()),
        ];
        let service = self.serve(work, &settings)?;
        let told_why = service.event("job.retry")?.1.to_string();
        ensure!(
            told_why.contains("ertificate") || told_why.contains("UnknownIssuer"),
            "it failed for another reason than the unknown root: {told_why}"
        );
        ensure!(peers.told.try_recv().is_err(), "a receiver without a known root was trusted");
        self.stop(work, service, &settings)?;

        let mut roots = fs::read_to_string(self.root.join(ROOTS))?;
        roots += &fs::read_to_string(peers.folder.path().join("ca.pem"))?;
        fs::write(self.root.join(ROOTS), roots)?;
        let service = self.serve(work, &settings)?;
        let path = peers.told.recv_timeout(PATIENCE).context("the receiver got no webhook")?;
        ensure!(path == "/hook", "the receiver was called at {path}");
        self.stop(work, service, &settings)?;
        Ok("a name resolved, TLS verified, drained".to_owned())
    }

    fn serve(&self, work: &Work<'_>, settings: &[(&str, &str)]) -> Result<Service> {
        let service = Service::launch(&mut self.command(work, settings, &["serve"])?)?;
        service.ready()?;
        let SocketAddr::V4(_) = service.public else { anyhow::bail!("no address: {}", service.public) };
        ensure!(get(service.public, "/ready")?.status == 200, "not ready");
        let task = request(service.public, "POST", "/v1/tasks", r#"{"title": "Sail"}"#)?.json()?;
        let path = format!("/v1/tasks/{}/complete", task["id"].as_str().context("a task without an id")?);
        ensure!(request(service.public, "POST", &path, "")?.status == 200, "the task was not completed");
        Ok(service)
    }

    fn stop(&self, work: &Work<'_>, service: Service, settings: &[(&str, &str)]) -> Result<()> {
        let mut check = self.command(work, settings, &["healthcheck"])?;
        let status = Child::spawn(&mut check, Signal::TERM)?.wait(PATIENCE)?;
        ensure!(status.is_some_and(|status| status.success()), "the health check says {status:?}");
        service.signal();
        let exit = service.wait(PATIENCE * 2)?;
        ensure!(exit.code == Some(0), "exit {:?} after SIGTERM: {:?}", exit.code, exit.lines.last());
        Ok(())
    }
}

/// A name server and a receiver over TLS, whose root is in `folder`.
struct Peers {
    port: u16,
    told: Receiver<String>,
    folder: Scratch,
    _child: Child,
}

impl Peers {
    fn start(work: &Work<'_>) -> Result<Self> {
        let folder = Scratch::new()?;
        certificates(work, folder.path())?;
        let mut command = Command::new("python3");
        command.arg(work.context.root.join("xtask/peers.py")).arg(NAMESERVER);
        command.args(["cert.pem", "key.pem"]).current_dir(folder.path()).stdout(Stdio::piped());
        let mut child = Child::spawn(&mut command, Signal::TERM)?;
        let output = child.take_stdout().context("the peers have no output")?;
        let (sender, told) = mpsc::channel();
        thread::spawn(move || {
            let lines = BufReader::new(output).lines().map_while(Result::ok);
            lines.take_while(|line| sender.send(line.clone()).is_ok()).count()
        });
        let port = told.recv_timeout(PATIENCE).context("the peers did not start")?;
        Ok(Self { port: port.parse()?, told, folder, _child: child })
    }
}

/// A root, and a certificate of the receiver that it has signed.
fn certificates(work: &Work<'_>, folder: &Path) -> Result<()> {
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
    let mut root = Command::new("openssl");
    root.args(["req", "-x509", "-subj", "/CN=drill", "-keyout", "ca.key", "-out", "ca.pem"]).args(key);
    let mut receiver = Command::new("openssl");
    receiver.args([
        "req", "-x509", "-CA", "ca.pem", "-CAkey", "ca.key", "-keyout", "key.pem", "-out", "cert.pem",
    ]);
    receiver.args([
        "-subj",
        &format!("/CN={RECEIVER}"),
        "-addext",
        &format!("subjectAltName=DNS:{RECEIVER}"),
    ]);
    receiver.args(["-addext", "basicConstraints=critical,CA:FALSE"]).args(key);
    for command in [&mut root, &mut receiver] {
        work.run(command.current_dir(folder))?;
    }
    Ok(())
}
