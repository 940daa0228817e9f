//! What a network gets right and wrong: accuracy by class, the confusion matrix, and whether the right class is among the first five.

use std::collections::BTreeMap;

use serde::Serialize;

/// The number of classes among which the right one may be for the second accuracy.
pub const TOP: usize = 5;

/// The results of a network on a set of images.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Classes {
    /// What the images are and where they come from.
    pub origin: String,
    /// Number of classes.
    pub classes: usize,
    /// Their names. Empty if they have none.
    pub names: Vec<String>,
    /// Number of images.
    pub images: usize,
    /// Images that were classified correctly.
    pub correct: usize,
    /// Images whose class is among the five with the highest logits.
    pub in_top: usize,
    /// Mean loss.
    pub loss: f64,
    /// How many images of a class were classified as a class, where there are any: (class, predicted, count), in order.
    pub confusion: Vec<(u16, u16, u32)>,
    /// SHA-256 over the images and their labels.
    pub images_sha256: String,
    /// Which images were classified correctly.
    #[serde(skip)]
    pub right: Vec<bool>,
}

impl Classes {
    /// From the labels of images, their predicted classes, and their logits: (image, class).
    pub fn new(labels: &[u16], predicted: &[u16], logits: &[f32], loss: f64) -> Self {
        let classes = logits.len() / labels.len().max(1);
        let mut confusion = BTreeMap::new();
        let mut right = Vec::with_capacity(labels.len());
        let mut in_top = 0;
        for (image, (label, predicted)) in labels.iter().zip(predicted).enumerate() {
            *confusion.entry((*label, *predicted)).or_insert(0) += 1;
            let label = usize::from(*label);
            let predicted = usize::from(*predicted);
            right.push(label == predicted);
            let logits = &logits[image * classes..][..classes];
            // As in training, the first one of equal logits counts as the higher one.
            let before = |class: usize, value: f32| value > logits[label] || (value == logits[label] && class < label);
            let higher = logits.iter().enumerate().filter(|(class, value)| before(*class, **value)).count();
            in_top += usize::from(higher < TOP);
        }
        let correct = right.iter().filter(|right| **right).count();
        let confusion = confusion.into_iter().map(|((label, predicted), count)| (label, predicted, count)).collect();
        Self {
            classes,
            images: labels.len(),
            correct,
            in_top,
            loss,
            confusion,
            right,
            names: Vec::new(),
            origin: String::new(),
            images_sha256: String::new(),
        }
    }

    /// The same, with what the images are: their origin for people, the names of their classes, and their SHA-256.
    pub fn of_images(self, origin: String, names: Vec<String>, images_sha256: String) -> Self {
        Self { origin, names, images_sha256, ..self }
    }

    /// The name of a class, or its number if it has none.
    pub fn name(&self, class: usize) -> String {
        self.names.get(class).cloned().unwrap_or_else(|| class.to_string())
    }

    /// The share of images that were classified correctly.
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.images.max(1) as f64
    }

    /// The share of images whose class is among the five with the highest logits.
    pub fn top_accuracy(&self) -> f64 {
        self.in_top as f64 / self.images.max(1) as f64
    }

    /// How many images of class `label` were classified as `predicted`.
    pub fn count(&self, label: usize, predicted: usize) -> u32 {
        let found =
            self.confusion.iter().find(|(of, taken, _)| (usize::from(*of), usize::from(*taken)) == (label, predicted));
        found.map_or(0, |(.., count)| *count)
    }

    /// The number of images of a class.
    pub fn images_of(&self, label: usize) -> u32 {
        self.confusion.iter().filter(|(of, ..)| usize::from(*of) == label).map(|(.., count)| count).sum()
    }

    /// The share of a class's images that were classified correctly. None if there are none.
    pub fn accuracy_of(&self, label: usize) -> Option<f64> {
        let images = self.images_of(label);
        (images > 0).then(|| f64::from(self.count(label, label)) / f64::from(images))
    }

    /// The most frequent confusions: the class, what it was taken for, and how often; at most `most` of them.
    pub fn confusions(&self, most: usize) -> Vec<(u16, u16, u32)> {
        let mut wrong: Vec<_> = self.confusion.iter().copied().filter(|(label, taken, _)| label != taken).collect();
        wrong.sort_by_key(|(.., count)| std::cmp::Reverse(*count));
        wrong.truncate(most);
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_counted_by_class_and_by_place() {
        // Seven classes. Logits fall with the distance from a class.
        let near = |class: i32| (0..7).map(move |other: i32| -(other - class).abs() as f32);
        let logits: Vec<f32> = [0, 1, 6].into_iter().flat_map(near).collect();
        let found = Classes::new(&[0, 0, 0], &[0, 1, 6], &logits, 0.5);
        assert_eq!((found.images, found.correct, found.in_top), (3, 1, 2));
        assert_eq!((found.count(0, 1), found.count(0, 6), found.images_of(0), found.images_of(3)), (1, 1, 3, 0));
        assert_eq!((found.accuracy_of(0), found.accuracy_of(3)), (Some(1.0 / 3.0), None));
        assert_eq!(found.confusions(9), [(0, 1, 1), (0, 6, 1)]);
        assert_eq!(found.name(1), "1");
        let names = ["cat", "dog"].map(str::to_owned).to_vec();
        assert_eq!(found.of_images(String::new(), names, String::new()).name(1), "dog");
        // Of equal logits, the first ones come first.
        let equal = Classes::new(&[4, 5], &[0, 0], &[1.0; 14], 0.0);
        assert_eq!(equal.in_top, 1);
    }
}
