//! Which subscribers want a topic: a trie of the patterns' tokens.
//!
//! Owns the patterns and nothing else: that they are legal was checked before they came here.
//! Tokens are walked in a loop with one list of places to go on from, so no pattern and no topic
//! makes it recurse, and a look-up visits each node at most once.

use std::hash::BuildHasher;

use foldhash::fast::FixedState;
use hailmary_proto::topic;
use hashbrown::HashTable;

use super::subscribers::SubscriberId;

/// A place in the trie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct NodeId(u32);

const ROOT: NodeId = NodeId(0);

#[derive(Debug, Default)]
struct Node {
    /// Patterns that end here.
    exact: Vec<SubscriberId>,
    /// Patterns that end here with `>`.
    rest: Vec<SubscriberId>,
    /// Edges that lead on from here: a node without any and without patterns is pruned.
    edges: u32,
    /// The edge of `*`, kept here because every topic tries it.
    any: Option<NodeId>,
}

impl Node {
    fn is_unused(&self) -> bool {
        self.exact.is_empty() && self.rest.is_empty() && self.edges == 0 && self.any.is_none()
    }
}

/// A literal token that leads from one node to another. All edges of the trie share one table.
#[derive(Debug)]
struct Edge {
    from: NodeId,
    token: Box<[u8]>,
    to: NodeId,
}

/// The patterns of all subscribers.
#[derive(Debug)]
pub struct Patterns {
    nodes: Vec<Node>,
    unused: Vec<NodeId>,
    edges: HashTable<Edge>,
    hasher: FixedState,
}

/// The memory of a look-up, lent to [`Patterns::find`] so that it allocates nothing.
#[derive(Debug, Default)]
pub struct LookUp {
    /// Who was found: each once, in order of id.
    pub found: Vec<SubscriberId>,
    /// Where the look-up has got to.
    places: Vec<NodeId>,
    next_places: Vec<NodeId>,
}

