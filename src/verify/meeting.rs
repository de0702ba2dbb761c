//! Two lists that should name the same things in the same order: what two ends of a channel do, or two members of a
//! communicator.

/// How two lists differ. Numbers are indices into them.
pub struct Meeting {
    /// Only on the left, ascending.
    pub only_left: Vec<usize>,
    /// Only on the right, ascending.
    pub only_right: Vec<usize>,
    /// What is left without those, in the order of each list: the n-th meets the n-th.
    pub met: Vec<(usize, usize)>,
}

impl Meeting {
    /// Of two lists; a thing that occurs several times meets as many of its kind. Takes n log n.
    pub fn new<T: Ord>(left: &[T], right: &[T]) -> Self {
        if left == right {
            let met = (0..left.len()).map(|at| (at, at)).collect();
            return Self { only_left: Vec::new(), only_right: Vec::new(), met };
        }
        let sorted = |list: &[T]| {
            let mut order: Vec<usize> = (0..list.len()).collect();
            order.sort_by(|&a, &b| list[a].cmp(&list[b]).then(a.cmp(&b)));
            order
        };
        let (in_left, in_right) = (sorted(left), sorted(right));
        let (mut only_left, mut only_right) = (Vec::new(), Vec::new());
        let (mut met_left, mut met_right) = (Vec::new(), Vec::new());
        let (mut l, mut r) = (in_left.iter().peekable(), in_right.iter().peekable());
        loop {
            match (l.peek(), r.peek()) {
                (Some(&&a), Some(&&b)) => match left[a].cmp(&right[b]) {
                    std::cmp::Ordering::Less => only_left.extend(l.next()),
                    std::cmp::Ordering::Greater => only_right.extend(r.next()),
                    std::cmp::Ordering::Equal => {
                        met_left.extend(l.next());
                        met_right.extend(r.next());
                    }
                },
                (Some(_), None) => only_left.extend(l.next()),
                (None, Some(_)) => only_right.extend(r.next()),
                (None, None) => break,
            }
        }
        for list in [&mut only_left, &mut only_right, &mut met_left, &mut met_right] {
            list.sort_unstable();
        }
        Self { only_left, only_right, met: met_left.into_iter().zip(met_right).collect() }
    }

    /// The first place where both have a partner but in different orders.
    pub fn first_swap<T: PartialEq>(&self, left: &[T], right: &[T]) -> Option<(usize, usize)> {
        self.met.iter().copied().find(|&(a, b)| left[a] != right[b])
    }
}
