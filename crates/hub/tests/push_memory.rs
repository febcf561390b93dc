//! Measures the memory of a push in a process that does not contain the server.

mod common;

use std::fs;
use std::process::Command;

use common::push::Desk;
use common::repo;
use danlu_hub::{Hub, HubSettings, PushOptions, UploadOptions, UploadSet};

/// Environment variable with the folder for the process that is measured.
const FOLDER: &str = "DANLU_TEST_PUSHED_FOLDER";

const MIB: u64 = 1 << 20;

/// Returns the peak memory of the process in bytes.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
#[ignore = "the process that the others measure"]
fn is_measured() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let hub = Hub::new(HubSettings::from_env().unwrap());
    let push = || {
        let upload_set = UploadSet::from_folder(folder.as_ref(), &UploadOptions::default()).unwrap();
        hub.push(&upload_set, &repo("me/adapter"), &PushOptions::default(), &mut |_, _| {})
    };
    // This request opens the connection, so that the memory of the connection is not counted.
    hub.whoami().unwrap();
    let before = peak();
    let said = match push() {
        Ok(pushed) => format!("sent {}", pushed.sent),
        Err(error) => error.to_string(),
    };
    println!("grown {}: {said}", peak() - before);
}

/// Pushes the folder of `desk` in another process. Returns the growth of its memory in bytes, and its output.
fn grown(desk: &Desk) -> (u64, String) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["is_measured", "--exact", "--ignored", "--nocapture"])
        .env("HF_ENDPOINT", desk.server.endpoint())
        .env("HF_HOME", desk.home.path())
        .env("HF_TOKEN", "hf_mine")
        .env(FOLDER, desk.folder())
        .output()
        .unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    let line = out.lines().find_map(|line| line.split_once("grown ")).unwrap_or_else(|| panic!("{out}")).1;
    let (bytes, said) = line.split_once(": ").unwrap();
    (bytes.parse().unwrap(), said.to_owned())
}

/// Returns a text that is smaller than a large file.
fn text() -> String {
    "zhen huan\n".repeat(9 << 20 >> 4)
}

#[test]
fn a_large_file_needs_little_memory() {
    const SIZE: u64 = 96 * MIB;
    let desk = Desk::new();
    desk.push("me/adapter").unwrap();
    fs::File::create(desk.folder().join("deep/more.safetensors")).unwrap().set_len(SIZE).unwrap();
    let (grown, said) = grown(&desk);
    assert_eq!(said, format!("sent {SIZE}"));
    // Memory contains one chunk for each of four parallel uploads, and the read buffers.
    assert!(grown < 12 * MIB, "{} MiB", grown / MIB);
}

#[test]
fn regular_files_are_in_memory_once() {
    let desk = Desk::new();
    desk.push("me/adapter").unwrap();
    let text = text();
    (0..4).for_each(|i| desk.write(&format!("text{i}.txt"), format!("{i}{text}").as_bytes()));
    let size: u64 = 4 * (text.len() as u64 + 1);
    assert!(size > 20 * MIB, "{size}");
    let (grown, said) = self::grown(&desk);
    assert_eq!(said, format!("sent {size}"));
    // Memory contains the base64 text once, and the read buffers.
    assert!(grown < size / 3 * 4 + 8 * MIB, "{} MiB for {} MiB", grown / MIB, size / MIB);
}

#[test]
fn a_commit_beyond_the_limit_is_refused_before_it_is_read() {
    let desk = Desk::new();
    desk.push("me/adapter").unwrap();
    let text = text();
    (0..8).for_each(|i| desk.write(&format!("text{i}.txt"), format!("{i}{text}").as_bytes()));
    let (grown, said) = grown(&desk);
    let size = 8 * (text.len() + 1);
    assert!(said.contains(&format!("{size} bytes, and one commit holds at most {}", 32 * MIB)), "{said}");
    assert!(grown < 8 * MIB, "{} MiB", grown / MIB);
    assert_eq!(desk.server.commits("me/adapter").len(), 2);
}
