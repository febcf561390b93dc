//! Vector instruction sets of the CPU back end.

use std::fmt;
use std::str::FromStr;

/// An instruction set that has its own kernels. The variants are in order, the widest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// The instructions of [`Avx512Bf16`](Self::Avx512Bf16), and AMX tiles for matrix multiplications in
    /// bf16. A process must request permission to use tiles from the operating system. danlu supports AMX
    /// only on Linux, the only system for which it has this request.
    Amx,
    /// AVX-512 F/BW/DQ/VL with the bf16 dot product.
    Avx512Bf16,
    /// AVX-512 F/BW/DQ/VL.
    Avx512,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// NEON of 64-bit ARM processors, with the bf16 dot product.
    NeonBf16,
    /// NEON of 64-bit ARM processors.
    Neon,
    /// Rust without intrinsics, for any machine.
    Scalar,
}

impl Isa {
    /// Every instruction set, the widest first.
    pub const ALL: [Self; 7] =
        [Self::Amx, Self::Avx512Bf16, Self::Avx512, Self::Avx2, Self::NeonBf16, Self::Neon, Self::Scalar];

    /// Returns the widest instruction set that this machine supports.
    pub fn detect() -> Self {
        Self::supported().next().unwrap_or(Self::Scalar)
    }

    /// Returns the instruction sets that this machine supports, the widest first. `Scalar` is always the last
    /// one.
    pub fn supported() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|isa| isa.is_supported())
    }

    /// Returns whether this machine supports the instruction set.
    pub fn is_supported(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            let avx512bf16 = avx512 && is_x86_feature_detected!("avx512bf16");
            match self {
                Self::Amx => avx512bf16 && has_tiles(),
                Self::Avx512Bf16 => avx512bf16,
                Self::Avx512 => avx512,
                Self::Avx2 => avx2,
                Self::NeonBf16 | Self::Neon => false,
                Self::Scalar => true,
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            use std::arch::is_aarch64_feature_detected;
            let neon = is_aarch64_feature_detected!("neon");
            match self {
                Self::Amx | Self::Avx512Bf16 | Self::Avx512 | Self::Avx2 => false,
                Self::NeonBf16 => neon && is_aarch64_feature_detected!("bf16"),
                Self::Neon => neon,
                Self::Scalar => true,
            }
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        {
            self == Self::Scalar
        }
    }

    /// Returns whether the instruction set multiplies bf16 directly. Other instruction sets convert bf16 to
    /// f32 first.
    pub fn multiplies_bf16(self) -> bool {
        matches!(self, Self::Amx | Self::Avx512Bf16 | Self::NeonBf16)
    }

    /// Returns the name of the instruction set, which [`FromStr`] accepts.
    pub fn name(self) -> &'static str {
        match self {
            Self::Amx => "amx",
            Self::Avx512Bf16 => "avx512bf16",
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::NeonBf16 => "neonbf16",
            Self::Neon => "neon",
            Self::Scalar => "scalar",
        }
    }
}

/// Returns whether this process may use AMX tiles. The first call requests the permission from the system.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn has_tiles() -> bool {
    use std::arch::{asm, x86_64};
    use std::sync::OnceLock;
    static HAS_TILES: OnceLock<bool> = OnceLock::new();
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    const ARCH_PRCTL: isize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;
    *HAS_TILES.get_or_init(|| {
        if x86_64::__cpuid(0).eax < 7 {
            return false;
        }
        let features = x86_64::__cpuid_count(7, 0).edx;
        if features & (AMX_BF16 | AMX_TILE) != AMX_BF16 | AMX_TILE {
            return false;
        }
        let mut result = ARCH_PRCTL;
        // SAFETY: the system call receives two numbers and accesses no memory. It overwrites rcx and r11.
        unsafe {
            asm!(
                "syscall",
                inout("rax") result,
                in("rdi") ARCH_REQ_XCOMP_PERM,
                in("rsi") XFEATURE_XTILEDATA,
                out("rcx") _,
                out("r11") _,
                options(nostack),
            );
        }
        result == 0
    })
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn has_tiles() -> bool {
    false
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is not the name of an [`Isa`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownIsa(
    /// The unknown name.
    pub String,
);

impl fmt::Display for UnknownIsa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Isa::ALL.map(Isa::name).join("`, `");
        write!(f, "unknown instruction set `{}`, expected one of `{names}`", self.0)
    }
}

impl std::error::Error for UnknownIsa {}

impl FromStr for Isa {
    type Err = UnknownIsa;

    fn from_str(name: &str) -> Result<Self, UnknownIsa> {
        let known = Self::ALL.into_iter().find(|isa| isa.name().eq_ignore_ascii_case(name));
        known.ok_or_else(|| UnknownIsa(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_parses_back() {
        for isa in Isa::ALL {
            assert_eq!(isa.to_string().parse(), Ok(isa));
        }
        let message = "avx3".parse::<Isa>().unwrap_err().to_string();
        assert!(message.contains("`avx3`") && message.contains("`avx512bf16`"), "{message}");
    }

    #[test]
    fn detection_gives_something_this_machine_runs() {
        assert!(Isa::detect().is_supported());
        assert_eq!(Isa::supported().last(), Some(Isa::Scalar));
    }
}
