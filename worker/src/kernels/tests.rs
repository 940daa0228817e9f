//! Every fast kernel against the scalar reference, to the bit: on every instruction set of this machine, at 1, 2 and 3
//! threads, whole and cut into micro-batches, on random shapes and with values that make rounding show.

use convoy_common::model::Lrn;
use ndarray::{Array1, Array2, Array4, ArrayView4, Axis, s};
use proptest::prelude::*;

use super::isa::Isa;
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
                    .spawn(|| check(&Compute::new(threads, isa).unwrap()))
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
    let window = (1usize..=11, 1usize..=3, 0usize..=6, 1usize..=3);
    let sizes = (any::<u64>(), 1usize..=3, 1usize..=7, 1usize..=19, 0usize..=4, 0usize..=5);
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
    let weights = conv::PackedWeights::new(&g, w.as_slice().unwrap(), true);
    on_every_compute(|compute| {
        let padded = conv::pad_input(compute, &g, &to_memory(x.view()), samples);
        let mut found = conv::forward(compute, &g, &weights, &padded, samples);
        elementwise::add_bias(compute.isa, &mut found, bias.as_slice().unwrap());
        assert_eq!(bits(found), bits(to_memory(y.view())), "forward");
        let mut found = conv::input_gradient(compute, &g, &weights, &to_memory(dy.view()), samples);
        elementwise::end_chains(compute.isa, &mut found);
        assert_eq!(bits(found), bits(to_memory(dx.view())), "input gradient");
        // The chains go on from one micro-batch to the next: cut after each sample, they end in the same bits.
        let mut chains = vec![0.0; dw.len()];
        for n in 0..samples {
            let one = |a: &Array4<f32>| to_memory(a.slice(s![n..n + 1, .., .., ..]));
            let padded = conv::pad_input(compute, &g, &one(&x), 1);
            conv::weight_gradient(compute, &g, &padded, &one(&dy), 1, &mut chains);
        }
        let mut whole = vec![0.0; dw.len()];
        conv::weight_gradient(compute, &g, &padded, &to_memory(dy.view()), samples, &mut whole);
        assert_eq!(bits(chains), bits(whole.clone()), "micro-batches");
        let mut found = conv::natural_gradient(&g, &whole);
        elementwise::end_chains(compute.isa, &mut found);
        assert_eq!(bits(found), bits(dw.iter().map(|dw| dw + 0.0)), "weight gradient");
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn convolutions_equal_the_reference(case in conv_case()) {
        check_conv(&case);
    }

    #[test]
    fn linear_layers_equal_the_reference(seed in any::<u64>(), samples in 1usize..=20, inputs in 1usize..=300, outputs in 1usize..=20) {
        let array = |seed: u64, rows: usize, columns: usize| Array2::from_shape_vec((rows, columns), values(seed, rows * columns)).unwrap();
        let (x, w, dy) = (array(seed, samples, inputs), array(seed ^ 1, outputs, inputs), array(seed ^ 2, samples, outputs));
        let y = reference::linear_forward(x.view(), w.view(), None);
        let dx = reference::linear_input_gradient(dy.view(), w.view());
        let mut dw = Array2::zeros(w.dim());
        reference::linear_weight_gradient(x.view(), dy.view(), dw.view_mut());
        let g = linear::Geometry { inputs, outputs };
        let (x, w, dy) = (x.as_slice().unwrap(), w.as_slice().unwrap(), dy.as_slice().unwrap());
        on_every_compute(|compute| {
            let mut found = linear::forward(compute, &g, w, x, samples);
            elementwise::end_chains(compute.isa, &mut found);
            assert_eq!(bits(found), bits(y.iter().copied()));
            let mut found = linear::input_gradient(compute, &g, w, dy, samples);
            elementwise::end_chains(compute.isa, &mut found);
            assert_eq!(bits(found), bits(dx.iter().copied()));
            let mut found = vec![0.0; w.len()];
            let half = samples / 2;
            linear::weight_gradient(compute, &g, &x[..half * inputs], &dy[..half * outputs], half, &mut found);
            linear::weight_gradient(compute, &g, &x[half * inputs..], &dy[half * outputs..], samples - half, &mut found);
            assert_eq!(bits(found), bits(dw.iter().copied()));
        });
    }

    #[test]
    fn pools_equal_the_reference(
        seed in any::<u64>(), samples in 1usize..=3, channels in 1usize..=19, kernel in 1usize..=5, stride in 1usize..=4,
        pad in 0usize..=2, rows in 0usize..=6, columns in 0usize..=6, levels in 1u32..=4,
    ) {
        let pad = pad.min(kernel / 2);
        let (height, width) = (kernel + rows, kernel + columns);
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
            assert_eq!(bits(found), bits(to_memory(y.view())));
            assert_eq!(bits(pool::max_backward(compute, &g, &to_memory(dy.view()), &at)), bits(to_memory(max_dx.view())));
            assert_eq!(bits(pool::avg_forward(compute, &g, &to_memory(x.view()))), bits(to_memory(mean.view())));
            assert_eq!(bits(pool::avg_backward(compute, &g, &to_memory(dy.view()))), bits(to_memory(mean_dx.view())));
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
            assert_eq!(bits(found.clone()), bits(y.iter().copied()));
            let kept = lrn::Kept { x: &x, y: &found, s: &s };
            assert_eq!(bits(lrn::backward(compute, &g, kept, &dy, samples)), bits(dx.iter().copied()));
        });
    }

    #[test]
    fn updates_and_sums_equal_the_reference(seed in any::<u64>(), count in 1usize..=40, rows in 1usize..=9) {
        let rates = elementwise::Rates { learning: 0.1, momentum: 0.9, weight_decay: 5e-4 };
        let (g, v, w) = (values(seed, count), values(seed ^ 1, count), values(seed ^ 2, count));
        let expected: Vec<_> = (0..count).map(|i| reference::sgd(rates, g[i], v[i], w[i])).collect();
        let dy = Array2::from_shape_vec((rows, count), values(seed ^ 3, rows * count)).unwrap();
        let sums: Vec<f32> = dy.axis_iter(Axis(1)).map(|column| column.iter().fold(0.0, |sum, dy| sum + dy)).collect();
        for isa in Isa::available() {
            let (mut momentum, mut weights) = (v.clone(), w.clone());
            elementwise::sgd(isa, rates, &g, &mut momentum, &mut weights);
            assert_eq!(bits(momentum), bits(expected.iter().map(|e| e.0)));
            assert_eq!(bits(weights), bits(expected.iter().map(|e| e.1)));
            let mut found = vec![0.0; count];
            elementwise::add_rows(isa, dy.as_slice().unwrap(), &mut found);
            assert_eq!(bits(found), bits(sums.iter().copied()));
        }
    }
}

