//! The verdict on each object by the records, and on each record by the objects.

use std::collections::{BTreeMap, BTreeSet};

use berth_domain::{Role, SandboxId, Status};

use crate::{Finding, Fix, Kind, Look, Object, Promise, Verdict};

/// Judges a look. Sorted by kind and name.
///
/// What is always there is said only where something is wrong with it: the output that a record keeps, and what the
/// instance as a whole has.
pub fn judge(look: &Look) -> Vec<Finding> {
    let bench = Bench::new(look);
    let mut findings: Vec<Finding> = look
        .objects
        .iter()
        .filter_map(|object| {
            let Judgement(verdict, explanation, fix) = bench.judge(object)?;
            let object = object.clone();
            Some(Finding {
                object,
                verdict,
                explanation,
                fix,
            })
        })
        .collect();
    for promise in &look.promises {
        findings.extend(bench.missing(promise));
    }
    findings.extend(bench.fallen());
    findings.sort_by(|a, b| a.object.cmp(&b.object));
    findings
}

/// Whether nothing is an orphan, nothing is missing, and everybody answered.
pub fn is_clean(findings: &[Finding]) -> bool {
    findings
        .iter()
        .all(|it| matches!(it.verdict, Verdict::Explained | Verdict::InProgress))
}

struct Judgement(Verdict, String, Fix);

/// A look with what is asked of it more than once.
struct Bench<'a> {
    look: &'a Look,
    by_id: BTreeMap<&'a SandboxId, &'a Promise>,
    /// Containers whose task did not answer.
    silent: BTreeSet<(&'a SandboxId, Option<&'a Role>)>,
}

impl<'a> Bench<'a> {
    fn new(look: &'a Look) -> Self {
        let silent = look.objects.iter().filter(|it| it.silent);
        Self {
            look,
            by_id: look.promises.iter().map(|it| (&it.id, it)).collect(),
            silent: silent
                .filter_map(|it| Some((it.sandbox.as_ref()?, it.role.as_ref())))
                .collect(),
        }
    }

    /// `None` for what goes without saying.
    fn judge(&self, object: &Object) -> Option<Judgement> {
        if matches!(object.kind, Kind::Table | Kind::Bridge) {
            return None;
        }
        let Some(sandbox) = &object.sandbox else {
            return Some(self.judge_nameless(object));
        };
        match self.by_id.get(sandbox) {
            None => Some(self.judge_unrecorded(sandbox, object)),
            Some(promise) => self.judge_promised(promise, object),
        }
    }

    fn judge_nameless(&self, object: &Object) -> Judgement {
        if object.silent {
            return Judgement(
                Verdict::Unknown,
                "it names no sandbox, and its owner did not answer".to_owned(),
                Fix::AskAgain,
            );
        }
        if object.kind == Kind::Lease && !object.strange {
            return Judgement(
                Verdict::InProgress,
                "an image is being pulled or imported, or was when a manager died".to_owned(),
                Fix::Nothing,
            );
        }
        // A link gets the alias that names its sandbox a moment after it is made.
        if object.kind == Kind::Link && self.look.promises.iter().any(|it| it.busy) {
            return Judgement(
                Verdict::InProgress,
                "it names no sandbox yet, and a plan is running".to_owned(),
                Fix::Nothing,
            );
        }
        orphan("it names no sandbox".to_owned(), Fix::Remove)
    }

    fn judge_unrecorded(&self, sandbox: &SandboxId, object: &Object) -> Judgement {
        if self.look.unreadable.contains(sandbox) {
            return Judgement(
                Verdict::Unknown,
                format!(
                    "the record of sandbox {sandbox} cannot be read; a Delete of {sandbox} clears up"
                ),
                Fix::AskAgain,
            );
        }
        if let Some((_, role)) = self.silent.iter().find(|(id, _)| *id == sandbox) {
            let who = role.map_or_else(|| sandbox.to_string(), |it| format!("{it} of {sandbox}"));
            return Judgement(
                Verdict::Unknown,
                format!(
                    "no record of a sandbox {sandbox}, but {who} did not answer, which is no proof"
                ),
                Fix::AskAgain,
            );
        }
        orphan(
            format!("no record of a sandbox {sandbox}"),
            clear(sandbox, object),
        )
    }

    fn judge_promised(&self, promise: &Promise, object: &Object) -> Option<Judgement> {
        let id = &promise.id;
        let silent = object.silent
            || matches!(object.kind, Kind::Task | Kind::Container | Kind::Shim)
                && self.silent.contains(&(id, object.role.as_ref()));
        let judgement = if promise.busy && !object.strange {
            let explanation = format!("a plan for sandbox {id} is running");
            Judgement(Verdict::InProgress, explanation, Fix::Nothing)
        } else if silent {
            let explanation = format!("of sandbox {id}; its task did not answer");
            Judgement(Verdict::Unknown, explanation, Fix::AskAgain)
        } else if object.strange {
            let explanation = format!("marked as of sandbox {id}, which does not know it");
            orphan(explanation, Fix::Remove)
        } else if promise.status == Status::Dead {
            if object.kind == Kind::Logs {
                return None;
            }
            let explanation = format!("sandbox {id} is DEAD and holds nothing");
            orphan(explanation, clear(id, object))
        } else if object.generation.is_some_and(|it| it != promise.generation) {
            orphan(
                format!("of a former generation of sandbox {id}"),
                Fix::Remove,
            )
        } else if let Some(role) = object
            .role
            .as_ref()
            .filter(|it| !promise.roles.contains(it))
        {
            orphan(format!("sandbox {id} has no container {role}"), Fix::Remove)
        } else if object.kind == Kind::Address && !promise.addresses.contains(&object.name) {
            orphan(format!("sandbox {id} has another address"), Fix::Remove)
        } else if matches!(object.kind, Kind::Link | Kind::Element) && !promise.has_link {
            orphan(
                format!("sandbox {id} has the network of the node"),
                Fix::Remove,
            )
        } else if object.kind == Kind::Logs {
            return None;
        } else {
            let explanation = format!("of sandbox {id}, {}", promise.status);
            Judgement(Verdict::Explained, explanation, Fix::Nothing)
        };
        Some(judgement)
    }

