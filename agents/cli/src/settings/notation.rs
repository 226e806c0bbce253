//! Values as the configuration file has them, where that is simple: sizes, lengths of time, per cent.

use serde_json::Value;

/// Units of size, the largest first.
const SIZES: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
/// Units of time, the longest first.
const TIMES: [(f64, &str); 2] = [(86_400.0, "d"), (3600.0, "h")];

/// The value of a setting, by the setting's name.
pub(super) fn of(name: &str, value: &Value) -> String {
    let size = || value.as_u64().map(size);
    let time = || value.as_f64().map(time);
    let known = match name {
        "memory" | "limit_read" | "limit_upload" | "span" | "max_repack" => size(),
        "pack_max_age" | "ask_again" | "redeliver" | "prune_every" | "prune_revoke_after" | "check_every" => {
            time()
        }
        "check_share" => value.as_u64().map(|percent| format!("{percent}%")),
        _ => None,
    };
    known.unwrap_or_else(|| match value {
        Value::Null => "-".to_owned(),
        Value::Object(fields) if fields.values().all(Value::is_null) => "-".to_owned(),
        Value::Array(all) if all.is_empty() => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    })
}

fn size(bytes: u64) -> String {
    match SIZES.iter().find(|(unit, _)| bytes > 0 && bytes.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", bytes / unit),
        None => bytes.to_string(),
    }
}

fn time(seconds: f64) -> String {
    match TIMES.iter().find(|(unit, _)| seconds > 0.0 && seconds % unit == 0.0) {
        Some((unit, name)) => format!("{}{name}", seconds / unit),
        None => format!("{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::settings::{parse_size, seconds_of};

    #[test]
    fn what_is_shown_is_what_the_file_takes() {
        for (name, value, shown) in [
            ("memory", json!(268_435_456_u64), "256MiB"),
            ("max_repack", json!(4_294_967_296_u64), "4GiB"),
            ("limit_read", json!(1_000_000), "1000000"),
            ("redeliver", json!(30.0), "30s"),
            ("ask_again", json!(1.5), "1.5s"),
            ("check_every", json!(93_600.0), "26h"),
            ("prune_revoke_after", json!(604_800.0), "7d"),
            ("check_share", json!(5), "5%"),
            ("limit_upload", json!(null), "-"),
            ("lvm", json!({}), "-"),
            ("roles", json!([]), "-"),
            ("reads", json!(2), "2"),
            ("host", json!("web1"), "web1"),
        ] {
            assert_eq!(of(name, &value), shown, "{name}");
        }
        assert_eq!(parse_size("memory", &size(3 << 30)).ok(), Some(3 << 30));
        assert_eq!(
            [30.0, 1.5, 93_600.0, 604_800.0].map(|s| seconds_of(&time(s))),
            [30.0, 1.5, 93_600.0, 604_800.0].map(Some)
        );
    }
}
