//! The images that a network takes, as a model file says it under `input`: their shape, what is done to pixels, and how an image becomes an
//! input.
//!
//! Not here: the arithmetic on pixels (the crate `dataset`).

use super::error::ModelError;
use super::shape::{LENGTH_MAX, Shape, check, check_elements};
use super::transforms::{Crop, Orient, ResizedCrop, Transforms};
use crate::fields::{FieldError, Fields, shown};
use crate::suggest;

const KEYS: [&str; 15] = [
    "channels",
    "height",
    "width",
    "mean",
    "std",
    "orient",
    "resize",
    "square",
    "crop",
    "pad",
    "scale",
    "ratio",
    "mirror",
    "colour_noise",
    "cutout",
];
/// The largest standard deviation of colour noise. The paper's is 0.1, and with more than 1 little is left of the image.
const COLOUR_NOISE_MAX: f64 = 1.0;
/// The least share of an image that a random resized crop may have. Smaller ones have hardly a pixel.
const SCALE_MIN: f64 = 1e-3;
/// The most that a random resized crop may be longer than wide, or wider than long.
const RATIO_MAX: f64 = 16.0;

/// The images that a network takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// Channels, height and width.
    pub shape: Shape,
    /// What is subtracted from a pixel between 0 and 1, for each channel.
    pub mean: Vec<f64>,
    /// What the difference is divided by, for each channel.
    pub std: Vec<f64>,
    /// How an image becomes an input.
    pub transforms: Transforms,
}

impl Input {
    /// Reads and checks the table of a model file.
    ///
    /// # Errors
    /// Names the key, its value, and what would be right.
    pub(crate) fn parse(mut fields: Fields) -> Result<Self, ModelError> {
        fields.check_keys(&KEYS)?;
        let shape = shape(&mut fields)?;
        let mean = of_each_channel(&mut fields, "mean", 0.0, shape)?;
        let std = of_each_channel(&mut fields, "std", 1.0, shape)?;
        check(std.iter().all(|s| *s > 0.0), "input", || format!("std = {std:?}; each must be finite and above 0"))?;
        let transforms = transforms(&mut fields, shape)?;
        Ok(Self { shape, mean, std, transforms })
    }
}

fn shape(fields: &mut Fields) -> Result<Shape, ModelError> {
    let mut length = |key| {
        let value = fields.required(key, Fields::count)?;
        check((1..=LENGTH_MAX).contains(&value), "input", || format!("{key} = {value}; must be 1 to {LENGTH_MAX}"))?;
        Ok::<_, ModelError>(value)
    };
    let shape = Shape { channels: length("channels")?, height: length("height")?, width: length("width")? };
    check_elements(shape, "input")?;
    Ok(shape)
}

fn of_each_channel(fields: &mut Fields, key: &str, otherwise: f64, shape: Shape) -> Result<Vec<f64>, ModelError> {
    let values = fields.numbers(key)?.unwrap_or_else(|| vec![otherwise; shape.channels]);
    check(values.len() == shape.channels, "input", || {
        let wanted = if shape.channels == 1 { "1 value".to_owned() } else { format!("{} values", shape.channels) };
        format!("{key} = {values:?}; must have {wanted}, one for each channel")
    })?;
    check(values.iter().all(|value| value.is_finite()), "input", || {
        format!("{key} = {values:?}; each must be finite")
    })?;
    Ok(values)
}

fn transforms(fields: &mut Fields, shape: Shape) -> Result<Transforms, ModelError> {
    let (longer, shorter) = (shape.height.max(shape.width), shape.height.min(shape.width));
    let resize = fields.count("resize")?;
    if let Some(resize) = resize {
        check((longer..=LENGTH_MAX).contains(&resize), "input", || {
            format!("resize = {resize}; must be {longer} to {LENGTH_MAX}, so that the image covers the input")
        })?;
    }
    let square = fields.flag("square")?.unwrap_or(false);
    check(!square || resize.is_some(), "input", || {
        "square = true; it needs resize, the side of the square".to_owned()
    })?;
    Ok(Transforms {
        orient: one_of(fields, "orient", &[("stored", Orient::Stored), ("exif", Orient::Exif)])?.unwrap_or_default(),
        resize,
        square,
        crop: crop(fields, shorter)?,
        mirror: fields.flag("mirror")?.unwrap_or(false),
        colour_noise: colour_noise(fields, shape)?,
        cutout: cutout(fields, longer)?,
    })
}