    /// What a sandbox that runs must have and has not.
    fn missing(&self, promise: &Promise) -> Vec<Finding> {
        if promise.busy || !matches!(promise.status, Status::Running | Status::NotReady) {
            return vec![];
        }
        let own = || {
            self.look
                .objects
                .iter()
                .filter(|it| it.sandbox.as_ref() == Some(&promise.id) && !it.strange)
        };
        let have: BTreeSet<(Kind, Option<&Role>)> =
            own().map(|it| (it.kind, it.role.as_ref())).collect();
        let addresses: BTreeSet<&str> = own()
            .filter(|it| it.kind == Kind::Address)
            .map(|it| it.name.as_str())
            .collect();
        let whole = [
            Some(Kind::Lease),
            Some(Kind::Namespaces),
            promise.has_link.then_some(Kind::Link),
            Some(Kind::Cgroup),
            Some(Kind::Directory),
        ];
        let of_sandbox = whole.into_iter().flatten().map(|kind| (kind, None));
        let of_containers = promise.roles.iter().flat_map(|role| {
            let layer = matches!(role, Role::App(_)).then_some(Kind::Snapshot);
            [Kind::Container, Kind::Task]
                .into_iter()
                .chain(layer)
                .map(move |kind| (kind, Some(role)))
        });
        let wanted: Vec<_> = of_sandbox.chain(of_containers).collect();
        let lost: Vec<_> = wanted.iter().filter(|it| !have.contains(it)).collect();
        let named = |kind, name, role: Option<&Role>, explanation: String| {
            // What runs stands on these: they cannot be made again below it.
            let bears = matches!(kind, Kind::Container | Kind::Snapshot | Kind::Address);
            let (fix, explanation) = if bears {
                let way_out = "delete the sandbox and create it anew";
                (Fix::Nothing, format!("{explanation}; {way_out}"))
            } else {
                (Fix::Wake(promise.id.clone()), explanation)
            };
            let object = Object {
                sandbox: Some(promise.id.clone()),
                generation: Some(promise.generation),
                role: role.cloned(),
                ..nothing(kind, name)
            };
            Finding {
                object,
                verdict: Verdict::Missing,
                explanation,
                fix,
            }
        };
        let (id, status) = (&promise.id, promise.status);
        let needs = || format!("sandbox {id} is {status} and needs it");
        let mut findings: Vec<Finding> = if lost.len() == wanted.len() {
            let explanation = format!("it is {status}, and nothing of it is on the node");
            vec![named(Kind::Record, id.to_string(), None, explanation)]
        } else {
            lost.into_iter()
                .map(|&(kind, role)| {
                    let name = role.map_or_else(|| id.to_string(), |it| format!("{id}/{it}"));
                    named(kind, name, role, needs())
                })
                .collect()
        };
        findings.extend(
            promise
                .addresses
                .iter()
                .filter(|it| !addresses.contains(it.as_str()))
                .map(|it| named(Kind::Address, it.clone(), None, needs())),
        );
        findings
    }

    /// What the instance as a whole must have and has not.
    fn fallen(&self) -> impl Iterator<Item = Finding> {
        let there = |kind: Kind, name: &str| {
            let mut objects = self.look.objects.iter();
            objects.any(|it| it.kind == kind && it.name == name)
        };
        let standing = self.look.standing.iter();
        let lost = standing.filter(move |(kind, name)| !there(*kind, name));
        lost.map(|(kind, name)| Finding {
            object: nothing(*kind, name.clone()),
            verdict: Verdict::Missing,
            explanation: "every sandbox of this instance needs it".to_owned(),
            fix: Fix::Restart,
        })
    }
}

fn orphan(explanation: String, fix: Fix) -> Judgement {
    Judgement(Verdict::Orphan, explanation, fix)
}

/// What removes an object of a sandbox that has nothing any more: its task, as far as that finds it.
fn clear(sandbox: &SandboxId, object: &Object) -> Fix {
    if object.kind.goes_with_its_sandbox() && !object.strange {
        Fix::Clear(sandbox.clone())
    } else {
        Fix::Remove
    }
}

/// An object that is not there.
fn nothing(kind: Kind, name: String) -> Object {
    Object {
        kind,
        name,
        sandbox: None,
        generation: None,
        role: None,
        made_at: None,
        serial: None,
        strange: false,
        silent: false,
    }
}

#[cfg(test)]
pub(crate) mod tests;
