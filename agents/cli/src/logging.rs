//! Log lines on standard error: text for people, or JSON on request. `LVKEEP_LOG` takes filter directives.

use std::io::IsTerminal;

use agent::TOLD;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

use crate::args::Global;

/// Starts logging for the process. What an agent tells others stands in its log, too; a command that does the work itself
/// says it once.
pub fn start(global: &Global, is_agent: bool) {
    let level = match global.verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let told = if is_agent || global.verbose > 0 { level } else { "off" };
    let usual = format!(
        "{level},{TOLD}={told},async_nats={lib},object_store={lib},hyper=warn,reqwest=warn,fjall=warn,lsm_tree=warn",
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
