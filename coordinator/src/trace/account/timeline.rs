//! What a worker's compute thread did in a step, span after span.

use std::collections::BTreeMap;

use convoy_common::index::SegmentIndex;
use convoy_common::trace::{Activity, SegmentRun, Span};
use convoy_common::wire::Direction;

use super::figures::Use;
use crate::trace::file::is_transfer;

/// What a worker's compute thread did in a step, in order.
pub(super) struct Timeline<'a> {
    pub(super) start: u64,
    /// All spans but layers, in order.
    pub(super) main: Vec<&'a Span>,
    /// Layers, in order.
    layers: Vec<&'a Span>,
}

impl<'a> Timeline<'a> {
    /// From the end of the previous step or, after a measurement or a checkpoint, from when the coordinator began the step.
    /// None unless the step was committed.
    pub(super) fn of(spans: &'a [Span], began: u64) -> Option<Self> {
        let is_layer = |span: &&Span| matches!(span.activity, Activity::Layer { .. });
        let of_thread = spans.iter().filter(|span| !is_transfer(&span.activity));
        let (mut layers, main): (Vec<_>, Vec<_>) = of_thread.partition(is_layer);
        let mut main: Vec<_> = main.into_iter().filter(|span| span.end > began).collect();
        main.sort_by_key(|span| (span.start, span.end));
        layers.sort_by_key(|span| span.start);
        main.iter().find(|span| matches!(span.activity, Activity::Commit { .. }))?;
        let start = main.first()?.start.max(began);
        Some(Self { start, main, layers })
    }

    /// The layers of a segment.
    pub(super) fn within(&self, segment: &Span) -> impl Iterator<Item = &'a Span> {
        let first = self.layers.partition_point(|layer| layer.start < segment.start);
        let end = segment.end;
        self.layers[first..].iter().copied().take_while(move |layer| layer.end <= end)
    }

    pub(super) fn segments(&self) -> BTreeMap<(SegmentIndex, bool), u64> {
        let mut segments = BTreeMap::new();
        for span in &self.main {
            if let Activity::Segment(SegmentRun { segment, direction, .. }) = span.activity {
                *segments.entry((segment, direction == Direction::Backward)).or_default() += span.length();
            }
        }
        segments
    }
}

pub(super) fn layer_use(span: &Span) -> Option<(Use, u64)> {
    match span.activity {
        Activity::Layer { layer, direction } => {
            Some((Use::Layer { layer, backward: direction == Direction::Backward }, span.length()))
        }
        _ => None,
    }
}

pub(super) fn plain_use(activity: &Activity) -> Use {
    match activity {
        Activity::Take(_) => Use::Taking,
        Activity::HandOut => Use::HandingOut,
        Activity::Commit { .. } => Use::Committing,
        Activity::ReadState => Use::ReadingState,
        _ => Use::Unexplained,
    }
}
