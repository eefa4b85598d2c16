//! Writes what the contract generates into `services/lib/api/src/gen`.

use std::fs;

use anyhow::{Context, Result};
use berth_tidy::codegen::{GENERATED, generate};

fn main() -> Result<()> {
    let root = berth_tidy::root();
    let out = root.join(GENERATED);
    fs::create_dir_all(&out)?;
    for (name, bytes) in generate(&root.join("proto"))? {
        let path = out.join(name);
        fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}
