//! Folders and cgroups of one instance. What lies in them is judged, and removed, by its name alone, so two instances must never
//! share one, and an instance must not look for its own elsewhere.

use std::{fs, io::ErrorKind, path::Path};

use anyhow::{Context as _, bail};
use berth_domain::InstanceId;

const MARK: &str = ".instance";
/// Below which cgroup the sandboxes have theirs. It lies where a reboot takes it away together with them.
const CGROUPS: &str = ".cgroups";

/// Marks `dir` as this instance's. Fails where it is another one's.
pub(crate) fn claim(dir: &Path, instance: &InstanceId) -> anyhow::Result<()> {
    let mark = dir.join(MARK);
    let owner = match fs::read_to_string(&mark) {
        Ok(text) => text.trim().to_owned(),
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("reading {}", mark.display())),
    };
    match owner.as_str() {
        // Empty is what a full disk leaves.
        "" => fs::write(&mark, format!("{instance}\n"))
            .with_context(|| format!("writing {}", mark.display())),
        owner if owner == instance.as_str() => Ok(()),
        owner => bail!(
            "{} belongs to instance `{owner}`; give this one a folder of its own, or remove {} if that one is gone for good",
            dir.display(),
            mark.display()
        ),
    }
}

/// Sandboxes have their cgroups elsewhere.
#[derive(Debug, thiserror::Error)]
#[error(
    "cgroup.driver, cgroup.parent: sandboxes have their cgroups below {former}, not {parent}; set it back, or delete them first"
)]
pub(crate) struct Elsewhere {
    former: String,
    parent: String,
}

/// Below what the cgroups of this instance lay when it was last started; `None` where nothing says so.
pub(crate) fn noted_cgroups(run_dir: &Path) -> anyhow::Result<Option<String>> {
    let note = run_dir.join(CGROUPS);
    match fs::read_to_string(&note) {
        // Empty is what a full disk leaves.
        Ok(text) => Ok(Some(text.trim().to_owned()).filter(|it| !it.is_empty())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", note.display())),
    }
}

/// Notes that the cgroups of this instance lie below `parent` now. Where they lay elsewhere, `leave` removes them, or says
/// that they are in use. Where nothing is noted they may lie where the `other` driver has them.
pub(crate) async fn claim_cgroups(
    run_dir: &Path,
    parent: &str,
    other: &str,
    leave: impl AsyncFnOnce(&str) -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let noted = noted_cgroups(run_dir)?;
    let former = noted.unwrap_or_else(|| other.to_owned());
    if former == parent {
        return Ok(());
    }
    if !leave(&former).await? {
        let parent = parent.to_owned();
        return Err(Elsewhere { former, parent }.into());
    }
    let note = run_dir.join(CGROUPS);
    fs::write(&note, format!("{parent}\n")).with_context(|| format!("writing {}", note.display()))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[tokio::test]
    async fn cgroups_lie_elsewhere_only_when_none_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let asked = RefCell::new(vec![]);
        let claim = async |parent: &str, free: bool| {
            claim_cgroups(dir.path(), parent, "other", async |former| {
                asked.borrow_mut().push(former.to_owned());
                Ok(free)
            })
            .await
        };
        let refused = claim("berth/a", false).await.unwrap_err().to_string();
        assert!(
            refused.contains("below other,"),
            "nothing is noted: {refused}"
        );
        claim("berth/a", true).await.unwrap();
        claim("berth/a", false).await.unwrap();
        for _ in 0..2 {
            let refused = claim("berth.slice/berth-a.slice", false).await;
            let error = refused.unwrap_err();
            assert!(error.downcast_ref::<Elsewhere>().is_some(), "{error}");
            assert!(error.to_string().contains("below berth/a,"), "{error}");
        }
        claim("berth.slice/berth-a.slice", true).await.unwrap();
        claim("berth/a", true).await.unwrap();
        fs::write(dir.path().join(CGROUPS), "").unwrap();
        claim("berth/a", true).await.unwrap();
        let slice = "berth.slice/berth-a.slice";
        let former = [
            "other", "other", "berth/a", "berth/a", "berth/a", slice, "other",
        ];
        assert_eq!(*asked.borrow(), former);
    }

    #[test]
    fn a_folder_belongs_to_the_instance_that_came_first() {
        let dir = tempfile::tempdir().unwrap();
        let instance = |text: &str| InstanceId::parse(text).unwrap();
        for _ in 0..2 {
            claim(dir.path(), &instance("one")).unwrap();
        }
        let error = claim(dir.path(), &instance("two")).unwrap_err().to_string();
        assert!(error.contains("`one`") && error.contains(MARK), "{error}");
        fs::write(dir.path().join(MARK), "").unwrap();
        claim(dir.path(), &instance("two")).unwrap();
    }
}
