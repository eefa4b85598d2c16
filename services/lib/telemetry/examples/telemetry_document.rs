//! Writes the lists of metrics and spans into `docs/telemetry.md`.

use std::{fs, path::Path};

fn main() -> std::io::Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../docs/telemetry.md");
    let text = fs::read_to_string(&path)?;
    fs::write(path, berth_telemetry::document(&text))
}