fn crop(fields: &mut Fields, shorter: usize) -> Result<Crop, ModelError> {
    let kinds = [
        ("centre", Crop::Centre),
        ("random", Crop::Random { pad: 0 }),
        ("random-resized", Crop::Resized(ResizedCrop::default())),
    ];
    let crop = one_of(fields, "crop", &kinds)?.unwrap_or_default();
    let pad = fields.count("pad")?;
    let (scale, ratio) = (range(fields, "scale", SCALE_MIN, 1.0)?, range(fields, "ratio", 1.0 / RATIO_MAX, RATIO_MAX)?);
    let is_resized = matches!(crop, Crop::Resized(_));
    for (key, values) in [("scale", scale), ("ratio", ratio)] {
        let reason = || format!("{key} = {:?}; only crop = \"random-resized\" has it", values.unwrap_or_default());
        check(values.is_none() || is_resized, "input", reason)?;
    }
    match (crop, pad) {
        (Crop::Random { .. }, pad) => {
            let pad = pad.unwrap_or(0);
            let reason = || format!("pad = {pad}; must be below {shorter}, the shorter side of the input");
            check(pad < shorter, "input", reason)?;
            Ok(Crop::Random { pad })
        }
        (_, Some(pad)) => Err(wrong(format!("pad = {pad}; only crop = \"random\" has a border"))),
        (Crop::Resized(usual), None) => {
            Ok(Crop::Resized(ResizedCrop { scale: scale.unwrap_or(usual.scale), ratio: ratio.unwrap_or(usual.ratio) }))
        }
        (Crop::Centre, None) => Ok(Crop::Centre),
    }
}

fn colour_noise(fields: &mut Fields, shape: Shape) -> Result<f64, ModelError> {
    let Some(noise) = fields.number("colour_noise")? else { return Ok(0.0) };
    let reason = || format!("colour_noise = {noise}; must be 0 to {COLOUR_NOISE_MAX}");
    check((0.0..=COLOUR_NOISE_MAX).contains(&noise), "input", reason)?;
    let reason = || format!("colour_noise = {noise}; needs 3 channels, and the input has {}", shape.channels);
    check(noise == 0.0 || shape.channels == 3, "input", reason)?;
    Ok(noise)
}

fn cutout(fields: &mut Fields, longer: usize) -> Result<Option<usize>, ModelError> {
    let side = fields.count("cutout")?;
    if let Some(side) = side {
        let reason = || format!("cutout = {side}; must be 1 to {longer}, the longer side of the input");
        check((1..=longer).contains(&side), "input", reason)?;
    }
    Ok(side)
}

/// One of several words.
fn one_of<T: Copy>(fields: &mut Fields, key: &str, words: &[(&str, T)]) -> Result<Option<T>, ModelError> {
    let Some(word) = fields.text(key)? else { return Ok(None) };
    if let Some((_, value)) = words.iter().find(|(known, _)| *known == word) {
        return Ok(Some(*value));
    }
    let known: Vec<&str> = words.iter().map(|(known, _)| *known).collect();
    Err(wrong(format!("unknown {key} {}{}", shown(&word.as_str().into()), suggest::hint(&word, &known))))
}

/// The least and the most of something.
fn range(fields: &mut Fields, key: &str, least: f64, most: f64) -> Result<Option<[f64; 2]>, ModelError> {
    let Some(values) = fields.numbers(key)? else { return Ok(None) };
    match values[..] {
        [from, to] if least <= from && from <= to && to <= most => Ok(Some([from, to])),
        _ => Err(wrong(format!(
            "{key} = {values:?}; must be two numbers, each from {least} to {most}, the smaller one first"
        ))),
    }
}

fn wrong(reason: String) -> ModelError {
    FieldError::Value { place: "input".to_owned(), reason }.into()
}
