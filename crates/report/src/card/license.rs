//! Licence identifiers, as the Hub spells them.

use std::path::Path;

use danlu_model::files;

/// Maximum size of a base's `README.md`, from which the licence is read.
const MAX_CARD_BYTES: u64 = 4 << 20;

/// Reads the licence from the front matter of a base's `README.md`. Returns `None` if there is no valid
/// licence.
pub fn license_of(base: &Path) -> Option<String> {
    let card = String::from_utf8(files::read_bounded(&base.join("README.md"), MAX_CARD_BYTES).ok()?).ok()?;
    let mut lines = card.lines();
    if lines.next()?.trim_end() != "---" {
        return None;
    }
    let front = lines.take_while(|line| line.trim_end() != "---");
    let value = front.filter_map(|line| line.strip_prefix("license:")).next()?;
    let id = value.trim().trim_matches(['"', '\'']);
    is_license(id).then(|| id.to_owned())
}

/// Returns whether `id` is syntactically valid as a licence identifier on the Hub, such as `apache-2.0`.
pub fn is_license(id: &str) -> bool {
    let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    !id.is_empty() && id.len() <= 64 && id.chars().all(known)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_licence_is_what_the_bases_card_says() {
        let root = tempfile::tempdir().unwrap();
        let license = |card: &str| {
            fs::write(root.path().join("README.md"), card).unwrap();
            license_of(root.path())
        };
        assert_eq!(
            license("---\nlanguage: zh\nlicense: \"apache-2.0\"\n---\n# x\n").as_deref(),
            Some("apache-2.0")
        );
        assert_eq!(license("---\ntags: x\n---\nlicense: mit\n"), None);
        assert_eq!(license("license: mit\n"), None);
        assert_eq!(license("---\nlicense: \"a\\\" b\"\n---\n"), None);
    }
}
