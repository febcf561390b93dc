//! Reads the kernel images that `cuda/build.py` packed. There are cubins for several architectures, and PTX
//! for later architectures.

use crate::cuda::error::CudaError;

/// All images. Each image is compressed separately.
static PACK: &[u8] = include_bytes!("../../cuda/kernels.pack");

const MAGIC: &[u8; 8] = b"DANLUCU1";
/// Number of bytes before the table. They contain a magic number, the source hash, and the number of images.
const HEAD: usize = 20;
/// Number of bytes in a table entry: stem, architecture, offset, packed length and unpacked length.
const ENTRY: usize = 40;

/// One entry of the table.
#[derive(Clone, Copy, Debug)]
struct Image {
    /// Name of the `.cu` file without its extension.
    stem: &'static str,
    /// `sm_90` for a cubin, or `80` for PTX.
    architecture: &'static str,
    packed: &'static [u8],
    bytes: usize,
}

fn images() -> impl Iterator<Item = Image> {
    let number = |at: usize| u32::from_le_bytes(PACK[at..at + 4].try_into().expect("four bytes")) as usize;
    let text = |at: usize, len: usize| {
        let bytes: &'static [u8] = &PACK[at..at + len];
        std::str::from_utf8(bytes).expect("the pack's names are ASCII").trim_end_matches('\0')
    };
    assert!(PACK.starts_with(MAGIC), "kernels.pack is not what build.py writes");
    (0..number(HEAD - 4)).map(move |i| {
        let entry = HEAD + i * ENTRY;
        let (offset, len) = (number(entry + 28), number(entry + 32));
        Image {
            stem: text(entry, 20),
            architecture: text(entry + 20, 8),
            packed: &PACK[offset..offset + len],
            bytes: number(entry + 36),
        }
    })
}

/// Returns the compute capabilities for which there is a cubin, in ascending order.
fn capabilities() -> Vec<(u32, u32)> {
    let capability = |image: Image| {
        let number: u32 = image.architecture.strip_prefix("sm_")?.parse().ok()?;
        Some((number / 10, number % 10))
    };
    let mut all: Vec<_> = images().filter_map(capability).collect();
    all.sort();
    all.dedup();
    all
}

/// Returns the architectures whose images run on a device, the most specific first. A cubin runs on devices
/// of its major version with the same or a later minor version. All other devices use PTX.
fn architectures((major, minor): (u32, u32)) -> Vec<String> {
    let cubin = capabilities().into_iter().rev().find(|&(m, n)| m == major && n <= minor);
    let special = format!("sm_{major}{minor}a");
    let name = |(major, minor)| format!("sm_{major}{minor}");
    match cubin {
        Some(own) => [special, name(own)].into(),
        None => images()
            .filter(|i| !i.architecture.starts_with("sm_"))
            .map(|i| i.architecture.to_owned())
            .take(1)
            .collect(),
    }
}

/// Returns the images for a device, in the order in which kernels are looked up.
pub(super) fn for_device(capability: (u32, u32), driver: u32) -> Result<Vec<Vec<u8>>, CudaError> {
    let mut found = Vec::new();
    for architecture in architectures(capability) {
        for image in images().filter(|image| image.architecture == architecture) {
            let mut bytes = miniz_oxide::inflate::decompress_to_vec(image.packed)
                .unwrap_or_else(|fault| panic!("{} for {architecture} in kernels.pack: {fault}", image.stem));
            debug_assert_eq!(bytes.len(), image.bytes);
            bytes.push(0);
            found.push(bytes);
        }
    }
    if found.is_empty() { Err(CudaError::NoKernels { capability, driver }) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_file_is_packed_for_every_architecture() {
        let stems: BTreeSet<_> = images().map(|image| image.stem).collect();
        let all: BTreeSet<_> = images().map(|image| image.architecture).collect();
        let general = BTreeSet::from(["80", "sm_100", "sm_120", "sm_75", "sm_80", "sm_86", "sm_89", "sm_90"]);
        assert!(all.is_superset(&general), "{all:?}");
        for architecture in general {
            let those: BTreeSet<_> =
                images().filter(|i| i.architecture == architecture).map(|i| i.stem).collect();
            assert_eq!(those, stems, "{architecture}");
        }
    }

    #[test]
    fn a_device_gets_cubins_of_its_own_major_version() {
        assert_eq!(architectures((9, 0)), ["sm_90a", "sm_90"]);
        assert_eq!(architectures((8, 7)), ["sm_87a", "sm_86"]);
        assert_eq!(architectures((10, 3)), ["sm_103a", "sm_100"]);
        assert_eq!(architectures((7, 5)), ["sm_75a", "sm_75"]);
        assert_eq!(architectures((13, 0)), ["80"], "a later device compiles the PTX");
    }

    #[test]
    fn packed_images_are_whole() {
        for capability in [(7, 5), (8, 0), (9, 0), (12, 0)] {
            for image in for_device(capability, 13000).unwrap() {
                assert!(image.starts_with(b"\x7fELF"), "{capability:?}");
            }
        }
        let ptx = for_device((13, 0), 13000).unwrap();
        assert!(ptx.iter().all(|text| String::from_utf8_lossy(text).contains(".target sm_80")));
    }

    #[test]
    fn the_pack_is_as_new_as_its_sources() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda");
        let files = |ending: &str| {
            let mut all: Vec<_> = fs::read_dir(&folder)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .filter(|path| path.extension().is_some_and(|e| e == ending))
                .collect();
            all.sort();
            all
        };
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        for path in files("cuh").into_iter().chain(files("cu")) {
            let name = path.file_name().unwrap().to_str().unwrap().as_bytes();
            for byte in [name, &[0], &fs::read(&path).unwrap(), &[0]].concat() {
                hash = (hash ^ byte as u64).wrapping_mul(0x100_0000_01b3);
            }
        }
        let packed = u64::from_le_bytes(PACK[8..16].try_into().unwrap());
        assert_eq!(packed, hash, "kernels.pack is older than the sources; run `just kernels`");
    }
}
