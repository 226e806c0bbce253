use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::mappings::{Mapped, MappingsParser};
use super::*;

const BLOCK: u64 = 64 << 10;

fn delta(text: &str) -> Result<Delta, XmlError> {
    pieces(text, usize::MAX)
}

fn pieces(text: &str, len: usize) -> Result<Delta, XmlError> {
    let mut parser = DeltaParser::new(1, 3, 100 * BLOCK);
    for piece in text.as_bytes().chunks(len) {
        parser.push(piece)?;
    }
    parser.finish()
}

fn mapped(text: &str) -> Result<Option<Mapped>, XmlError> {
    let mut parser = MappingsParser::new([3], 100 * BLOCK);
    text.as_bytes().chunks(7).try_for_each(|piece| parser.push(piece))?;
    let [found] = parser.finish()?;
    Ok(found)
}

fn blocks(ranges: &[std::ops::Range<u64>]) -> Ranges {
    ranges.iter().map(|range| range.start * BLOCK..range.end * BLOCK).collect()
}

/// What thin_delta 0.9.0 prints of two devices of a pool made for this.
pub(crate) const PLAIN: &str = r#"<superblock uuid="" time="5" transaction="3" data_block_size="128" nr_data_blocks="1000">
  <diff left="1" right="3">
    <same begin="0" length="2"/>
    <different begin="2" length="1"/>
    <left_only begin="3" length="2"/>
    <same begin="5" length="4"/>
    <left_only begin="9" length="1"/>
    <right_only begin="20" length="7"/>
  </diff>
</superblock>
"#;

/// The same from 1.1.0 with `--verbose`, which ends without a new line.
pub(crate) const VERBOSE: &str = r#"<superblock uuid="" time="5" transaction="3" data_block_size="128" nr_data_blocks="1000">
  <diff left="1" right="3">
    <same>
      <range begin="0" data_begin="0" length="2"/>
    </same>
    <different>
      <range begin="2" left_data_begin="2" right_data_begin="100" length="1"/>
    </different>
    <left_only>
      <range begin="3" data_begin="3" length="2"/>
    </left_only>
    <same>
      <range begin="5" data_begin="5" length="4"/>
    </same>
    <left_only>
      <range begin="9" data_begin="9" length="1"/>
    </left_only>
    <right_only>
      <range begin="20" data_begin="200" length="7"/>
    </right_only>
  </diff>
</superblock>"#;

/// What thin_dump 1.1.0 prints with `--dev-id 3`; 0.9.0 has `flags="0"` besides.
pub(crate) const DUMP: &str = r#"<superblock uuid="" time="5" transaction="3" version="2" data_block_size="128" nr_data_blocks="1000">
  <device dev_id="3" mapped_blocks="14" transaction="1" creation_time="1" snap_time="1">
    <range_mapping origin_begin="0" data_begin="0" length="2" time="0"/>
    <single_mapping origin_block="2" data_block="100" time="1"/>
    <range_mapping origin_begin="5" data_begin="5" length="4" time="0"/>
    <range_mapping origin_begin="20" data_begin="200" length="7" time="2"/>
  </device>
</superblock>"#;

fn expected() -> Delta {
    Delta {
        block: BLOCK,
        changed: blocks(&[2..5, 9..10, 20..27]),
        emptied: blocks(&[3..5, 9..10]),
        older_blocks: 10,
        newer_blocks: 14,
    }
}

