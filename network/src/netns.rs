//! Network namespaces, by the files that name them.

use std::fs::File;
use std::path::Path;

use crate::{NetworkError, Result};

pub fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|source| NetworkError::File { path: path.to_owned(), source })
}
