//! The list of the crates in the program (an SBOM) is complete: each of them is in it, with the checksum that Cargo.lock has.
//!
//! Not here: which crates are allowed (deny.toml).
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// A crate: its name and its version.
type Crate = (String, String);

/// The crates that are linked into the program, or run while it is compiled.
fn linked() -> BTreeSet<Crate> {
    let mut command = Command::new(env!("CARGO"));
    command.args(["tree", "--package", "convoy", "--offline", "--locked", "--edges", "normal,build"]);
    command.args(["--target", "x86_64-unknown-linux-gnu", "--prefix", "none", "--format", "{p}"]);
    let output = support::output_of(&mut command);
    assert!(output.status.success(), "{}", support::said(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    let each = text.lines().filter_map(|line| line.split_once(" v"));
    let name_and_version =
        |(name, rest): (&str, &str)| (name.to_owned(), rest.split(' ').next().unwrap_or_default().to_owned());
    each.map(name_and_version).filter(|(name, _)| name != "convoy").collect()
}

/// The checksums of Cargo.lock.
fn locked() -> BTreeMap<Crate, String> {
    let lock: toml::Table = include_str!("../Cargo.lock").parse().unwrap();
    let text = |package: &toml::Value, key: &str| package.get(key).and_then(toml::Value::as_str).map(str::to_owned);
    let packages = lock["package"].as_array().unwrap().iter();
    let each = packages.map(|package| {
        let of = |key| text(package, key);
        ((of("name").unwrap(), of("version").unwrap()), of("checksum").unwrap_or_default())
    });
    each.collect()
}

#[test]
fn the_list_of_crates_is_complete_and_has_the_checksums_of_the_lock_file() {
    let list: Value = serde_json::from_str(include_str!("../docs/sbom.cdx.json")).unwrap();
    let of = |component: &Value| {
        let text = |key: &str| component[key].as_str().unwrap().to_owned();
        let hash = component["hashes"][0]["content"].as_str().unwrap_or_default().to_owned();
        ((text("name"), text("version")), hash)
    };
    let listed: BTreeMap<_, _> = list["components"].as_array().unwrap().iter().map(of).collect();
    let missing: Vec<_> = linked().into_iter().filter(|linked| !listed.contains_key(linked)).collect();
    assert!(missing.is_empty(), "docs/sbom.cdx.json lacks {missing:?}: run deploy/sbom");
    let locked = locked();
    let wrong: Vec<_> = listed.iter().filter(|(name, hash)| locked.get(name) != Some(hash)).collect();
    assert!(wrong.is_empty(), "docs/sbom.cdx.json differs from Cargo.lock: {wrong:?}: run deploy/sbom");
    assert!(listed.len() > 200 && listed.values().filter(|hash| hash.len() == 64).count() > 200);
}
