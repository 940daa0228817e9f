//! Masks: which inputs each output of a layer reads. The weights of the others are zero, and stay zero through training. With equal weights, a
//! layer with a mask of blocks equals a grouped layer, and a random mask has as few weights without any groups.
//!
//! Not here: applying a mask to gradients (the worker's towers).

use std::ops::Range;

use crate::random::Source;

/// Which inputs each output of a layer reads: a share of one in `groups`. Inputs are channels, and those of a linear layer are units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// Outputs and inputs are divided into groups, and each output reads the inputs of its own group, as in a grouped convolution.
    Blocks {
        /// The number of groups.
        groups: usize,
    },
    /// Each output reads inputs that are chosen at random, by the job's seed.
    Random {
        /// One in how many inputs is read.
        groups: usize,
    },
}

impl Mask {
    /// The kinds, as in a model file.
    pub const KINDS: [&str; 2] = ["blocks", "random"];

    /// One in how many inputs each output reads.
    pub fn groups(&self) -> usize {
        let (Mask::Blocks { groups } | Mask::Random { groups }) = self;
        *groups
    }

    /// Whether the weight between each output of `rows` and each input is kept, in the order (output, input). `layer` is the layer's name,
    /// `outputs` the number of its outputs, and `seed` the job's.
    pub fn kept(&self, seed: u64, layer: &str, rows: Range<usize>, [outputs, inputs]: [usize; 2]) -> Vec<bool> {
        let each = inputs / self.groups();
        match self {
            Mask::Blocks { groups } => {
                let is_in_group = |output: usize, input: usize| output / (outputs / groups) == input / each;
                rows.flat_map(|output| (0..inputs).map(move |input| is_in_group(output, input))).collect()
            }
            Mask::Random { .. } => {
                let source = Source::new(seed, &format!("mask:{layer}"));
                let mut kept = vec![false; rows.len() * inputs];
                for (output, row) in rows.zip(kept.chunks_mut(inputs)) {
                    let lot = |input: usize| (source.word((output * inputs + input) as u64), input);
                    let mut lots: Vec<(u32, usize)> = (0..inputs).map(lot).collect();
                    lots.sort_unstable();
                    lots[..each].iter().for_each(|(_, input)| row[*input] = true);
                }
                kept
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_the_weights_of_a_grouped_layer() {
        let kept = Mask::Blocks { groups: 2 }.kept(1, "conv2", 0..4, [4, 6]);
        let text: String = kept.iter().map(|kept| if *kept { '1' } else { '0' }).collect();
        assert_eq!(text, "111000111000000111000111");
    }

    #[test]
    fn a_random_mask_keeps_the_same_number_of_inputs_of_each_output_and_depends_on_seed_and_layer() {
        let mask = Mask::Random { groups: 2 };
        let kept = mask.kept(1, "conv2", 0..64, [64, 32]);
        assert!(kept.chunks(32).all(|row| row.iter().filter(|kept| **kept).count() == 16));
        assert_eq!(kept, mask.kept(1, "conv2", 0..64, [64, 32]));
        assert_ne!(kept, mask.kept(2, "conv2", 0..64, [64, 32]));
        assert_ne!(kept, mask.kept(1, "conv3", 0..64, [64, 32]));
        assert_eq!(kept[32 * 10..32 * 20], mask.kept(1, "conv2", 10..20, [64, 32]));
        // Outputs of the same half read inputs of both halves.
        assert!(kept[..32].iter().take(16).any(|kept| *kept) && kept[..32].iter().skip(16).any(|kept| *kept));
    }
}
