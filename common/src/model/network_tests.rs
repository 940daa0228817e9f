//! What a model file may say, and what is said to one that may not.

use super::*;
use crate::model::presets;

fn model(towers: usize, layers: &str) -> String {
    format!("name = \"m\"\ntowers = {towers}\ninput = {{ channels = 4, height = 8, width = 8 }}\n{layers}")
}

fn conv(rest: &str) -> String {
    format!("[[layer]]\nkind = \"conv\"\nname = \"c\"\nfilters = 8\nkernel = 3\n{rest}\n{LAST}")
}

const LAST: &str = "[[layer]]\nkind = \"linear\"\nname = \"fc\"\nunits = 10\n";

/// The published sizes: Krizhevsky's network, and the two small ones of the same shape.
#[test]
fn presets_have_the_parameters_and_multiply_adds_that_they_should() {
    let cases = [("alexnet", 60_965_224, 724_406_816), ("alexnet-fashion", 367_242, 11_956_736)];
    for (name, parameters, multiply_adds) in cases {
        let network = Network::parse(presets::text(name).unwrap()).unwrap();
        assert_eq!(network.parameters().iter().map(|p| p.len()).sum::<usize>(), parameters, "{name}");
        assert_eq!(network.multiply_adds(), multiply_adds, "{name}");
        assert_eq!((network.towers, network.name.as_str()), (2, name));
    }
}

#[test]
fn every_preset_loads_and_the_fashion_sides_are_28_14_7_3() {
    for name in presets::names() {
        Network::parse(presets::text(name).unwrap()).unwrap();
    }
    let network = Network::parse(presets::text("alexnet-fashion").unwrap()).unwrap();
    let sides: Vec<_> = network
        .layers
        .iter()
        .filter(|l| l.kind_name() == "max_pool")
        .map(|l| (l.input.height, l.output.height))
        .collect();
    assert_eq!(sides, [(28, 14), (14, 7), (7, 3)]);
}

#[test]
fn a_wrong_file_is_answered_with_the_place_the_value_and_what_would_be_right() {
    let cases = [
        (model(2, &conv("fitlers = 3")), "layer 1 (\"c\"): unknown key \"fitlers\"; did you mean \"filters\"?"),
        (
            model(2, &conv("groups = 3")),
            "layer 1 (\"c\"): groups = 3 must divide its 4 input channels and its 8 filters",
        ),
        (model(4, &conv("groups = 2")), "groups = 2 don't fall whole into 4 towers; must be 1 or a multiple of 4"),
        (model(3, &conv("")), "8 filters don't divide into 3 towers"),
        (model(2, &conv("stride = 0")), "stride = 0"),
        (model(2, &conv("pad = -1")), "layer 1 (\"c\")"),
        (
            model(2, &conv("[[layer]]\nkind = \"max_pool\"\nkernel = 7\nstride = 1")),
            "the shape runs out: a kernel of 7 doesn't fit into 6x6",
        ),
        (
            model(2, &conv("[[layer]]\nkind = \"conf\"\n")),
            "layer 2: unknown layer kind \"conf\"; did you mean \"conv\"?",
        ),
        (model(2, &conv("[[layer]]\nkind = \"dropout\"\np = 1.0")), "p = 1; must be at least 0 and below 1"),
        (model(2, "[[layer]]\nkind = \"relu\"\n"), "the first layer must be a conv or a linear"),
        (model(2, &format!("{LAST}[[layer]]\nkind = \"relu\"")), "the last layer must be a linear"),
        (model(16, LAST), "units = 10; each of 16 towers needs at least one"),
        (model(2, &format!("{LAST}{LAST}")), "another layer has this name"),
        (model(0, LAST), "towers: 0 towers"),
        (model(2, ""), "no [[layer]] tables"),
        (model(2, LAST).replace("towers", "tower"), "did you mean \"towers\"?"),
        (model(2, LAST).replace("channels = 4", "channels = 4, mean = [0.5]"), "1 means and 4 stds for 4 channels"),
        (model(2, &conv("pad = 1048576")), "elements; at most"),
        ("name = ".to_owned(), "isn't valid TOML"),
    ];
    for (text, expected) in cases {
        let error = Network::parse(&text).expect_err(&text).to_string();
        assert!(error.contains(expected), "\n{error}\nlacks\n{expected}");
    }
}

#[test]
fn layers_without_a_name_are_named_by_kind_and_number() {
    let text = model(2, &conv("[[layer]]\nkind = \"relu\"\n[[layer]]\nkind = \"relu\""));
    let names: Vec<_> = Network::parse(&text).unwrap().layers.into_iter().map(|l| l.name).collect();
    assert_eq!(names, ["c", "relu1", "relu2", "fc"]);
}

proptest::proptest! {
    /// Whatever text arrives, the answer is a network or an error, never a panic.
    #[test]
    fn no_text_makes_the_parser_panic(number in "-?[0-9]{1,19}", key in 0usize..12) {
        let keys = ["filters = 8", "kernel = 3", "units = 10", "towers = 2", "channels = 4", "height = 8", "width = 8", "groups = 2", "stride = 2", "pad = 1", "size = 5", "p = 0"];
        let layers = conv("groups = 2\nstride = 2\npad = 1\n[[layer]]\nkind = \"lrn\"\nsize = 5\n[[layer]]\nkind = \"dropout\"\np = 0");
        let name = keys[key].split(' ').next().unwrap();
        let text = model(2, &layers).replacen(keys[key], &format!("{name} = {number}"), 1);
        let _ = Network::parse(&text);
    }
}
