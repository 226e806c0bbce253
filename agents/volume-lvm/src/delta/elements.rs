//! XML as the thin tools write it, taken piece by piece: elements with attributes, and nothing between them.
//!
//! A strict subset: ASCII, one root, no text, no entities, no CDATA, no document type. An element has at most 4 KiB,
//! and elements are nested at most 8 deep. Where a piece ends in the middle of an element, the element waits for the
//! next one.

use quick_xml::events::{BytesStart, Event};
use quick_xml::{Error, Reader};

/// Bytes of one element, and of whatever else stands between `<` and `>`.
const ELEMENT_MAX: usize = 4 << 10;
/// How deep elements are nested.
const DEPTH_MAX: usize = 8;
/// Bytes of the input that are parsed in one go.
const PIECE: usize = 64 << 10;

/// Why a list was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum XmlError {
    /// It is no XML, or more than the subset.
    #[error("it is not as expected near byte {at}: {why}")]
    Malformed {
        /// Counted from its beginning.
        at: u64,
        /// Why.
        why: String,
    },
    /// It ends before its time.
    #[error("it ends in the middle, after {at} bytes")]
    Truncated {
        /// Its length.
        at: u64,
    },
    /// An element that has no place where it stands.
    #[error("it has an element `{element}` inside of `{inside}`, which is not known")]
    Unexpected {
        /// The element.
        element: String,
        /// Its parent.
        inside: String,
    },
    /// An element is not there.
    #[error("it has no element `{element}`")]
    Missing {
        /// The element.
        element: &'static str,
    },
    /// An attribute is not there.
    #[error("its element `{element}` has no attribute `{attribute}`")]
    MissingAttribute {
        /// The element.
        element: String,
        /// The attribute.
        attribute: &'static str,
    },
    /// An attribute is no number.
    #[error("its element `{element}` has `{attribute}=\"{value}\"`, which is no number of 64 bits")]
    NotANumber {
        /// The element.
        element: String,
        /// The attribute.
        attribute: String,
        /// Its value.
        value: String,
    },
    /// No pool has such blocks.
    #[error("its blocks have {sectors} sectors, which no pool has")]
    BlockSize {
        /// Of a block.
        sectors: u64,
    },
    /// Runs of blocks are empty, overlap, or go back.
    #[error(
        "its run of {length} blocks from block {begin} does not lie behind the one before, which ends at {after}"
    )]
    OutOfOrder {
        /// First block.
        begin: u64,
        /// Number of blocks.
        length: u64,
        /// End of the run before.
        after: u64,
    },
    /// A run of blocks that no volume can have.
    #[error("its run of {length} blocks from block {begin} ends behind what any volume can have")]
    TooLarge {
        /// First block.
        begin: u64,
        /// Number of blocks.
        length: u64,
    },
    /// It is about other devices.
    #[error("it is about the thin devices {} and {} instead of {} and {}", told[0], told[1], asked[0], asked[1])]
    OtherDevices {
        /// Those that were asked for.
        asked: [u64; 2],
        /// Those that it names.
        told: [u64; 2],
    },
    /// A device stands in it more than once.
    #[error("it lists the thin device {device} twice")]
    DeviceTwice {
        /// Its id.
        device: u64,
    },
}

