//! Every fast kernel against the scalar reference, to the bit: on every instruction set of this machine, at 1, 2 and 3
//! threads, whole and cut into micro-batches, on random shapes and with values that make rounding show.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use convoy_common::model::Lrn;
use ndarray::{Array1, Array2, Array4, ArrayView4, s};
use proptest::prelude::*;

use super::isa::Isa;
use super::products::End;
use super::reference::{self, Window};
use super::*;

/// Values of very different size, zeros of both signs and denormals: a pure function of seed and index.
fn values(seed: u64, count: usize) -> Vec<f32> {
    let source = convoy_common::random::Source::new(seed, "test");
    let value = |index: u64| {
        let word = source.word(index);
        match word % 16 {
            0 => 0.0,
            1 => -0.0,
            2 => f32::from_bits(word >> 9 | (word & 1) << 31),
            3 => (word as f32 / u32::MAX as f32 - 0.5) * 1e4,
            _ => word as f32 / u32::MAX as f32 - 0.5,
        }
    };
    (0..count as u64).map(value).collect()
}

/// (sample, channel, row, column) as kernels have it: (sample, row, column, channel).
fn to_memory(x_nchw: ArrayView4<f32>) -> Vec<f32> {
    x_nchw.permuted_axes([0, 2, 3, 1]).iter().copied().collect()
}

fn bits(values: impl IntoIterator<Item = f32>) -> Vec<u32> {
    values.into_iter().map(f32::to_bits).collect()
}

/// Runs `check` on every instruction set and number of threads, each on a thread that belongs to no other pool.
fn on_every_compute(check: impl Fn(&Compute) + Sync) {
    for isa in Isa::available() {
        for threads in 1..=3 {
            std::thread::scope(|scope| {
                scope
                    .spawn(|| check(&Compute::new(threads, isa).unwrap().with_dirty_memory()))
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            });
        }
    }
}

#[derive(Clone, Debug)]
struct ConvCase {
    seed: u64,
    samples: usize,
    group_channels: usize,
    group_filters: usize,
    height: usize,
    width: usize,
    window: Window,
}

fn conv_case() -> impl Strategy<Value = ConvCase> {
    let window = (1usize..=11, 1usize..=4, 0usize..=6, 1usize..=3);
    // One block of channels and several, one panel of filters and several, all of them ragged or not.
    let channels = prop_oneof![4 => 1usize..=7, 2 => 15usize..=20, 1 => Just(33)];
    let filters = prop_oneof![4 => 1usize..=19, 2 => 31usize..=36, 1 => Just(49), 1 => Just(65), 1 => Just(80)];
    let sizes = (any::<u64>(), 1usize..=3, channels, filters, 0usize..=4, 0usize..=5);
    (window, sizes).prop_map(
        |((kernel, stride, pad, groups), (seed, samples, group_channels, group_filters, more_rows, more_columns))| {
            let least = kernel.saturating_sub(2 * pad).max(1);
            let window = Window { kernel, stride, pad, groups };
            ConvCase {
                seed,
                samples,
                group_channels,
                group_filters,
                height: least + more_rows,
                width: least + more_columns,
                window,
            }
        },
    )
}

