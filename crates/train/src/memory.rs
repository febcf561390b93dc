//! Memory use of this process, and memory of the machine, in bytes.

use std::fs;
use std::path::{Path, PathBuf};

/// Returns the resident memory of this process, including pages of mapped files. Returns `None` if the system
/// does not report this value.
pub fn resident() -> Option<u64> {
    status("VmRSS:")
}

/// Returns the peak of [`resident`].
pub fn peak() -> Option<u64> {
    status("VmHWM:")
}

/// Returns the resident memory of this process, excluding pages of mapped files.
pub fn anonymous() -> Option<u64> {
    status("RssAnon:")
}

/// Returns the total and the available memory of the machine.
pub fn machine() -> Option<(u64, u64)> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    Some((field(&info, "MemTotal:")?, field(&info, "MemAvailable:")?))
}

/// Returns the memory that this process can still allocate, which is the minimum of [`free`] and
/// [`address_space`].
pub fn available() -> Option<u64> {
    free().into_iter().chain(address_space()).min()
}

/// Returns the free memory: the minimum of the machine's available memory and the free memory of each control
/// group of this process.
pub fn free() -> Option<u64> {
    let (_, machine) = machine()?;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let groups = groups.lines().filter_map(|line| group_room(Path::new("/sys/fs/cgroup"), line));
    groups.chain([machine]).min()
}

/// Returns the remaining address space if there is a limit such as `ulimit -v`, otherwise `None`. Mapped
/// files use address space too.
pub fn address_space() -> Option<u64> {
    let limit = address_limit(&fs::read_to_string("/proc/self/limits").ok()?)?;
    Some(limit.saturating_sub(status("VmSize:")?))
}

/// Parses the soft limit on the address space from `/proc/self/limits`, in bytes. Returns `None` for
/// `unlimited`.
fn address_limit(limits: &str) -> Option<u64> {
    let values = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    values.split_whitespace().next()?.parse().ok()
}

/// Formats bytes as `310 MiB` or `1.25 GiB`. The value is rounded up, so that a memory limit of the printed
/// size is large enough.
///
/// ```
/// assert_eq!(danlu_train::memory::display(1 << 30), "1.00 GiB");
/// assert_eq!(danlu_train::memory::display(5_000_000), "4.8 MiB");
/// ```
pub fn display(bytes: u64) -> String {
    let mib = bytes as f64 / (1u64 << 20) as f64;
    match mib {
        ..10.0 => format!("{:.1} MiB", (mib * 10.0).ceil() / 10.0),
        10.0..1000.0 => format!("{} MiB", mib.ceil()),
        _ => format!("{:.2} GiB", (mib / 10.24).ceil() / 100.0),
    }
}

fn status(name: &str) -> Option<u64> {
    field(&fs::read_to_string("/proc/self/status").ok()?, name)
}

/// Parses a line such as `VmRSS:     1234 kB` and returns the number of bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Returns the smallest amount of free memory over a control group and its parents. `line` is a line of
/// `/proc/self/cgroup`.
///
/// The line looks like `0::/user.slice` in version 2 and like `4:memory:/docker/1` in version 1.
fn group_room(root: &Path, line: &str) -> Option<u64> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (controllers, path) = (parts.next()?, parts.next()?);
    let (root, limit, used, cached) = match controllers {
        "" => (root.to_owned(), "memory.max", "memory.current", "inactive_file"),
        "memory" => {
            (root.join("memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        }
        _ => return None,
    };
    let number = |path: PathBuf| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let room = |folder: &Path| {
        let (limit, used) = (number(folder.join(limit))?, number(folder.join(used))?);
        // The kernel counts inactive pages of files as used memory, but frees these pages on demand. They
        // are therefore added to the free memory.
        let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
        let cached = stat.lines().find_map(|line| line.strip_prefix(cached)?.trim().parse::<u64>().ok());
        Some((limit + cached.unwrap_or(0)).saturating_sub(used))
    };
    let own = root.join(path.trim_start_matches('/'));
    own.ancestors().take_while(|folder| folder.starts_with(&root)).filter_map(room).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_proc_is_read_in_bytes() {
        let info = "MemTotal:       24684168 kB\nMemAvailable:   23 kB\n";
        assert_eq!(field(info, "MemAvailable:"), Some(23 * 1024));
        assert_eq!(field(info, "VmHWM:"), None);
        assert_eq!(field("Name:\tx\nVmRSS:\t    12 kB\n", "VmRSS:"), Some(12 << 10));
        assert_eq!(field("VmHWM:\t many kB\n", "VmHWM:"), None);
    }

    #[test]
    fn an_address_space_without_a_limit_has_none() {
        let limits = |soft: &str| {
            format!(
                "Limit                     Soft Limit           Hard Limit           Units\n\
                     Max open files            1024                 1048576              files\n\
                     Max address space         {soft:<20} unlimited            bytes\n"
            )
        };
        assert_eq!(address_limit(&limits("8192000000")), Some(8_192_000_000));
        assert_eq!(address_limit(&limits("unlimited")), None);
        assert_eq!(address_limit(""), None);
    }

    #[test]
    fn the_tightest_group_on_the_path_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("a/memory.max", "1000\n");
        write("a/memory.current", "600\n");
        write("a/memory.stat", "anon 500\ninactive_file 100\n");
        write("a/b/memory.max", "max\n");
        write("a/b/memory.current", "100\n");
        write("memory/c/memory.limit_in_bytes", "300\n");
        write("memory/c/memory.usage_in_bytes", "50\n");
        assert_eq!(group_room(root.path(), "0::/a/b"), Some(500));
        assert_eq!(group_room(root.path(), "4:memory:/c"), Some(250));
        assert_eq!(group_room(root.path(), "5:devices:/c"), None);
        assert_eq!(group_room(root.path(), "0::/absent"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_has_some_memory_and_never_more_than_its_peak() {
        let (now, most) = (resident().unwrap(), peak().unwrap());
        assert!(0 < now && now <= most + (1 << 20), "{now} of {most}");
        assert!(available().unwrap() > 0);
    }
}
