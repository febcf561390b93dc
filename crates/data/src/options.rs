//! Options of [`read`](crate::read()).

use std::path::Path;

use crate::{Columns, Dataset, Format, Roles, dataset_info};

/// Options of [`read`](crate::read()). By default, all properties are detected from the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReadOptions {
    /// Format of all records. With `None`, the format is detected from the first record.
    pub format: Option<Format>,
    /// Keys in the file that replace the keys of the format.
    pub columns: Columns,
    /// Role names in the file.
    pub roles: Roles,
    /// The entry to read from a LLaMA-Factory `dataset_info.json`.
    pub dataset: Option<String>,
    /// Maximum memory of the records in bytes, roughly. With `None`, there is no limit.
    pub max_memory: Option<u64>,
}

impl ReadOptions {
    /// Lowers the maximum memory by the memory of the records in `dataset`. Files that are read one after the
    /// other thus share one maximum.
    pub fn reserve(&mut self, dataset: &Dataset) {
        self.max_memory = self.max_memory.map(|left| left.saturating_sub(dataset.memory));
    }

    /// Returns the options for each entry of `file`. Only a `dataset_info.json` of LLaMA-Factory may have
    /// several entries, whose names are separated by commas.
    pub fn for_each_entry(&self, file: &Path) -> Vec<Self> {
        match &self.dataset {
            Some(names) if names.contains(',') && dataset_info::is_info(file) => {
                let name = |name: &str| Self { dataset: Some(name.trim().to_owned()), ..self.clone() };
                names.split(',').map(name).collect()
            }
            _ => vec![self.clone()],
        }
    }
}

impl From<Option<Format>> for ReadOptions {
    fn from(format: Option<Format>) -> Self {
        Self { format, ..Self::default() }
    }
}
