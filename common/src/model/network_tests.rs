//! Which model files are accepted, and the errors for those that aren't.

use super::*;
use crate::model::presets;
use crate::model::{Crop, ResizedCrop};

fn model(towers: usize, layers: &str) -> String {
    format!("name = \"m\"\ntowers = {towers}\ninput = {{ channels = 4, height = 8, width = 8 }}\n{layers}")
}

fn conv(rest: &str) -> String {
    format!("[[layer]]\nkind = \"conv\"\nname = \"c\"\nfilters = 8\nkernel = 3\n{rest}\n{LAST}")
}

const LAST: &str = "[[layer]]\nkind = \"linear\"\nname = \"fc\"\nunits = 10\n";

fn with_head(slices: usize, layers: &str) -> String {
    model(2, layers).replace("towers = 2", &format!("towers = 2\nhead = {slices}"))
}

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
        (model(2, &conv("\"\\u001b[2J\" = 3")), "layer 1 (\"c\"): unknown key \"\\u001B[2J\"; expected one of"),
        (model(2, &conv("")).replace("\"c\"", "\"\\u001b[2J\""), "layer 1 (\"\\u001B[2J\"): its name must be"),
        (model(2, &conv("\u{1b} = 3")), "\u{fffd} = 3"),
        (model(2, &conv("")).replace("\"c\"", "\"\\u009b2J\""), "layer 1 (\"\u{fffd}2J\"): its name must be"),
        (model(2, &conv("fitlers = 3")), "layer 1 (\"c\"): unknown key \"fitlers\"; did you mean \"filters\"?"),
        (
            model(2, &conv("groups = 3")),
            "layer 1 (\"c\"): groups = 3; must divide its 4 input channels and its 8 filters",
        ),
        (model(4, &conv("groups = 2")), "groups = 2; must be 1 or a multiple of the 4 towers"),
        (model(3, &conv("")), "filters = 8; must be a multiple of the 3 towers"),
        (model(2, &conv("stride = 0")), "layer 1 (\"c\"): stride = 0; must be 1 to 1048576"),
        (
            model(2, &conv("lr_scale = 0")),
            "layer 1 (\"c\"): lr_scale = 0; must be more than 0, and at most 1000; trainable = false freezes a layer",
        ),
        (model(2, &conv("lr_scale = 1e9")), "lr_scale = 1000000000; must be more than 0"),
        (model(2, &conv("lr_scale = nan")), "lr_scale = NaN; must be more than 0"),
        (model(2, &conv("lr_scale = inf")), "lr_scale = inf; must be more than 0"),
        (model(2, &conv("lr_scale = -1.0")), "lr_scale = -1; must be more than 0"),
        (model(2, &conv("lr_scale = 1e-60")), "; must be a number in the range of f32"),
        (
            model(2, &conv("trainable = false\nlr_scale = 2")),
            "lr_scale = 2; a layer with trainable = false has no rate",
        ),
        (model(2, &conv("trainable = 1")), "layer 1 (\"c\"): trainable = 1; must be true or false"),
        (model(2, &conv("pad = -1")), "layer 1 (\"c\"): pad = -1; must be a whole number, at least 0, for rows"),
        (model(2, &conv("stride = [3, 2]")), "layer 1 (\"c\"): stride = [3, 2]; must be a whole number"),
        (model(2, &conv("stride = 1.5")), "stride = 1.5; must be a whole number"),
        (model(2, &conv("bias = 1")), "bias = 1; must be true or false"),
        (model(2, &conv("init = 0.1")), "init = 0.1; must be a table"),
        (model(2, &conv("init = { std = \"small\" }")), "layer 1 (\"c\"), init: std = \"small\"; must be a number"),
        (model(2, &conv("init = { sdt = 1 }")), "layer 1 (\"c\"), init: unknown key \"sdt\"; did you mean \"std\"?"),
        (
            model(2, &conv("dilation = 2")),
            "unknown key \"dilation\"; expected one of name, filters, kernel, stride, pad",
        ),
        (model(2, &conv("padding = 2")), "unknown key \"padding\"; did you mean \"pad\"?"),
        (
            model(2, &conv("[[layer]]\nkind = \"max_pool\"\nkernel = 7\nstride = 1")),
            "layer 2 (\"maxpool1\"): kernel = 7; must fit into its input of 6x6 (rows x columns) with pad = 0",
        ),
        (
            model(2, &conv("[[layer]]\nkind = \"max_pool\"\nkernel = 3\nceil_mode = true")),
            "layer 2: unknown key \"ceil_mode\"; expected one of name, kernel, stride, pad",
        ),
        (
            model(2, &conv("[[layer]]\nkind = \"avg_pool\"\nkernel = 3\npad = 2")),
            "pad = 2; must be at most half of kernel = 3, as in PyTorch",
        ),
        (model(2, &conv("[[layer]]\nkind = \"avg_pool\"")), "layer 2: the key \"kernel\" is missing"),
        (
            model(2, &conv("[[layer]]\nkind = \"concat\"")),
            "layer 2: unknown layer kind \"concat\"; expected one of conv, linear, relu, lrn, max_pool, avg_pool, dropout",
        ),
        (model(2, &conv("[[layer]]\nkind = 3")), "layer 2: kind = 3; must be text in quotes"),
        (model(2, &conv("[[layer]]\nkind = \"lrn\"\nk = 0")), "k = 0; must be finite and above 0"),
        (
            model(2, &conv("[[layer]]\nkind = \"conf\"\n")),
            "layer 2: unknown layer kind \"conf\"; did you mean \"conv\"?",
        ),
        (model(2, &conv("[[layer]]\nkind = \"dropout\"\np = 1.0")), "p = 1; must be at least 0 and below 1"),
        (model(2, "[[layer]]\nkind = \"relu\"\n"), "the first layer must be a conv or a linear"),
        (
            model(2, &conv("[[layer]]\nkind = \"avg_pool\"\nkernel = 2").replace(LAST, "")),
            "layer 2 (\"avgpool1\"): kind = \"avg_pool\"; the last layer must be a linear with a unit for each class",
        ),
        (model(16, LAST), "units = 10; must be at least 16, one for each tower"),
        (with_head(11, &conv("")), "layer 2 (\"fc\"): units = 10; must be at least 11, one for each slice of the head"),
        (with_head(0, &conv("")), "head = 0; must be 1 to 1024"),
        (with_head(1025, &conv("")), "head = 1025; must be 1 to 1024"),
        (
            with_head(3, LAST),
            "head = 3; a model with only linear layers has no trunk, so head must be equal to towers (2)",
        ),
        (
            model(2, &conv("")).replace("towers = 2", "towers = 2\nhead = \"all\""),
            "head = \"all\"; must be a whole number",
        ),
        (model(2, &format!("{LAST}{LAST}")), "another layer has this name"),
        (model(0, LAST), "towers = 0; must be 1 to 1024"),
        (model(2, ""), "no [[layer]] tables"),
        (model(2, "layer = []"), "no [[layer]] tables"),
        (model(2, "layer = 3"), "layer = 3; must be a list of tables, each under [[layer]]"),
        (model(2, LAST).replace("towers", "tower"), "did you mean \"towers\"?"),
        (
            model(2, LAST).replace("towers = 2", "towers = \"two\""),
            "the model: towers = \"two\"; must be a whole number",
        ),
        (model(2, LAST).replace("height = 8", "height = 0"), "input: height = 0; must be 1 to 1048576"),
        (
            model(2, LAST).replace("channels = 4", "channels = 4, mean = [0.5]"),
            "input: mean = [0.5]; must have 4 values, one for each channel",
        ),
        (model(2, &conv("pad = 1048576")), "too many elements; must have at most"),
        ("name = ".to_owned(), "is not valid TOML"),
        (model(2, &conv("stride = -1")), "stride = -1; must be a whole number, at least 1, for rows"),
    ];
    // One for each message of the TOML parser.
    let too_large = [(63, 0), (64, 0), (-64, 0), (127, 0), (127, 1)].map(|(power, times): (i32, u32)| {
        let value = format!("{}{}", if power < 0 { "-" } else { "" }, 1u128 << power.unsigned_abs());
        let text = model(2, &conv(&format!("pad = {value}{}", "0".repeat(times as usize))));
        (text, "the integer is out of range; must be from -2^63 to 2^63 - 1")
    });
    for (text, expected) in cases.into_iter().chain(too_large) {
        let error = Network::parse(&text).expect_err(&text).to_string();
        assert!(error.contains(expected), "\n{error}\nlacks\n{expected}");
    }
}