fn check_conv(case: &ConvCase) {
    let ConvCase { seed, samples, group_channels, group_filters, height, width, window } = case.clone();
    let (channels, filters) = (group_channels * window.groups, group_filters * window.groups);
    let g = conv::Geometry {
        channels,
        filters,
        groups: window.groups,
        kernel: window.kernel,
        stride: window.stride,
        pad: window.pad,
        height,
        width,
    };
    let array = |seed: u64, shape: (usize, usize, usize, usize)| {
        Array4::from_shape_vec(shape, values(seed, shape.0 * shape.1 * shape.2 * shape.3)).unwrap()
    };
    let x = array(seed, (samples, channels, height, width));
    let w = array(seed ^ 1, (filters, group_channels, window.kernel, window.kernel));
    let dy = array(seed ^ 2, (samples, filters, g.out_height(), g.out_width()));
    let bias = Array1::from_vec(values(seed ^ 3, filters));
    let y = reference::conv_forward(x.view(), w.view(), Some(bias.view()), window);
    let dx = reference::conv_input_gradient(dy.view(), w.view(), (height, width), window);
    let mut dw = Array4::zeros(w.dim());
    reference::conv_weight_gradient(x.view(), dy.view(), window, dw.view_mut());
    let weights = g.panels().pack(window.groups, w.as_slice().unwrap());
    let turned = conv::turned(&g, &weights);
    on_every_compute(|compute| {
        let input =
            |x: ArrayView4<f32>| in_blocks(compute, &to_memory(x), g.input(x.dim().0), g.input_blocks(x.dim().0));
        let gradient = |dy: ArrayView4<f32>| {
            in_blocks(compute, &to_memory(dy), g.output(dy.dim().0), g.gradient_blocks(dy.dim().0))
        };
        let (x_blocks, dy_blocks) = (input(x.view()), gradient(dy.view()));
        for rectifies in [false, true] {
            let (mut found, end) = (vec![f32::NAN; y.len()], End { bias: bias.as_slice(), rectifies });
            assert!(conv::forward(compute, &g, &weights, end, &x_blocks, samples, &mut found));
            let expected = y.mapv(|y| if rectifies { reference::relu(y) } else { y });
            assert_eq!(bits(found), bits(to_memory(expected.view())), "forward, {end:?}");
        }
        check_gradient_in_blocks(compute, &g, (&to_memory(y.view()), &to_memory(dy.view())), samples);
        let mut found = vec![f32::NAN; dx.len()];
        assert!(conv::input_gradient(compute, &g, &turned, &dy_blocks, samples, &mut found));
        assert_eq!(bits(found), bits(to_memory(dx.view())), "input gradient");
        // The chains go on from one micro-batch to the next: cut after each sample, they end in the same bits.
        let mut chains = vec![f32::NAN; weights.len()];
        for n in 0..samples {
            let one = s![n..n + 1, .., .., ..];
            let (x, dy) = (input(x.slice(one)), gradient(dy.slice(one)));
            conv::weight_gradient(compute, &g, &x, &dy, 1, n > 0, &mut chains);
        }
        let mut whole = vec![f32::NAN; weights.len()];
        assert!(conv::weight_gradient(compute, &g, &x_blocks, &dy_blocks, samples, false, &mut whole));
        assert_eq!(bits(chains), bits(whole.clone()), "micro-batches");
        elementwise::end_chains(compute, &mut whole);
        let found = g.panels().unpack(window.groups, &whole);
        assert_eq!(bits(found), bits(dw.iter().map(|dw| dw + 0.0)), "weight gradient");
    });
}

/// The control: the same terms in another order have other bits, so the comparisons with the reference see the order of a sum.
#[test]
fn a_sum_in_another_order_has_other_bits() {
    let window = Window { kernel: 3, stride: 1, pad: 1, groups: 1 };
    let array = |seed: u64, shape: (usize, usize, usize, usize)| {
        Array4::from_shape_vec(shape, values(seed, shape.0 * shape.1 * shape.2 * shape.3)).unwrap()
    };
    let (x, w, dy) = (array(1, (4, 6, 5, 5)), array(2, (8, 6, 3, 3)), array(3, (4, 8, 5, 5)));
    let forward = |x: ArrayView4<f32>, w: ArrayView4<f32>| bits(reference::conv_forward(x, w, None, window));
    let (x_turned, w_turned) = (x.slice(s![.., ..;-1, .., ..]), w.slice(s![.., ..;-1, .., ..]));
    assert_ne!(forward(x.view(), w.view()), forward(x_turned, w_turned), "input channels from last to first");
    let backward =
        |dy: ArrayView4<f32>, w: ArrayView4<f32>| bits(reference::conv_input_gradient(dy, w, (5, 5), window));
    let (dy_turned, w_turned) = (dy.slice(s![.., ..;-1, .., ..]), w.slice(s![..;-1, .., .., ..]));
    assert_ne!(backward(dy.view(), w.view()), backward(dy_turned, w_turned), "filters from last to first");
    let gradient = |x: ArrayView4<f32>, dy: ArrayView4<f32>| {
        let mut dw = Array4::zeros(w.dim());
        reference::conv_weight_gradient(x, dy, window, dw.view_mut());
        bits(dw)
    };
    let (x_turned, dy_turned) = (x.slice(s![..;-1, .., .., ..]), dy.slice(s![..;-1, .., .., ..]));
    assert_ne!(gradient(x.view(), dy.view()), gradient(x_turned, dy_turned), "samples from last to first");
}

