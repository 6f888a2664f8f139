//! What a running bus has counted as lost, by hop: one table of reasons, and one pass over it.

use crate::command::admin_client::{Sample, Scrape};
use crate::command::grouped::Grouped;

use super::finding::{Finding, first_of};

const CHECK: &str = "counted";

/// A reason that something was lost for.
#[derive(Debug)]
struct Loss {
    metric: &'static str,
    /// The label `reason`; empty where the metric has none.
    reason: &'static str,
    /// What was lost, with its unit.
    what: &'static str,
    why: &'static str,
    mend: &'static str,
}

/// All losses that somebody can do something about. Drops by the kernel in front of the bus are
/// told by listener elsewhere; what is sampled or held to a rate is meant to be dropped.
const LOSSES: &[Loss] = &[
    Loss {
        metric: "ingress_sender_dropped_events_total",
        reason: "",
        what: "events were dropped by publishers themselves",
        why: "Their own sockets took no more, or they publish faster than the kernel sends.",
        mend: "# On the publishers' hosts: publisher.stats() tells which and why. Over a Unix \
               socket the bus's queue was full: see unix-queue.",
    },
    Loss {
        metric: "ingress_lost_events_total",
        reason: "",
        what: "events were lost between publishers and the bus",
        why: "By the gaps in the publishers' numbers. Those that kernel-drops tells of are among \
              them; the others were lost on the network.",
        mend: "nstat -az UdpInErrors UdpRcvbufErrors IpReasmFails\n\
               ip -s link   # errors and drops of the cards",
    },
    Loss {
        metric: "ingress_dropped_frames_total",
        reason: "truncated",
        what: "frames were too long to be taken",
        why: "A datagram longer than 65,507 bytes came over a Unix socket.",
        mend: "# On the publishers' side: put fewer events in a datagram.",
    },
    Loss {
        metric: "ingress_dropped_frames_total",
        reason: "malformed",
        what: "frames were no protobuf of hailmary.v1.Frame",
        why: "Something else sends to the bus's port, or a publisher is broken.",
        mend: "sudo tcpdump -ni any -c 20 udp port 7277   # who sends what",
    },
    Loss {
        metric: "ingress_dropped_frames_total",
        reason: "not_allowed",
        what: "frames came from sources that may not publish",
        why: "No rule of publish in [access] has their address.",
        mend: "sudo tcpdump -ni any -c 20 udp port 7277   # who sends\n\
               # Then add them to publish in [access] of the configuration.",
    },
    Loss {
        metric: "ingress_dropped_frames_total",
        reason: "hops",
        what: "frames had passed too many buses",
        why: "Buses are subscribers of each other in a circle.",
        mend: "# In the buses' configurations: take one [[subscriber]] of the circle out.",
    },
    Loss {
        metric: "ingress_dropped_events_total",
        reason: "bad_topic",
        what: "events had a topic that is none",
        why: "A topic is up to 16 tokens of A-Za-z0-9_:/- joined by dots, 255 bytes in all.",
        mend: "# On the publishers' side: mend the topic.",
    },
    Loss {
        metric: "ingress_dropped_events_total",
        reason: "not_allowed",
        what: "events had a topic that their source may not publish",
        why: "The rule of publish in [access] for their address has other topics.",
        mend: "# In the configuration: add the topic to publish in [access].",
    },
    Loss {
        metric: "ingress_dropped_events_total",
        reason: "stale",
        what: "events were older than their topic's max_age_ms when they came",
        why: "Something holds them up on the way, or the clocks of two hosts differ.",
        mend: "timedatectl   # on the publishers' hosts and here: is the clock synchronized?",
    },
    Loss {
        metric: "egress_dropped_events_total",
        reason: "would_block",
        what: "copies were dropped because a send buffer or queue was full",
        why: "Over UDP, datagrams wait for a card or for a host that does not answer; over a Unix \
              socket, the subscriber does not read as fast as events come.",
        mend: "# UDP: see neighbour and send-buffer here; raise send_buffer_bytes in [loop].\n\
               # Unix: see unix-queue here, and what holds the subscriber up.",
    },
    Loss {
        metric: "egress_dropped_events_total",
        reason: "no_buffer",
        what: "copies were dropped because the card's queue was full",
        why: "The host sends more than the network card or its queue discipline takes.",
        mend: "tc -s qdisc show   # which interface drops\n\
               # Then a longer queue: sudo ip link set dev INTERFACE txqueuelen 10000",
    },
    Loss {
        metric: "egress_dropped_events_total",
        reason: "unreachable",
        what: "copies were dropped because there was no way to the subscriber",
        why: "No route, no descriptor for its socket, or a host that the network says is gone.",
        mend: "# See route and neighbour here, and the bus's log: journalctl -u hailmary",
    },
    Loss {
        metric: "egress_dropped_events_total",
        reason: "refused",
        what: "copies were dropped because nobody listened",
        why: "The subscriber's process is gone or was restarted; its address is configured, or \
              its lease has not run out.",
        mend: "# On the subscriber's host: start it. If it is gone for good and configured, take \
               its [[subscriber]] out of the configuration.",
    },
    Loss {
        metric: "egress_dropped_events_total",
        reason: "too_large",
        what: "copies were dropped because the event is larger than the subscriber's datagrams",
        why: "An event is never cut: it goes in one datagram or not at all.",
        mend: "# Raise max_frame_bytes of the subscriber, or publish smaller events.",
    },
    Loss {
        metric: "egress_dropped_events_total",
        reason: "overload",
        what: "copies were dropped because the bus had too much to do",
        why: "It came to more than the bus can send.",
        mend: "# Publish more events in a datagram, or set workers = 2 or more in [loop].",
    },
    Loss {
        metric: "subscriber_lost_events_total",
        reason: "",
        what: "events were lost between the bus and the subscriber",
        why: "Mostly in the subscriber's own receive buffer: it reads slower than events come.",
        mend: "# On the subscriber's host:\n\
               nstat -az UdpRcvbufErrors UdpInErrors\n\
               # If these grow: a larger receive buffer there, net.core.rmem_max first.",
    },
    Loss {
        metric: "subscriber_dropped_events_total",
        reason: "",
        what: "events were dropped by the subscriber itself",
        why: "Its application does not keep up, and its queue was full.",
        mend: "# On the subscriber's host: subscriber.stats(), and what holds it up.",
    },
];

