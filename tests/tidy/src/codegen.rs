//! Turns the contract in `proto/` into Rust and a descriptor set, always to the same bytes.
//! It needs no `protoc`. It does not know who uses the result.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use prost::Message;

const PACKAGE: &str = "berth.v1";
/// What is written as text elsewhere, without the secrets in it.
const SECRET: &str = "berth.v1.RegistryCredentials";

/// Where the generated files live, from the root of the repository.
pub const GENERATED: &str = "services/lib/api/src/gen";

/// Generates from every file of the package under `proto_dir`. The paths are relative to [`GENERATED`].
pub fn generate(proto_dir: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut descriptors = protox::Compiler::new([proto_dir])?
        .include_source_info(true)
        .include_imports(true)
        .open_files(contract_files(proto_dir)?)?
        .file_descriptor_set();

    let out = tempfile::tempdir()?;
    tonic_prost_build::configure()
        .out_dir(out.path())
        .skip_debug([SECRET])
        .compile_fds(descriptors.clone())
        .context("generating Rust from the contract")?;
    let rust = fs::read(out.path().join(format!("{PACKAGE}.rs")))?;

    // Reflection and JSON need names and numbers only; comments would double the programs' copy.
    for file in &mut descriptors.file {
        file.source_code_info = None;
    }
    Ok(vec![
        (format!("{PACKAGE}.rs").into(), rust),
        (
            format!("{PACKAGE}.binpb").into(),
            descriptors.encode_to_vec(),
        ),
    ])
}

/// The contract's files in a fixed order, as paths that `import` would name.
fn contract_files(proto_dir: &Path) -> Result<Vec<PathBuf>> {
    let package_dir: PathBuf = PACKAGE.split('.').collect();
    let mut files = Vec::new();
    for entry in fs::read_dir(proto_dir.join(&package_dir)).context("reading the contract")? {
        let name = PathBuf::from(entry?.file_name());
        if name
            .extension()
            .is_some_and(|extension| extension == "proto")
        {
            files.push(package_dir.join(name));
        }
    }
    files.sort();
    Ok(files)
}