fn in_blocks(compute: &Compute, x: &[f32], maps: Maps, blocks: blocks::Blocks) -> Vec<f32> {
    let mut out = vec![f32::NAN; blocks.len()];
    blocks.fill(compute, x, None, maps, &mut out);
    out
}

/// A gradient that goes back through ReLU on its way into blocks, and the bias gradient from there.
fn check_gradient_in_blocks(compute: &Compute, g: &conv::Geometry, (y, dy): (&[f32], &[f32]), samples: usize) {
    let (maps, blocks) = (g.output(samples), g.gradient_blocks(samples));
    let y: Vec<f32> = y.iter().map(|y| reference::relu(*y)).collect();
    let positive: Vec<f32> = y.iter().zip(dy).map(|(y, dy)| if *y > 0.0 { *dy } else { 0.0 }).collect();
    let mut found = vec![f32::NAN; blocks.len()];
    blocks.fill(compute, dy, Some(&y), maps, &mut found);
    assert_eq!(bits(found.clone()), bits(in_blocks(compute, &positive, maps, blocks)), "back through ReLU");
    let began = values(samples as u64, g.filters).into_iter().map(|began| began + 0.0);
    let mut sums: Vec<f32> = began.collect();
    let expected = (0..g.filters).map(|f| positive.chunks_exact(g.filters).fold(sums[f], |sum, pixel| sum + pixel[f]));
    let expected: Vec<f32> = expected.collect();
    blocks.add_pixels(compute.isa, &found, &mut sums);
    assert_eq!(bits(sums), bits(expected), "bias gradient");
}

