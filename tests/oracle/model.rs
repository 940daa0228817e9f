//! The network under test, its model file and its images: as files for `convoy`, and as values for the oracle.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

pub(crate) const CLASSES: usize = 5;
pub(crate) const INPUT: Map = Map { channels: 2, rows: 13, columns: 11 };
pub(crate) const MEAN: [f64; 2] = [0.48, 0.35];
pub(crate) const STD: [f64; 2] = [0.27, 0.31];

/// Weights, gradients or momentum: tensors by name, hence in order of name.
pub(crate) type Tensors = BTreeMap<String, Vec<f32>>;

/// The shape of a feature map, indexed (channel, row, column). A linear layer's output is a map of 1 x 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Map {
    pub(crate) channels: usize,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

impl Map {
    pub(crate) fn at(self, channel: usize, row: usize, column: usize) -> usize {
        (channel * self.rows + row) * self.columns + column
    }

    /// Every (channel, row, column), in row-major order.
    pub(crate) fn indices(self) -> impl Iterator<Item = (usize, usize, usize)> {
        (0..self.len()).map(move |i| (i / self.columns / self.rows, i / self.columns % self.rows, i % self.columns))
    }

    pub(crate) fn len(self) -> usize {
        self.channels * self.rows * self.columns
    }
}

/// A square window that slides over rows and columns alike.
#[derive(Clone, Copy)]
pub(crate) struct Window {
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    pub(crate) pad: usize,
}

impl Window {
    pub(crate) fn slide(self, map: Map, channels: usize) -> Map {
        let positions = |length: usize| (length + 2 * self.pad - self.kernel) / self.stride + 1;
        Map { channels, rows: positions(map.rows), columns: positions(map.columns) }
    }

    /// The input index under element `tap` of the window at `out`, or nothing where that is padding.
    pub(crate) fn input(self, out: usize, tap: usize, length: usize) -> Option<usize> {
        (out * self.stride + tap).checked_sub(self.pad).filter(|&input| input < length)
    }

