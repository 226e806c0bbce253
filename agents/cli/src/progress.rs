//! Progress bars, on a terminal only.

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::app::App;

/// One display of several bars; silent where nobody looks.
#[derive(Clone)]
pub struct Display {
    bars: Option<MultiProgress>,
}

/// One bar.
pub struct Bar(Option<ProgressBar>);

impl Display {
    /// A display for this run.
    pub fn new(app: &App) -> Self {
        Self { bars: app.shows_progress().then(MultiProgress::new) }
    }

    /// A bar that counts bytes.
    pub fn bar(&self, name: &str) -> Bar {
        Bar(self.bars.as_ref().map(|bars| {
            let style = ProgressStyle::with_template(
                "{msg:30!} {bar:30} {bytes:>11}/{total_bytes:<11} {bytes_per_sec:>13} {eta:>4}",
            )
            .unwrap_or_else(|_| ProgressStyle::default_bar());
            bars.add(ProgressBar::new(0).with_style(style).with_message(name.to_owned()))
        }))
    }
}

impl Bar {
    /// How far it is, in bytes.
    pub fn set(&self, done: u64, total: u64) {
        if let Some(bar) = &self.0 {
            bar.set_length(total);
            bar.set_position(done);
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
