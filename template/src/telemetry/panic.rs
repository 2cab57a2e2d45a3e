//! Logs and counts panics, wherever they happen.

use metrics::counter;
use tracing::error;

/// Replaces the default hook, which would bypass the log and write to stderr.
pub(super) fn install_hook() {
    std::panic::set_hook(Box::new(|panic| {
        counter!("panics_total").increment(1);
        let location = panic.location().map(ToString::to_string);
        // The message may quote a client's input, but is logged as an escaped string.
        let reason = panic.payload_as_str().unwrap_or("(not text)");
        error!(location, reason, category = "internal", "panic");
    }));
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use metrics::with_local_recorder;
    use metrics_exporter_prometheus::PrometheusBuilder;
    use tracing_subscriber::layer::SubscriberExt;

    use super::install_hook;
    use crate::telemetry::context::Context;
    use crate::telemetry::lines::Lines;
    use crate::telemetry::logs::FlatJson;

    #[test]
    fn panic_is_a_line_with_its_place_and_the_request_that_met_it() {
        let lines = Lines::default();
        let log = tracing_subscriber::registry().with(FlatJson(lines.clone()));
        let before = std::panic::take_hook();
        install_hook();
        let recorder = PrometheusBuilder::new().build_recorder();
        let panics = || {
            let context = Context { request_id: "cause".into(), trace: None };
            let _ = catch_unwind(|| context.enter(|| panic!("planted")));
            let _ = catch_unwind(|| panic!("{}", "ü".repeat(1_000_000)));
        };
        tracing::subscriber::with_default(log, || with_local_recorder(&recorder, panics));
        std::panic::set_hook(before);
        assert!(recorder.handle().render().contains("panics_total 2\n"));
        let text = lines.queued();
        assert!(text.lines().all(|line| line.len() < 10_000), "a line is bounded, whatever is told");
        let first = text.lines().next().expect("a line");
        let event: serde_json::Value = serde_json::from_str(first).expect("JSON");
        assert_eq!((&event["message"], &event["request_id"]), (&"panic".into(), &"cause".into()), "{event}");
        assert_eq!((&event["reason"], &event["level"]), (&"planted".into(), &"ERROR".into()), "{event}");
        assert_eq!(event["category"], "internal", "{event}");
        assert!(
            event["location"].as_str().is_some_and(|at| at.starts_with("src/telemetry/panic.rs:")),
            "{event}"
        );
    }
}