    /// The element of the window at `out` that lies over `input`, if any does.
    pub(crate) fn tap(self, out: usize, input: usize) -> Option<usize> {
        (input + self.pad).checked_sub(out * self.stride).filter(|&tap| tap < self.kernel)
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Init {
    pub(crate) std: f64,
    pub(crate) bias: f64,
}

/// Each output reads one in `groups` inputs.
#[derive(Clone, Copy)]
pub(crate) struct Mask {
    pub(crate) kind: &'static str,
    pub(crate) groups: usize,
}

/// How fast a layer learns.
#[derive(Clone, Copy)]
pub(crate) enum Learning {
    Plain,
    Scaled(f64),
    Frozen,
}

#[derive(Clone, Copy)]
pub(crate) struct Conv {
    pub(crate) name: &'static str,
    pub(crate) filters: usize,
    pub(crate) window: Window,
    pub(crate) groups: usize,
    pub(crate) mask: Option<Mask>,
    pub(crate) bias: bool,
    pub(crate) init: Option<Init>,
    pub(crate) learning: Learning,
}

#[derive(Clone, Copy)]
pub(crate) struct Lrn {
    pub(crate) size: usize,
    pub(crate) alpha: f64,
    pub(crate) beta: f64,
    pub(crate) k: f64,
}

#[derive(Clone, Copy)]
pub(crate) struct Linear {
    pub(crate) name: &'static str,
    pub(crate) units: usize,
    pub(crate) mask: Option<Mask>,
    pub(crate) init: Option<Init>,
    pub(crate) learning: Learning,
}

#[derive(Clone, Copy)]
pub(crate) enum Layer {
    Conv(Conv),
    Relu,
    Lrn(Lrn),
    MaxPool(Window),
    AvgPool(Window),
    Dropout { name: &'static str, p: f64 },
    Linear(Linear),
}

/// The net of a job: its layers, and the shapes between them: that of the images, and then that of each layer's output.
pub(crate) struct Net {
    pub(crate) towers: usize,
    /// Slices of the head.
    pub(crate) slices: usize,
    pub(crate) layers: Vec<Layer>,
    pub(crate) shapes: Vec<Map>,
}

impl Net {
    pub(crate) fn new(towers: usize, slices: usize) -> Self {
        let mut net = Self { towers, slices, layers: layers(towers), shapes: vec![INPUT] };
        for (l, layer) in net.layers.iter().enumerate() {
            let before = net.shapes[l];
            net.shapes.push(match *layer {
                Layer::Conv(conv) => conv.window.slide(before, conv.filters),
                Layer::MaxPool(window) | Layer::AvgPool(window) => window.slide(before, before.channels),
                Layer::Linear(linear) => Map { channels: linear.units, rows: 1, columns: 1 },
                Layer::Relu | Layer::Lrn(_) | Layer::Dropout { .. } => before,
            });
        }
        net
    }
}

impl Net {
    /// How fast the layer of a parameter learns.
    pub(crate) fn learning_of(&self, parameter: &str) -> Learning {
        let of_layer = self.layers.iter().find_map(|layer| match layer {
            Layer::Conv(Conv { name, learning, .. }) | Layer::Linear(Linear { name, learning, .. }) => {
                parameter.starts_with(&format!("{name}.")).then_some(*learning)
            }
            _ => None,
        });
        of_layer.unwrap()
    }

    /// The names of the head's parameters: those of the final linear layers.
    pub(crate) fn head(&self) -> impl Iterator<Item = String> {
        let is_of_head = |layer: &&Layer| matches!(layer, Layer::Linear(_) | Layer::Relu | Layer::Dropout { .. });
        let linear = self.layers.iter().rev().take_while(is_of_head).filter_map(|layer| match layer {
            Layer::Linear(linear) => Some(linear.name),
            _ => None,
        });
        linear.flat_map(|name| [format!("{name}.weight"), format!("{name}.bias")])
    }
}

/// Every kind of layer, for two towers or four. The comments say what each is here for, and speak of two. The names don't
/// sort in the order of the layers.
fn layers(towers: usize) -> Vec<Layer> {
    use Layer as L;
    let window = |kernel, stride, pad| Window { kernel, stride, pad };
    let mask = |kind, groups| Some(Mask { kind, groups });
    let conv = |name, filters, window, groups| Conv {
        name,
        filters,
        window,
        groups,
        mask: None,
        bias: true,
        init: None,
        learning: Learning::Plain,
    };
    let stem = Conv { init: Some(Init { std: 0.25, bias: 0.1 }), ..conv("stem", 8, window(3, 1, 1), 1) };
    let mixed = Conv {
        bias: false,
        mask: mask("blocks", 2),
        learning: Learning::Scaled(0.7),
        ..conv("mixed", 16, window(2, 1, 1), 1)
    };
    let paired = Conv { learning: Learning::Frozen, ..conv("paired", 8, window(3, 1, 1), towers) };
    let halved = Conv { mask: mask("random", 2), ..conv("halved", 16, window(3, 2, 1), 1) };
    let hidden = Linear {
        name: "hidden",
        units: 13,
        mask: mask("random", 2),
        init: Some(Init { std: 0.3, bias: 0.2 }),
        learning: Learning::Scaled(1.3),
    };
    let classes = Linear {
        name: "classes",
        units: CLASSES,
        mask: None,
        init: Some(Init { std: 0.25, bias: 0.0 }),
        learning: Learning::Plain,
    };
    vec![
        L::Conv(stem), // the images are whole: no exchange, no input gradient
        L::Relu,
        L::Lrn(Lrn { size: 5, alpha: 0.03, beta: 0.75, k: 1.0 }), // wider than a tower's four channels: clipped
        L::MaxPool(window(3, 2, 1)),                              // overlapping and padded: 13 x 11 to 7 x 6
        L::Conv(paired),                                          // a group a tower; frozen
        L::Relu,
        L::Dropout { name: "drop_map", p: 0.1 }, // on a feature map
        L::Conv(mixed),                          // needs an exchange; an even kernel; no bias; a mask; 7 x 6 to 8 x 7
        L::Relu,
        L::Lrn(Lrn { size: 4, alpha: 0.07, beta: 0.6, k: 1.1 }), // an even size, and pow instead of roots
        L::Conv(conv("fourfold", 16, window(3, 2, 0), 2 * towers)), // two groups a tower; strided; leaves out a row
        L::Relu,
        L::AvgPool(window(3, 1, 1)), // overlapping and padded: 3 x 3 stays
        L::Conv(halved),             // an exchange, strided: 3 x 3 to 2 x 2; a random mask
        L::Relu,
        L::Linear(hidden), // 7 + 6 units; a random mask
        L::Relu,
        L::Dropout { name: "drop_units", p: 0.15 }, // on units
        L::Linear(classes),                         // 3 + 2 units
    ]
}

/// A tower's slice of `count` channels or units: the first towers get one more where it doesn't divide.
pub(crate) fn slice(count: usize, towers: usize, tower: usize) -> std::ops::Range<usize> {
    let start = |tower: usize| tower * (count / towers) + tower.min(count % towers);
    start(tower)..start(tower + 1)
}

pub(crate) fn model_file(net: &Net) -> String {
    let init = |init: Option<Init>| {
        init.map_or(String::new(), |i| format!("init = {{ std = {:?}, bias = {:?} }}\n", i.std, i.bias))
    };
    let masked = |mask: Option<Mask>| {
        mask.map_or(String::new(), |m| format!("mask = {{ kind = {:?}, groups = {} }}\n", m.kind, m.groups))
    };
    let learns = |learning: Learning| match learning {
        Learning::Plain => String::new(),
        Learning::Scaled(scale) => format!("lr_scale = {scale:?}\n"),
        Learning::Frozen => "trainable = false\n".to_owned(),
    };
    let slide = |w: Window| format!("kernel = {}\nstride = {}\npad = {}\n", w.kernel, w.stride, w.pad);
    let Map { channels, rows, columns } = INPUT;
    let mut toml = format!("name = \"oracle\"\ntowers = {}\n", net.towers);
    // Without the key, there are as many slices as towers.
    if net.slices != net.towers {
        writeln!(toml, "head = {}", net.slices).unwrap();
    }
    let size = format!("channels = {channels}, height = {rows}, width = {columns}");
    writeln!(toml, "input = {{ {size}, mean = {MEAN:?}, std = {STD:?} }}").unwrap();
    for layer in &net.layers {
        let text = match *layer {
            Layer::Conv(c) => format!(
                "kind = \"conv\"\nname = {:?}\nfilters = {}\ngroups = {}\nbias = {}\n{}{}{}{}",
                c.name,
                c.filters,
                c.groups,
                c.bias,
                slide(c.window),
                masked(c.mask),
                init(c.init),
                learns(c.learning)
            ),
            Layer::Relu => "kind = \"relu\"\n".into(),
            Layer::Lrn(Lrn { size, alpha, beta, k }) => {
                format!("kind = \"lrn\"\nsize = {size}\nalpha = {alpha:?}\nbeta = {beta:?}\nk = {k:?}\n")
            }
            Layer::MaxPool(window) => format!("kind = \"max_pool\"\n{}", slide(window)),
            Layer::AvgPool(window) => format!("kind = \"avg_pool\"\n{}", slide(window)),
            Layer::Dropout { name, p } => format!("kind = \"dropout\"\nname = {name:?}\np = {p:?}\n"),
            Layer::Linear(l) => {
                let (mask, init, learns) = (masked(l.mask), init(l.init), learns(l.learning));
                format!("kind = \"linear\"\nname = {:?}\nunits = {}\n{mask}{init}{learns}", l.name, l.units)
            }
        };
        write!(toml, "\n[[layer]]\n{text}").unwrap();
    }
    toml
}

pub(crate) struct Split {
    pub(crate) images: Vec<Vec<u8>>,
    pub(crate) labels: Vec<u8>,
}

/// Images from an integer formula: a lightness and stripes that depend on the label, under a little noise. A third of them
/// are flat above, where activations tie for the maximum.
pub(crate) fn split(first: usize, count: usize) -> Split {
    let mut split = Split { images: Vec::new(), labels: Vec::new() };
    for i in first..first + count {
        let label = (3 * i + 1) % CLASSES;
        let mut image = Vec::new();
        for (c, y, x) in INPUT.indices() {
            let stripes = if (x * (label + 1) + y * label) % 5 < 2 { 199 } else { 0 };
            let light = if c == 0 { 50 * label } else { stripes };
            let noise = (i * 7919 + c * 389 + y * 131 + x * 17 + i * y * x) % 56;
            let flat = i % 3 == 0 && y < 5;
            image.push(u8::try_from(if flat { 50 * label } else { light + noise }).unwrap());
        }
        split.images.push(image);
        split.labels.push(u8::try_from(label).unwrap());
    }
    split
}

pub(crate) fn training_data() -> Split {
    split(0, 50)
}

pub(crate) fn test_data() -> Split {
    split(1000, 10)
}

/// IDX: two zeros, 8 for bytes, the number of dimensions, each dimension as a big-endian u32, and then the bytes.
fn write_idx(path: &Path, dimensions: &[usize], bytes: &[u8]) {
    let mut file = vec![0, 0, 8, u8::try_from(dimensions.len()).unwrap()];
    for &dimension in dimensions {
        file.extend(u32::try_from(dimension).unwrap().to_be_bytes());
    }
    file.extend(bytes);
    std::fs::write(path, file).unwrap();
}

pub(crate) fn write_split(folder: &Path, prefix: &str, split: &Split) {
    let n = split.labels.len();
    let images = folder.join(format!("{prefix}-images-idx4-ubyte"));
    write_idx(&images, &[n, INPUT.channels, INPUT.rows, INPUT.columns], &split.images.concat());
    write_idx(&folder.join(format!("{prefix}-labels-idx1-ubyte")), &[n], &split.labels);
}

pub(crate) fn pixels(image: &[u8]) -> Vec<f32> {
    let plane = INPUT.rows * INPUT.columns;
    (0..image.len()).map(|i| ((f64::from(image[i]) / 255.0 - MEAN[i / plane]) / STD[i / plane]) as f32).collect()
}
