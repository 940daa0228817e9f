//! "Sums" and "Layers" of docs/NUMERICS.md, for one sample at a time. The gradient of a weight is a chain over samples, which
//! the next sample continues.

use std::ops::Range;

use super::model::{Conv, Linear, Lrn, Map, Tensors, Window, slice};

/// Adds up the partial gradients of towers, or of slices of the head, in their order, starting with the first one.
fn exchange(towers: usize, partial: impl Fn(usize) -> Vec<f32>) -> Vec<f32> {
    let mut sum = partial(0);
    for tower in 1..towers {
        let partial = partial(tower);
        for i in 0..sum.len() {
            sum[i] += partial[i];
        }
    }
    sum
}

impl Conv {
    /// The first input channel of the group of output channel `oc`.
    fn first(&self, from: Map, oc: usize) -> usize {
        oc / (self.filters / self.groups) * (from.channels / self.groups)
    }

    /// One filter, indexed (input channel of the group, kernel row, kernel column).
    fn filter(&self, from: Map) -> Map {
        Map { channels: from.channels / self.groups, rows: self.window.kernel, columns: self.window.kernel }
    }

    pub(crate) fn forward(&self, from: Map, to: Map, weights: &Tensors, x: &[f32]) -> Vec<f32> {
        let weight = &weights[&format!("{}.weight", self.name)];
        let bias = weights.get(&format!("{}.bias", self.name));
        let filter = self.filter(from);
        let mut y = vec![0.0; to.len()];
        for (oc, oy, ox) in to.indices() {
            let mut acc = 0.0_f32;
            for (ic, ky, kx) in filter.indices() {
                let Some(iy) = self.window.input(oy, ky, from.rows) else { continue };
                let Some(ix) = self.window.input(ox, kx, from.columns) else { continue };
                let w = weight[oc * filter.len() + filter.at(ic, ky, kx)];
                acc = w.mul_add(x[from.at(self.first(from, oc) + ic, iy, ix)], acc);
            }
            y[to.at(oc, oy, ox)] = acc + bias.map_or(0.0, |bias| bias[oc]);
        }
        y
    }

    pub(crate) fn backward_weights(&self, from: Map, to: Map, x: &[f32], dy: &[f32], gradients: &mut Tensors) {
        let gradient = gradients.get_mut(&format!("{}.weight", self.name)).unwrap();
        let filter = self.filter(from);
        for oc in 0..to.channels {
            for (ic, ky, kx) in filter.indices() {
                let acc = &mut gradient[oc * filter.len() + filter.at(ic, ky, kx)];
                for oy in 0..to.rows {
                    for ox in 0..to.columns {
                        let Some(iy) = self.window.input(oy, ky, from.rows) else { continue };
                        let Some(ix) = self.window.input(ox, kx, from.columns) else { continue };
                        let x = x[from.at(self.first(from, oc) + ic, iy, ix)];
                        *acc = dy[to.at(oc, oy, ox)].mul_add(x, *acc);
                    }
                }
            }
        }
        if let Some(gradient) = gradients.get_mut(&format!("{}.bias", self.name)) {
            for (oc, oy, ox) in to.indices() {
                gradient[oc] += dy[to.at(oc, oy, ox)];
            }
        }
    }

    pub(crate) fn backward_input(&self, towers: usize, from: Map, to: Map, weights: &Tensors, dy: &[f32]) -> Vec<f32> {
        if self.groups == 1 {
            exchange(towers, |tower| {
                self.partial_input_gradient(from, to, weights, dy, slice(to.channels, towers, tower))
            })
        } else {
            // A group lies within a tower, so all that an input feeds is its own tower's: there is nothing to add up.
            self.partial_input_gradient(from, to, weights, dy, 0..to.channels)
        }
    }

    /// The input gradient as far as it comes from the output channels `own`.
    fn partial_input_gradient(&self, from: Map, to: Map, weights: &Tensors, dy: &[f32], own: Range<usize>) -> Vec<f32> {
        let weight = &weights[&format!("{}.weight", self.name)];
        let filter = self.filter(from);
        let mut dx = vec![0.0; from.len()];
        for (channel, iy, ix) in from.indices() {
            let mut acc = 0.0_f32;
            for oc in own.clone() {
                let first = self.first(from, oc);
                if !(first..first + filter.channels).contains(&channel) {
                    continue; // another group
                }
                for oy in 0..to.rows {
                    let Some(ky) = self.window.tap(oy, iy) else { continue };
                    for ox in 0..to.columns {
                        let Some(kx) = self.window.tap(ox, ix) else { continue };
                        let w = weight[oc * filter.len() + filter.at(channel - first, ky, kx)];
                        acc = dy[to.at(oc, oy, ox)].mul_add(w, acc);
                    }
                }
            }
            dx[from.at(channel, iy, ix)] = acc + 0.0;
        }
        dx
    }
}

impl Linear {
    pub(crate) fn forward(&self, weights: &Tensors, x: &[f32]) -> Vec<f32> {
        let (weight, bias) = (&weights[&format!("{}.weight", self.name)], &weights[&format!("{}.bias", self.name)]);
        let mut y = vec![0.0; self.units];
        for unit in 0..self.units {
            let mut acc = 0.0_f32;
            for i in 0..x.len() {
                acc = weight[unit * x.len() + i].mul_add(x[i], acc);
            }
            y[unit] = acc + bias[unit];
        }
        y
    }

