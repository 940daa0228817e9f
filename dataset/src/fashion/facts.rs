//! What Fashion-MNIST is: its classes, the shape of its images, and how many there are.

use convoy_common::model::Shape;

/// Names of the classes, by label.
pub const CLASS_NAMES: [&str; 10] =
    ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"];

pub(crate) const SHAPE: Shape = Shape { channels: 1, height: 28, width: 28 };
pub(crate) const TRAIN_COUNT: usize = 60_000;
pub(crate) const TEST_COUNT: usize = 10_000;
