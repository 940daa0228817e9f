//! What is wrong with a model file, in words that name the place and what would be right.

use crate::fields::FieldError;

/// What is wrong with a model file.
#[derive(Debug, thiserror::Error, PartialEq)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum ModelError {
    /// A key or its value.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// A layer of an unknown kind.
    #[error("{place}: unknown layer kind {kind}{hint}")]
    UnknownKind { place: String, kind: String, hint: String },
    /// There are no layers.
    #[error("the model has no [[layer]] tables; it needs at least one linear layer with a unit for each class")]
    NoLayers,
}