    pub(crate) fn backward_weights(&self, x: &[f32], dy: &[f32], gradients: &mut Tensors) {
        let gradient = gradients.get_mut(&format!("{}.weight", self.name)).unwrap();
        for unit in 0..self.units {
            for i in 0..x.len() {
                let acc = &mut gradient[unit * x.len() + i];
                *acc = dy[unit].mul_add(x[i], *acc);
            }
        }
        let gradient = gradients.get_mut(&format!("{}.bias", self.name)).unwrap();
        for unit in 0..self.units {
            gradient[unit] += dy[unit];
        }
    }

    /// The input gradient of a layer of the head, whose units are divided into `slices`.
    pub(crate) fn backward_input(&self, slices: usize, inputs: usize, weights: &Tensors, dy: &[f32]) -> Vec<f32> {
        let weight = &weights[&format!("{}.weight", self.name)];
        exchange(slices, |part| {
            let mut dx = vec![0.0; inputs];
            for i in 0..inputs {
                let mut acc = 0.0_f32;
                for unit in slice(self.units, slices, part) {
                    acc = dy[unit].mul_add(weight[unit * inputs + i], acc);
                }
                dx[i] = acc + 0.0;
            }
            dx
        })
    }
}

impl Lrn {
    /// The channels of the window of channel `c`, clipped to those of its tower.
    fn window(&self, towers: usize, map: Map, c: usize) -> Range<usize> {
        let tower = (0..towers).map(|tower| slice(map.channels, towers, tower)).find(|own| own.contains(&c)).unwrap();
        c.saturating_sub(self.size / 2).max(tower.start)..(c + (self.size - 1) / 2 + 1).min(tower.end)
    }

    /// `s`, and the divisor `p`.
    fn divisor(&self, towers: usize, map: Map, x: &[f32], (c, row, column): (usize, usize, usize)) -> (f32, f32) {
        let mut q = 0.0_f32;
        for j in self.window(towers, map, c) {
            let x = x[map.at(j, row, column)];
            q = x.mul_add(x, q);
        }
        let s = (self.alpha as f32).mul_add(q, self.k as f32);
        if self.beta == 0.75 {
            let r = s.sqrt();
            (s, r * r.sqrt())
        } else {
            (s, libm::pow(f64::from(s), self.beta) as f32)
        }
    }

    pub(crate) fn forward(&self, towers: usize, map: Map, x: &[f32]) -> Vec<f32> {
        let mut y = vec![0.0; map.len()];
        for (i, index) in map.indices().enumerate() {
            y[i] = x[i] / self.divisor(towers, map, x, index).1;
        }
        y
    }

    pub(crate) fn backward(&self, towers: usize, map: Map, x: &[f32], y: &[f32], dy: &[f32]) -> Vec<f32> {
        let m = (-2.0 * self.alpha * self.beta) as f32;
        let (s, p): (Vec<f32>, Vec<f32>) = map.indices().map(|index| self.divisor(towers, map, x, index)).unzip();
        let mut dx = vec![0.0; map.len()];
        for (c, row, column) in map.indices() {
            let mut u = 0.0_f32;
            for j in 0..map.channels {
                if self.window(towers, map, j).contains(&c) {
                    let i = map.at(j, row, column);
                    let t = (dy[i] * y[i]) / s[i];
                    u += t;
                }
            }
            let i = map.at(c, row, column);
            dx[i] = (m * x[i]).mul_add(u, dy[i] / p[i]);
        }
        dx
    }
}

/// Pooling.
impl Window {
    /// For each output in order, its index and those of the inputs under its window, row-major and without the padding.
    fn each(self, from: Map, to: Map) -> impl Iterator<Item = (usize, Vec<usize>)> {
        to.indices().map(move |(channel, oy, ox)| {
            let mut inputs = Vec::new();
            for ky in 0..self.kernel {
                for kx in 0..self.kernel {
                    let Some(iy) = self.input(oy, ky, from.rows) else { continue };
                    let Some(ix) = self.input(ox, kx, from.columns) else { continue };
                    inputs.push(from.at(channel, iy, ix));
                }
            }
            (to.at(channel, oy, ox), inputs)
        })
    }

    pub(crate) fn max_forward(self, from: Map, to: Map, x: &[f32]) -> Vec<f32> {
        self.each(from, to).map(|(_, inputs)| x[first_maximum(x, &inputs)]).collect()
    }

    pub(crate) fn max_backward(self, from: Map, to: Map, x: &[f32], dy: &[f32]) -> Vec<f32> {
        let mut dx = vec![0.0; from.len()];
        for (out, inputs) in self.each(from, to) {
            dx[first_maximum(x, &inputs)] += dy[out];
        }
        dx
    }

    pub(crate) fn avg_forward(self, from: Map, to: Map, x: &[f32]) -> Vec<f32> {
        let area = (self.kernel * self.kernel) as f32;
        self.each(from, to).map(|(_, inputs)| inputs.iter().fold(0.0, |sum, &input| sum + x[input]) / area).collect()
    }

    pub(crate) fn avg_backward(self, from: Map, to: Map, dy: &[f32]) -> Vec<f32> {
        let area = (self.kernel * self.kernel) as f32;
        let mut dx = vec![0.0; from.len()];
        for (out, inputs) in self.each(from, to) {
            for input in inputs {
                dx[input] += dy[out] / area;
            }
        }
        dx
    }
}

/// The first of the `candidates` that no other exceeds.
pub(crate) fn first_maximum(values: &[f32], candidates: &[usize]) -> usize {
    candidates[1..].iter().fold(candidates[0], |best, &i| if values[i] > values[best] { i } else { best })
}
