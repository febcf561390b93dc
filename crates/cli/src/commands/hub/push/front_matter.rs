//! Finds and replaces the base's name in the front matter of a `README.md` that danlu did not write.

/// Returns the lines of the front matter that name a base, with their numbers. The first line has the number
/// 1.
pub fn bases(readme: &str) -> Vec<(usize, String)> {
    let lines = head(readme).into_iter().enumerate();
    lines.filter_map(|(i, (_, value))| Some((i + 2, value?.to_owned()))).collect()
}

/// Replaces the base `named` by `id` in the front matter.
pub fn renamed(readme: &str, named: &str, id: &str) -> String {
    let mut out: Vec<String> = readme.split('\n').map(str::to_owned).collect();
    for (i, (line, value)) in head(readme).into_iter().enumerate() {
        if value == Some(named) {
            let at = line.rfind(named).expect("the line holds its value");
            out[i + 1] = format!("{}{id}{}", &line[..at], &line[at + named.len()..]);
        }
    }
    out.join("\n")
}

/// Returns the lines of the front matter, each with the base that the line names. Such a line is `base_model:
/// x`, an item of a list `base_model`, or the tag `base_model:adapter:x`.
fn head(readme: &str) -> Vec<(&str, Option<&str>)> {
    let mut lines = readme.split('\n');
    if lines.next().is_none_or(|line| line.trim_end() != "---") {
        return Vec::new();
    }
    let mut is_list = false;
    let lines = lines.take_while(|line| line.trim_end() != "---").map(|line| {
        let item = line.trim_start().strip_prefix('-').map(bare);
        let key = line.strip_prefix("base_model:").map(bare);
        is_list = key.map_or(is_list && item.is_some(), str::is_empty);
        let tag = item.and_then(|item| item.strip_prefix("base_model:")?.split_once(':')).map(|(_, id)| id);
        (line, key.or(tag).or(item.filter(|_| is_list)).filter(|value| !value.is_empty()))
    });
    lines.collect()
}

/// Removes blanks and quotes around `value`.
fn bare(value: &str) -> &str {
    value.trim().trim_matches(['"', '\''])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_is_found_and_renamed_in_the_head_alone() {
        let card = "---\nbase_model: /home/me/base\ntags:\n- base_model:adapter:/home/me/base\n- lora\n---\nbase_model: /home/me/base\n";
        let at = |line| (line, "/home/me/base".to_owned());
        assert_eq!(bases(card), [at(2), at(4)]);
        let renamed = renamed(card, "/home/me/base", "lab/base");
        assert!(
            renamed.starts_with(
                "---\nbase_model: lab/base\ntags:\n- base_model:adapter:lab/base\n- lora\n---\n"
            )
        );
        assert!(renamed.ends_with("---\nbase_model: /home/me/base\n"), "{renamed}");
        let list = "---\r\nbase_model:\r\n- \"base\"\r\n- other\r\nlicense: base\r\n---\r\n";
        assert_eq!(bases(list), [(3, "base".to_owned()), (4, "other".to_owned())]);
        assert_eq!(super::renamed(list, "base", "lab/base"), list.replace("\"base\"", "\"lab/base\""));
        assert!(bases("# none\nbase_model: x\n").is_empty());
    }
}
