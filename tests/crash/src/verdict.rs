//! What must hold after a crash: before anybody asks again by what was durable, and after that by the answer of the repeat.

use anyhow::{Context as _, ensure};
use berth_api::v1::{self, AuditVerdict, SandboxStatus};
use berth_e2e::{logs, node::eventually};

use crate::{
    Ground, LONG, pid,
    scenario::{Answer, ID, OTHER, Scenario, reason},
    stored::Stored,
};

const NOTHING: &str = "nothing was promised";
const FINISHED: &str = "finished by the next start";
const FOUND: &str = "found by the next start, and finished";
const OVER: &str = "it was over";

/// What had become of the sandbox before anybody asked again.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) outcome: &'static str,
    sandbox: Option<v1::Sandbox>,
}

impl Seen {
    fn of(outcome: &'static str, sandbox: v1::Sandbox) -> Self {
        Self {
            outcome,
            sandbox: Some(sandbox),
        }
    }

    fn nothing(outcome: &'static str) -> Self {
        Self {
            outcome,
            sandbox: None,
        }
    }
}

impl Scenario {
    /// What the next start makes of it by itself. `former` is the sandbox as it stood, `stored` what was durable.
    pub(crate) async fn look(
        self,
        ground: &Ground,
        point: &str,
        former: Option<&v1::Sandbox>,
        stored: &Stored,
    ) -> anyhow::Result<Seen> {
        let node = &ground.node;
        let early = self
            .promise()
            .is_some_and(|it| point == format!("{it}/before"));
        ensure!(
            self.is_promised(stored) != early,
            "what is durable, {stored:?}, is not what the point says"
        );
        if early {
            let sandbox = node.get(ID).await.ok();
            ensure!(
                sandbox.as_ref() == former && node.status().await?.draining == stored.draining,
                "nobody has asked for anything: {former:?} became {sandbox:?}"
            );
            let outcome = NOTHING;
            return Ok(Seen { outcome, sandbox });
        }
        match self {
            Self::Create | Self::Pull | Self::Resume => {
                let it = ground.until(ID, SandboxStatus::Running).await?;
                let addresses: Vec<_> = it.addresses.iter().map(|it| &it.address).collect();
                ensure!(
                    it.generation == stored.generation() && addresses == stored.addresses(),
                    "promised was {stored:?}, there is {it:?}"
                );
                self.assert_runs(ground, &it)?;
                Ok(Seen::of(finished(stored, "RUNNING"), it))
            }
            Self::FailedCreate => {
                let it = ground.until(ID, SandboxStatus::Dead).await?;
                assert_failed(&it)?;
                ensure!(it.generation == stored.generation(), "{it:?}, {stored:?}");
                let runs = runs(ground)?;
                let outcome = match stored.failure() {
                    None => {
                        ensure!(runs == 2, "it ran {runs} times");
                        "brought up again by the next start, and undone"
                    }
                    Some(failure) => {
                        ensure!(runs == 1, "it ran {runs} times");
                        ensure!(failure == (&it.reason, &it.message), "{it:?}, {failure:?}");
                        match stored.status() {
                            "DEAD" => OVER,
                            _ => "undone by the next start, the reason kept",
                        }
                    }
                };
                Ok(Seen::of(outcome, it))
            }
            Self::Stop => {
                let it = ground.until(ID, SandboxStatus::Dead).await?;
                ensure!(
                    Some(it.generation) == former.map(|it| it.generation),
                    "{it:?}"
                );
                Ok(Seen::of(finished(stored, "DEAD"), it))
            }
            Self::Delete => {
                ground.until_gone(ID).await?;
                Ok(Seen::nothing(finished(stored, "")))
            }
            Self::Purge => {
                ground.until_gone(ID).await?;
                Ok(Seen::nothing(match stored.status() {
                    "DEAD" if !stored.is_ending() => FOUND,
                    _ => finished(stored, ""),
                }))
            }
            Self::DeleteUnrecorded => {
                let gone = node.get(ID).await.err().context("it has no record")?;
                ensure!(reason(&gone) == "SANDBOX_NOT_FOUND", "{gone}");
                Ok(Seen::nothing(match ground.orphans().await? {
                    0 => "nothing was left",
                    _ => "what is left is named by the audit",
                }))
            }
            Self::Fix => Ok(Seen::nothing(match ground.orphans().await? {
                0 => "all was removed",
                _ => "what is left is named by the audit",
            })),
            Self::Collect => Ok(Seen::nothing(ground.collection().look().await?)),
            Self::Exit | Self::Lost | Self::Expire => {
                let it = ground.until(ID, SandboxStatus::Dead).await?;
                ensure!(it.generation == stored.generation(), "{it:?}, {stored:?}");
                let outcome = match stored.status() {
                    "RUNNING" if !stored.is_ending() => FOUND,
                    _ => finished(stored, "DEAD"),
                };
                Ok(Seen::of(outcome, it))
            }
            Self::PortLost => {
                let it = ground.until(ID, SandboxStatus::NotReady).await?;
                assert_same(former, &it)?;
                let outcome = match stored.status() {
                    "RUNNING" => FOUND,
                    _ => finished(stored, "NOT_READY"),
                };
                Ok(Seen::of(outcome, it))
            }
            Self::Reboot => {
                let revision = former.map_or(0, |it| it.revision);
                let again = || async {
                    let it = node.get(ID).await;
                    it.is_ok_and(|it| {
                        it.status() == SandboxStatus::Running && it.revision > revision
                    })
                };
                eventually("it is made again", LONG, again).await?;
                let it = node.get(ID).await?;
                assert_same(former, &it)?;
                self.assert_runs(ground, &it)?;
                let once = ground.until(OTHER, SandboxStatus::Dead).await?;
                ensure!(once.reason == "RUNTIME_LOST", "{once:?}");
                Ok(Seen::of("made again, or DEAD, as its policy says", it))
            }
            Self::Renew => {
                let it = node.get(ID).await?;
                assert_same(former, &it)?;
                ensure!(it.expires_at.is_some(), "{it:?}");
                Ok(Seen::of("kept by the next start", it))
            }
            Self::Drain => {
                ensure!(node.status().await?.draining);
                Ok(Seen::nothing("kept by the next start"))
            }
            Self::Start => {
                let it = ground.until(ID, SandboxStatus::Running).await?;
                ensure!(Some(&it) == former, "{former:?} became {it:?}");
                Ok(Seen::of("taken up as it was", it))
            }
        }
    }

