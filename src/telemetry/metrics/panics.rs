//! Counts panics, and logs each on one line.

use std::panic::{self, PanicHookInfo};

use prometheus_client::{metrics::counter::Counter, registry::Registry};

/// Counts and logs every panic of the process from now on.
pub fn count_panics(r: &mut Registry) {
    let panics = Counter::default();
    r.register("panics", "Panics, each of which is a bug", panics.clone());
    panic::set_hook(Box::new(move |panic| note(&panics, panic)));
}

fn note(panics: &Counter, panic: &PanicHookInfo<'_>) {
    panics.inc();
    let payload = panic.payload();
    let message = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref().map(String::as_str));
    let location = panic.location().map(tracing::field::display);
    tracing::error!(location, panic = message, "panicked");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_counted() {
        let mut registry = crate::telemetry::registry();
        let others = panic::take_hook();
        count_panics(&mut registry);
        // Other tests in this process also need their panic hook.
        let ours = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            ours(panic);
            others(panic);
        }));
        assert!(panic::catch_unwind(|| panic!("a bug")).is_err());
        let text = crate::telemetry::encode(&registry);
        assert!(!text.contains("spillway_panics_total 0"), "{text}");
        assert!(text.contains("spillway_panics_total "), "{text}");
    }
}
