//! What the kernel dropped before any socket: `/proc/net/softnet_stat`.

use crate::command::grouped::Grouped;

use super::finding::{Finding, Known, NotKnown};

const CHECK: &str = "softnet";

/// A processor's counts since the host started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    processed: u64,
    dropped: u64,
    squeezed: u64,
}

/// Judges the file, with the queue's present bound (`net.core.netdev_max_backlog`).
pub fn softnet(text: &Known<String>, backlog: &Known<u64>) -> Finding {
    let counts = text
        .as_ref()
        .map_err(Clone::clone)
        .and_then(|text| parse(text));
    let counts = match counts {
        Ok(counts) => counts,
        Err(reason) => {
            return Finding::unknown(CHECK, "what the kernel dropped before any socket", &reason);
        }
    };
    let sum = |count: fn(&Counts) -> u64| counts.iter().map(count).fold(0, u64::saturating_add);
    let dropped = sum(|counts| counts.dropped);
    let text = format!(
        "before any socket the kernel dropped {} of {} packets since the host started, and {} \
         times put off the rest for want of time (time_squeeze)",
        Grouped(dropped),
        Grouped(sum(|counts| counts.processed)),
        Grouped(sum(|counts| counts.squeezed))
    );
    if dropped == 0 {
        return Finding::fine(CHECK, text);
    }
    let worst = counts.iter().zip(0_u32..).max_by_key(|(c, _)| c.dropped);
    let (worst, line) = worst.map_or((0, 0), |(counts, line)| (counts.dropped, line));
    Finding::may_lose(
        CHECK,
        format!(
            "{text}; {} of them on line {} of softnet_stat",
            Grouped(worst),
            line + 1
        ),
        "A processor's queue of packets was full. Anybody's packets are dropped there, loopback's \
         too, and no socket counts them.",
        more_backlog(backlog),
    )
}

fn more_backlog(backlog: &Known<u64>) -> String {
    /// Linux's default, and by how much a queue that was full is to be longer.
    const DEFAULT: u64 = 1_000;
    const FACTOR: u64 = 4;
    let wanted = backlog.as_ref().map_or(DEFAULT, |now| *now.max(&DEFAULT));
    let wanted = wanted.saturating_mul(FACTOR);
    format!(
        "cat /proc/net/softnet_stat   # twice: does the second column (hexadecimal) still grow?\n\
         sudo sysctl -w net.core.netdev_max_backlog={wanted}\n\
         # If time_squeeze grows as well, let the kernel work longer at a time:\n\
         # net.core.netdev_budget and net.core.netdev_budget_usecs."
    )
}

fn parse(text: &str) -> Known<Vec<Counts>> {
    let counts = |(line, number): (&str, u32)| {
        let mut columns = line.split_whitespace();
        let mut column = || u64::from_str_radix(columns.next()?, 16).ok();
        let mut counts = || {
            Some(Counts {
                processed: column()?,
                dropped: column()?,
                squeezed: column()?,
            })
        };
        counts().ok_or_else(|| NotKnown(format!("line {number} of softnet_stat is odd")))
    };
    let all: Vec<_> = text.lines().zip(1..).map(counts).collect::<Known<_>>()?;
    match all.is_empty() {
        true => Err(NotKnown("softnet_stat is empty".to_owned())),
        false => Ok(all),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity;
    use super::*;

    const REST: &str = "00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 \
                        00000000 00000000 00000000 00000000";

    fn judge(text: &str) -> Finding {
        softnet(&Ok(text.to_owned()), &Ok(1_000))
    }

    #[test]
    fn columns_are_hexadecimal_and_drops_matter() {
        let fine = judge(&format!("0f04e37c 00000000 0000000a {REST}\n"));
        assert_eq!(fine.severity, Severity::Fine);
        assert!(
            fine.finding.contains("0 of 251,978,620 packets"),
            "{fine:?}"
        );
        assert!(fine.finding.contains("and 10 times"), "{fine:?}");
        let bad = judge(&format!(
            "00000010 00000001 00000000 {REST}\n00000010 0000000f 00000000 {REST}\n"
        ));
        assert_eq!(bad.severity, Severity::MayLose);
        assert!(bad.finding.contains("dropped 16 of 32 packets"), "{bad:?}");
        assert!(bad.finding.contains("15 of them on line 2"), "{bad:?}");
        assert!(bad.mend.unwrap().contains("netdev_max_backlog=4000"));
    }

    #[test]
    fn what_makes_no_sense_is_not_known() {
        for text in [
            "",
            "\n",
            "00000010 00000001",
            "x y z",
            "1 2 fffffffffffffffff",
        ] {
            assert_eq!(judge(text).severity, Severity::Unknown, "{text:?}");
        }
        let unread = softnet(&Err(NotKnown("no".to_owned())), &Ok(1));
        assert_eq!(unread.severity, Severity::Unknown);
    }
}
