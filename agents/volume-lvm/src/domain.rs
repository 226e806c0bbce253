//! The disks of a libvirt domain, as its definition names them.

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

use crate::tools::{ToolError, Tools};

/// Disks of one domain at most.
const DISKS_MAX: usize = 256;

/// The files and devices behind the disks of a domain; not its CD-ROMs and floppies.
pub async fn disks(tools: &Tools, name: &str) -> Result<Vec<String>, ToolError> {
    let definition = tools.run("virsh", &["dumpxml", "--domain", name]).await?;
    parse(&definition.text())
        .map_err(|why| ToolError::Unusable { command: format!("virsh dumpxml --domain {name}"), why })
}

/// The sources of the disks in a domain's definition. A disk that is somewhere else, on a network for instance, is
/// refused by name: a group without it would not be whole.
pub fn parse(xml: &str) -> Result<Vec<String>, String> {
    let mut reader = Reader::from_str(xml);
    let (mut disks, mut path) = (Vec::new(), Vec::<String>::new());
    // Of the disk that is being read: whether it is one, and where its bytes are.
    let mut disk: Option<Option<String>> = None;
    loop {
        let event = reader.read_event().map_err(|why| why.to_string())?;
        let (element, empty) = match &event {
            Event::Start(element) => (element, false),
            Event::Empty(element) => (element, true),
            Event::End(_) => {
                if path.len() == 3
                    && path[2] == "disk"
                    && let Some(found) = disk.take()
                {
                    disks.push(found.ok_or("a disk of it is neither a file nor a device of this host")?);
                    if disks.len() > DISKS_MAX {
                        return Err(format!("it has more than {DISKS_MAX} disks"));
                    }
                }
                path.pop();
                continue;
            }
            Event::Eof if path.is_empty() => return Ok(disks),
            Event::Eof => return Err("it ends too early".to_owned()),
            _ => continue,
        };
        let name = element.name().as_ref().to_owned();
        let inside: Vec<&str> = path.iter().map(String::as_str).collect();
        match (inside.as_slice(), name.as_str()) {
            (["domain", "devices"], "disk") => {
                let device = attribute(element, "device")?.unwrap_or_else(|| "disk".to_owned());
                disk = (device == "disk" && !empty).then_some(None);
            }
            (["domain", "devices", "disk"], "source") => {
                if let Some(found) = &mut disk {
                    *found = attribute(element, "dev")?.or(attribute(element, "file")?);
                }
            }
            _ => {}
        }
        if !empty {
            path.push(name);
        }
    }
}

fn attribute(element: &BytesStart<'_>, name: &str) -> Result<Option<String>, String> {
    let found = element.try_get_attribute(name).map_err(|why| why.to_string())?;
    let Some(found) = found else { return Ok(None) };
    let text = quick_xml::escape::unescape(&found.value).map_err(|why| why.to_string())?;
    Ok(Some(text.into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(disks: &str) -> String {
        format!(
            "<domain type='kvm'><name>web</name><devices><emulator>x</emulator>{disks}</devices></domain>"
        )
    }

    #[test]
    fn disks_are_found_by_name() {
        let text = domain(
            "<disk type='block' device='disk'><driver name='qemu'/><source dev='/dev/vg0/web'/>\
             <target dev='vda'/><backingStore><source dev='/dev/other'/></backingStore></disk>\
             <disk type='file'><source file='/srv/a&amp;b.img'></source></disk>\
             <disk type='file' device='cdrom'><source file='/srv/x.iso'/></disk>\
             <disk type='file' device='cdrom'/>\
             <interface><source bridge='br0'/></interface>",
        );
        assert_eq!(parse(&text).unwrap(), ["/dev/vg0/web", "/srv/a&b.img"]);
        assert_eq!(parse(&domain("")).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn what_is_elsewhere_or_torn_is_refused() {
        let network = domain("<disk type='network' device='disk'><source protocol='rbd' name='x'/></disk>");
        assert!(parse(&network).unwrap_err().contains("neither"));
        assert!(parse(&domain("").replace("</domain>", "")).is_err());
        assert!(parse("<domain><devices><disk></devices>").is_err());
    }
}
