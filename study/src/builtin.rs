//! The studies that are part of the program: the files of the folder `builtin`.

const STUDIES: [(&str, &str); 8] = [
    ("quick", include_str!("../builtin/quick.toml")),
    ("asker", include_str!("../builtin/asker.toml")),
    ("groups", include_str!("../builtin/groups.toml")),
    ("groups-tenth", include_str!("../builtin/groups-tenth.toml")),
    ("groups-tuned", include_str!("../builtin/groups-tuned.toml")),
    ("groups-cifar10", include_str!("../builtin/groups-cifar10.toml")),
    ("colour", include_str!("../builtin/colour.toml")),
    ("seeds", include_str!("../builtin/seeds.toml")),
];

const MODELS: [(&str, &str); 4] = [
    ("models/four.toml", include_str!("../builtin/models/four.toml")),
    ("models/tiny.toml", include_str!("../builtin/models/tiny.toml")),
    ("models/pair.toml", include_str!("../builtin/models/pair.toml")),
    ("models/colour.toml", include_str!("../builtin/models/colour.toml")),
];

/// The names of the built-in studies.
pub fn names() -> [&'static str; STUDIES.len()] {
    STUDIES.map(|(name, _)| name)
}

/// The file of a built-in study.
pub(crate) fn study(name: &str) -> Option<&'static str> {
    find(&STUDIES, name)
}

/// A model file that a built-in study names.
pub(crate) fn model(path: &str) -> Option<&'static str> {
    find(&MODELS, path)
}

fn find(files: &[(&str, &'static str)], name: &str) -> Option<&'static str> {
    files.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}
