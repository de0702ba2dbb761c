//! Rows of experts on their way, each with the token that it belongs to; and what is kept of them between ops that may work
//! on different parts of the tokens.

use std::collections::BTreeMap;
use std::ops::Range;

use super::Run;
use crate::runtime::host::layers::permutation::ExpertRows;
use crate::runtime::host::layers::router::Routing;
use crate::runtime::host::tensor::RowWise;
use crate::runtime::host::{Matrix, Real};

/// Which token a row belongs to: place in the expert-parallel group of the GPU that has it, and its number in the micro-batch.
pub type Source = (u32, u32);

/// Rows, ascending by source.
#[derive(Clone, Debug)]
pub struct Sourced<V> {
    /// One for each row.
    pub sources: Vec<Source>,
    /// As many rows.
    pub values: V,
}

/// By expert. Experts without rows are left out.
pub type ByExpert<V> = BTreeMap<u32, Sourced<V>>;

/// Names the rows of `rows`: those of the tokens of `routing`, of which the first is number `first` of the GPU at `place`.
pub fn sourced<T: Real>(rows: ExpertRows<T>, routing: &Routing<T>, place: u32, first: u32) -> ByExpert<Matrix<T>> {
    let mut sources: BTreeMap<u32, Vec<Source>> = BTreeMap::new();
    for (token, number) in (0..routing.weights.rows()).zip(first..) {
        for &expert in routing.of_token(token) {
            sources.entry(expert).or_default().push((place, number));
        }
    }
    let named = rows.into_iter().filter_map(|(expert, values)| {
        let sources = sources.remove(&expert)?;
        Some((expert, Sourced { sources, values }))
    });
    named.collect()
}

/// The values by expert, and their sources.
pub fn unnamed<V>(rows: ByExpert<V>) -> (BTreeMap<u32, V>, BTreeMap<u32, Vec<Source>>) {
    rows.into_iter().map(|(expert, rows)| ((expert, rows.values), (expert, rows.sources))).unzip()
}

/// Undoes [`unnamed`] for other values of the same rows.
pub fn named<V>(values: BTreeMap<u32, V>, sources: &BTreeMap<u32, Vec<Source>>) -> ByExpert<V> {
    let named = values.into_iter().filter_map(|(expert, values)| {
        let sources = sources.get(&expert)?.clone();
        Some((expert, Sourced { sources, values }))
    });
    named.collect()
}

/// The rows whose source is wanted.
pub fn only<V: RowWise>(rows: &ByExpert<V>, wanted: impl Fn(Source) -> bool) -> ByExpert<V> {
    let part = rows.iter().filter_map(|(&expert, rows)| {
        let at: Vec<usize> = (0..rows.sources.len()).filter(|&row| wanted(rows.sources[row])).collect();
        let sources: Vec<Source> = at.iter().map(|&row| rows.sources[row]).collect();
        (!at.is_empty()).then(|| (expert, Sourced { sources, values: rows.values.select(&at) }))
    });
    part.collect()
}

/// Several as one.
pub fn merge<V: RowWise>(parts: Vec<ByExpert<V>>) -> ByExpert<V> {
    let mut by_expert: BTreeMap<u32, Vec<Sourced<V>>> = BTreeMap::new();
    for (expert, rows) in parts.into_iter().flatten() {
        by_expert.entry(expert).or_default().push(rows);
    }
    by_expert.into_iter().filter_map(|(expert, parts)| Some((expert, one(parts)?))).collect()
}

fn one<V: RowWise>(mut parts: Vec<Sourced<V>>) -> Option<Sourced<V>> {
    if parts.len() < 2 {
        return parts.pop();
    }
    let values = V::stacked(&parts.iter().map(|part| &part.values).collect::<Vec<_>>());
    let sources: Vec<Source> = parts.into_iter().flat_map(|part| part.sources).collect();
    if sources.is_sorted() {
        return Some(Sourced { sources, values });
    }
    let mut order: Vec<usize> = (0..sources.len()).collect();
    order.sort_by_key(|&row| sources[row]);
    Some(Sourced { sources: order.iter().map(|&row| sources[row]).collect(), values: values.select(&order) })
}

