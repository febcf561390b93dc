//! Counts, with inotify events of the kernel, how often a command opens each file of a model.
#![cfg(target_os = "linux")]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use common::Scene;
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use rustix::io::Errno;

/// Counts the opens of files in some folders.
struct OpenCounter {
    inotify: OwnedFd,
    folders: BTreeMap<i32, String>,
}

impl OpenCounter {
    fn watch(folders: &[PathBuf]) -> Self {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
        let mut watched = BTreeMap::new();
        for folder in folders {
            let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
            watched.insert(inotify::add_watch(&inotify, folder, WatchFlags::OPEN).unwrap(), name);
            // The kernel merges equal consecutive events. A second watch on the file itself adds an event
            // between two opens, so that they are not merged.
            for entry in fs::read_dir(folder).unwrap() {
                inotify::add_watch(&inotify, entry.unwrap().path(), WatchFlags::OPEN).unwrap();
            }
        }
        Self { inotify, folders: watched }
    }

    /// Returns the number of opens so far, by `folder/file`.
    fn opens(&self) -> BTreeMap<String, usize> {
        let (mut opens, mut buffer) = (BTreeMap::new(), [MaybeUninit::uninit(); 1 << 16]);
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::AGAIN) => return opens,
                Err(error) => panic!("{error}"),
            };
            assert!(!event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW), "events were lost");
            if let (Some(folder), Some(file)) = (self.folders.get(&event.wd()), event.file_name()) {
                *opens.entry(format!("{folder}/{}", file.to_str().unwrap())).or_default() += 1;
            }
        }
    }
}

#[test]
fn chat_opens_each_file_of_a_model_once() {
    let scene = Scene::new();
    scene.ok("train --base base --data data.json --output out --max-steps 1 --lora-r 2");
    scene.ok("merge out --output merged");
    let [base, out, merged] = ["base", "out", "merged"].map(|name| scene.path(name));

    let counter = OpenCounter::watch(&[base, out]);
    scene.ok("chat out --prompt 你好 --max-new-tokens 2");
    let opens = counter.opens();
    for file in [
        "base/config.json",
        "base/model.safetensors",
        "out/adapter_config.json",
        "out/adapter_model.safetensors",
        "out/danlu.json",
    ] {
        assert_eq!(opens.get(file), Some(&1), "{file} in {opens:?}");
    }
    assert_eq!(opens.get("out/card.json"), None, "{opens:?}");

    let counter = OpenCounter::watch(&[merged]);
    scene.ok("chat merged --prompt 你好 --max-new-tokens 2");
    let opens = counter.opens();
    for file in ["merged/config.json", "merged/model.safetensors", "merged/danlu.json"] {
        assert_eq!(opens.get(file), Some(&1), "{file} in {opens:?}");
    }
}

#[test]
fn train_and_compare_open_each_file_of_the_base_once() {
    let scene = Scene::new();
    let counter = OpenCounter::watch(&[scene.path("base")]);
    scene.ok("train --base base --data data.json --output out --max-steps 2 --save-steps 1 --lora-r 2 --val-size 2");
    let opens = counter.opens();
    for file in ["base/config.json", "base/model.safetensors"] {
        assert_eq!(opens.get(file), Some(&1), "{file} in {opens:?}");
    }

    let counter = OpenCounter::watch(&[scene.path("base"), scene.path("out")]);
    scene.ok("compare out --replies 1 --max-new-tokens 2");
    let opens = counter.opens();
    for file in ["base/config.json", "base/model.safetensors", "out/adapter_config.json", "out/danlu.json"] {
        assert_eq!(opens.get(file), Some(&1), "{file} in {opens:?}");
    }
}

/// Checks that the counter detects repeated opens.
#[test]
fn two_opens_in_a_row_are_counted_as_two() {
    let scene = Scene::new();
    let counter = OpenCounter::watch(&[scene.path("base")]);
    for _ in 0..2 {
        File::open(scene.path("base/config.json")).unwrap();
    }
    assert_eq!(counter.opens(), BTreeMap::from([("base/config.json".to_owned(), 2)]));
}
