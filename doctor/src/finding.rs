//! A finding: what was looked at, what was found, and what to do about it.
//!
//! Not here: the checks (the other files), and printing (the program).

use serde::Serialize;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// A job runs, but slower, or only under some conditions.
    Warning,
    /// A job fails.
    Wrong,
}

/// What a check has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub verdict: Verdict,
    /// What was looked at, such as "memory".
    pub subject: String,
    /// What was found.
    pub found: String,
    /// What to do, unless all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    /// All is well.
    pub fn ok(subject: impl Into<String>, found: impl Into<String>) -> Self {
        Self { verdict: Verdict::Ok, subject: subject.into(), found: found.into(), advice: None }
    }

    /// A job runs, but not as well as it could.
    pub fn warning(subject: impl Into<String>, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warning, advice: Some(advice.into()), ..Self::ok(subject, found) }
    }

    /// A job fails.
    pub fn wrong(subject: impl Into<String>, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { verdict: Verdict::Wrong, advice: Some(advice.into()), ..Self::ok(subject, found) }
    }
}
