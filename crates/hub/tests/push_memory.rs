//! How much memory a push takes. It is alone in its process, for the measure is the process's.

mod common;

use std::fs;

use common::push::Desk;

/// Most memory that the process has had so far, in bytes.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
fn a_large_file_passes_through_little_memory() {
    const SIZE: u64 = 96 << 20;
    let desk = Desk::new();
    desk.push("me/adapter").unwrap();
    let before = peak();
    let file = fs::File::create(desk.folder().join("model.safetensors")).unwrap();
    file.set_len(SIZE).unwrap();
    let pushed = desk.push("me/adapter").unwrap();
    assert_eq!(pushed.sent, SIZE);
    // The client's pieces, and those of the server beside it.
    let grown = peak() - before;
    assert!(grown < 24 << 20, "{} MiB", grown >> 20);
}
