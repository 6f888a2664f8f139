//! Topics and patterns against a naive reading of the contract. The input is cut at line ends:
//! a pattern, another one, and topics.

use hailmary_proto::topic::{check_pattern, check_topic, covers, includes, is_same, matches};

use crate::naive;

/// See the module.
pub fn run(data: &[u8]) {
    let texts: Vec<&[u8]> = data.split(|byte| *byte == b'\n').take(8).collect();
    for text in &texts {
        assert_eq!(check_topic(text).is_ok(), naive::is_topic(text));
        assert_eq!(check_pattern(text).is_ok(), naive::is_pattern(text));
        for other in &texts {
            assert_eq!(is_same(text, other), text == other);
        }
    }
    let legal = |is_legal: fn(&[u8]) -> bool| {
        let texts = texts.iter().filter(move |text| is_legal(text));
        texts.filter_map(|text| std::str::from_utf8(text).ok())
    };
    for pattern in legal(naive::is_pattern) {
        for topic in legal(naive::is_topic) {
            check_match(pattern, topic);
        }
        for narrow in legal(naive::is_pattern) {
            check_inclusion(pattern, narrow);
        }
    }
}

fn check_match(pattern: &str, topic: &str) {
    let expected = naive::matches(pattern, topic);
    assert_eq!(matches(pattern.as_bytes(), topic.as_bytes()), expected);
    // A rule of access speaks of reserved topics as of any others.
    let plain = |text: &str| text.replacen("_hailmary", "plain", 1);
    let is_reserved = topic.split('.').next() == Some("_hailmary");
    if is_reserved && !pattern.contains("_hailmary") && !pattern.contains("plain") {
        let expected = naive::matches(pattern, &plain(topic));
        assert_eq!(covers(pattern.as_bytes(), topic.as_bytes()), expected);
    } else if !is_reserved {
        assert_eq!(covers(pattern.as_bytes(), topic.as_bytes()), expected);
    }
}

fn check_inclusion(wide: &str, narrow: &str) {
    if [wide, narrow]
        .iter()
        .any(|text| text.contains("fresh-token"))
    {
        return;
    }
    let all = naive::witnesses(narrow);
    let expected = all.iter().all(|topic| naive::matches(wide, topic));
    assert_eq!(
        includes(wide.as_bytes(), narrow.as_bytes()),
        expected,
        "{wide} includes {narrow}"
    );
}
