//! Tests that the example program runs, and that the loss falls.

#[path = "../examples/by_hand.rs"]
#[allow(dead_code)]
mod by_hand;

use std::path::Path;

#[test]
fn ten_steps_by_hand_lower_the_loss() {
    let folder = tempfile::tempdir().unwrap();
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/assets/base-8m");
    let losses = by_hand::run(&base, &folder.path().join("merged")).unwrap();
    assert_eq!(losses.len(), 10);
    assert!(losses[9] < losses[0] / 2.0, "{losses:?}");
}
