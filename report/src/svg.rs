//! Pictures as inline SVG: scales, ticks, and the marks of charts. Every text has a place of its own, so texts don't overlap. Series
//! differ in colour and in shape, so the pictures can be read without colours.
//!
//! Not here: which charts a report has.

use std::fmt::Write;

/// Colours that people with a colour vision deficiency can tell apart (Okabe and Ito 2008; the last one: Tol 2021, muted). Their yellow is too
/// pale on white.
const COLOURS: [&str; 8] = ["#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#882255"];

/// Number of shapes of marks.
const SHAPES: usize = 4;

/// Larger values are drawn as this one.
const LARGEST: f64 = 1e300;
/// Smaller differences are none.
const SMALLEST: f64 = 1e-300;

/// A linear scale from values to pixels.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    values: (f64, f64),
    pixels: (f64, f64),
    /// Distance between ticks.
    step: f64,
}

impl Scale {
    /// A scale that shows all `values`, with about `ticks` ticks, and ends at ticks.
    pub fn around(values: impl IntoIterator<Item = f64>, pixels: (f64, f64), ticks: f64) -> Self {
        let finite = values.into_iter().filter(|value| value.is_finite()).map(|value| value.clamp(-LARGEST, LARGEST));
        let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        // Rounding may make equal values differ, and ticks need normal numbers.
        let is_a_range = high - low > (1e-9 * low.abs().max(high.abs())).max(SMALLEST);
        let (low, high) = match (low.is_finite(), is_a_range) {
            (true, true) => (low, high),
            // A single value has room on one side.
            (true, false) if low.abs() < SMALLEST => (0.0, 1.0),
            (true, false) => (low.min(0.0), low.max(0.0)),
            (false, _) => (0.0, 1.0),
        };
        let rough = (high - low) / ticks;
        let power = libm::pow(10.0, libm::floor(libm::log10(rough)));
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|step| *step >= rough).unwrap_or(power);
        let values = (libm::floor(low / step) * step, libm::ceil(high / step) * step);
        Self { values, pixels, step }
    }

    /// The pixel of a value. That of a larger or smaller one than the scale shows is at its end.
    pub fn at(&self, value: f64) -> f64 {
        let value = value.clamp(self.values.0, self.values.1);
        let share = (value - self.values.0) / (self.values.1 - self.values.0);
        self.pixels.0 + share * (self.pixels.1 - self.pixels.0)
    }

    /// The values of ticks, and their texts.
    pub fn ticks(&self) -> Vec<(f64, String)> {
        let count = libm::round((self.values.1 - self.values.0) / self.step) as usize;
        let value = |index: usize| self.values.0 + self.step * index as f64;
        let largest = self.values.0.abs().max(self.values.1.abs());
        if !(1e-3..1e6).contains(&largest) {
            return (0..=count).map(|index| (value(index), format!("{:.1e}", value(index) + 0.0))).collect();
        }
        let digits = (0..6).find(|digits| {
            let scaled = self.step * libm::pow(10.0, f64::from(*digits));
            (scaled - libm::round(scaled)).abs() < 1e-6
        });
        let digits = digits.unwrap_or(6) as usize;
        // A zero has no sign.
        (0..=count).map(|index| (value(index), format!("{:.digits$}", value(index) + 0.0))).collect()
    }
}

/// A picture that is being drawn.
pub struct Picture {
    body: String,
    width: f64,
    height: f64,
    about: String,
}

impl Picture {
    /// An empty picture of this size in pixels. `about` is read to those who can't see it.
    pub fn new(width: f64, height: f64, about: &str) -> Self {
        Self { body: String::new(), width, height, about: escaped(about) }
    }

    /// The element.
    pub fn finish(self) -> String {
        let Self { body, width, height, about } = self;
        format!(
            "<svg viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\" aria-label=\"{about}\">\n{body}</svg>\n"
        )
    }

    fn add(&mut self, arguments: std::fmt::Arguments) {
        // Writing to a string does not fail.
        let _ = self.body.write_fmt(arguments);
        self.body.push('\n');
    }

    /// A text. `anchor` is start, middle or end.
    pub fn text(&mut self, x: f64, y: f64, anchor: &str, text: &str) {
        self.add(format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>", escaped(text)));
    }

    /// A text that is read from the bottom to the top.
    pub fn upright_text(&mut self, x: f64, y: f64, text: &str) {
        self.add(format_args!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\" transform=\"rotate(-90 {x:.1} {y:.1})\">{}</text>",
            escaped(text)
        ));
    }

