//! The models that are part of the program: the TOML files of the repository's folder `models/`.

use crate::suggest;

/// The default model of a job.
pub const DEFAULT: &str = "alexnet-fashion";

const PRESETS: [(&str, &str); 5] = [
    ("alexnet-fashion", include_str!("../../../models/alexnet-fashion.toml")),
    ("alexnet-fashion-dense", include_str!("../../../models/alexnet-fashion-dense.toml")),
    ("alexnet-cifar", include_str!("../../../models/alexnet-cifar.toml")),
    ("alexnet", include_str!("../../../models/alexnet.toml")),
    ("alexnet-torchvision", include_str!("../../../models/alexnet-torchvision.toml")),
];

/// The names of all presets.
pub fn names() -> [&'static str; PRESETS.len()] {
    PRESETS.map(|(name, _)| name)
}

/// A preset's TOML text.
pub fn text(name: &str) -> Option<&'static str> {
    PRESETS.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// The tail of an error about an unknown preset.
pub fn hint(name: &str) -> String {
    suggest::hint(name, &names())
}
