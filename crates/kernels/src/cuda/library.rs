//! Finds and opens NVIDIA's libraries by file path.
//!
//! The search order is: the folders of [`PATH_VARIABLE`], pip's folders for the Python interpreter, the
//! system's loader, and last the usual toolkit folders. The loader opens a library by name and does not
//! return its path, so the path is read from `/proc/self/maps`.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::error::CudaError;

/// Environment variable that contains the folders to search first, separated by `:`.
pub const PATH_VARIABLE: &str = "DANLU_CUDA_LIBRARY_PATH";

/// Folders of pip packages below `site-packages`, for CUDA 13 and CUDA 12.
const PIP_FOLDERS: [&str; 4] =
    ["nvidia/cu13/lib", "nvidia/cublas/lib", "nvidia/cuda_nvrtc/lib", "nvidia/cuda_runtime/lib"];

/// Folders of drivers and toolkits that may be missing from the loader's cache.
const SYSTEM_FOLDERS: [&str; 8] = [
    "/usr/local/cuda/lib64",
    "/usr/local/cuda/targets/x86_64-linux/lib",
    "/opt/cuda/lib64",
    "/usr/local/nvidia/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib64",
    "/usr/lib/wsl/lib",
    "/usr/lib/aarch64-linux-gnu",
];

/// An opened library.
#[derive(Debug)]
pub(super) struct OpenLibrary {
    library: Library,
    path: PathBuf,
}

impl OpenLibrary {
    /// Opens the first library of `names` that is found in any folder.
    pub fn find(names: &[&str]) -> Option<Self> {
        let first: Vec<PathBuf> = explicit_folders().into_iter().chain(pip_folders()).collect();
        let system = SYSTEM_FOLDERS.map(PathBuf::from);
        let in_folders = |folders: &[PathBuf], name: &str| {
            folders.iter().map(|folder| folder.join(name)).filter(|path| path.is_file()).find_map(open)
        };
        names.iter().find_map(|name| {
            in_folders(&first, name)
                .or_else(|| open(PathBuf::from(name)))
                .or_else(|| in_folders(&system, name))
        })
    }

    /// Returns the path of the mapped file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the function `name` as a pointer of type `F`.
    ///
    /// # Safety
    /// `F` must be the type of the function.
    pub unsafe fn function<F: Copy>(&self, name: &'static str) -> Result<F, CudaError> {
        // SAFETY: the caller guarantees the type. The library stays open for as long as its function table
        // exists.
        let symbol = unsafe { self.library.get::<F>(name.as_bytes()) };
        symbol
            .map(|symbol| *symbol)
            .map_err(|_| CudaError::MissingFunction { library: self.path.clone(), name })
    }
}

fn open(path: PathBuf) -> Option<OpenLibrary> {
    // SAFETY: the code that NVIDIA's libraries run when they are loaded has no requirements on the process.
    let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_LOCAL) }.ok()?;
    let path = if path.is_absolute() { path } else { mapped(&path).unwrap_or(path) };
    Some(OpenLibrary { library, path })
}

/// Returns the path of a mapped file with this name.
fn mapped(name: &Path) -> Option<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let stem = name.file_name()?.to_str()?;
    let path = maps.lines().filter_map(|line| line.split_whitespace().nth(5)).find(|path| {
        // `libcuda.so.1` is a link, so the mapped file has a different suffix, for example
        // `libcuda.so.580.1`.
        let file = Path::new(path).file_name().and_then(OsStr::to_str).unwrap_or_default();
        file.starts_with(stem.split_once(".so").map_or(stem, |(base, _)| base)) && file.contains(".so")
    })?;
    Some(PathBuf::from(path))
}

fn explicit_folders() -> Vec<PathBuf> {
    env::var_os(PATH_VARIABLE).map(|paths| env::split_paths(&paths).collect()).unwrap_or_default()
}

/// Returns the folders of NVIDIA's pip packages in every Python environment that was found.
fn pip_folders() -> Vec<PathBuf> {
    site_packages().iter().flat_map(|site| PIP_FOLDERS.map(|folder| site.join(folder))).collect()
}

fn site_packages() -> Vec<PathBuf> {
    let mut prefixes: Vec<PathBuf> =
        ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().filter_map(env::var_os).map(PathBuf::from).collect();
    let path = env::var_os("PATH").unwrap_or_default();
    let interpreter =
        env::split_paths(&path).map(|folder| folder.join("python3")).find(|file| file.is_file());
    if let Some(interpreter) = interpreter {
        let real = fs::canonicalize(&interpreter).unwrap_or_else(|_| interpreter.clone());
        prefixes
            .extend([&interpreter, &real].iter().filter_map(|file| Some(file.parent()?.parent()?.into())));
    }
    // pip installs danlu into the `bin` folder of a Python environment. This environment may be inactive, so
    // it is added to the search here.
    let own = env::current_exe().ok().and_then(|file| Some(file.parent()?.parent()?.to_owned()));
    prefixes.extend(own);
    prefixes.extend(env::var_os("HOME").map(|home| Path::new(&home).join(".local")));
    prefixes.extend(["/usr/local", "/usr"].map(PathBuf::from));
    prefixes.iter().flat_map(|prefix| site_packages_below(prefix)).collect()
}

fn site_packages_below(prefix: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(prefix.join("lib")) else { return Vec::new() };
    let pythons = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| {
        path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.starts_with("python3"))
    });
    let mut pythons: Vec<PathBuf> = pythons.collect();
    pythons.sort();
    pythons
        .iter()
        .flat_map(|python| ["site-packages", "dist-packages"].map(|site| python.join(site)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pip_folders_of_both_generations_are_searched() {
        let prefix = env::temp_dir().join(format!("danlu-site-{}", std::process::id()));
        let site = prefix.join("lib/python3.12/site-packages");
        fs::create_dir_all(&site).unwrap();
        assert_eq!(site_packages_below(&prefix)[0], site);
        fs::remove_dir_all(&prefix).unwrap();
        assert!(PIP_FOLDERS.contains(&"nvidia/cu13/lib") && PIP_FOLDERS.contains(&"nvidia/cublas/lib"));
    }

    #[test]
    fn a_library_is_shown_by_the_file_that_is_mapped() {
        let libc =
            OpenLibrary::find(&["libno_such_library.so.9", "libc.so.6"]).expect("a process has a libc");
        assert!(libc.path().is_absolute() && libc.path().is_file(), "{libc:?}");
        // SAFETY: `getpid` has no parameters and returns an int.
        let getpid = unsafe { libc.function::<unsafe extern "C" fn() -> i32>("getpid") }.unwrap();
        // SAFETY: `getpid` has no safety requirements.
        assert_eq!(unsafe { getpid() } as u32, std::process::id());
        // SAFETY: the function does not exist, so its type does not matter.
        let missing = unsafe { libc.function::<unsafe extern "C" fn()>("no_such_function") };
        assert!(matches!(missing, Err(CudaError::MissingFunction { name: "no_such_function", .. })));
    }
}
