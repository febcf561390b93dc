//! Parses the body of a commit: one JSON value per line, first the header and then the files.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub summary: String,
    pub description: String,
    /// Id of the expected parent commit.
    pub parent: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change {
    File { path: String, content: Vec<u8> },
    Large { path: String, sha256: String, size: Option<u64> },
    DeleteFile(String),
    DeleteFolder(String),
}

/// Parses the body of a commit.
///
/// # Errors
/// Returns the number of the first invalid line, and the reason.
pub(crate) fn parse_commit(body: &[u8]) -> Result<(Header, Vec<Change>), String> {
    let mut header = None;
    let mut changes = Vec::new();
    let lines = body.split(|&byte| byte == b'\n').enumerate();
    for (number, line) in lines.filter(|(_, line)| !line.trim_ascii().is_empty()) {
        let value: Value =
            serde_json::from_slice(line).map_err(|error| format!("line {}: {error}", number + 1))?;
        let (key, value) = (value["key"].as_str().unwrap_or_default(), &value["value"]);
        let told = |message: &str| format!("line {}: `{key}` {message}", number + 1);
        let text = |name: &str| value[name].as_str().map(str::to_owned);
        if key == "header" {
            let summary = text("summary").filter(|summary| !summary.is_empty());
            header = Some(Header {
                summary: summary.ok_or_else(|| told("has no summary"))?,
                description: text("description").unwrap_or_default(),
                parent: text("parentCommit"),
            });
            continue;
        }
        let path = text("path").ok_or_else(|| told("has no path"))?;
        if !is_inside(&path) {
            return Err(told(&format!("has the path \"{path}\", which leads out of the repository")));
        }
        changes.push(match key {
            "file" => {
                let content = text("content").ok_or_else(|| told("has no content"))?;
                let content = match value["encoding"].as_str() {
                    Some("base64") => STANDARD.decode(content).map_err(|error| told(&error.to_string()))?,
                    Some("utf-8") | None => content.into_bytes(),
                    Some(other) => return Err(told(&format!("has the encoding \"{other}\""))),
                };
                Change::File { path, content }
            }
            "lfsFile" => {
                let sha256 =
                    text("oid").filter(|oid| oid.len() == 64 && oid.bytes().all(|b| b.is_ascii_hexdigit()));
                let sha256 = sha256.ok_or_else(|| told("has no SHA-256"))?;
                Change::Large { path, sha256, size: value["size"].as_u64() }
            }
            "deletedFile" => Change::DeleteFile(path),
            "deletedFolder" => Change::DeleteFolder(path),
            _ => return Err(told("is no change")),
        });
    }
    Ok((header.ok_or("there is no header")?, changes))
}

fn is_inside(path: &str) -> bool {
    let path = path.strip_suffix('/').unwrap_or(path);
    path.split('/').all(|part| !matches!(part, "" | "." | ".." | ".git")) && !path.contains('\0')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_its_header_and_its_changes() {
        let oid = "a".repeat(64);
        let body = format!(
            "{}\n{}\n{}\n\n{}\n",
            r#"{"key":"header","value":{"summary":"s","description":"d","parentCommit":"p"}}"#,
            r#"{"key":"file","value":{"path":"a/b","content":"aGk=","encoding":"base64"}}"#,
            format_args!(
                r#"{{"key":"lfsFile","value":{{"path":"m","algo":"sha256","oid":"{oid}","size":3}}}}"#
            ),
            r#"{"key":"deletedFolder","value":{"path":"old/"}}"#,
        );
        let (header, changes) = parse_commit(body.as_bytes()).unwrap();
        assert_eq!((header.summary.as_str(), header.parent.as_deref()), ("s", Some("p")));
        let file = Change::File { path: "a/b".to_owned(), content: b"hi".to_vec() };
        let large = Change::Large { path: "m".to_owned(), sha256: oid, size: Some(3) };
        assert_eq!(changes, [file, large, Change::DeleteFolder("old/".to_owned())]);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let header = r#"{"key":"header","value":{"summary":"s"}}"#;
        for (line, words) in [
            (r#"{"key":"file","value":{"path":"../a","content":""}}"#, "line 2: `file` has the path"),
            (r#"{"key":"file","value":{"path":"/a","content":""}}"#, "leads out"),
            (r#"{"key":"file","value":{"path":"a","content":"!","encoding":"base64"}}"#, "line 2"),
            (r#"{"key":"lfsFile","value":{"path":"a","oid":"12"}}"#, "has no SHA-256"),
            (r#"{"key":"movedFile","value":{"path":"a"}}"#, "is no change"),
            ("{", "line 2"),
        ] {
            let error = parse_commit(format!("{header}\n{line}").as_bytes()).unwrap_err();
            assert!(error.contains(words), "{line}: {error}");
        }
        assert_eq!(parse_commit(b"").unwrap_err(), "there is no header");
    }
}
