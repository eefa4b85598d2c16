//! Folders of one instance. What lies in them is judged, and removed, by its name alone, so two instances must never share one.

use std::{fs, io::ErrorKind, path::Path};

use anyhow::{Context as _, bail};
use berth_domain::InstanceId;

const MARK: &str = ".instance";

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

#[cfg(test)]
mod tests {
    use super::*;

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
