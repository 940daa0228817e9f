//! The instruction set of the kernels: the best that the machine has, unless the user selects one. Results do not depend on
//! it.
//!
//! Not here: the kernels themselves.

use std::fmt;
use std::str::FromStr;

/// An instruction set that has kernels of its own and that this machine has. Other crates get one only from functions that check
/// the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust, `f32::mul_add` for every term.
    Scalar,
    /// 256-bit vectors with fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    #[non_exhaustive]
    Avx2,
    /// 512-bit vectors for products, and those of AVX2 for the rest, whose speed is limited by memory.
    #[cfg(target_arch = "x86_64")]
    #[non_exhaustive]
    Avx512,
    /// 128-bit vectors with fused multiply-add, which every 64-bit Arm has.
    #[cfg(target_arch = "aarch64")]
    #[non_exhaustive]
    Neon,
}

impl Isa {
    /// Those that this machine has, the best one last.
    pub fn available() -> Vec<Self> {
        let mut found = vec![Isa::Scalar];
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
            found.push(Isa::Avx2);
            if std::arch::is_x86_feature_detected!("avx512f") {
                found.push(Isa::Avx512);
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            found.push(Isa::Neon);
        }
        found
    }

    /// The best that this machine has.
    pub fn detect() -> Self {
        Self::available().pop().unwrap_or(Isa::Scalar)
    }
}

impl FromStr for Isa {
    type Err = String;

    /// One that this machine has.
    fn from_str(name: &str) -> Result<Self, String> {
        let available = Self::available();
        let names: Vec<_> = available.iter().map(Isa::to_string).collect();
        let found = available.into_iter().find(|isa| isa.to_string() == name);
        found.ok_or_else(|| {
            format!("instruction set \"{name}\" is not available on this machine; must be one of {}", names.join(", "))
        })
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isa::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => "avx512",
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => "neon",
        })
    }
}

/// Compiles a function's body once for each instruction set, and picks one by its first argument. The bodies hold only
/// operations that IEEE 754 rounds one by one, so every version gives the same bits.
macro_rules! for_each_isa {
    ($(#[$doc:meta])* $visible:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $out:ty)? $body:block) => {
        $(#[$doc])*
        $visible fn $name(isa: $crate::isa::Isa, $($arg: $type),*) $(-> $out)? {
            #[inline(always)]
            fn body($($arg: $type),*) $(-> $out)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $type),*) $(-> $out)? {
                body($($arg),*)
            }

            match isa {
                $crate::isa::Isa::Scalar => body($($arg),*),
                // What is compiled for any 64-bit Arm has NEON already.
                #[cfg(target_arch = "aarch64")]
                $crate::isa::Isa::Neon => body($($arg),*),
                // SAFETY: Isa::Avx2 and Isa::Avx512 exist only where detection found avx2 and fma.
                #[cfg(target_arch = "x86_64")]
                $crate::isa::Isa::Avx2 | $crate::isa::Isa::Avx512 => unsafe { avx2($($arg),*) },
            }
        }
    };
}
pub(crate) use for_each_isa;
