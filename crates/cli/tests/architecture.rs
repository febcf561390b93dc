//! Checks that the crates depend on each other only along the arrows of ARCHITECTURE.md.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

/// Each crate, and the crates that it may depend on.
const ARROWS: [(&str, &[&str]); 12] = [
    ("kernels", &[]),
    ("model", &["kernels"]),
    ("adapter", &["model", "kernels"]),
    ("data", &["model", "kernels"]),
    ("generate", &["adapter", "model", "kernels"]),
    ("train", &["adapter", "model", "kernels"]),
    ("report", &["train", "adapter", "model", "kernels"]),
    ("hub", &["model", "kernels"]),
    ("loader", &["hub", "adapter", "model", "kernels"]),
    ("serve", &["loader", "hub", "generate", "data", "adapter", "model", "kernels"]),
    (
        "cli",
        &["serve", "loader", "hub", "report", "train", "generate", "data", "adapter", "model", "kernels"],
    ),
    ("hub-test-server", &[]),
];

/// Returns the name of a crate, which is the name of its package without `danlu-`. The binary's package is
/// `danlu`.
fn crate_name(package: &str) -> Option<&str> {
    if package == "danlu" { Some("cli") } else { package.strip_prefix("danlu-") }
}

#[test]
fn crates_depend_only_along_the_arrows() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut seen = BTreeSet::new();
    for package in metadata["packages"].as_array().unwrap() {
        let name = crate_name(package["name"].as_str().unwrap()).unwrap();
        let allowed = ARROWS.iter().find(|(from, _)| *from == name);
        let (_, allowed) = allowed.unwrap_or_else(|| panic!("`{name}` has no arrows in this test"));
        seen.insert(name);
        for dependency in package["dependencies"].as_array().unwrap() {
            // A dev-dependency is built only for tests, examples and benches, so it needs no arrow.
            let is_dev = dependency["kind"] == "dev";
            let Some(to) = crate_name(dependency["name"].as_str().unwrap()).filter(|_| !is_dev) else {
                continue;
            };
            assert!(allowed.contains(&to), "`{name}` depends on `{to}`, which is no arrow");
        }
    }
    assert_eq!(seen, ARROWS.iter().map(|(from, _)| *from).collect());
}
