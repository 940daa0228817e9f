//! The weights of a grouped model as weights of the same model without groups: blocks, and zeros between them.

use convoy_common::model::{LayerKind, Network};
use convoy_common::parameters::Tensors;
use ndarray::{ArrayD, Axis, IxDyn, Slice};

/// The layers in which two models differ, with the number of groups. The second one must have no groups there, and otherwise be equal.
///
/// # Errors
/// Says what else differs.
pub(super) fn differing(grouped: &Network, dense: &Network) -> Result<Vec<(String, usize)>, String> {
    if (grouped.input.shape, grouped.layers.len()) != (dense.input.shape, dense.layers.len()) {
        return Err("they take other images, or have other numbers of layers".to_owned());
    }
    if grouped.towers != dense.towers || grouped.slices != dense.slices {
        return Err("they have other numbers of towers, or of slices of the head".to_owned());
    }
    let mut found = Vec::new();
    for (ours, theirs) in grouped.layers.iter().zip(&dense.layers) {
        if ours.name != theirs.name {
            return Err(format!("a layer is named \"{}\" in one and \"{}\" in the other", ours.name, theirs.name));
        }
        match (&ours.kind, &theirs.kind) {
            (LayerKind::Conv(a), LayerKind::Conv(b)) if a.groups > 1 && b.groups == 1 => {
                let alike =
                    (a.filters, a.kernel, a.stride, a.pad, a.bias) == (b.filters, b.kernel, b.stride, b.pad, b.bias);
                if !alike || a.mask.is_some() || b.mask.is_some() {
                    return Err(format!("layer \"{}\" differs in more than its groups", ours.name));
                }
                found.push((ours.name.clone(), a.groups));
            }
            _ if ours.kind == theirs.kind && ours.mask().is_none() => {}
            _ => return Err(format!("layer \"{}\" differs in more than its groups", ours.name)),
        }
    }
    if found.is_empty() {
        return Err("no layer has groups in the first and none in the second".to_owned());
    }
    Ok(found)
}

/// The weights of the grouped model in the shapes of the other one.
pub(super) fn embedded(grouped: &Tensors, layers: &[(String, usize)]) -> Tensors {
    let mut tensors = grouped.clone();
    for (name, groups) in layers {
        if let Some(tensor) = tensors.get_mut(&format!("{name}.weight")) {
            *tensor = spread(tensor, *groups);
        }
    }
    tensors
}

/// A tensor (output, input of its group, row, column) with zeros for the inputs of other groups.
fn spread(tensor: &ArrayD<f32>, groups: usize) -> ArrayD<f32> {
    let shape = tensor.shape();
    let (outputs, seen) = (shape[0], shape[1]);
    let mut whole = ArrayD::zeros(IxDyn(&[&[outputs, seen * groups], &shape[2..]].concat()));
    for group in 0..groups {
        let (rows, columns) = block(outputs, seen, groups, group);
        let mut part = whole.slice_axis_mut(Axis(0), rows);
        part.slice_axis_mut(Axis(1), columns).assign(&tensor.slice_axis(Axis(0), rows));
    }
    whole
}

/// The values of a tensor without groups within the blocks of `groups` groups, and outside of them.
pub(super) fn parted(tensor: &ArrayD<f32>, groups: usize) -> (Vec<f32>, Vec<f32>) {
    let shape = tensor.shape();
    let (outputs, inputs, places) = (shape[0], shape[1], shape[2..].iter().product::<usize>());
    let (mut within, mut outside) = (Vec::new(), Vec::new());
    for (index, value) in tensor.iter().enumerate() {
        let (output, input) = (index / places / inputs, index / places % inputs);
        let is_within = output * groups / outputs == input * groups / inputs;
        if is_within { within.push(*value) } else { outside.push(*value) }
    }
    (within, outside)
}

fn block(outputs: usize, seen: usize, groups: usize, group: usize) -> (Slice, Slice) {
    let each = outputs / groups;
    (Slice::from(group * each..(group + 1) * each), Slice::from(group * seen..(group + 1) * seen))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_hold_the_grouped_weights_and_everything_else_is_zero() {
        let grouped = ArrayD::from_shape_vec(IxDyn(&[4, 1, 1, 1]), vec![1.0, 2.0, 3.0, 4.0]).unwrap();
        let whole = spread(&grouped, 2);
        assert_eq!(whole.shape(), [4, 2, 1, 1]);
        assert_eq!(whole.iter().copied().collect::<Vec<_>>(), [1.0, 0.0, 2.0, 0.0, 0.0, 3.0, 0.0, 4.0]);
        assert_eq!(parted(&whole, 2), (vec![1.0, 2.0, 3.0, 4.0], vec![0.0; 4]));
    }
}