/// What makes sense of elements.
pub(super) trait Shape {
    /// An element begins inside of those of `path`; says its name, if it has a place there.
    fn start(&mut self, path: &[&'static str], tag: &Tag<'_>) -> Result<&'static str, XmlError>;

    /// The last element of `path` ends.
    fn end(&mut self, path: &[&'static str]) -> Result<(), XmlError>;
}

/// An element's name and attributes.
pub(super) struct Tag<'a> {
    start: &'a BytesStart<'a>,
    at: u64,
}

impl Tag<'_> {
    /// Its name.
    pub(super) fn name(&self) -> &str {
        self.start.name().0
    }

    /// That it has no place here.
    pub(super) fn unexpected(&self, path: &[&'static str]) -> XmlError {
        let inside = path.last().copied().unwrap_or("the document").to_owned();
        XmlError::Unexpected { element: self.name().to_owned(), inside }
    }
}

/// The values of these attributes, as far as they are there. Others are of no meaning.
pub(super) fn numbers<const N: usize>(
    tag: &Tag<'_>,
    wanted: [&'static str; N],
) -> Result<[Option<u64>; N], XmlError> {
    let mut found = [None; N];
    // The attributes' own check refuses those that come twice.
    for attribute in tag.start.attributes() {
        let attribute = attribute.map_err(|why| XmlError::Malformed { at: tag.at, why: why.to_string() })?;
        let Some(place) = wanted.iter().position(|name| *name == attribute.key.0) else { continue };
        let digits = attribute.value.bytes().all(|byte| byte.is_ascii_digit());
        let value = attribute.value.parse().ok().filter(|_| digits);
        found[place] = Some(value.ok_or_else(|| XmlError::NotANumber {
            element: tag.name().to_owned(),
            attribute: attribute.key.0.to_owned(),
            value: attribute.value.chars().take(40).collect(),
        })?);
    }
    Ok(found)
}

/// The value of an attribute that has to be there.
pub(super) fn number(tag: &Tag<'_>, attribute: &'static str) -> Result<u64, XmlError> {
    let [found] = numbers(tag, [attribute])?;
    found.ok_or_else(|| XmlError::MissingAttribute { element: tag.name().to_owned(), attribute })
}

/// Elements, from pieces.
#[derive(Debug)]
pub(super) struct Elements {
    root: &'static str,
    /// What was not parsed yet: the beginning of an element, at most.
    pending: String,
    /// Bytes before `pending`.
    at: u64,
    path: Vec<&'static str>,
    begun: bool,
}

impl Elements {
    /// For documents with this root.
    pub(super) fn new(root: &'static str) -> Self {
        Self { root, pending: String::new(), at: 0, path: Vec::new(), begun: false }
    }

    /// Takes the next piece.
    pub(super) fn push(&mut self, piece: &[u8], shape: &mut impl Shape) -> Result<(), XmlError> {
        for piece in piece.chunks(PIECE) {
            let text = str::from_utf8(piece).ok().filter(|text| text.is_ascii());
            let end = self.at + self.pending.len() as u64;
            self.pending.push_str(text.ok_or_else(|| malformed(end, "it holds what is no ASCII"))?);
            let parsed = self.parse(shape)?;
            self.pending.drain(..parsed);
            self.at += parsed as u64;
            if self.pending.len() > ELEMENT_MAX {
                return Err(too_long(self.at));
            }
        }
        Ok(())
    }

    /// Fails where something is open.
    pub(super) fn finish(&self) -> Result<(), XmlError> {
        let at = self.at + self.pending.len() as u64;
        match self.begun && self.path.is_empty() && self.pending.is_empty() {
            true => Ok(()),
            false => Err(XmlError::Truncated { at }),
        }
    }

    /// Parses what is pending as far as its elements are whole; returns how far.
    fn parse(&mut self, shape: &mut impl Shape) -> Result<usize, XmlError> {
        let Self { root, pending, at, path, begun } = self;
        let mut reader = Reader::from_str(pending);
        let config = reader.config_mut();
        config.expand_empty_elements = true;
        // Elements that are open since an earlier piece are known here alone.
        config.check_end_names = false;
        config.allow_unmatched_ends = true;
        let mut parsed = 0;
        loop {
            let near = *at + parsed;
            let event = reader.read_event();
            let length = reader.buffer_position() - parsed;
            if length > ELEMENT_MAX as u64 && !matches!(event, Ok(Event::Text(_) | Event::Eof) | Err(_)) {
                return Err(too_long(near));
            }
            match event {
                Ok(Event::Eof) => break,
                Ok(Event::Start(start)) => {
                    if path.is_empty() && std::mem::replace(begun, true) {
                        return Err(malformed(near, format!("more follows behind the end of `{root}`")));
                    }
                    if path.len() >= DEPTH_MAX {
                        return Err(malformed(near, "its elements are nested too deep"));
                    }
                    let name = shape.start(path, &Tag { start: &start, at: near })?;
                    path.push(name);
                }
                Ok(Event::End(end)) => {
                    let name = end.name();
                    if path.last() != Some(&name.0) {
                        return Err(malformed(near, format!("`{}` ends and did not begin", name.0)));
                    }
                    shape.end(path)?;
                    path.pop();
                }
                Ok(Event::Text(text)) if text.trim_ascii().is_empty() => {}
                Ok(Event::Decl(_) | Event::Comment(_) | Event::PI(_)) => {}
                Ok(_) => return Err(malformed(near, "it holds something other than elements")),
                // What is cut off in the middle; the rest may be in the next piece.
                Err(Error::Syntax(_)) => break,
                Err(why) => return Err(malformed(near, why)),
            }
            parsed = reader.buffer_position();
        }
        Ok(parsed as usize)
    }
}

fn too_long(at: u64) -> XmlError {
    malformed(at, format!("an element has more than {ELEMENT_MAX} bytes"))
}

fn malformed(at: u64, why: impl ToString) -> XmlError {
    XmlError::Malformed { at, why: why.to_string() }
}
