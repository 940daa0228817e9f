//! Keys of a TOML file, read one by one, so that each error names the place, the key, the value, and what would be right.
//!
//! Not here: which keys a file has (models, and the files of studies).

use toml::{Table, Value};

use crate::suggest;
use crate::text::printable;

/// What is wrong with a key or its value.
#[derive(Debug, thiserror::Error, PartialEq)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum FieldError {
    /// The text isn't TOML.
    #[error("{place} is not valid TOML: {reason}")]
    Syntax { place: String, reason: String },
    /// An unknown key.
    #[error("{place}: unknown key {key}{hint}")]
    UnknownKey { place: String, key: String, hint: String },
    /// An invalid value.
    #[error("{place}: {reason}")]
    Value { place: String, reason: String },
}

/// The keys of one table, and what errors call the table. Reading a key removes it.
pub struct Fields {
    table: Table,
    place: String,
}

impl Fields {
    /// Reads the text of a file. Errors call it `place`.
    ///
    /// # Errors
    /// When it isn't TOML.
    pub fn parse(text: &str, place: &str) -> Result<Self, FieldError> {
        let wrong = |error| FieldError::Syntax { place: format!("{place} file"), reason: syntax(&error) };
        Ok(Self::new(text.parse().map_err(wrong)?, place.to_owned()))
    }

    /// The keys of a table that errors call `place`.
    pub fn new(table: Table, place: String) -> Self {
        Self { table, place }
    }

    /// What errors call the table.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Checks that the table has no key beside the known ones.
    ///
    /// # Errors
    /// Names the key, and a known one that is similar.
    pub fn check_keys(&self, known: &[&str]) -> Result<(), FieldError> {
        match self.table.keys().find(|key| !known.contains(&key.as_str())) {
            None => Ok(()),
            Some(key) => Err(FieldError::UnknownKey {
                place: self.place.clone(),
                key: shown(&key.as_str().into()),
                hint: suggest::hint(key, known),
            }),
        }
    }

    /// A key that must be there.
    ///
    /// # Errors
    /// Names the key, its value, and what would be right.
    pub fn required<T>(
        &mut self,
        key: &str,
        read: impl FnOnce(&mut Self, &str) -> Result<Option<T>, FieldError>,
    ) -> Result<T, FieldError> {
        let value = read(self, key)?;
        let missing = || format!("the key \"{key}\" is missing");
        value.ok_or_else(|| FieldError::Value { place: self.place.clone(), reason: missing() })
    }

    /// A whole number.
    ///
    /// # Errors
    /// Names the key, its value, and what would be right.
    pub fn count(&mut self, key: &str) -> Result<Option<usize>, FieldError> {
        let count = |value: &Value| usize::try_from(value.as_integer()?).ok();
        let expected = match key {
            "pad" => "a whole number, at least 0, for rows and columns alike",
            "kernel" | "stride" => "a whole number, at least 1, for rows and columns alike",
            _ => "a whole number, at least 1",
        };
        self.read(key, expected, count)
    }

    /// A number in the range of f32.
    ///
    /// # Errors
    /// Names the key, its value, and what would be right.
    pub fn number(&mut self, key: &str) -> Result<Option<f64>, FieldError> {
        self.read(key, "a number in the range of f32", as_number)
    }

    /// A list of numbers in the range of f32.
    ///
    /// # Errors
    /// Names the key, its value, and what would be right.
    pub fn numbers(&mut self, key: &str) -> Result<Option<Vec<f64>>, FieldError> {
        let numbers = |value: &Value| value.as_array()?.iter().map(as_number).collect();
        self.read(key, "a list of numbers in the range of f32, one for each channel", numbers)
    }

    /// True or false.
    ///
    /// # Errors
    /// Names the key, its value, and what would be right.
    pub fn flag(&mut self, key: &str) -> Result<Option<bool>, FieldError> {
        self.read(key, "true or false", Value::as_bool)
    }

    /// Text.
    ///
    /// # Errors
    /// Names the key, its value, and what would be right.
    pub fn text(&mut self, key: &str) -> Result<Option<String>, FieldError> {
        self.read(key, "text in quotes", |value| value.as_str().map(str::to_owned))
    }

    /// A list of texts, which `expected` describes.
    ///
    /// # Errors
    /// Names the key, its value, and what would be right.
    pub fn texts(&mut self, key: &str, expected: &str) -> Result<Option<Vec<String>>, FieldError> {
        let texts = |value: &Value| value.as_array()?.iter().map(|text| text.as_str().map(str::to_owned)).collect();
        self.read(key, expected, texts)
    }

    /// A table.
    ///
    /// # Errors
    /// Names the key, its value, and what would be right.
    pub fn table(&mut self, key: &str) -> Result<Option<Fields>, FieldError> {
        let table = self.read(key, "a table", |value| value.as_table().cloned())?;
        let is_whole = self.place.starts_with("the ");
        let place = if is_whole { key.to_owned() } else { format!("{}, {key}", self.place) };
        Ok(table.map(|table| Fields { table, place }))
    }

    /// A value of any kind, which `expected` describes.
    ///
    /// # Errors
    /// Names the key, its value, and what would be right.
    pub fn read<T>(
        &mut self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, FieldError> {
        let Some(value) = self.table.remove(key) else { return Ok(None) };
        read(&value).map(Some).ok_or_else(|| self.wrong(key, &value, expected))
    }

    /// A list.
    ///
    /// # Errors
    /// Names the key, its value, and what would be right.
    pub fn list(&mut self, key: &str, expected: &str) -> Result<Option<Vec<Value>>, FieldError> {
        self.read(key, expected, |value| value.as_array().cloned())
    }

    /// The error of a key with a wrong value.
    pub fn wrong(&self, key: &str, value: &Value, expected: &str) -> FieldError {
        let reason = format!("{key} = {}; must be {expected}", shown(value));
        FieldError::Value { place: self.place.clone(), reason }
    }
}

/// A number, which becomes an f32 in training.
fn as_number(value: &Value) -> Option<f64> {
    let number = value.as_float().or_else(|| value.as_integer().map(|whole| whole as f64))?;
    let is_in_range = number == 0.0 || (f64::from(f32::MIN_POSITIVE)..=f64::from(f32::MAX)).contains(&number.abs());
    (is_in_range || !number.is_finite()).then_some(number)
}

/// A value as TOML writes it, cut where it is long.
pub fn shown(value: &Value) -> String {
    const CHARACTERS_MAX: usize = 60;
    // TOML escapes the control characters of ASCII alone.
    let text = match value {
        Value::Table(_) => "{ ... }".to_owned(),
        other => printable(&other.to_string()),
    };
    match text.char_indices().nth(CHARACTERS_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// What the TOML parser says of an integer that is out of range. Most of these texts name a Rust type.
const TOO_LARGE: [&str; 4] = ["u64 value was too large", "as i128", "as u128", "integer number overflowed"];

/// An error of the TOML parser, in words. It shows a line of the file.
fn syntax(error: &toml::de::Error) -> String {
    let (mut text, message) = (error.to_string(), error.message());
    if TOO_LARGE.iter().any(|part| message.contains(part)) {
        text = text.replace(message, "the integer is out of range; must be from -2^63 to 2^63 - 1");
    }
    text.lines().map(printable).collect::<Vec<_>>().join("\n")
}