/// More terms than a block in every pass, more columns than a panel, and the shapes of a real layer.
#[test]
fn a_layer_larger_than_every_block_equals_the_reference() {
    let window = Window { kernel: 3, stride: 1, pad: 1, groups: 2 };
    check_conv(&ConvCase { seed: 9, samples: 8, group_channels: 33, group_filters: 35, height: 7, width: 5, window });
}

#[test]
fn a_nan_goes_through_relu_and_max_pooling() {
    std::thread::spawn(|| {
        for isa in Isa::available() {
            let compute = Compute::new(1, isa);
            let mut x = [f32::NAN, -1.0, -0.0, 2.0];
            elementwise::relu(isa, &mut x);
            assert!(x[0].is_nan() && bits(x[1..].to_vec()) == bits([0.0, 0.0, 2.0]));
            let Ok(compute) = compute else { continue };
            let input = Maps { samples: 1, height: 2, width: 2, channels: 1 };
            let g = pool::Geometry { input, out_height: 1, out_width: 1, kernel: 2, stride: 1, pad: 0 };
            for place in 0..4 {
                let mut x = [1.0, 5.0, 2.0, 3.0];
                x[place] = f32::NAN;
                assert!(pool::max_forward(&compute, &g, &x).0[0].is_nan(), "a NaN at {place}");
            }
        }
    })
    .join()
    .unwrap();
}

/// A chain that underflows to -0.0 ends as +0.0, and what is not finite is told.
#[test]
fn ends_of_chains_lose_the_sign_of_zero_and_tell_what_is_not_finite() {
    for isa in Isa::available() {
        let mut x = [f32::MIN_POSITIVE.mul_add(-f32::MIN_POSITIVE, 0.0), 1.0];
        assert_eq!(x[0].to_bits(), (-0.0f32).to_bits());
        assert!(elementwise::end_chains(isa, &mut x));
        assert_eq!(x[0].to_bits(), 0);
        assert!(!elementwise::end_chains(isa, &mut [1.0, f32::INFINITY]));
        assert!(!elementwise::add_bias(isa, &mut [1.0, f32::NAN], &[0.0, 0.0]));
        assert!(!elementwise::all_finite(isa, &[f32::NEG_INFINITY]));
    }
}

#[test]
fn dropout_keeps_its_share_and_depends_on_step_and_sample() {
    let dropout = elementwise::Dropout::new(1, "drop6", 3, 0.3, 1000);
    let kept = |sample: u64| (0..1000).filter(|unit| dropout.keeps(sample, *unit)).count();
    assert!((0..10).map(kept).sum::<usize>().abs_diff(7000) < 200);
    let other = elementwise::Dropout::new(1, "drop6", 4, 0.3, 1000);
    assert!((0..1000).any(|unit| dropout.keeps(0, unit) != other.keeps(0, unit)));
    assert!((0..1000).any(|unit| dropout.keeps(0, unit) != dropout.keeps(1, unit)));
}

/// Offsets that lead out of a slice are a panic, never a read.
#[test]
fn an_offset_out_of_bounds_is_refused() {
    for (rows, terms, columns) in [
        (vec![0, 9], vec![0, 1], 4),
        (vec![0], vec![0, 10], 4),
        (vec![0], vec![0, 1], 9),
        (vec![usize::MAX], vec![0, 1], 4),
    ] {
        for isa in Isa::available() {
            let (rows, terms) = (rows.clone(), terms.clone());
            let refused = std::thread::spawn(move || {
                let compute = Compute::new(1, isa).unwrap();
                let (a, b) = (vec![1.0; 10], vec![1.0; 8]);
                let mut c = vec![0.0; rows.len() * columns];
                let left = gemm::Left { data: &a, rows: &rows, terms: &terms };
                gemm::accumulate(
                    &compute,
                    left,
                    gemm::Right::natural(&b, columns, 4),
                    &mut c,
                    gemm::Target { stride: columns, first: 0 },
                );
            });
            let panic = refused.join().unwrap_err();
            let text = panic.downcast_ref::<&str>().copied().unwrap_or_default();
            assert!(text.contains("leads out of its slice"), "{text}");
        }
    }
}