    /// A straight line of a class of the page's style.
    pub fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64), colour: &str) {
        let ((x1, y1), (x2, y2)) = (from, to);
        self.add(format_args!(
            "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\"/>"
        ));
    }

    /// A filled area.
    pub fn area(&mut self, class: &str, corners: &[(f64, f64)], colour: &str) {
        self.add(format_args!("<polygon class=\"{class}\" points=\"{}\" fill=\"{colour}\"/>", points(corners)));
    }

    /// A line through points.
    pub fn path(&mut self, class: &str, through: &[(f64, f64)], colour: &str) {
        self.add(format_args!(
            "<polyline class=\"{class}\" points=\"{}\" fill=\"none\" stroke=\"{colour}\"/>",
            points(through)
        ));
    }

    /// The mark of a series. `title` is shown when the pointer is over it.
    pub fn mark(&mut self, series: usize, class: &str, (x, y): (f64, f64), size: f64, title: &str) {
        let (colour, r) = (colour(series), size);
        let title = escaped(title);
        let polygon = |corners: &[(f64, f64)]| {
            let corners: Vec<_> = corners.iter().map(|(dx, dy)| (x + dx * r, y + dy * r)).collect();
            format!("polygon points=\"{}\"", points(&corners))
        };
        // Colours repeat, but not with the same shape.
        let shape = match (series + series / COLOURS.len()) % SHAPES {
            0 => format!("circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{r:.1}\""),
            1 => polygon(&[(0.0, -1.25), (1.15, 0.85), (-1.15, 0.85)]),
            2 => polygon(&[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]),
            _ => polygon(&[(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)]),
        };
        let element = shape.split(' ').next().unwrap_or_default().to_owned();
        self.add(format_args!("<{shape} class=\"{class}\" fill=\"{colour}\"><title>{title}</title></{element}>"));
    }

    /// A horizontal axis at the bottom of an area, with grid lines up to its top.
    pub fn axis_below(&mut self, scale: &Scale, top: f64, bottom: f64, name: &str) {
        for (value, text) in scale.ticks() {
            let x = scale.at(value);
            self.line("grid", (x, top), (x, bottom), "#ccc");
            self.text(x, bottom + 24.0, "middle", &text);
        }
        self.text((scale.pixels.0 + scale.pixels.1) / 2.0, bottom + 42.0, "middle", name);
    }

    /// A vertical axis at the left of an area, with grid lines up to its right.
    pub fn axis_left(&mut self, scale: &Scale, left: f64, right: f64, name: &str) {
        for (value, text) in scale.ticks() {
            let y = scale.at(value);
            self.line("grid", (left, y), (right, y), "#ccc");
            self.text(left - 6.0, y + 4.0, "end", &text);
        }
        self.upright_text(left - 52.0, (scale.pixels.0 + scale.pixels.1) / 2.0, name);
    }
}

/// The colour of a series.
pub fn colour(series: usize) -> &'static str {
    COLOURS[series % COLOURS.len()]
}

/// The mark and the name of a series, as an element of a page.
pub fn key(series: usize, name: &str) -> String {
    let mut picture = Picture::new(16.0, 16.0, "");
    picture.mark(series, "mean", (8.0, 8.5), 5.0, name);
    format!("<span class=\"key\">{}{}</span>", picture.finish(), escaped(name))
}

fn points(corners: &[(f64, f64)]) -> String {
    corners.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect::<Vec<_>>().join(" ")
}

/// A text in HTML.
pub fn escaped(text: &str) -> String {
    let escape = |c: char| match c {
        '&' => "&amp;".to_owned(),
        '<' => "&lt;".to_owned(),
        '>' => "&gt;".to_owned(),
        '"' => "&quot;".to_owned(),
        other => other.to_string(),
    };
    text.chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_numbers_that_enclose_all_values() {
        let scale = Scale::around([0.913, 0.926], (0.0, 100.0), 5.0);
        let ticks: Vec<String> = scale.ticks().into_iter().map(|(_, text)| text).collect();
        assert_eq!(ticks, ["0.910", "0.915", "0.920", "0.925", "0.930"]);
        assert_eq!((scale.at(0.91), scale.at(0.93)), (0.0, 100.0));
        let nearly_equal = vec![0.02, 0.02 + 3e-18, 0.020000000000000004];
        let extreme = vec![-1e308, 1e308];
        for values in
            [vec![], vec![f64::NAN], vec![3.0], vec![-2.0], vec![0.0, 1e-7], vec![5e-324], nearly_equal, extreme]
        {
            let scale = Scale::around(values.clone(), (0.0, 1.0), 5.0);
            let count = scale.ticks().len();
            assert!((2..=12).contains(&count), "{values:?}: {count} ticks");
            assert!(values.iter().all(|v| v.is_nan() || (-1e-9..=1.0 + 1e-9).contains(&scale.at(*v))), "{values:?}");
        }
    }

    #[test]
    fn the_marks_of_32_series_differ_in_colour_or_shape() {
        let mark = |series: usize| {
            let mut picture = Picture::new(1.0, 1.0, "");
            picture.mark(series, "mean", (0.0, 0.0), 1.0, "");
            picture.finish()
        };
        let marks: std::collections::BTreeSet<String> = (0..32).map(mark).collect();
        assert_eq!(marks.len(), 32);
    }

    #[test]
    fn texts_cannot_leave_their_element() {
        let mut picture = Picture::new(1.0, 1.0, "a\"b");
        picture.text(0.0, 0.0, "start", "</text><script>");
        let text = picture.finish();
        assert!(!text.contains("<script>") && text.contains("aria-label=\"a&quot;b\""));
    }
}
