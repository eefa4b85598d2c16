//! What the rules of the tree share: where the tree is, and what the contract generates.
//! The rules themselves are the tests of this package.

pub mod codegen;

use std::path::PathBuf;

/// The root of the repository.
pub fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).map(PathBuf::from).unwrap_or(here)
}
