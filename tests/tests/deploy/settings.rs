//! `lvkeep.toml` holds every setting that there is, and each example is one that the binary takes.

use tests::e2e::Machine;

/// The same text with every commented setting in force.
fn all_in_force(text: &str) -> String {
    let is_setting = |line: &str| {
        let name = line.split_once(" = ").map(|(name, _)| name);
        name.is_some_and(|name| !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
    };
    let lines = text.lines().map(|line| match line.strip_prefix('#') {
        Some(rest) if is_setting(rest) || rest.starts_with("[[") => rest,
        _ => line,
    });
    lines.map(|line| format!("{line}\n")).collect()
}

fn origins(text: &str) -> Vec<(String, String)> {
    let machine = Machine::bare("settings");
    let path = machine.place("lvkeep.toml");
    std::fs::write(&path, text).expect("the configuration is written");
    let shown = machine.json(&["--config", &path, "config", "show"]);
    let fields = shown.as_object().expect("settings are an object").clone();
    let origin =
        |(name, field): (String, serde_json::Value)| Some((name, field.get("origin")?.as_str()?.to_owned()));
    fields.into_iter().filter_map(origin).collect()
}

#[test]
fn the_example_changes_nothing_until_it_is_edited() {
    let origins = origins(&super::text("lvkeep.toml"));
    assert!(origins.len() > 15, "{origins:?}");
    let changed: Vec<_> = origins.iter().filter(|(_, origin)| origin != "default").collect();
    assert!(changed.is_empty(), "{changed:?}");
}

#[test]
fn every_setting_is_in_the_example() {
    let origins = origins(&all_in_force(&super::text("lvkeep.toml")));
    let missing: Vec<_> = origins.iter().filter(|(_, origin)| origin != "file").collect();
    assert!(missing.is_empty(), "deploy/lvkeep.toml lacks {missing:?}");
}

#[test]
fn the_environment_wins_over_the_example() {
    let mut machine = Machine::bare("settings");
    let path = machine.place("lvkeep.toml");
    std::fs::write(&path, all_in_force(&super::text("lvkeep.toml"))).expect("the configuration is written");
    machine.set("LVKEEP_CONFIG", &path);
    machine.set("LVKEEP_NATS", "tls://host:secret@localhost");
    let shown = machine.json(&["config", "show"]);
    assert_eq!(shown["nats"]["origin"], "environment");
    assert_eq!(shown["nats_ca"]["origin"], "file");
}
