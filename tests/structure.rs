//! Rules for the source code: dependencies point in one direction, files of a crate form no circle, `unsafe` appears only in kernels.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// The source folders of the program and of its crates.
const SOURCES: [&str; 13] = [
    "src",
    "proto/src",
    "common/src",
    "net/src",
    "kernels/src",
    "worker/src",
    "dataset/src",
    "coordinator/src",
    "chaos/src",
    "onnx/src",
    "report/src",
    "study/src",
    "doctor/src",
];

/// `proto <- common <- {net, kernels, dataset, chaos, onnx}`, `{net, kernels} <- worker`, `{net, dataset} <- coordinator`, and `{worker, coordinator} <- {doctor, report <- study} <- convoy`: worker and coordinator never see each other.
#[test]
fn dependencies_point_one_way() {
    let mut command = Command::new(env!("CARGO"));
    command.args(["metadata", "--format-version", "1", "--no-deps", "--offline"]);
    let output = support::output_of(&mut command);
    assert!(output.status.success(), "{}", support::said(&output));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let ours = |package: &Value| -> (String, Vec<String>) {
        let all = package["dependencies"].as_array().unwrap().iter();
        let names = all.map(|dependency| dependency["name"].as_str().unwrap().to_owned());
        (package["name"].as_str().unwrap().to_owned(), names.filter(|name| name.starts_with("convoy")).collect())
    };
    let found: BTreeMap<_, _> = metadata["packages"].as_array().unwrap().iter().map(ours).collect();
    let allowed = [
        (
            "convoy",
            vec![
                "convoy-chaos",
                "convoy-common",
                "convoy-coordinator",
                "convoy-dataset",
                "convoy-doctor",
                "convoy-net",
                "convoy-onnx",
                "convoy-proto",
                "convoy-report",
                "convoy-study",
                "convoy-worker",
            ],
        ),
        ("convoy-chaos", vec!["convoy-common"]),
        ("convoy-common", vec!["convoy-proto"]),
        ("convoy-coordinator", vec!["convoy-common", "convoy-dataset", "convoy-net", "convoy-proto"]),
        ("convoy-dataset", vec!["convoy-common"]),
        ("convoy-doctor", vec!["convoy-common", "convoy-coordinator", "convoy-net", "convoy-proto", "convoy-worker"]),
        ("convoy-kernels", vec!["convoy-common"]),
        ("convoy-net", vec!["convoy-common"]),
        ("convoy-onnx", vec!["convoy-common"]),
        ("convoy-proto", vec![]),
        ("convoy-report", vec!["convoy-common", "convoy-coordinator"]),
        (
            "convoy-study",
            vec!["convoy-common", "convoy-coordinator", "convoy-dataset", "convoy-report", "convoy-worker"],
        ),
        ("convoy-worker", vec!["convoy-common", "convoy-kernels", "convoy-net", "convoy-proto"]),
    ];
    assert_eq!(found.keys().map(String::as_str).collect::<Vec<_>>(), allowed.iter().map(|a| a.0).collect::<Vec<_>>());
    for (package, allowed) in allowed {
        let strangers: Vec<_> = found[package].iter().filter(|name| !allowed.contains(&name.as_str())).collect();
        assert!(strangers.is_empty(), "{package} depends on {strangers:?}");
    }
}

/// Only `unsafe` inside the kernels.
#[test]
fn unsafe_code_is_in_the_kernels_alone() {
    let mut folders: Vec<_> = SOURCES.map(std::path::PathBuf::from).into();
    let mut looked_at = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") && !path.starts_with("kernels/src") {
                let text = std::fs::read_to_string(&path).unwrap();
                looked_at += 1;
                assert!(!text.contains("unsafe {") && !text.contains("unsafe fn"), "{}", path.display());
            }
        }
    }
    assert!(looked_at > 40);
}

/// Paths of a crate's files as modules, and their texts without comments and tests.
fn modules(source: &Path) -> BTreeMap<Vec<String>, String> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![source.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                folders.push(path);
            } else if name.ends_with(".rs") && name != "tests.rs" && !name.ends_with("_tests.rs") {
                let relative = path.strip_prefix(source).unwrap().with_extension("");
                let mut module: Vec<_> = relative.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
                module.pop_if(|last| ["mod", "lib", "main"].contains(&last.as_str()));
                let text = std::fs::read_to_string(&path).unwrap();
                let text = text.split("#[cfg(test)]").next().unwrap().lines();
                found.insert(module, text.map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n"));
            }
        }
    }
    found
}