    /// Whether the call, or what nobody called for, was durable.
    fn is_promised(self, stored: &Stored) -> bool {
        match self {
            Self::Create | Self::Pull | Self::FailedCreate | Self::Resume => stored.has_record(),
            Self::Stop => stored.is_ending() || stored.status() == "DEAD",
            Self::Delete => stored.is_ending() || !stored.has_record(),
            Self::Renew => stored.expires(),
            Self::Drain => stored.draining,
            Self::DeleteUnrecorded
            | Self::Exit
            | Self::Lost
            | Self::PortLost
            | Self::Reboot
            | Self::Expire
            | Self::Purge
            | Self::Fix
            | Self::Collect
            | Self::Start => true,
        }
    }

    /// Whether the answer of the repeat is that of the first call, as far as it can be known.
    pub(crate) fn compare(
        self,
        ground: &Ground,
        former: Option<&v1::Sandbox>,
        seen: &Seen,
        answer: &Answer,
    ) -> anyhow::Result<()> {
        let there = seen.sandbox.as_ref();
        match answer {
            Answer::Nobody => {}
            // What stood is the same; what is over by now was told in the same words before.
            Answer::Sandbox(it) if matches!(self, Self::Stop | Self::Renew) => {
                assert_same(former, it)?;
                let over = there.filter(|it| it.status() == SandboxStatus::Dead);
                ensure!(over.is_none_or(|of| *of == **it), "{there:?}, then {it:?}");
            }
            Answer::Sandbox(it) => {
                ensure!(there.is_none_or(|of| *of == **it), "{there:?}, then {it:?}");
                self.assert_runs(ground, it)?;
            }
            Answer::Refused { reason, message } => {
                let known = there.map(|it| (&it.reason, &it.message));
                ensure!(
                    known == Some((reason, message)),
                    "{there:?}, then {answer:?}"
                );
            }
            Answer::Existed(existed) => ensure!(*existed == there.is_some(), "{there:?}"),
            // The bystander.
            Answer::Drained(sandboxes) => ensure!(*sandboxes == 1, "{answer:?}"),
            // Counted once, however often it was asked for.
            Answer::Collected(run) => ensure!(run.deleted_total == 1, "{run:?}"),
            Answer::Clean(clean) => ensure!(*clean, "the fix leaves something"),
        }
        Ok(())
    }