fn check_linear(seed: u64, samples: usize, g: linear::Geometry) {
    let (inputs, outputs) = (g.inputs(), g.outputs);
    let array = |seed: u64, rows: usize, columns: usize| {
        Array2::from_shape_vec((rows, columns), values(seed, rows * columns)).unwrap()
    };
    let (x, w, dy) =
        (array(seed, samples, inputs), array(seed ^ 1, outputs, inputs), array(seed ^ 2, samples, outputs));
    let bias = Array1::from_vec(values(seed ^ 3, outputs));
    let y = reference::linear_forward(x.view(), w.view(), Some(bias.view()));
    let dx = reference::linear_input_gradient(dy.view(), w.view());
    let mut dw = Array2::zeros(w.dim());
    reference::linear_weight_gradient(x.view(), dy.view(), dw.view_mut());
    // Units are (channel, pixel) in the reference, and (pixel, channel) in memory.
    let to_memory = |x: &Array2<f32>| -> Vec<f32> {
        let shape = (x.nrows(), g.channels, g.pixels);
        x.clone().into_shape_with_order(shape).unwrap().permuted_axes([0, 2, 1]).iter().copied().collect()
    };
    let weights = g.panels().pack(1, w.as_slice().unwrap());
    on_every_compute(|compute| {
        let input = |x: &[f32], samples: usize| linear::to_blocks(compute, &g, x, samples);
        let gradient =
            |dy: &[f32], samples: usize| in_blocks(compute, dy, g.output(samples), g.gradient_blocks(samples));
        let (x, dy) = (to_memory(&x), dy.as_slice().unwrap());
        let mut found = vec![f32::NAN; y.len()];
        for rectifies in [false, true] {
            let end = End { bias: bias.as_slice(), rectifies };
            assert!(linear::forward(compute, &g, &weights, end, &input(&x, samples), samples, &mut found));
            let expected = y.iter().map(|y| if rectifies { reference::relu(*y) } else { *y });
            assert_eq!(bits(found.clone()), bits(expected), "forward, {end:?}");
        }
        let mut found = vec![f32::NAN; dx.len()];
        assert!(linear::input_gradient(compute, &g, &weights, dy, samples, &mut found));
        assert_eq!(bits(found), bits(to_memory(&dx)), "input gradient");
        let mut found = vec![f32::NAN; weights.len()];
        let half = samples / 2;
        for (part, goes_on) in [(0..half, false), (half..samples, half > 0)] {
            let x = input(&x[part.start * inputs..part.end * inputs], part.len());
            let dy = gradient(&dy[part.start * outputs..part.end * outputs], part.len());
            linear::weight_gradient(compute, &g, &x, &dy, part.len(), goes_on, &mut found);
        }
        elementwise::end_chains(compute, &mut found);
        assert_eq!(bits(g.panels().unpack(1, &found)), bits(dw.iter().map(|dw| dw + 0.0)), "weight gradient");
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn convolutions_equal_the_reference(case in conv_case()) {
        check_conv(&case);
    }

    #[test]
    fn linear_layers_equal_the_reference(
        seed in any::<u64>(), samples in 1usize..=40, channels in 1usize..=60, pixels in 1usize..=5, outputs in 1usize..=70,
    ) {
        check_linear(seed, samples, linear::Geometry { channels, pixels, outputs });
    }

    #[test]
    fn pools_equal_the_reference(
        seed in any::<u64>(), samples in 1usize..=3, channels in 1usize..=19, kernel in 1usize..=5, stride in 1usize..=4,
        pad in 0usize..=2, rows in 0usize..=6, columns in 0usize..=6, levels in 1u32..=4,
    ) {
        let pad = pad.min(kernel / 2);
        let least = (kernel - 2 * pad).max(1);
        let (height, width) = (least + rows, least + columns);
        let window = Window { kernel, stride, pad, groups: 1 };
        // A few levels alone, so that maxima tie.
        let levelled = values(seed, samples * channels * height * width).into_iter().map(|v| (v * levels as f32).round());
        let x = Array4::from_shape_vec((samples, channels, height, width), levelled.collect()).unwrap();
        let (y, places) = reference::max_pool(x.view(), window);
        let dy = Array4::from_shape_vec(y.dim(), values(seed ^ 1, y.len())).unwrap();
        let max_dx = reference::max_pool_backward(dy.view(), places.view(), (height, width), window);
        let (mean, mean_dx) = (reference::avg_pool(x.view(), window), reference::avg_pool_backward(dy.view(), (height, width), window));
        let input = Maps { samples, height, width, channels };
        let (out_height, out_width) = (y.dim().2, y.dim().3);
        let g = pool::Geometry { input, out_height, out_width, kernel, stride, pad };
        on_every_compute(|compute| {
            let (found, at) = pool::max_forward(compute, &g, &to_memory(x.view()));
            assert_eq!(bits(found.to_vec()), bits(to_memory(y.view())));
            assert_eq!(bits(pool::max_backward(compute, &g, &to_memory(dy.view()), &at).to_vec()), bits(to_memory(max_dx.view())));
            assert_eq!(bits(pool::avg_forward(compute, &g, &to_memory(x.view())).to_vec()), bits(to_memory(mean.view())));
            assert_eq!(bits(pool::avg_backward(compute, &g, &to_memory(dy.view())).to_vec()), bits(to_memory(mean_dx.view())));
        });
    }

    #[test]
    fn lrn_equals_the_reference(seed in any::<u64>(), channels in 1usize..=20, size in 1usize..=7, is_usual in any::<bool>()) {
        let described = Lrn { size, alpha: 0.3, beta: if is_usual { 0.75 } else { 0.6 }, k: 1.5 };
        let (samples, pixels) = (2, 3);
        let (x, dy) = (values(seed, samples * pixels * channels), values(seed ^ 1, samples * pixels * channels));
        let each = || x.chunks_exact(channels).zip(dy.chunks_exact(channels));
        let y: Vec<f32> = each().flat_map(|(x, _)| reference::lrn(x, &described).0).collect();
        let dx: Vec<f32> = each().flat_map(|(x, dy)| reference::lrn_backward(x, dy, &described)).collect();
        let g = lrn::Geometry::new(&described, channels);
        on_every_compute(|compute| {
            let (found, s) = lrn::forward(compute, &g, &x, samples);
            assert_eq!(bits(found.to_vec()), bits(y.iter().copied()));
            let kept = lrn::ForwardResult { x: &x, y: &found, s: &s };
            assert_eq!(bits(lrn::backward(compute, &g, kept, &dy, samples).to_vec()), bits(dx.iter().copied()));
        });
    }

    #[test]
    fn updates_equal_the_reference(seed in any::<u64>(), count in 1usize..=40) {
        let rates = elementwise::Rates { learning: 0.1, momentum: 0.9, weight_decay: 5e-4 };
        let (g, v, w) = (values(seed, count), values(seed ^ 1, count), values(seed ^ 2, count));
        let expected: Vec<_> = (0..count).map(|i| reference::sgd(rates, g[i] + 0.0, v[i], w[i])).collect();
        on_every_compute(|compute| {
            let (mut momentum, mut weights) = (v.clone(), w.clone());
            elementwise::sgd(compute, rates, &g, &mut momentum, &mut weights);
            assert_eq!(bits(momentum), bits(expected.iter().map(|e| e.0)));
            assert_eq!(bits(weights), bits(expected.iter().map(|e| e.1)));
        });
    }
}

/// Few sums over every kind of edge, for interpreters: `cargo +nightly miri test -p convoy-worker --lib small_shapes`, with
/// `MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-ignore-leaks -Zmiri-tree-borrows"`.
#[test]
fn small_shapes_equal_the_reference() {
    let shapes = [(3, 5, 3, 2, 1, 2), (17, 33, 1, 1, 0, 1), (1, 49, 2, 3, 1, 1)];
    for (group_channels, group_filters, kernel, stride, pad, groups) in shapes {
        let window = Window { kernel, stride, pad, groups };
        check_conv(&ConvCase { seed: 2, samples: 2, group_channels, group_filters, height: 3, width: 4, window });
    }
    check_linear(3, 15, linear::Geometry { channels: 9, pixels: 2, outputs: 35 });
    // One pixel, and lines of the kernel that no output sees.
    for (group_channels, kernel, stride) in [(3, 3, 2), (9, 2, 2), (2, 3, 8)] {
        let window = Window { kernel, stride, pad: 1, groups: 1 };
        let (seed, samples, group_filters, height, width) = (3, 1, 5, 1, 1);
        check_conv(&ConvCase { seed, samples, group_channels, group_filters, height, width, window });
    }
}

/// The shapes of a real layer: more than a block of channels, and of a panel of filters.
#[test]
fn a_layer_of_ordinary_size_equals_the_reference() {
    let window = Window { kernel: 3, stride: 1, pad: 1, groups: 2 };
    check_conv(&ConvCase { seed: 9, samples: 8, group_channels: 33, group_filters: 35, height: 7, width: 5, window });
}

/// Chains that are cut for the cache, with columns that don't fill a panel, and rows that would leave out padding.
#[test]
fn chains_that_are_cut_equal_the_reference() {
    let window = Window { kernel: 11, stride: 1, pad: 5, groups: 1 };
    let case = ConvCase { seed: 4, samples: 2, group_channels: 30, group_filters: 35, height: 4, width: 5, window };
    const { assert!(30 * 11 * 11 * 3 * tile::UNIT > products::WHOLE_MAX, "the chain is taken whole") };
    check_conv(&case);
    let wide = linear::Geometry { channels: 5200, pixels: 1, outputs: 35 };
    const { assert!(5200 * 2 * tile::UNIT > products::WHOLE_MAX, "the chain is taken whole") };
    check_linear(5, 3, wide);
    let tall = linear::Geometry { channels: 5, pixels: 4, outputs: 1100 };
    const { assert!(1100 > products::SOURCE_TERMS, "the chain is taken whole") };
    check_linear(6, 17, tall);
    check_linear(7, 70, linear::Geometry { outputs: 40, ..tall });
}

#[test]
fn panels_hold_every_weight_once() {
    for (columns, terms) in (1..=100).flat_map(|columns| [3, 16, 37].map(|terms| (columns, terms))) {
        for panels in [panels::Panels::tight(terms, columns), panels::Panels::in_twos(terms, columns)] {
            let natural = values(columns as u64, 2 * terms * columns);
            let packed = panels.pack(2, &natural);
            assert_eq!(packed.len(), 2 * panels.len());
            assert_eq!(bits(panels.unpack(2, &packed)), bits(natural), "{panels:?}");
        }
    }
}

/// More elements than one thread takes at a time.
#[test]
fn what_is_done_to_each_element_is_done_to_all() {
    let count = 2 * elementwise::PART + 7;
    let rates = elementwise::Rates { learning: 0.1, momentum: 0.9, weight_decay: 5e-4 };
    let (g, v, w) = (values(1, count), values(2, count), values(3, count));
    on_every_compute(|compute| {
        let (mut momentum, mut weights) = (v.clone(), w.clone());
        elementwise::sgd(compute, rates, &g, &mut momentum, &mut weights);
        let expected: Vec<_> = (0..count).map(|i| reference::sgd(rates, g[i] + 0.0, v[i], w[i])).collect();
        assert_eq!(bits(momentum), bits(expected.iter().map(|e| e.0)));
        assert_eq!(bits(weights), bits(expected.iter().map(|e| e.1)));
        let mut sum = v.clone();
        elementwise::add(compute, &mut sum, &w);
        assert_eq!(bits(sum), bits((0..count).map(|i| v[i] + w[i])));
        let mut dy = v.clone();
        elementwise::relu_backward(compute, &w, &mut dy);
        assert_eq!(bits(dy), bits((0..count).map(|i| if w[i] > 0.0 { v[i] } else { 0.0 })));
    });
}

#[test]
fn a_nan_goes_through_relu_and_max_pooling() {
    on_every_compute(|compute| {
        let mut x = [f32::NAN, -1.0, -0.0, 2.0];
        elementwise::relu(compute, &mut x);
        assert!(x[0].is_nan() && bits(x[1..].to_vec()) == bits([0.0, 0.0, 2.0]));
        let input = Maps { samples: 1, height: 2, width: 2, channels: 1 };
        let g = pool::Geometry { input, out_height: 1, out_width: 1, kernel: 2, stride: 1, pad: 0 };
        for place in 0..4 {
            let mut x = [1.0, 5.0, 2.0, 3.0];
            x[place] = f32::NAN;
            assert!(pool::max_forward(compute, &g, &x).0[0].is_nan(), "a NaN at {place}");
        }
    });
}

/// A chain that underflows to -0.0 ends as +0.0.
#[test]
fn ends_of_chains_lose_the_sign_of_zero() {
    on_every_compute(|compute| {
        let mut x = [f32::MIN_POSITIVE.mul_add(-f32::MIN_POSITIVE, 0.0), 1.0];
        assert_eq!(x[0].to_bits(), (-0.0f32).to_bits());
        elementwise::end_chains(compute, &mut x);
        assert_eq!(x[0].to_bits(), 0);
        assert!(!elementwise::all_finite(compute.isa, &[1.0, f32::NEG_INFINITY]));
    });
}

/// Each product tells of what is not finite, wherever it is.
#[test]
fn products_tell_what_is_not_finite() {
    let g = conv::Geometry { channels: 3, filters: 35, groups: 1, kernel: 3, stride: 1, pad: 1, height: 4, width: 5 };
    let samples = 2;
    on_every_compute(|compute| {
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let (mut x, mut dy) = (vec![1.0; g.input(samples).len()], vec![1.0; g.output(samples).len()]);
            let weights = g.panels().pack(1, &vec![1.0; 35 * 27]);
            let run = |x: &[f32], dy: &[f32]| {
                let x = in_blocks(compute, x, g.input(samples), g.input_blocks(samples));
                let dy = in_blocks(compute, dy, g.output(samples), g.gradient_blocks(samples));
                let turned = conv::turned(&g, &weights);
                let (mut y, mut dx) = (vec![0.0; g.output(samples).len()], vec![0.0; g.input(samples).len()]);
                let forward = conv::forward(compute, &g, &weights, End::default(), &x, samples, &mut y);
                let input = conv::input_gradient(compute, &g, &turned, &dy, samples, &mut dx);
                let weight = conv::weight_gradient(compute, &g, &x, &dy, samples, false, &mut weights.clone());
                (forward, input, weight)
            };
            assert_eq!(run(&x, &dy), (true, true, true));
            let last = dy.len() - 1;
            dy[last] = wrong;
            assert_eq!(run(&x, &dy), (true, false, false));
            (x[17], dy[last]) = (wrong, 1.0);
            assert_eq!(run(&x, &dy), (false, true, false));
        }
    });
}

#[test]
fn dropout_keeps_its_share_and_depends_on_step_and_sample() {
    let dropout = elementwise::Dropout::new(1, "drop6", 3, 0.3, 1000);
    let kept = |sample: u64| (0..1000).filter(|unit| dropout.keeps(sample, *unit)).count();
    assert!((0..10).map(kept).sum::<usize>().abs_diff(7000) < 200);
    let each: Vec<bool> = dropout.keeps_each(3, 5..995).collect();
    assert!((5..995).zip(each).all(|(unit, kept)| kept == dropout.keeps(3, unit)));
    let other = elementwise::Dropout::new(1, "drop6", 4, 0.3, 1000);
    assert!((0..1000).any(|unit| dropout.keeps(0, unit) != other.keeps(0, unit)));
    assert!((0..1000).any(|unit| dropout.keeps(0, unit) != dropout.keeps(1, unit)));
}

/// Maps that are smaller than they are said to be are a panic, never a read.
#[test]
fn dirty_memory_shows_what_nobody_wrote() {
    let compute = || Compute::new(1, Isa::detect()).unwrap();
    std::thread::spawn(move || {
        let dirty = compute().with_dirty_memory();
        assert!(dirty.tensor(3).iter().all(|value| value.is_nan()) && dirty.zeros(3).iter().all(|value| *value == 0.0));
    })
    .join()
    .unwrap();
    std::thread::spawn(move || assert!(compute().tensor(3).iter().all(|value| *value == 0.0))).join().unwrap();
}

#[test]
fn a_slice_that_is_too_short_is_refused() {
    let g = conv::Geometry { channels: 2, filters: 3, groups: 1, kernel: 3, stride: 2, pad: 1, height: 5, width: 5 };
    let (x, dy) = (vec![1.0; g.input_blocks(1).len()], vec![1.0; g.gradient_blocks(1).len()]);
    let weights = vec![1.0; g.panels().len()];
    let (y, dx) = (vec![0.0; g.output(1).len()], vec![0.0; g.input(1).len()]);
    fn forget(_: bool) {}
    type Pass<'a> = &'a (dyn Fn(&Compute) + Sync);
    let turned = conv::turned(&g, &weights);
    let passes: [Pass; 7] = [
        &|c| forget(conv::forward(c, &g, &weights, End::default(), &x[..x.len() - 60], 1, &mut y.clone())),
        &|c| forget(conv::forward(c, &g, &weights[1..], End::default(), &x, 1, &mut y.clone())),
        &|c| forget(conv::forward(c, &g, &weights, End::default(), &x, 1, &mut y.clone()[1..])),
        &|c| forget(conv::input_gradient(c, &g, &turned, &dy[..dy.len() - 60], 1, &mut dx.clone())),
        &|c| forget(conv::input_gradient(c, &g, &turned, &dy, 1, &mut dx.clone()[1..])),
        &|c| forget(conv::weight_gradient(c, &g, &x[..x.len() - 60], &dy, 1, false, &mut weights.clone())),
        &|c| forget(conv::weight_gradient(c, &g, &x, &dy[..dy.len() - 60], 1, false, &mut weights.clone())),
    ];
    for isa in Isa::available() {
        for (index, pass) in passes.iter().enumerate() {
            let refused = std::thread::scope(|scope| {
                scope.spawn(|| pass(&Compute::new(1, isa).unwrap().with_dirty_memory())).join()
            });
            let panic = refused.expect_err(&format!("pass {index} under {isa} took it"));
            let text = panic.downcast_ref::<&str>().copied().unwrap_or_default();
            assert!(text.contains("out of its slice"), "pass {index}: {text}");
        }
    }
}

/// Each way to cut work up lets every thread of the pool work at the same time: a piece waits until as many pieces have begun.
#[test]
fn every_thread_shares_the_work() {
    let (threads, pieces) = (3, 12);
    let compute = || Compute::new(threads, Isa::detect()).unwrap().with_dirty_memory();
    type Way<'a> = &'a (dyn Fn(&Compute, &(dyn Fn() + Sync)) + Sync);
    let ways: [Way; 3] = [
        &|compute, piece| compute.split(pieces, |_| piece()),
        &|compute, piece| compute.for_samples(&mut vec![0; 2 * pieces], pieces, |_, _| piece()),
        &|compute, piece| compute.for_rows(&mut vec![0; 2 * pieces], pieces, |_, _| piece()),
    ];
    for (index, way) in ways.into_iter().enumerate() {
        let run = || {
            let (compute, begun, start) = (compute(), AtomicUsize::new(0), Instant::now());
            way(&compute, &|| {
                begun.fetch_add(1, Ordering::Relaxed);
                while begun.load(Ordering::Relaxed) < threads {
                    assert!(start.elapsed() < Duration::from_secs(60), "way {index}: a thread got no work");
                    std::thread::yield_now();
                }
            });
            compute.busy_threads()
        };
        // A thread that belongs to no other pool.
        assert_eq!(std::thread::scope(|scope| scope.spawn(run).join()).unwrap(), threads, "way {index}");
    }
}