impl Patterns {
    /// No patterns. `seed` keeps strangers from choosing tokens that collide.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            nodes: vec![Node::default()],
            unused: Vec::new(),
            edges: HashTable::new(),
            hasher: FixedState::with_seed(seed),
        }
    }

    /// Adds a subscriber's pattern. The same one twice is kept once.
    pub fn insert(&mut self, pattern: &str, subscriber: SubscriberId) {
        let (tokens, is_open) = split(pattern);
        let mut at = ROOT;
        for token in tokens {
            at = self.step_or_grow(at, token);
        }
        if let Some(list) = self.list(at, is_open)
            && !list.contains(&subscriber)
        {
            list.push(subscriber);
        }
    }

    /// Removes a subscriber's pattern and prunes what led to nothing else.
    pub fn remove(&mut self, pattern: &str, subscriber: SubscriberId) {
        let (tokens, is_open) = split(pattern);
        let mut path = vec![ROOT];
        let mut at = ROOT;
        for token in tokens.clone() {
            let Some(next) = self.step(at, token) else {
                return;
            };
            path.push(next);
            at = next;
        }
        if let Some(list) = self.list(at, is_open) {
            list.retain(|other| *other != subscriber);
        }
        let parents = path.iter().rev().skip(1);
        for ((child, parent), token) in path.iter().rev().zip(parents).zip(tokens.rev()) {
            if !self.node(*child).is_some_and(Node::is_unused) {
                return;
            }
            self.cut(*parent, token, *child);
        }
    }

    /// Finds each subscriber with a pattern that matches.
    pub fn find(&self, topic: &[u8], look_up: &mut LookUp) {
        let LookUp {
            found,
            places,
            next_places,
        } = look_up;
        found.clear();
        places.clear();
        places.push(ROOT);
        // No wildcard stands for the first token of the bus's own topics.
        let mut is_open = !topic::is_reserved(topic);
        for token in topic.split(|byte| *byte == b'.') {
            next_places.clear();
            for place in &*places {
                let Some(node) = self.node(*place) else {
                    continue;
                };
                if is_open {
                    found.extend_from_slice(&node.rest);
                    next_places.extend(node.any);
                }
                next_places.extend(self.literal(*place, token));
            }
            is_open = true;
            std::mem::swap(places, next_places);
        }
        for node in places.iter().filter_map(|place| self.node(*place)) {
            found.extend_from_slice(&node.exact);
        }
        found.sort_unstable();
        found.dedup();
    }

    /// How many nodes are in use, the root included.
    #[cfg(test)]
    fn nodes_in_use(&self) -> usize {
        self.nodes.len() - self.unused.len()
    }

    fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.0 as usize)
    }

    fn node_mut(&mut self, id: NodeId) -> Option<&mut Node> {
        self.nodes.get_mut(id.0 as usize)
    }

    fn list(&mut self, at: NodeId, is_open: bool) -> Option<&mut Vec<SubscriberId>> {
        let node = self.node_mut(at)?;
        Some(if is_open {
            &mut node.rest
        } else {
            &mut node.exact
        })
    }

    fn step(&self, from: NodeId, token: &str) -> Option<NodeId> {
        if token == "*" {
            self.node(from)?.any
        } else {
            self.literal(from, token.as_bytes())
        }
    }

    fn literal(&self, from: NodeId, token: &[u8]) -> Option<NodeId> {
        let hash = self.hasher.hash_one((from, token));
        let edge = self
            .edges
            .find(hash, |edge| edge.from == from && *edge.token == *token)?;
        Some(edge.to)
    }

    fn step_or_grow(&mut self, from: NodeId, token: &str) -> NodeId {
        if let Some(next) = self.step(from, token) {
            return next;
        }
        let to = self.new_node();
        if let Some(node) = self.node_mut(from) {
            if token == "*" {
                node.any = Some(to);
                return to;
            }
            node.edges += 1;
        }
        let token: Box<[u8]> = token.as_bytes().into();
        let hash = self.hasher.hash_one((from, &*token));
        let hasher = &self.hasher;
        self.edges
            .insert_unique(hash, Edge { from, token, to }, |edge| {
                hasher.hash_one((edge.from, &*edge.token))
            });
        to
    }

    fn new_node(&mut self) -> NodeId {
        self.unused.pop().unwrap_or_else(|| {
            self.nodes.push(Node::default());
            // Bounded by leases and patterns for each, far under 32 bits.
            NodeId(u32::try_from(self.nodes.len() - 1).unwrap_or(u32::MAX))
        })
    }

    fn cut(&mut self, parent: NodeId, token: &str, child: NodeId) {
        if let Some(node) = self.node_mut(parent) {
            if token == "*" {
                node.any = None;
            } else {
                node.edges -= 1;
            }
        }
        let hash = self.hasher.hash_one((parent, token.as_bytes()));
        if token != "*"
            && let Ok(edge) = self.edges.find_entry(hash, |edge| {
                edge.from == parent && *edge.token == *token.as_bytes()
            })
        {
            edge.remove();
        }
        self.unused.push(child);
    }
}