/// What ops leave for others, each for some of the tokens.
pub struct Pieces<V> {
    /// As messages name it.
    what: &'static str,
    /// Tokens (numbers in a micro-batch, of every GPU of the group), and the rows that are theirs.
    pieces: Vec<(Range<u32>, ByExpert<V>)>,
}

impl<V: RowWise> Pieces<V> {
    /// Nothing so far.
    pub fn new(what: &'static str) -> Self {
        Self { what, pieces: Vec::new() }
    }

    /// What it is called, if something is left in it.
    pub fn left(&self) -> Option<&'static str> {
        (!self.pieces.is_empty()).then_some(self.what)
    }

    /// Adds what was made of some tokens.
    ///
    /// # Errors
    /// If some of them have it already.
    pub fn put(&mut self, tokens: Range<u32>, rows: ByExpert<V>) -> Run<()> {
        if self.pieces.iter().any(|(there, _)| there.start < tokens.end && tokens.start < there.end) {
            return Err(format!("makes {} a second time", self.what));
        }
        self.pieces.push((tokens, rows));
        Ok(())
    }

    /// Takes what belongs to some tokens.
    ///
    /// # Errors
    /// If some of them have nothing here.
    pub fn take(&mut self, tokens: Range<u32>) -> Run<ByExpert<V>> {
        let (mut found, mut rest, mut covered) = (Vec::new(), Vec::new(), 0);
        for (there, rows) in std::mem::take(&mut self.pieces) {
            let inside = there.start.max(tokens.start)..there.end.min(tokens.end);
            if inside.is_empty() {
                rest.push((there, rows));
                continue;
            }
            covered += inside.len();
            for outside in [there.start..inside.start, inside.end..there.end] {
                if !outside.is_empty() {
                    let part = only(&rows, |(_, token)| outside.contains(&token));
                    rest.push((outside, part));
                }
            }
            found.push(if inside == there { rows } else { only(&rows, |(_, token)| inside.contains(&token)) });
        }
        self.pieces = rest;
        match covered == tokens.len() {
            true => Ok(merge(found)),
            false => Err(format!("reads {}, which is not there", self.what)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row for each token of each of two GPUs at each of its experts, of which the value says which it is.
    fn rows(tokens: Range<u32>, experts: &[u32]) -> ByExpert<Matrix<f64>> {
        let sources: Vec<Source> = (0..2).flat_map(|place| tokens.clone().map(move |token| (place, token))).collect();
        let values = |expert: u32| {
            let value = |&(place, token): &Source| f64::from(100 * expert + 10 * place + token);
            Matrix::new(sources.len(), 1, sources.iter().map(value).collect())
        };
        experts.iter().map(|&expert| (expert, Sourced { sources: sources.clone(), values: values(expert) })).collect()
    }

    fn same(a: &ByExpert<Matrix<f64>>, b: &ByExpert<Matrix<f64>>) -> bool {
        a.len() == b.len()
            && a.iter().zip(b).all(|((e, a), (f, b))| e == f && a.sources == b.sources && a.values == b.values)
    }

    #[test]
    fn parts_are_put_together_in_the_order_of_their_sources() {
        let mut pieces = Pieces::new("rows");
        pieces.put(4..8, rows(4..8, &[1, 3])).unwrap();
        pieces.put(0..4, rows(0..4, &[1, 3])).unwrap();
        assert!(same(&pieces.take(2..6).unwrap(), &rows(2..6, &[1, 3])));
        assert!(same(&pieces.take(6..8).unwrap(), &rows(6..8, &[1, 3])));
        assert_eq!(pieces.left(), Some("rows"));
        assert!(same(&pieces.take(0..2).unwrap(), &rows(0..2, &[1, 3])));
        assert_eq!(pieces.left(), None);
    }

    #[test]
    fn what_is_not_there_or_there_already_is_refused() {
        let mut pieces = Pieces::new("rows");
        pieces.put(0..4, rows(0..4, &[])).unwrap();
        assert!(pieces.put(3..5, rows(3..5, &[1])).unwrap_err().contains("rows a second time"));
        assert!(pieces.take(0..5).unwrap_err().contains("rows, which is not there"));
    }
}
