//! The trace that an event belongs to, with the feature `opentelemetry`.
//!
//! Owns the two attributes of W3C Trace Context (`traceparent`, `tracestate`; level
//! 1, <https://www.w3.org/TR/trace-context/>) and how they are written and read. It
//! begins no span and samples nothing.

#[cfg(not(feature = "opentelemetry"))]
use crate::event::Event;

#[cfg(feature = "opentelemetry")]
pub use on::remote_context;
#[cfg(feature = "opentelemetry")]
pub(crate) use on::with_context;

/// Hands the event on as it is.
#[cfg(not(feature = "opentelemetry"))]
#[inline(always)]
pub(crate) fn with_context<R>(event: &Event<'_>, then: impl FnOnce(&Event<'_>) -> R) -> R {
    then(event)
}

#[cfg(feature = "opentelemetry")]
mod on {
    use std::panic::catch_unwind;

    use opentelemetry::Context;
    use opentelemetry::trace::{
        SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState,
    };

    use crate::counters::PublishError;
    use crate::event::Event;

    const TRACEPARENT: &str = "traceparent";
    const TRACESTATE: &str = "tracestate";

    /// The version of the format that is written here.
    const VERSION: &str = "00";
    /// The version that will never be.
    const VERSION_INVALID: &str = "ff";

    /// Hands the event on with the current context's attributes, if there is a span.
    /// What the application set itself stays.
    pub(crate) fn with_context<R>(event: &Event<'_>, then: impl FnOnce(&Event<'_>) -> R) -> R {
        let span = current_span();
        let own = event.parts().attributes;
        if !span.is_valid() || own.iter().any(|(name, _)| *name == TRACEPARENT) {
            return then(event);
        }
        let (parent, state) = (traceparent(&span), span.trace_state().header());
        let mut attributes = own.to_vec();
        attributes.push((TRACEPARENT, &parent));
        if !state.is_empty() {
            attributes.push((TRACESTATE, &state));
        }
        let traced = event.attributes(&attributes);
        match traced.check() {
            // The event goes before its trace.
            Err(PublishError::TooLarge) => then(event),
            _ => then(&traced),
        }
    }

    /// Stands as long as the thread does, but for its last destructors.
    struct Standing;

    impl Drop for Standing {
        fn drop(&mut self) {}
    }

    thread_local! {
        static STANDING: Standing = const { Standing };
    }

    /// The current span, or none.
    ///
    /// The context is a value of the thread, and asking for it panics once that is
    /// destroyed, as does asking while it is being changed. An event that a destructor
    /// of the thread's publishes must not end the process: so nothing is asked once a
    /// value of ours, which is destroyed before or right after it, is gone. Only where
    /// such an event is the thread's first does the panic happen, and is caught; a
    /// program that aborts on panics does so then.
    fn current_span() -> SpanContext {
        let ask = || Context::map_current(|context| context.span().span_context().clone());
        let is_standing = STANDING.try_with(|_| ()).is_ok();
        let span = is_standing.then(|| catch_unwind(ask).ok()).flatten();
        span.unwrap_or(SpanContext::NONE)
    }

    fn traceparent(span: &SpanContext) -> String {
        let (trace, parent) = (span.trace_id(), span.span_id());
        let flags = span.trace_flags().to_u8();
        format!("{VERSION}-{trace}-{parent}-{flags:02x}")
    }

    /// The current context, with the span that published an event as the remote
    /// parent of what is begun in it; of an event without a valid `traceparent`, the
    /// current context as it is. The type is that of the crate `opentelemetry`, whose
    /// version so is part of this crate's.
    ///
    /// ```
    /// use hailmary_client::remote_context;
    /// use opentelemetry::trace::TraceContextExt;
    ///
    /// let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    /// let context = remote_context([("traceparent", parent)]);
    /// assert!(context.span().span_context().is_remote());
    /// ```
    pub fn remote_context<'a>(attributes: impl IntoIterator<Item = (&'a str, &'a str)>) -> Context {
        let (mut parent, mut state) = (None, "");
        for (name, value) in attributes {
            match name {
                TRACEPARENT => parent = Some(value),
                TRACESTATE => state = value,
                _ => {}
            }
        }
        let context = Context::current();
        match parent.and_then(|parent| span_context(parent, state)) {
            Some(span) => context.with_remote_span_context(span),
            None => context,
        }
    }

    fn span_context(parent: &str, state: &str) -> Option<SpanContext> {
        let mut parts = parent.split('-');
        let version = hex(parts.next()?, 2)?;
        let trace = TraceId::from_hex(hex(parts.next()?, 32)?).ok()?;
        let span = SpanId::from_hex(hex(parts.next()?, 16)?).ok()?;
        let flags = u8::from_str_radix(hex(parts.next()?, 2)?, 16).ok()?;
        // Later versions may say more, behind what is known.
        if version == VERSION_INVALID || (version == VERSION && parts.next().is_some()) {
            return None;
        }
        let flags = TraceFlags::new(flags) & TraceFlags::SAMPLED;
        // A bad state must not cost the parent.
        let state = state.parse::<TraceState>().unwrap_or_default();
        let context = SpanContext::new(trace, span, flags, true, state);
        context.is_valid().then_some(context)
    }

    /// So many digits, of which no letter is a capital one.
    fn hex(text: &str, digits: usize) -> Option<&str> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (text.len() == digits && text.bytes().all(is_digit)).then_some(text)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

        fn span_of(parent: &str, state: &str) -> Option<SpanContext> {
            let context =
                remote_context([("other", "x"), (TRACEPARENT, parent), (TRACESTATE, state)]);
            let span = context.span().span_context().clone();
            span.is_valid().then_some(span)
        }

        #[test]
        fn reads_what_it_writes() {
            let span = span_of(PARENT, "a=b").unwrap();
            assert!(span.is_remote() && span.is_sampled());
            assert_eq!(traceparent(&span), PARENT);
            assert_eq!(span.trace_state().header(), "a=b");
        }

        #[test]
        fn takes_no_parent_that_is_none() {
            for bad in [
                "",
                "00",
                "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
                "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
                "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
                "00-00000000000000000000000000000000-b7ad6b7169203331-01",
                "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
                "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
                "00-0af7651916cd43dd8448eb211c80319ü-b7ad6b7169203331-01",
            ] {
                assert_eq!(span_of(bad, ""), None, "{bad:?}");
            }
            let later = PARENT.replacen("00", "01", 1) + "-more";
            assert!(span_of(&later, "no state").is_some());
        }
    }
}
