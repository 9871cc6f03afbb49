//! Models in several GGUF files, `NAME-00001-of-00003.gguf` and so on.

use super::metadata::Metadata;
use crate::error::LoadError;

const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";
/// The number of digits of a file's number.
const DIGITS: usize = 5;

/// The name of one of several files.
#[derive(Debug, PartialEq)]
pub(crate) struct ShardName<'a> {
    /// The common beginning of all names.
    pub(crate) stem: &'a str,
    count: usize,
}

impl<'a> ShardName<'a> {
    /// Returns `None` if the name is not that of one of several files.
    pub(crate) fn parse(file: &'a str) -> Option<Self> {
        let (rest, count) = file.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let parse = |digits: &str| -> Option<usize> {
            let is_number = digits.len() == DIGITS && digits.bytes().all(|b| b.is_ascii_digit());
            is_number.then(|| digits.parse().ok()).flatten()
        };
        let (number, count) = (parse(number)?, parse(count)?);
        (1..=count).contains(&number).then_some(Self { stem, count })
    }

    /// Returns the names of all files.
    pub(crate) fn files(&self) -> Vec<String> {
        let Self { stem, count } = self;
        (1..=*count).map(|number| format!("{stem}-{number:05}-of-{count:05}.gguf")).collect()
    }
}

/// Returns the files that are models: of several files of one model, only the first one. Sorts them.
pub(crate) fn one_per_set(mut files: Vec<String>) -> Vec<String> {
    files.sort_unstable();
    files.dedup_by(|file, previous| {
        let (file, previous) = (ShardName::parse(file), ShardName::parse(previous));
        file.is_some() && file == previous
    });
    files
}

/// Checks that a file is number `index` of `count` files.
pub(super) fn check(metadata: &Metadata<'_>, index: usize, count: usize) -> Result<(), LoadError> {
    let named = metadata.integer(COUNT)?;
    if named.unwrap_or(1).max(1) != count {
        return Err(metadata.invalid(format!(
            "{COUNT} is {}, but its name says that the model has {count}; the name of one of several files \
             ends with, for example, -00001-of-00003.gguf",
            named.map_or("missing".into(), |named| named.to_string())
        )));
    }
    let number = metadata.integer(NUMBER)?;
    if count > 1 && number != Some(index) {
        return Err(metadata.invalid(format!(
            "{NUMBER} is {}, but file {} of {count} must have {index}",
            number.map_or("missing".into(), |number| number.to_string()),
            index + 1
        )));
    }
    Ok(())
}

/// Checks the number of tensors of all files together.
pub(super) fn check_tensors(metadata: &Metadata<'_>, tensors: usize) -> Result<(), LoadError> {
    match metadata.integer(TENSORS)? {
        Some(expected) if expected != tensors => Err(metadata
            .invalid(format!("{TENSORS} is {expected}, but the files have {tensors} tensors"))),
        _ => Ok(()),
    }
}
