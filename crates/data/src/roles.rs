//! Maps role names such as `USER`, `Human`, `gpt` or `developer` to standard roles. The user may add more
//! names.

use std::{fmt, str::FromStr};

use crate::NameMapError;

pub(crate) const ROLES: [&str; 3] = ["system", "user", "assistant"];

/// Known names of each role, in lower case. The first name is the standard role.
const KNOWN: [(&str, &[&str]); 3] = [
    ("system", &["system", "developer", "system_prompt", "系统", "系统提示", "系统提示词"]),
    (
        "user",
        &["user", "human", "person", "customer", "usr", "prompter", "用户", "人类", "客户", "提问者", "问"],
    ),
    (
        "assistant",
        &[
            "assistant",
            "gpt",
            "model",
            "bot",
            "ai",
            "chatgpt",
            "chatbot",
            "bing",
            "bard",
            "claude",
            "llm",
            "助手",
            "助理",
            "智能助手",
            "机器人",
            "客服",
            "模型",
            "答",
        ],
    ),
];

/// Starts of names of models, such as `gpt-4` and `claude-3`, in lower case.
const MODEL_NAMES: [&str; 5] = ["gpt-", "chatgpt-", "claude-", "gemini-", "qwen"];

/// The user's role names, as pairs `(name, standard role)`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roles {
    pairs: Vec<(String, &'static str)>,
}

impl Roles {
    /// Adds a name for a role unless the name is already mapped.
    pub(crate) fn or(mut self, name: &str, role: &'static str) -> Self {
        if self.pairs.iter().all(|(own, _)| own != name) {
            self.pairs.push((name.to_owned(), role));
        }
        self
    }

    /// Returns the standard role for `name`. The user's names take precedence over the known names. The case
    /// of a known name is ignored.
    pub(crate) fn role(&self, name: &str) -> Option<&'static str> {
        let own = self.pairs.iter().find(|(own, _)| own == name).map(|(_, role)| *role);
        own.or_else(|| {
            let name = name.trim().to_lowercase();
            let known = KNOWN.iter().find(|(_, names)| names.contains(&name.as_str()));
            let is_model = MODEL_NAMES.iter().any(|start| name.starts_with(start));
            known.map(|(role, _)| *role).or(is_model.then_some("assistant"))
        })
    }
}

/// Returns the standard role whose name is exactly `name`.
fn standard(name: &str) -> Option<&'static str> {
    ROLES.into_iter().find(|role| *role == name)
}

impl FromStr for Roles {
    type Err = NameMapError;

    /// Parses a list `NAME=ROLE,…`. A pair `ROLE=NAME` is accepted too if only its left side is a standard
    /// role.
    fn from_str(text: &str) -> Result<Self, NameMapError> {
        let mut pairs = Vec::new();
        for (left, right) in crate::columns::pairs(text)? {
            let pair = match (standard(left), standard(right)) {
                (_, Some(role)) => (left, role),
                (Some(role), None) => (right, role),
                (None, None) => return Err(NameMapError::Role { found: right.to_owned() }),
            };
            if pairs.iter().any(|(name, _)| name == pair.0) {
                return Err(NameMapError::Twice { name: pair.0.to_owned() });
            }
            pairs.push((pair.0.to_owned(), pair.1));
        }
        Ok(Self { pairs })
    }
}

impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs: Vec<String> = self.pairs.iter().map(|(name, role)| format!("{name}={role}")).collect();
        f.write_str(&pairs.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_names_ignore_case_and_own_names_come_first() {
        let roles = Roles::default();
        for (name, role) in [
            ("USER", "user"),
            ("Human", "user"),
            ("model", "assistant"),
            ("用户", "user"),
            ("GPT-4o", "assistant"),
        ] {
            assert_eq!(roles.role(name), Some(role));
        }
        assert_eq!((roles.role("developer"), roles.role("narrator")), (Some("system"), None));
        let roles: Roles = "甄嬛=assistant, user=皇上,human=assistant".parse().unwrap();
        assert_eq!((roles.role("甄嬛"), roles.role("皇上")), (Some("assistant"), Some("user")));
        assert_eq!(roles.to_string().parse(), Ok(roles.clone()));
        assert_eq!((roles.role("human"), roles.role("Human")), (Some("assistant"), Some("user")));
    }

    #[test]
    fn a_pair_without_a_role_is_rejected() {
        let error = |text: &str| text.parse::<Roles>().unwrap_err().to_string();
        assert_eq!(error("a=b"), "`b` is not a role, expected `system`, `user` or `assistant`");
        assert_eq!(error("a"), "`a` is not a pair, expected `NAME=NAME`");
        assert_eq!(error("a=user,a=system"), "`a` is mapped twice, expected one pair per name");
    }
}
