//! Hundreds of strings that attackers send, against every parser that ends in a path, a name or an argument.

use super::*;
use std::collections::BTreeSet;

/// Ways to write "the directory above" and friends.
const DOTS: &[&str] = &[
    "..",
    ".",
    "...",
    "....",
    "..\0",
    "\0..",
    ".\0.",
    "%2e%2e",
    "%2E%2E",
    "%252e%252e",
    ".%2e",
    "%2e.",
    "%c0%ae%c0%ae",
    "%uff0e%uff0e",
    "\u{ff0e}\u{ff0e}",
    "\u{2024}\u{2024}",
    "\u{2025}",
    "\u{2026}",
    "\u{fe52}\u{fe52}",
    "\u{202e}..",
    "..\u{200b}",
    "\u{feff}..",
    "..;",
    "..\u{7f}",
    "..\t",
    "..\n",
    "..\r",
    "$HOME",
    "${pvc}",
    "{{.}}",
    "`id`",
    "$(id)",
    "..\\",
    "\\..",
    "*",
    "?",
    "[a]",
    "a|b",
    "a&b",
    "a;b",
    "a>b",
    "a<b",
    "a'b",
    "a\"b",
    "a\u{85}b",
    "a\u{2028}b",
];
/// Ways to write a separator.
const SLASHES: &[&str] =
    &["/", "//", "\\", "\\\\", "%2f", "%2F", "%252f", "%5c", "%c0%af", "\u{2215}", "\u{2044}", "\u{ff0f}", "\u{29f8}"];

/// Every element is refused as a volume id, a subdirectory and a node id.
fn corpus() -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    for dots in DOTS {
        out.insert((*dots).to_owned());
        out.insert(format!("vol/{dots}"));
        out.insert(format!("vol/a/{dots}/b"));
        for slash in SLASHES {
            out.insert(format!("{dots}{slash}"));
            out.insert(format!("{slash}{dots}"));
            out.insert(format!("{dots}{slash}etc{slash}passwd"));
            out.insert(format!("vol{slash}{dots}{slash}{dots}{slash}root"));
        }
    }
    for slash in SLASHES {
        out.insert((*slash).to_owned());
        out.insert(format!("{slash}etc/shadow"));
        out.insert(format!("vol{slash}"));
        out.insert(format!("vol{slash}{slash}a"));
    }
    for text in
        ["", " ", "\0", "vol\0", "vol/\0", "vol/a\nb", "-rf", "--help", "vol/-rf", "vol/ a", "vol/a ", "~root\0"]
    {
        out.insert(text.to_owned());
    }
    out.insert("x".repeat(1 << 16));
    out.insert("../".repeat(1 << 12));
    out.insert(format!("vol/{}", "a/".repeat(100)));
    out
}

#[test]
fn hundreds_of_hostile_strings_are_refused() {
    let corpus = corpus();
    assert!(corpus.len() > 500, "{} strings", corpus.len());
    for s in &corpus {
        assert!(VolumeHandle::parse(s).is_err(), "volume id {s:?}");
        assert!(VolumeName::parse(s).is_err(), "volume name {s:?}");
        assert!(NodeName::parse(s).is_err(), "node {s:?}");
        // A subdirectory is what comes behind the first slash of an id, too; plain words in the corpus are the prefix.
        assert!(Subdir::parse(s).is_err(), "subdirectory {s:?}");
        assert!(MountOptions::parse(std::slice::from_ref(s)).is_err_and(|_| true) || s.split(',').all(str::is_empty));
    }
}

#[test]
fn messages_never_repeat_what_was_sent() {
    for s in corpus().iter().filter(|s| s.len() > 4) {
        for refused in [VolumeHandle::parse(s).err(), NodeName::parse(s).err(), Subdir::parse(s).err()] {
            let Some(refused) = refused else { continue };
            assert_eq!(refused.code, tonic::Code::InvalidArgument, "{s:?}");
            assert!(!refused.message.contains(s.as_str()), "{s:?}: {}", refused.message);
        }
    }
}

#[test]
fn names_for_requests_never_leave_their_alphabet() {
    for s in corpus() {
        if let Ok(name) = VolumeName::for_request(&s) {
            VolumeName::parse(name.as_str()).expect("a volume name");
        }
    }
}