/// Without the key, the head has as many slices as there are towers.
/// Keys of `input` that say how an image becomes an input of 3 x 9 x 11.
#[test]
fn a_wrong_transform_is_answered_with_the_key_the_value_and_what_would_be_right() {
    let parsed = |keys: &str| {
        Network::parse(&format!(
            "name = \"n\"\ntowers = 1\ninput = {{ channels = 3, height = 9, width = 11, {keys} }}\n{LAST}"
        ))
    };
    let cases = [
        ("orient = \"up\"", "unknown orient \"up\"; expected one of stored, exif"),
        ("resize = 10", "resize = 10; must be 11 to 1048576, so that the image covers the input"),
        ("square = true", "square = true; it needs resize, the side of the square"),
        ("square = 1", "square = 1; must be true or false"),
        ("crop = \"randon\"", "unknown crop \"randon\"; did you mean \"random\"?"),
        ("crop = \"random\", pad = 9", "pad = 9; must be below 9, the shorter side of the input"),
        ("pad = 1", "pad = 1; only crop = \"random\" has a border"),
        ("crop = \"random-resized\", pad = 1", "pad = 1; only crop = \"random\" has a border"),
        ("scale = [0.1, 1.0]", "scale = [0.1, 1.0]; only crop = \"random-resized\" has it"),
        ("crop = \"random\", ratio = [1, 2]", "ratio = [1.0, 2.0]; only crop = \"random-resized\" has it"),
        (
            "crop = \"random-resized\", scale = [0.0, 1.0]",
            "scale = [0.0, 1.0]; must be two numbers, each from 0.001 to 1",
        ),
        ("crop = \"random-resized\", scale = [0.9, 0.5]", "the smaller one first"),
        ("crop = \"random-resized\", ratio = [1]", "ratio = [1.0]; must be two numbers"),
        ("colour_noise = 2", "colour_noise = 2; must be 0 to 1"),
        ("colour_noise = -0.1", "colour_noise = -0.1; must be 0 to 1"),
        ("cutout = 12", "cutout = 12; must be 1 to 11, the longer side of the input"),
        ("cutout = 0", "cutout = 0; must be 1 to 11"),
        ("color_noise = 0.1", "unknown key \"color_noise\"; did you mean \"colour_noise\"?"),
    ];
    for (keys, expected) in cases {
        let said = parsed(keys).unwrap_err().to_string();
        assert!(said.starts_with("input: ") && said.contains(expected), "{keys}: {said}");
    }
    let grey = format!(
        "name = \"n\"\ntowers = 1\ninput = {{ channels = 1, height = 9, width = 9, colour_noise = 0.1 }}\n{LAST}"
    );
    let said = Network::parse(&grey).unwrap_err().to_string();
    assert!(said.contains("colour_noise = 0.1; needs 3 channels, and the input has 1"), "{said}");
    let all = "orient = \"exif\", resize = 12, square = true, crop = \"random\", pad = 2, mirror = true, colour_noise = 0.1, cutout = 3";
    let transforms = parsed(all).unwrap().input.transforms;
    assert_eq!((transforms.crop, transforms.cutout), (Crop::Random { pad: 2 }, Some(3)));
    let Crop::Resized(bounds) = parsed("crop = \"random-resized\", scale = [0.5, 1]").unwrap().input.transforms.crop
    else {
        panic!("the crop is resized")
    };
    assert_eq!(bounds, ResizedCrop { scale: [0.5, 1.0], ..ResizedCrop::default() });
}

#[test]
fn the_head_may_have_another_number_of_slices() {
    let slices = |text: String| Network::parse(&text).unwrap().slices;
    assert_eq!(slices(model(2, &conv(""))), 2);
    assert_eq!(slices(with_head(5, &conv(""))), 5);
    let network = Network::parse(&with_head(5, &conv(""))).unwrap();
    assert_eq!((network.parts(0), network.parts(1)), (2, 5));
    assert_eq!((network.slice(0, TowerIndex(1)), network.slice(1, TowerIndex(1))), (4..8, 2..4));
}

/// PyTorch's default.
#[test]
fn a_pool_without_a_stride_steps_by_its_kernel() {
    let pool = |rest| conv(&format!("[[layer]]\nkind = \"max_pool\"\nkernel = 3\n{rest}"));
    let shapes = |text: String| Network::parse(&text).unwrap().layers[1].output;
    assert_eq!(shapes(model(2, &pool(""))), shapes(model(2, &pool("stride = 3"))));
    assert_ne!(shapes(model(2, &pool(""))), shapes(model(2, &pool("stride = 1"))));
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
