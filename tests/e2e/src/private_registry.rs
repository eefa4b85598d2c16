//! Debian's docker-registry with one user, and its log of requests.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use tempfile::TempDir;

use crate::node::{eventually, succeed};

pub const USER: &str = "me";
pub const PASSWORD: &str = "open sesame";
/// Of the password, by bcrypt.
const HASH: &str = "$2b$04$44Lew1IKzktcgAEhxF7F5.YSVxBU63lxV7Q.1ApnAAf0.CgPbrKtK";
const DEADLINE: Duration = Duration::from_secs(20);

/// Runs until it is dropped.
#[derive(Debug)]
pub struct PrivateRegistry {
    address: String,
    folder: TempDir,
    program: Child,
}

impl Drop for PrivateRegistry {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

impl PrivateRegistry {
    pub async fn start() -> anyhow::Result<Self> {
        let folder = TempDir::new()?;
        // Free a moment ago; who takes it in between makes the test fail, and no other one.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let at = folder.path();
        fs::write(at.join("htpasswd"), format!("{USER}:{HASH}\n"))?;
        let config = format!(
            "version: 0.1\nlog: {{ level: info }}\nstorage: {{ filesystem: {{ rootdirectory: {0}/data }} }}\n\
             auth: {{ htpasswd: {{ realm: test, path: {0}/htpasswd }} }}\nhttp: {{ addr: '{address}', secret: test }}\n",
            at.display()
        );
        fs::write(at.join("config.yml"), config)?;
        let log = fs::File::create(at.join("log"))?;
        let program = Command::new("docker-registry")
            .arg("serve")
            .arg(at.join("config.yml"))
            .stdin(Stdio::null())
            .stderr(log.try_clone()?)
            .stdout(log)
            .spawn()
            .context("docker-registry")?;
        let registry = Self {
            address,
            folder,
            program,
        };
        let listens = || async { std::net::TcpStream::connect(&registry.address).is_ok() };
        eventually("the registry listens", DEADLINE, listens).await?;
        Ok(registry)
    }

    /// Pushes an archive, and returns the name that it has then.
    pub fn push(&self, archive: &[u8], repository: &str) -> anyhow::Result<String> {
        let file = self.folder.path().join("archive.tar");
        fs::write(&file, archive)?;
        let name = format!("{}/{repository}:1", self.address);
        let mut skopeo = Command::new("skopeo");
        skopeo
            .args(["copy", "--preserve-digests", "--dest-tls-verify=false"])
            .arg(format!("--dest-creds={USER}:{PASSWORD}"))
            .arg(format!("oci-archive:{}", file.display()))
            .arg(format!("docker://{name}"));
        succeed(skopeo)?;
        Ok(name)
    }

    /// Writes a file of credentials with those of the user.
    pub fn credentials(&self, file: &Path) -> anyhow::Result<()> {
        let text = format!(
            r#"{{"auths": {{"{}": {{"username": "{USER}", "password": "{PASSWORD}"}}}}}}"#,
            self.address
        );
        Ok(fs::write(file, text)?)
    }

    /// How often a path was asked for and given.
    pub fn given(&self, path: &str) -> anyhow::Result<usize> {
        let log: PathBuf = self.folder.path().join("log");
        let log = fs::read_to_string(log)?;
        let wanted = format!("\"GET {path} HTTP/1.1\" 200 ");
        Ok(log.lines().filter(|it| it.contains(&wanted)).count())
    }
}