/// The tokens that are steps, and whether a `>` follows them.
fn split(pattern: &str) -> (impl DoubleEndedIterator<Item = &str> + Clone, bool) {
    let (steps, is_open) = match pattern.strip_suffix('>') {
        Some(steps) => (steps.strip_suffix('.').unwrap_or(steps), true),
        None => (pattern, false),
    };
    // The pattern ">" alone has no steps, where splitting "" would give one empty token.
    (steps.split('.').filter(|token| !token.is_empty()), is_open)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(n: u32) -> SubscriberId {
        SubscriberId::new(n)
    }

    fn find(patterns: &Patterns, topic: &str) -> Vec<SubscriberId> {
        let mut look_up = LookUp::default();
        patterns.find(topic.as_bytes(), &mut look_up);
        look_up.found
    }

    #[test]
    fn an_open_pattern_wants_at_least_one_more_token() {
        let mut patterns = Patterns::new(1);
        patterns.insert("search.>", id(1));
        patterns.insert(">", id(2));
        assert_eq!(find(&patterns, "search"), [id(2)]);
        assert_eq!(find(&patterns, "search.index.photo"), [id(1), id(2)]);
    }

    #[test]
    fn no_wildcard_stands_for_the_first_token_of_the_buss_own_topics() {
        let mut patterns = Patterns::new(1);
        let all = [
            ">",
            "*",
            "*.>",
            "*.*",
            "_hailmary.>",
            "_hailmary.*",
            "_hailmary",
        ];
        for (pattern, n) in all.iter().zip(0..) {
            patterns.insert(pattern, id(n));
        }
        assert_eq!(find(&patterns, "_hailmary"), [id(6)]);
        assert_eq!(find(&patterns, "_hailmary.a"), [id(4), id(5)]);
        assert_eq!(find(&patterns, "a._hailmary"), [id(0), id(2), id(3)]);
    }

    #[test]
    fn a_subscriber_whose_patterns_overlap_is_found_once() {
        let mut patterns = Patterns::new(1);
        for pattern in ["a.*", "*.b", "a.>", "a.b"] {
            patterns.insert(pattern, id(7));
        }
        assert_eq!(find(&patterns, "a.b"), [id(7)]);
    }

    #[test]
    fn branching_patterns_visit_no_node_twice() {
        // Sixteen tokens, all patterns of `a` and `*`: the worst that a topic can meet.
        let mut patterns = Patterns::new(1);
        for bits in 0..1_u32 << 10 {
            let tokens: Vec<_> = (0..10)
                .map(|n| if bits >> n & 1 == 1 { "a" } else { "*" })
                .collect();
            patterns.insert(&tokens.join("."), id(bits));
        }
        assert_eq!(find(&patterns, &["a"; 10].join(".")).len(), 1 << 10);
    }

    fn pattern() -> impl Strategy<Value = String> {
        let token = prop_oneof![
            6 => "[ab]",
            2 => Just("*".to_owned()),
            1 => Just(topic::RESERVED_TOKEN.to_owned()),
        ];
        (prop::collection::vec(token, 0..5), any::<bool>()).prop_filter_map(
            "empty",
            |(mut tokens, open)| {
                if open {
                    tokens.push(">".to_owned());
                }
                (!tokens.is_empty()).then(|| tokens.join("."))
            },
        )
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(String, u32),
        Remove(String, u32),
        Find(String),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (pattern(), 0..6_u32).prop_map(|(p, n)| Step::Insert(p, n)),
            (pattern(), 0..6_u32).prop_map(|(p, n)| Step::Remove(p, n)),
            named_topic().prop_map(Step::Find),
        ]
    }

    fn named_topic() -> impl Strategy<Value = String> {
        let token = prop_oneof![3 => "[ab]", 1 => Just(topic::RESERVED_TOKEN.to_owned())];
        prop::collection::vec(token, 1..6).prop_map(|tokens| tokens.join("."))
    }

    proptest! {
        #[test]
        fn finds_what_a_naive_matcher_finds(steps in prop::collection::vec(step(), 1..80)) {
            let mut patterns = Patterns::new(3);
            let mut naive = std::collections::BTreeSet::new();
            for step in steps {
                match step {
                    Step::Insert(p, n) => {
                        patterns.insert(&p, id(n));
                        naive.insert((p, id(n)));
                    }
                    Step::Remove(p, n) => {
                        patterns.remove(&p, id(n));
                        naive.remove(&(p, id(n)));
                    }
                    Step::Find(named) => {
                        let mut expected: Vec<_> = naive
                            .iter()
                            .filter(|(p, _)| topic::matches(p.as_bytes(), named.as_bytes()))
                            .map(|(_, n)| *n)
                            .collect();
                        expected.sort_unstable();
                        expected.dedup();
                        prop_assert_eq!(find(&patterns, &named), expected);
                    }
                }
            }
            for (p, n) in naive {
                patterns.remove(&p, n);
            }
            prop_assert_eq!(patterns.nodes_in_use(), 1, "what nobody wants is pruned");
            prop_assert_eq!(patterns.edges.len(), 0);
        }
    }
}
