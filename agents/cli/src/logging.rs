//! Log lines on standard error: text for people, or JSON on request. `LVKEEP_LOG` takes filter directives.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

use crate::args::Global;

/// Starts logging for the process.
pub fn start(global: &Global) {
    let level = match global.verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let usual = format!(
        "{level},async_nats={lib},object_store={lib},hyper=warn,reqwest=warn,fjall=warn,lsm_tree=warn",
        lib = if global.verbose > 2 { "debug" } else { "error" }
    );
    let filter = EnvFilter::try_from_env("LVKEEP_LOG").unwrap_or_else(|_| EnvFilter::new(usual));
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A subscriber that is there already stays.
    let _ = match global.log_json {
        true => builder.json().with_current_span(true).with_span_list(true).try_init(),
        false => builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).try_init(),
    };
}
