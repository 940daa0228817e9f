//! "Random numbers" of docs/NUMERICS.md.

use super::model::Mask;

pub(crate) fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
        }
        let first = u64::from(counter[0]) * 0xD251_1F53;
        let second = u64::from(counter[2]) * 0xCD9E_8D57;
        let high = |product: u64| (product >> 32) as u32;
        counter = [high(second) ^ counter[1] ^ key[0], second as u32, high(first) ^ counter[3] ^ key[1], first as u32];
    }
    counter
}

pub(crate) fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
}

fn words(seed: u64, purpose: &str, block: u64) -> [u32; 4] {
    let hash = fnv1a(purpose);
    philox([block as u32, (block >> 32) as u32, hash as u32, (hash >> 32) as u32], [seed as u32, (seed >> 32) as u32])
}

fn joined(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

pub(crate) fn normal(seed: u64, purpose: &str, index: usize) -> f64 {
    let w = words(seed, purpose, index as u64 / 2);
    let unit = 1.0 / (1_u64 << 53) as f64;
    let u = ((joined(w[0], w[1]) >> 11) + 1) as f64 * unit;
    let v = (joined(w[2], w[3]) >> 11) as f64 * unit;
    let r = libm::sqrt(-2.0 * libm::log(u));
    let angle = std::f64::consts::TAU * v;
    r * if index.is_multiple_of(2) { libm::cos(angle) } else { libm::sin(angle) }
}

/// A shuffle of `n` items for a purpose.
pub(crate) fn shuffled(seed: u64, purpose: &str, n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        let w = words(seed, purpose, i as u64);
        let j = (u128::from(joined(w[0], w[1])) * (i as u128 + 1)) >> 64;
        order.swap(i, j as usize);
    }
    order
}

/// Whether the weight between an output and an input is kept, in the order (output, input).
pub(crate) fn mask(mask: Mask, seed: u64, layer: &str, outputs: usize, inputs: usize) -> Vec<bool> {
    let read = inputs / mask.groups;
    let mut kept = Vec::new();
    for output in 0..outputs {
        let lot = |input: usize| {
            let index = (output * inputs + input) as u64;
            (words(seed, &format!("mask:{layer}"), index / 4)[(index % 4) as usize], input)
        };
        for input in 0..inputs {
            kept.push(match mask.kind {
                "blocks" => output * mask.groups / outputs == input * mask.groups / inputs,
                _ => (0..inputs).filter(|&other| lot(other) < lot(input)).count() < read,
            });
        }
    }
    kept
}

/// Where a sample stands, which is what its dropout masks depend on. In evaluation there is no such place.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) seed: u64,
    pub(crate) step: usize,
    pub(crate) position: usize,
}

/// Dropout, forward and backward alike.
pub(crate) fn dropout(name: &str, p: f64, place: Place, values: &[f32]) -> Vec<f32> {
    let purpose = format!("dropout:{name}:{}", place.step);
    let threshold = (p * 4_294_967_296.0) as u64;
    let scale = (1.0 / (1.0 - p)) as f32;
    let kept = |unit: usize| {
        let index = place.position * values.len() + unit;
        u64::from(words(place.seed, &purpose, index as u64 / 4)[index % 4]) >= threshold
    };
    (0..values.len()).map(|unit| if kept(unit) { values[unit] * scale } else { 0.0 }).collect()
}
