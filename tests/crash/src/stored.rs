//! What was durable when the manager died: its store, as its own program writes it out.

use std::process::Command;

use anyhow::Context as _;
use berth_e2e::node::{eventually, programs, succeed};
use serde_json::Value;

use crate::{Ground, LONG};

/// What the store says of the sandbox that is tried, and of the node.
#[derive(Debug, Default)]
pub(crate) struct Stored {
    record: Option<Value>,
    pub(crate) draining: bool,
}

impl Stored {
    /// Reads the store of a manager that has died.
    pub(crate) async fn of(ground: &Ground, id: &str) -> anyhow::Result<Self> {
        let config = ground.node.home().join("sandbox-manager.toml");
        let export = || {
            let mut export = Command::new(programs().join("sandbox-manager"));
            export.args(["store", "export", "-", "--config"]);
            succeed(export.arg(&config))
        };
        // The kernel gives the dead one's lock back a moment after its end.
        let free = || async { export().is_ok() };
        eventually("the store can be read", LONG, free).await?;
        let text = export()?;
        let mut stored = Self::default();
        for line in text.lines() {
            let line: Value = serde_json::from_str(line).context("a line of the store")?;
            if line["record"]["id"] == id {
                stored.record = Some(line["record"].clone());
            }
            stored.draining |= line["setting"]["key"] == "drain";
        }
        Ok(stored)
    }

    pub(crate) fn has_record(&self) -> bool {
        self.record.is_some()
    }

    /// Empty without a record.
    pub(crate) fn status(&self) -> &str {
        self.field("status").as_str().unwrap_or_default()
    }

    pub(crate) fn is_ending(&self) -> bool {
        !self.field("ending").is_null()
    }

    pub(crate) fn expires(&self) -> bool {
        !self.field("expires_at").is_null()
    }

    pub(crate) fn generation(&self) -> u64 {
        self.field("generation").as_u64().unwrap_or_default()
    }

    pub(crate) fn addresses(&self) -> Vec<&str> {
        let list = self.field("addresses").as_array();
        list.into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect()
    }

    /// Reason and message of a Create that is known to have failed.
    pub(crate) fn failure(&self) -> Option<(&str, &str)> {
        let failure = self.field("failure");
        Some((failure["reason"].as_str()?, failure["message"].as_str()?))
    }

    fn field(&self, name: &str) -> &Value {
        self.record.as_ref().map_or(&Value::Null, |it| &it[name])
    }
}
