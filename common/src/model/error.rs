//! What is wrong with a model file, in words that name the place and what would be right.

/// What is wrong with a model file.
#[derive(Debug, thiserror::Error, PartialEq)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum ModelError {
    /// The text isn't TOML.
    #[error("the model file is not valid TOML: {0}")]
    Syntax(String),
    /// An unknown key.
    #[error("{place}: unknown key {key}{hint}")]
    UnknownKey { place: String, key: String, hint: String },
    /// A layer of an unknown kind.
    #[error("{place}: unknown layer kind {kind}{hint}")]
    UnknownKind { place: String, kind: String, hint: String },
    /// An invalid value.
    #[error("{place}: {reason}")]
    Value { place: String, reason: String },
    /// There are no layers.
    #[error("the model has no [[layer]] tables; it needs at least one linear layer with a unit for each class")]
    NoLayers,
}