/// The paths that a use tree stands for, such as `a::{b, c::d}`.
fn paths(tree: &str) -> Vec<Vec<String>> {
    let Some((before, rest)) = tree.split_once('{') else {
        return vec![tree.split("::").map(|part| part.trim().to_owned()).collect()];
    };
    let prefix: Vec<_> =
        before.split("::").map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect();
    let (mut depth, mut part, mut found) = (0, String::new(), Vec::new());
    for character in rest.chars() {
        match character {
            '}' if depth == 0 => break,
            ',' if depth == 0 => found.push(std::mem::take(&mut part)),
            _ => {
                depth += i32::from(character == '{') - i32::from(character == '}');
                part.push(character);
            }
        }
    }
    found.push(part);
    let inner = found.iter().filter(|part| !part.trim().is_empty()).flat_map(|part| paths(part));
    let all: Vec<_> = inner.map(|inner| [prefix.clone(), inner].concat()).collect();
    // The braces were those of a function or of a value.
    if all.is_empty() { vec![prefix] } else { all }
}

/// What a file's paths after `start` stand for, from the root of the crate.
fn found_after(module: &[String], text: &str, start: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices(start) {
        if text[..at].ends_with(|c: char| c.is_alphanumeric() || "_:".contains(c)) {
            continue;
        }
        let path = text[at..].strip_prefix("pub ").unwrap_or(&text[at..]);
        let path = path.strip_prefix("use ").unwrap_or(path);
        let end = path.find([';', '(', ')', '<', '>', '=', '&', '[', '?', '.', '!']).unwrap_or(path.len());
        for mut path in paths(&path[..end]) {
            let mut base = module.to_vec();
            match path[0].as_str() {
                "crate" => drop((base.clear(), path.remove(0))),
                "self" => drop(path.remove(0)),
                _ => {
                    while path.first().is_some_and(|part| part == "super") {
                        drop((base.pop(), path.remove(0)));
                    }
                }
            }
            found.push([base, path].concat());
        }
    }
    found
}

/// The other files of its crate that each file uses. A name that a file only passes on belongs to the file that it comes from.
fn uses(modules: &BTreeMap<Vec<String>, String>) -> BTreeMap<Vec<String>, BTreeSet<Vec<String>>> {
    let passed_on: BTreeMap<Vec<String>, Vec<String>> = modules
        .iter()
        .flat_map(|(module, text)| found_after(module, text, "pub use ").into_iter().map(move |path| (module, path)))
        .map(|(module, path)| ([module.clone(), path[path.len() - 1..].to_vec()].concat(), path))
        .collect();
    let origin = |path: &Vec<String>| {
        let mut path = path.clone();
        // Names are passed on through a few files at most.
        for _ in 0..5 {
            let Some((length, from)) = (1..=path.len()).find_map(|n| Some((n, passed_on.get(&path[..n])?))) else {
                break;
            };
            path = [from.clone(), path[length..].to_vec()].concat();
        }
        let file = (0..=path.len()).rev().find(|length| modules.contains_key(&path[..*length]));
        file.map(|length| path[..length].to_vec())
    };
    let of = |(module, text): (&Vec<String>, &String)| {
        let own = text.replace("pub use ", "\0");
        let all = ["crate::", "super::", "self::", "use "].iter().flat_map(|start| found_after(module, &own, start));
        let mut files: BTreeSet<_> = all.filter_map(|path| origin(&path)).collect();
        files.remove(module);
        (module.clone(), files)
    };
    modules.iter().map(of).collect()
}

/// A circle of files, if there is one.
fn circle(uses: &BTreeMap<Vec<String>, BTreeSet<Vec<String>>>) -> Option<Vec<String>> {
    // Files that use no file that is left can't be part of a circle.
    let mut left: BTreeSet<_> = uses.keys().collect();
    while let Some(free) = left.iter().copied().find(|file| uses[*file].iter().all(|other| !left.contains(other))) {
        left.remove(free);
    }
    (!left.is_empty()).then(|| left.into_iter().map(|file| file.join("/")).collect())
}

/// Data flows one way: no file of a crate uses another one that uses it, directly or through others.
#[test]
fn no_circle_of_files_in_a_crate() {
    let mut files = 0;
    for source in SOURCES {
        let mut uses = uses(&modules(Path::new(source)));
        // The root declares the modules, and uses what it likes of them.
        uses.remove(&Vec::new());
        for used in uses.values_mut() {
            used.remove(&Vec::new());
        }
        files += uses.len();
        assert_eq!(circle(&uses), None, "files of {source} that use each other, or are used by such");
    }
    assert!(files > 80, "{files}");
    let text = |text: &str| text.to_owned();
    let bent = BTreeMap::from([
        (vec![text("a")], text("use crate::b::{self, C};")),
        (vec![text("b")], text("fn f() -> super::a::D {}")),
        (vec![text("c")], text("")),
    ]);
    assert_eq!(circle(&self::uses(&bent)), Some(vec![text("a"), text("b")]), "the check finds a circle");
}
