//! What the features `tracing` and `opentelemetry` add to publishing.
#![cfg(any(feature = "tracing", feature = "opentelemetry"))]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "each feature's tests use a part of what helps them"
)]

#[cfg(feature = "tracing")]
mod logs {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use hailmary_client::{Event, Publisher};
    use tracing_subscriber::util::SubscriberInitExt;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(run: impl FnOnce()) -> Vec<String> {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .without_time()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        let default = subscriber.set_default();
        run();
        drop(default);
        let bytes = lines.0.lock().unwrap().clone();
        let text = String::from_utf8(bytes).unwrap();
        text.lines().map(|line| line.trim().to_owned()).collect()
    }

    #[test]
    fn the_first_drop_of_each_kind_is_told_and_no_other() {
        let missing = "unix:///nowhere/hailmary.sock".parse().unwrap();
        let publisher = Publisher::connect(&missing).unwrap();
        let lines = logged(|| {
            for _ in 0..100 {
                publisher.publish("a", "");
                publisher.publish_event(&Event::new("not legal", ""));
            }
        });
        let expected =
            "WARN hailmary: event dropped reason=nobody listens at the bus's address suppressed=0";
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert_eq!(lines[0], expected);
        assert!(logged(|| Publisher::spy().0.publish("a", "")).is_empty());
    }
}

#[cfg(feature = "opentelemetry")]
mod traces {
    use std::cell::Cell;

    use hailmary_client::{Event, Publisher};
    use opentelemetry::Context;
    use opentelemetry::trace::{
        SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState,
    };

    const PARENT: &str = "00-0000000000000000000000000000abcd-00000000000000ef-01";

    fn span() -> SpanContext {
        let state = TraceState::from_key_value([("vendor", "x")]).unwrap();
        let (trace, span) = (TraceId::from(0xABCD), SpanId::from(0xEF));
        SpanContext::new(trace, span, TraceFlags::SAMPLED, false, state)
    }

    fn own(attributes: &[(&str, &str)]) -> Vec<(String, String)> {
        let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        attributes.iter().map(pair).collect()
    }

    #[test]
    fn an_event_carries_the_span_that_published_it() {
        let (publisher, spy) = Publisher::spy();
        publisher.publish("a", "outside");
        let context = Context::current().with_remote_span_context(span());
        let attached = context.attach();
        let event = Event::new("a", "inside");
        publisher.publish_event(&event.attributes(&[("n", "v")]));
        publisher.batch().push(&event);
        publisher.publish_event(&event.attributes(&[("traceparent", "mine")]));
        drop(attached);

        let events = spy.take();
        let told = [("traceparent", PARENT), ("tracestate", "vendor=x")];
        assert_eq!(events[0].attributes, []);
        assert_eq!(events[1].attributes, own(&[("n", "v"), told[0], told[1]]));
        assert_eq!(events[2].attributes, own(&told));
        assert_eq!(events[3].attributes, own(&[("traceparent", "mine")]));

        let received = events[1].context().span().span_context().clone();
        assert!(received.is_remote());
        assert_eq!(
            (received.trace_id(), received.span_id()),
            (span().trace_id(), span().span_id())
        );
        assert_eq!(received.trace_state(), span().trace_state());
        assert!(!events[3].context().has_active_span());
    }

    /// Publishes when its thread ends, as a buffer does that a thread leaves behind.
    struct AtTheEnd(Publisher);

    impl Drop for AtTheEnd {
        fn drop(&mut self) {
            self.0.publish("a", "end");
        }
    }

    thread_local! {
        static AT_THE_END: Cell<Option<AtTheEnd>> = const { Cell::new(None) };
    }

    /// Runs it in a thread that publishes once more at its very end.
    fn in_thread(publisher: &Publisher, run: fn(&Publisher)) {
        let publisher = publisher.clone();
        let thread = std::thread::spawn(move || {
            AT_THE_END.set(Some(AtTheEnd(publisher.clone())));
            run(&publisher);
        });
        thread.join().unwrap();
    }

    #[test]
    fn a_threads_last_destructors_may_publish() {
        let (publisher, spy) = Publisher::spy();
        in_thread(&publisher, |publisher| publisher.publish("a", "first"));
        in_thread(&publisher, |_| drop(Context::current()));
        in_thread(&publisher, |_| {});
        let payloads: Vec<_> = spy.take().into_iter().map(|event| event.payload).collect();
        assert_eq!(payloads, [&b"first"[..], b"end", b"end", b"end"]);
    }

    #[test]
    fn an_event_that_fits_without_its_trace_goes_without() {
        let (publisher, spy) = Publisher::spy();
        let _attached = Context::current().with_remote_span_context(span()).attach();
        let mut payload = vec![0; 65_507];
        while publisher.try_publish(&Event::new("a", &payload)).is_err() {
            payload.pop();
        }
        payload.truncate(payload.len() - 200);
        publisher.publish("a", &payload);
        let attributes = spy.take().into_iter().map(|event| event.attributes);
        let told = attributes.map(|all| all.len()).collect::<Vec<_>>();
        assert_eq!(told, [0, 2]);
    }
}