    /// What must be true once it is over.
    pub(crate) async fn settled(self, ground: &Ground) -> anyhow::Result<()> {
        let node = &ground.node;
        match self {
            Self::Create | Self::Pull | Self::Resume | Self::Reboot | Self::Start => {
                let it = ground.until(ID, SandboxStatus::Running).await?;
                self.assert_runs(ground, &it)?;
            }
            Self::FailedCreate => assert_failed(&ground.until(ID, SandboxStatus::Dead).await?)?,
            Self::Stop => {
                let it = ground.until(ID, SandboxStatus::Dead).await?;
                ensure!(it.reason == "STOP_REQUESTED" && it.exit.is_none(), "{it:?}");
            }
            Self::Delete | Self::DeleteUnrecorded => {
                let gone = node.get(ID).await.err().context("it is gone")?;
                ensure!(reason(&gone) == "SANDBOX_NOT_FOUND", "{gone}");
            }
            Self::Exit => {
                let it = ground.until(ID, SandboxStatus::Dead).await?;
                let exit = it.exit.context("an exit record")?;
                ensure!((exit.exit_code, exit.signal) == (137, 9), "{exit:?}");
            }
            Self::Lost => {
                let it = ground.until(ID, SandboxStatus::Dead).await?;
                ensure!(it.reason == "RUNTIME_LOST", "{it:?}");
            }
            Self::PortLost => {
                let it = ground.until(ID, SandboxStatus::NotReady).await?;
                ensure!(it.reason == "PORT_LOST", "{it:?}");
            }
            Self::Expire => {
                let it = ground.until(ID, SandboxStatus::Dead).await?;
                ensure!(it.reason == "EXPIRED", "{it:?}");
            }
            Self::Purge => ground.until_gone(ID).await?,
            Self::Renew => {
                let it = node.get(ID).await?;
                ensure!(it.expires_at.is_some(), "{it:?}");
            }
            Self::Drain => ensure!(node.status().await?.draining),
            Self::Fix => node.assert_clean().await?,
            Self::Collect => ensure!(!ground.collection().is_there().await?),
        }
        Ok(())
    }

    /// It has an address, and each container the digest of its image.
    fn assert_runs(self, ground: &Ground, it: &v1::Sandbox) -> anyhow::Result<()> {
        let digest = if self == Self::Pull {
            &ground.pulled.digest
        } else {
            &ground.digest
        };
        let digests: Vec<_> = it.containers.iter().map(|it| &it.image_digest).collect();
        ensure!(
            digests == [digest],
            "the image is {digest}, not {digests:?}"
        );
        ensure!(
            it.status() == SandboxStatus::Running
                && it.reason.is_empty()
                && it.addresses.len() == 1,
            "{it:?}"
        );
        Ok(())
    }
}

/// The outcome where the last write before the end has `last` as status.
fn finished(stored: &Stored, last: &str) -> &'static str {
    if stored.status() == last && !stored.is_ending() {
        OVER
    } else {
        FINISHED
    }
}

/// It is the same sandbox, at the same address.
fn assert_same(former: Option<&v1::Sandbox>, it: &v1::Sandbox) -> anyhow::Result<()> {
    let former = former.context("it stood before")?;
    // What is DEAD has given its address back.
    let address = it.status() == SandboxStatus::Dead && it.addresses.is_empty()
        || it.addresses == former.addresses;
    ensure!(
        it.generation == former.generation && address,
        "{former:?} became {it:?}"
    );
    Ok(())
}

fn assert_failed(it: &v1::Sandbox) -> anyhow::Result<()> {
    ensure!(
        it.reason == "CONTAINER_EXITED" && it.addresses.is_empty(),
        "{it:?}"
    );
    let exit = it.exit.as_ref().context("an exit record")?;
    ensure!(
        (exit.exit_code, exit.container.as_str()) == (7, "app"),
        "{exit:?}"
    );
    Ok(())
}

/// How often the container that fails has run, by its output.
fn runs(ground: &Ground) -> anyhow::Result<usize> {
    let output = logs::output(&ground.node, ID, "app");
    Ok(output.matches("ran").count())
}

impl Ground {
    async fn until_gone(&self, id: &str) -> anyhow::Result<()> {
        let gone = || async {
            let got = self.node.get(id).await;
            got.is_err_and(|it| reason(&it) == "SANDBOX_NOT_FOUND")
        };
        eventually("it is gone", LONG, gone).await
    }

    /// How many objects the audit finds that no record explains.
    async fn orphans(&self) -> anyhow::Result<usize> {
        let audit = self.node.audit().await?;
        let orphans = audit.objects.iter();
        Ok(orphans
            .filter(|it| it.verdict() == AuditVerdict::Orphan)
            .count())
    }

    /// The process of the sandbox that is tried; empty where it has none.
    pub(crate) fn process(&self, container: &str) -> String {
        pid(&self.node, ID, container).unwrap_or_default()
    }
}