#[test]
fn both_versions_and_both_forms_say_the_same() {
    assert_eq!(delta(PLAIN).unwrap(), expected());
    assert_eq!(delta(VERBOSE).unwrap(), expected());
    let reordered = PLAIN.replace(r#"begin="3" length="2""#, r#"later='x>"' length = '2' begin	= "3""#);
    assert_eq!(delta(&reordered).unwrap(), expected());
    let opened =
        PLAIN.replace(r#"<different begin="2" length="1"/>"#, "<different begin='2' length='1'></different>");
    assert_eq!(delta(&format!("<?xml version='1.0'?><!-- by hand -->\n{opened}")).unwrap(), expected());
}

/// What only the older one maps reads as zero now: it changed.
#[test]
fn what_was_discarded_has_changed() {
    let all = PLAIN.replace("same", "left_only");
    let found = delta(&all).unwrap();
    assert!(found.changed.contains(0) && found.emptied.contains(0));
    assert_eq!((found.older_blocks, found.newer_blocks), (10, 8));
}

#[test]
fn pieces_of_any_length_say_the_same() {
    for len in 1..200 {
        assert_eq!(pieces(PLAIN, len).unwrap(), expected(), "in pieces of {len}");
        assert_eq!(pieces(VERBOSE, len).unwrap(), expected(), "in pieces of {len}");
    }
}

/// However early the tool or its pipe breaks off, it is noticed.
#[test]
fn no_beginning_of_a_list_is_taken_for_the_whole() {
    for text in [PLAIN.trim_end(), VERBOSE, DUMP] {
        for len in 0..text.len() {
            assert!(delta(&text[..len]).is_err() && mapped(&text[..len]).is_err(), "{}", &text[..len]);
        }
    }
}

#[test]
fn what_lies_behind_a_volume_that_was_made_smaller_is_left_out() {
    let found = delta(&PLAIN.replace(r#"begin="20""#, r#"begin="96""#)).unwrap();
    assert_eq!(found.changed, blocks(&[2..5, 9..10, 96..100]));
    assert_eq!(found.newer_blocks, 14);
}

#[test]
fn hostile_lists_are_refused_by_name() {
    let with = |from: &str, to: &str| {
        assert!(PLAIN.contains(from), "{from}");
        delta(&PLAIN.replacen(from, to, 1)).map(|found| found.changed).unwrap_err().to_string()
    };
    let long = format!("<same name='{}' ", "x".repeat(5000));
    let deep = "<diff>".repeat(9);
    let refused = [
        (with("left=\"1\"", "left=\"2\""), "thin devices 2 and 3 instead of 1 and 3"),
        (with("left=\"1\"", ""), "`diff` has no attribute `left`"),
        (with("128", "100"), "100 sectors"),
        (with("128", "0"), "0 sectors"),
        (with("128", "4194304"), "4194304 sectors"),
        (with("data_block_size=\"128\"", ""), "no attribute `data_block_size`"),
        (with("begin=\"2\"", ""), "no attribute `begin`"),
        (with("begin=\"2\" length=\"1\"", ""), "no attribute `begin`"),
        (with("begin=\"2\"", "begin=\"\""), "`begin=\"\"`, which is no number"),
        (with("begin=\"2\"", "begin=\"+2\""), "no number"),
        (with("begin=\"2\"", "begin=\"-2\""), "no number"),
        (with("begin=\"2\"", "begin=\"&#50;\""), "no number"),
        (with("begin=\"2\"", "begin=\"18446744073709551616\""), "no number"),
        (with("begin=\"2\"", "begin=\"2\" begin=\"3\""), "not as expected"),
        (with("begin=\"2\"", "begin=\"1\""), "does not lie behind the one before, which ends at 2"),
        (with("begin=\"20\"", "begin=\"0\""), "does not lie behind"),
        (with("length=\"4\"", "length=\"5\""), "does not lie behind the one before, which ends at 10"),
        (with("length=\"4\"", "length=\"0\""), "run of 0 blocks"),
        (with("length=\"7\"", "length=\"18446744073709551615\""), "ends behind what any volume can have"),
        (with("begin=\"20\"", "begin=\"281474976710650\""), "ends behind what any volume can have"),
        (with("<different ", "<moved "), "element `moved` inside of `diff`"),
        (with("<same ", "<range "), "element `range` inside of `diff`"),
        (with("<diff ", "<device "), "element `device` inside of `superblock`"),
        (with("<superblock ", "<html "), "element `html` inside of `the document`"),
        (with("</diff>", "</diff><diff left='1' right='3'></diff>"), "element `diff` inside of `superblock`"),
        (with("</diff>", "</same>"), "`same` ends and did not begin"),
        (with("</superblock>", "</superblock></superblock>"), "ends and did not begin"),
        (with("</superblock>", "</superblock><superblock/>"), "more follows behind the end"),
        (with("</diff>", "and more</diff>"), "something other than elements"),
        (with("</diff>", "<![CDATA[ ]]></diff>"), "something other than elements"),
        (with("</diff>", "&lt;</diff>"), "something other than elements"),
        (with("<superblock", "<!DOCTYPE x [<!ENTITY a 'b'>]><superblock"), "something other than elements"),
        (with("</diff>", "\u{feff}</diff>"), "no ASCII"),
        (with("<same ", &long), "more than 4096 bytes"),
        (with("<same ", &format!("<!-- {}", "x".repeat(5000))), "more than 4096 bytes"),
        (with("<same ", &deep), "element `diff` inside of `diff`"),
        (delta("").unwrap_err().to_string(), "ends in the middle, after 0 bytes"),
        (delta("<superblock data_block_size='128'/>").unwrap_err().to_string(), "no element `diff`"),
    ];
    for (said, expected) in refused {
        assert!(said.contains(expected), "{said} instead of {expected}");
    }
}

#[test]
fn dumps_tell_what_is_mapped() {
    for dump in [DUMP.to_owned(), DUMP.replace("version", "flags=\"0\" version")] {
        let found = mapped(&dump).unwrap().unwrap();
        assert_eq!((found.block, found.blocks, found.listed), (BLOCK, 14, 14));
        assert_eq!(found.ranges, blocks(&[0..3, 5..9, 20..27]));
    }
    let other = mapped(&DUMP.replace("dev_id=\"3\"", "dev_id=\"4\"")).unwrap();
    assert_eq!(other, None, "a device that the pool does not have is no empty one");
}

#[test]
fn the_counts_of_several_devices_are_found_without_their_mappings() {
    let text = r#"<superblock uuid="" time="5" data_block_size="128" nr_data_blocks="1000">
  <device dev_id="1" mapped_blocks="10" transaction="0" creation_time="0" snap_time="1">
  </device>
  <device dev_id="2" mapped_blocks="5" transaction="1" creation_time="1" snap_time="1"/>
  <device dev_id="3" mapped_blocks="14" transaction="1" creation_time="1" snap_time="1">
  </device>
</superblock>"#;
    let mut parser = MappingsParser::new([3, 1], 0);
    parser.push(text.as_bytes()).unwrap();
    let found = parser.finish().unwrap().map(|device| device.map(|mapped| (mapped.blocks, mapped.listed)));
    assert_eq!(found, [Some((14, 0)), Some((10, 0))]);
}

#[test]
fn hostile_dumps_are_refused_by_name() {
    let with = |from: &str, to: &str| mapped(&DUMP.replacen(from, to, 1)).unwrap_err().to_string();
    let again = "</device><device dev_id=\"3\" mapped_blocks=\"1\"></device></superblock>";
    let refused = [
        (with("<single_mapping", "<ref name=\"1\"/><single_mapping"), "element `ref` inside of `device`"),
        (with("<device", "<def name=\"1\"/><device"), "element `def` inside of `superblock`"),
        (with("origin_block=\"2\"", "origin_block=\"1\""), "does not lie behind"),
        (with("origin_begin=\"20\"", "origin_begin=\"18446744073709551615\""), "ends behind"),
        (with("length=\"4\"", "length=\"0\""), "run of 0 blocks"),
        (with(" length=\"4\"", ""), "no attribute `length`"),
        (with("mapped_blocks=\"14\"", ""), "no attribute `mapped_blocks`"),
        (with("dev_id=\"3\"", "dev_id=\"three\""), "no number"),
        (with("</device>\n</superblock>", again), "the thin device 3 twice"),
    ];
    for (said, expected) in refused {
        assert!(said.contains(expected), "{said} instead of {expected}");
    }
}

/// What thin_delta would say of two maps of blocks.
fn told(older: &BTreeMap<u64, u64>, newer: &BTreeMap<u64, u64>, verbose: bool) -> String {
    let mut text = String::from(r#"<superblock data_block_size="128"><diff left="1" right="3">"#);
    for block in 0..200 {
        let name = match (older.get(&block), newer.get(&block)) {
            (None, None) => continue,
            (Some(a), Some(b)) if a == b => "same",
            (Some(_), Some(_)) => "different",
            (Some(_), None) => "left_only",
            (None, Some(_)) => "right_only",
        };
        text.push_str(&match verbose {
            true => format!("<{name}><range begin=\"{block}\" length=\"1\"/></{name}>\n"),
            false => format!("  <{name} length=\"1\" begin=\"{block}\"/>"),
        });
    }
    text + "</diff></superblock>"
}

proptest! {
    #[test]
    fn every_block_that_maps_differently_is_in_the_list(
        older in vec((0u64..120, 0u64..3), 0..80),
        newer in vec((0u64..120, 0u64..3), 0..80),
        verbose: bool,
        len in 1usize..300,
    ) {
        let (older, newer): (BTreeMap<_, _>, BTreeMap<_, _>) =
            (older.into_iter().collect(), newer.into_iter().collect());
        let found = pieces(&told(&older, &newer, verbose), len).unwrap();
        for block in 0..100 {
            let differs = older.get(&block) != newer.get(&block);
            prop_assert_eq!(found.changed.contains(block * BLOCK), differs, "block {}", block);
            let emptied = older.contains_key(&block) && !newer.contains_key(&block);
            prop_assert_eq!(found.emptied.contains(block * BLOCK), emptied, "block {}", block);
        }
        prop_assert_eq!(found.older_blocks, older.len() as u64);
        prop_assert_eq!(found.newer_blocks, newer.len() as u64);
        prop_assert!(found.changed.iter().all(|range| range.end <= 100 * BLOCK));
    }
}
