//! Checks the spelling of repository names on the Hub.

/// Maximum length of an owner or a model name.
const MAX_NAME_BYTES: usize = 96;

/// Returns whether `text` is spelled like the name of a repository on the Hub, `owner/name`. The rule is
/// `huggingface_hub`'s `validate_repo_id`, but the owner is required.
///
/// ```
/// use danlu_model::is_repo_id;
///
/// assert!(is_repo_id("meta-llama/Llama-3.2-1B"));
/// for no in ["base-8m", "/home/me", "a/b/c", "../base", "a/b/", r"C:\models/base", "a/-b", "a/b c", "a/b.git"] {
///     assert!(!is_repo_id(no), "{no}");
/// }
/// ```
pub fn is_repo_id(text: &str) -> bool {
    let is_part = |part: &str| {
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let is_edge = |c: char| matches!(c, '-' | '.');
        (1..=MAX_NAME_BYTES).contains(&part.len())
            && part.chars().all(known)
            && !part.starts_with(is_edge)
            && !part.ends_with(is_edge)
    };
    text.split_once('/').is_some_and(|(owner, name)| is_part(owner) && is_part(name))
        && !text.contains("--")
        && !text.contains("..")
        && !text.ends_with(".git")
}

#[cfg(test)]
mod tests {
    use super::*;

    // The expected results are those of `huggingface_hub.utils.validate_repo_id` in huggingface_hub 2.4.0.
    #[test]
    fn the_rule_is_that_of_python() {
        let long = |n: usize| "b".repeat(n);
        for yes in ["a/b", "a/1", "a/_", "_a/b_", "a.git/b", "meta-llama/Llama-3.2-1B"] {
            assert!(is_repo_id(yes), "{yes}");
        }
        assert!(is_repo_id(&format!("{0}/{0}", long(96))));
        for no in [
            "a/b.git", "a/b--c", "a--b/c", "a/..b", "a..b/c", "a/-b", "a/b-", "a/b.", "-a/b", ".a/b", "a-/b",
            "a/.git", "a/b/c", "a/", "/b", "a/b c", "a/b\n", "a/b@c", "甲/乙",
        ] {
            assert!(!is_repo_id(no), "{no:?}");
        }
        assert!(!is_repo_id(&format!("a/{}", long(97))) && !is_repo_id(&format!("{}/a", long(97))));
    }
}
