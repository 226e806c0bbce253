//! Progress bars, on a terminal only.

use std::sync::{Mutex, MutexGuard, PoisonError};

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

    /// Does something that writes to the terminal, away from the bars.
    pub fn aside<T>(&self, write: impl FnOnce() -> T) -> T {
        match &self.bars {
            Some(bars) => bars.suspend(write),
            None => write(),
        }
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

    fn rename(&self, name: String) {
        if let Some(bar) = &self.0 {
            bar.set_message(name);
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// One bar over many volumes, of which some run.
pub struct Overall {
    bar: Bar,
    total: u64,
    state: Mutex<State>,
}

struct State {
    /// Bytes done of each volume.
    done: Vec<u64>,
    ended: usize,
    failed: usize,
}

impl Overall {
    /// A bar over volumes of these sizes in bytes.
    pub fn new(display: &Display, sizes: impl Iterator<Item = u64> + Clone) -> Self {
        let state = State { done: sizes.clone().map(|_| 0).collect(), ended: 0, failed: 0 };
        let overall = Self { bar: display.bar(""), total: sizes.sum(), state: Mutex::new(state) };
        overall.show(&overall.state());
        overall
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, state: &State) {
        let (ended, failed, all) = (state.ended, state.failed, state.done.len());
        let failures = if failed > 0 { format!(", {failed} FAILED") } else { String::new() };
        self.bar.rename(format!("{ended} of {all} volumes{failures}"));
        self.bar.set(state.done.iter().sum(), self.total);
    }

    /// How many bytes of a volume are done.
    pub fn set(&self, volume: usize, done: u64) {
        let mut state = self.state();
        if let Some(there) = state.done.get_mut(volume) {
            *there = done;
        }
        self.show(&state);
    }

    /// A volume ended; one that failed counts as far as it came.
    pub fn ended(&self, volume: usize, restored: Option<u64>) {
        let mut state = self.state();
        state.ended += 1;
        match (restored, state.done.get_mut(volume)) {
            (Some(size), Some(there)) => *there = size,
            (Some(_), None) => {}
            (None, _) => state.failed += 1,
        }
        self.show(&state);
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish();
    }
}
