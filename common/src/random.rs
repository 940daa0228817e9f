//! Random numbers as a pure function of (seed, purpose, index): Philox4x32-10, a counter-based generator (Salmon et al.,
//! "Parallel random numbers: as easy as 1, 2, 3", SC11). docs/NUMERICS.md fixes every formula.
//!
//! Not here: a stream of numbers that is advanced. Nothing in this file has state.

const ROUNDS: usize = 10;
const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// The four words of `block` for `purpose`.
pub fn words(seed: u64, purpose: &str, block: u64) -> [u32; 4] {
    Source::new(seed, purpose).words(block)
}

/// The random numbers of one seed and purpose, with the purpose already hashed.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    seed: u64,
    purpose_hash: u64,
}

impl Source {
    /// The source for `purpose` under `seed`.
    pub fn new(seed: u64, purpose: &str) -> Self {
        Self { seed, purpose_hash: fnv1a(purpose.as_bytes()) }
    }

    /// The four words of `block`.
    pub fn words(&self, block: u64) -> [u32; 4] {
        let [block_low, block_high] = halves(block);
        let [hash_low, hash_high] = halves(self.purpose_hash);
        philox([block_low, block_high, hash_low, hash_high], halves(self.seed))
    }

    /// Word `index`. A block has four.
    pub fn word(&self, index: u64) -> u32 {
        self.words(index / 4)[(index % 4) as usize]
    }

    /// Standard normal number `index`, in f64, by the transform of Box and Muller.
    pub fn normal(&self, index: u64) -> f64 {
        let w = self.words(index / 2);
        let unit = 1.0 / (1u64 << 53) as f64;
        let u = ((join(w[0], w[1]) >> 11) + 1) as f64 * unit;
        let v = (join(w[2], w[3]) >> 11) as f64 * unit;
        let radius = libm::sqrt(-2.0 * libm::log(u));
        let angle = std::f64::consts::TAU * v;
        if index.is_multiple_of(2) { radius * libm::cos(angle) } else { radius * libm::sin(angle) }
    }
}

/// The order in which an epoch visits `count` images: a Fisher-Yates shuffle.
pub fn permutation(seed: u64, purpose: &str, count: usize) -> Vec<u32> {
    let source = Source::new(seed, purpose);
    let count = u32::try_from(count).expect("a data set has fewer than 2^32 images");
    let mut order: Vec<u32> = (0..count).collect();
    for i in (1..order.len()).rev() {
        let w = source.words(i as u64);
        let scaled = u128::from(join(w[0], w[1])) * (i as u128 + 1);
        order.swap(i, (scaled >> 64) as usize);
    }
    order
}

fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..ROUNDS {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let [low0, high0] = halves(u64::from(MULTIPLIERS[0]) * u64::from(counter[0]));
        let [low1, high1] = halves(u64::from(MULTIPLIERS[1]) * u64::from(counter[2]));
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0];
    }
    counter
}

fn halves(x: u64) -> [u32; 2] {
    [x as u32, (x >> 32) as u32]
}

fn join(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

/// FNV-1a, 64 bits (RFC 9923). NUMERICS.md fixes it, so it can't be a hasher that a library may change.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers of Random123's own test suite.
    #[test]
    fn philox_gives_the_published_answers() {
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox(counter, key), expected);
        }
    }

    #[test]
    fn fnv1a_gives_the_published_answers() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn a_permutation_holds_each_index_once_and_depends_on_seed_and_purpose() {
        let order = permutation(1, "shuffle:1", 1000);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert!(sorted.iter().enumerate().all(|(i, x)| i == *x as usize));
        assert_ne!(order, permutation(2, "shuffle:1", 1000));
        assert_ne!(order, permutation(1, "shuffle:2", 1000));
    }

    #[test]
    fn normal_numbers_have_mean_0_and_deviation_1() {
        let source = Source::new(3, "init:x");
        let n = 100_000;
        let (sum, squares) = (0..n).map(|i| source.normal(i)).fold((0.0, 0.0), |(s, q), x| (s + x, q + x * x));
        assert!((sum / n as f64).abs() < 0.02, "mean {}", sum / n as f64);
        assert!((squares / n as f64 - 1.0).abs() < 0.02, "variance {}", squares / n as f64);
    }
}
