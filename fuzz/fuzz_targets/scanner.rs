//! A stream of messages: however it is cut, the same ones are seen and every byte goes on.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgweir::wire::WireError;
use pgweir::wire::scan::{Flow, HEADER, Next};

/// Some lengths are within it, some are not.
const LIMIT: u32 = 1 << 20;

type Seen = (Vec<(u8, u32)>, Vec<u8>, Result<(), WireError>);

/// Reads `stream` as a relay does, in pieces of at most `piece` bytes.
fn read(mut stream: &[u8], piece: usize) -> Seen {
    let (mut flow, mut events, mut forwarded) = (Flow::default(), vec![], vec![]);
    let mut buffer = vec![0; HEADER + piece];
    loop {
        let kept = flow.resume(&mut buffer);
        let (now, later) = stream.split_at(piece.min(stream.len()));
        stream = later;
        let end = kept + now.len();
        buffer[kept..end].copy_from_slice(now);
        let (used, in_order) = flow.scan(&buffer[..end], LIMIT, |seen| {
            assert!(seen.body.len() <= seen.body_len as usize);
            events.push((seen.tag, seen.body_len));
            Next::Go
        });
        forwarded.extend(&buffer[..used]);
        if in_order.is_err() || now.is_empty() {
            return (events, forwarded, in_order);
        }
        flow.keep(&buffer[used..end]);
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((piece, stream)) = data.split_first() else {
        return;
    };
    let whole = read(stream, stream.len().max(1));
    assert!(stream.starts_with(&whole.1));
    assert_eq!(read(stream, usize::from(*piece).max(1)), whole);
});
