//! The orders in which a term's ops may run.

use std::collections::BTreeSet;

use crate::passes::rewrite::forms::FormOp;
use crate::passes::rewrite::language::{Leaf, Term};

/// Ops and what must come before each.
#[derive(Default)]
pub struct Partial {
    pub leaves: Vec<Leaf>,
    before: Vec<BTreeSet<usize>>,
}

impl Partial {
    /// Of a term without classes.
    pub fn of(term: &Term) -> Self {
        let mut partial = Self::default();
        partial.append(term, &BTreeSet::new());
        partial
    }

    /// Of the ops of a form: a list, and one that needs ops of it.
    pub fn of_form(ops: &[FormOp], weights: &[FormOp]) -> Self {
        let all = ops.iter().chain(weights);
        let before = |op: &FormOp| op.needs.iter().map(|&need| need as usize).collect();
        Self { leaves: all.clone().map(|op| op.leaf).collect(), before: all.map(before).collect() }
    }

    /// Appends a term after these ops; returns all ops that have then ended.
    fn append(&mut self, term: &Term, after: &BTreeSet<usize>) -> BTreeSet<usize> {
        match term {
            Term::Is(_) => panic!("a class has no orders"),
            Term::Leaf(leaf) => {
                self.leaves.push(*leaf);
                self.before.push(after.clone());
                after.iter().copied().chain([self.leaves.len() - 1]).collect()
            }
            Term::Seq(parts) => parts.iter().fold(after.clone(), |after, part| self.append(part, &after)),
            Term::Par(parts) => parts.iter().flat_map(|part| self.append(part, after)).collect(),
        }
    }

    /// All orders if there are at most `most`, else `most / 10` of them at random.
    pub fn orders(&self, most: usize, dice: &mut Dice) -> Vec<Vec<usize>> {
        let mut all = Vec::new();
        match self.extend(&mut Vec::new(), &mut all, most) {
            true => all,
            false => (0..most / 10).map(|_| self.random_order(dice)).collect(),
        }
    }

    /// One of the orders, at random.
    pub fn random_order(&self, dice: &mut Dice) -> Vec<usize> {
        let mut order = Vec::new();
        while order.len() < self.leaves.len() {
            let ready = self.ready(&order);
            order.push(ready[dice.below(ready.len())]);
        }
        order
    }

    fn ready(&self, order: &[usize]) -> Vec<usize> {
        let ready = |op: &usize| !order.contains(op) && self.before[*op].iter().all(|before| order.contains(before));
        (0..self.leaves.len()).filter(ready).collect()
    }

    /// Adds every order that begins so; false if there are too many.
    fn extend(&self, order: &mut Vec<usize>, all: &mut Vec<Vec<usize>>, most: usize) -> bool {
        if order.len() == self.leaves.len() {
            all.push(order.clone());
            return all.len() <= most;
        }
        for op in self.ready(order) {
            order.push(op);
            let few = self.extend(order, all, most);
            order.pop();
            if !few {
                return false;
            }
        }
        true
    }
}

/// Pseudo-random numbers (xorshift64*).
pub struct Dice(u64);

impl Dice {
    /// From a seed that is not zero.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % n
    }
}