/// Everything that the bus has counted as lost since it started.
pub fn counted(metrics: &Scrape, since: &str) -> Vec<Finding> {
    let findings: Vec<_> = LOSSES
        .iter()
        .flat_map(|loss| {
            let samples = metrics.samples(loss.metric);
            let is_loss = |sample: &&Sample| {
                sample.value > 0 && sample.label("reason").unwrap_or_default() == loss.reason
            };
            let mut samples: Vec<_> = samples.filter(is_loss).collect();
            samples.sort_by_key(|sample| std::cmp::Reverse(sample.value));
            first_of(
                samples
                    .into_iter()
                    .map(|sample| lost(loss, sample, metrics, since))
                    .collect(),
            )
        })
        .collect();
    if findings.is_empty() {
        return vec![Finding::fine(
            CHECK,
            format!("the bus has counted no loss {since}"),
        )];
    }
    findings
}

fn lost(loss: &Loss, sample: &Sample, metrics: &Scrape, since: &str) -> Finding {
    let count = Grouped(sample.value);
    let text = match sample.label("subscriber") {
        Some(name) => {
            let of = ["egress_events_total", "egress_dropped_events_total"];
            let samples = of.iter().flat_map(|metric| metrics.samples(metric));
            let its = samples.filter(|sample| sample.is_of(name));
            let copies = its.map(|sample| sample.value).fold(0, u64::saturating_add);
            let (what, copies) = (loss.what, Grouped(copies));
            format!("subscriber {name}: {count} {what}, of {copies} copies for it {since}")
        }
        None => format!("{count} {} {since}", loss.what),
    };
    let reason = match loss.reason {
        "" => loss.metric,
        reason => reason,
    };
    Finding::loses(CHECK, format!("{text} ({reason})"), loss.why, loss.mend)
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity;
    use super::*;
    use crate::bus::{CopyDrop, FrameDrop};

    fn judge(page: &str) -> Vec<Finding> {
        counted(&Scrape::parse(page), "in the 5 s since it started")
    }

    #[test]
    fn losses_are_told_by_subscriber_and_reason_with_their_share() {
        let found = judge(
            "hailmary_egress_events_total{subscriber=\"a\"} 9000\n\
             hailmary_egress_events_total{subscriber=\"b\"} 5\n\
             hailmary_egress_dropped_events_total{subscriber=\"a\",reason=\"would_block\"} 1000\n\
             hailmary_egress_dropped_events_total{subscriber=\"b\",reason=\"would_block\"} 0\n\
             hailmary_subscriber_lost_events_total{subscriber=\"a\"} 7\n",
        );
        assert_eq!(found.len(), 2);
        assert!(found.iter().all(|it| it.severity == Severity::Loses));
        assert_eq!(
            found[0].finding,
            "subscriber a: 1,000 copies were dropped because a send buffer or queue was full, of \
             10,000 copies for it in the 5 s since it started (would_block)"
        );
        assert!(found[1].finding.contains("a: 7 events were lost between"));
    }

    #[test]
    fn no_losses_and_meant_ones_are_fine() {
        for page in [
            "",
            "hailmary_egress_dropped_events_total{subscriber=\"a\",reason=\"sampled\"} 1000\n",
            "hailmary_egress_dropped_events_total{subscriber=\"a\",reason=\"rate_limit\"} 1000\n",
            "hailmary_ingress_dropped_events_total{reason=\"rate_limit\"} 1000\n",
            "hailmary_ingress_dropped_frames_total{reason=\"kernel_buffer\"} 1000\n",
            "hailmary_unmatched_events_total 7\n",
        ] {
            let found = judge(page);
            assert_eq!((found.len(), found[0].severity), (1, Severity::Fine));
        }
    }

    #[test]
    fn every_reason_of_the_bus_has_a_word() {
        let frames = FrameDrop::ALL.map(FrameDrop::label);
        let is_meant = |drop: &CopyDrop| matches!(drop, CopyDrop::Sampled | CopyDrop::RateLimit);
        let copies = CopyDrop::ALL.into_iter().filter(|drop| !is_meant(drop));
        let copies = copies.map(CopyDrop::label);
        let events = ["bad_topic", "not_allowed", "stale"];
        let all = frames
            .map(|reason| ("ingress_dropped_frames_total", reason))
            .into_iter()
            .chain(events.map(|reason| ("ingress_dropped_events_total", reason)))
            .chain(copies.map(|reason| ("egress_dropped_events_total", reason)));
        for (metric, reason) in all {
            let found = judge(&format!("hailmary_{metric}{{reason=\"{reason}\"}} 3\n"));
            assert_eq!(found[0].severity, Severity::Loses, "{metric} {reason}");
        }
    }

    #[test]
    fn many_subscribers_are_told_worst_first() {
        let line =
            |n| format!("hailmary_subscriber_lost_events_total{{subscriber=\"s{n}\"}} {n}\n");
        let found = judge(&(1..=100).map(line).collect::<String>());
        assert_eq!(found.len(), 17);
        assert!(found[0].finding.starts_with("subscriber s100: 100 events"));
    }
}
