//! The text of a query: the first look misses nothing, and a deallocated name can be replaced.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgweir::wire::sql::{Effects, effects, fingerprint, may_have_effects};

fuzz_target!(|text: &[u8]| {
    let found = effects(text);
    assert!(may_have_effects(text) || found == Effects::default());
    let mut replaced = text.to_vec();
    for (range, _) in found.deallocates.iter().rev() {
        replaced.splice(range.clone(), *b"\"another one\"");
    }
    let again = effects(&replaced).deallocates;
    assert_eq!(again.len(), found.deallocates.len());
    assert!(again.iter().all(|(_, name)| name == "another one"));
    assert!(fingerprint(text).len() <= 304);
});
