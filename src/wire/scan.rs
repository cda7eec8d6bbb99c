//! Finds message boundaries in a byte stream without owning a byte of it.
//!
//! A [`Scanner`] walks the five-byte headers of the messages in a buffer and says how many leading bytes may be
//! forwarded. Bodies are jumped over: a row of 1 GB costs one subtraction per read. What it keeps between two
//! buffers is the count of body bytes still to come; the caller keeps the few bytes of a cut header.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::WireError;

/// Type byte and length field (Postgres manual, "Message Formats").
pub const HEADER: usize = 5;

/// Postgres' own limit for the messages that carry data (`PQ_LARGE_MESSAGE_LIMIT`, 1 GiB less one).
pub const LARGEST_MESSAGE: u32 = 0x3fff_ffff;

/// A message as the scanner saw it: its type, the length of its body, and what of the body is in this buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen<'a> {
    /// The type byte.
    pub tag: u8,
    /// Where its header begins in the buffer.
    pub at: usize,
    /// Length of the whole body in bytes.
    pub body_len: u32,
    /// The start of the body, as far as it is in the buffer.
    pub body: &'a [u8],
}

impl Seen<'_> {
    /// Whether the whole body is in the buffer.
    pub fn is_whole(&self) -> bool {
        self.body.len() == self.body_len as usize
    }

    /// Whether at least `bytes` of the body are in the buffer, or all of a shorter one.
    pub fn has(&self, bytes: usize) -> bool {
        self.body.len() >= bytes.min(self.body_len as usize)
    }

    /// Length of header and body in bytes.
    pub fn length(&self) -> usize {
        HEADER + self.body_len as usize
    }
}

/// What the reader of a stream wants after it has seen a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// This message may go; show the next one.
    Go,
    /// Stop in front of this message: it is not for this reader, or must be shown again when more of it is there.
    Stop,
}

/// Walks one direction of a connection. Starts at a message boundary.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scanner {
    /// Body bytes of the current message that are still to come.
    skip: u32,
}

impl Scanner {
    /// Whether everything scanned so far ended with a whole message.
    pub fn at_boundary(self) -> bool {
        self.skip == 0
    }

    /// Shows every message that begins in `buffer` to `sink`, and returns how many leading bytes are consumed and whether
    /// what stands behind them is in order. Lengths above `limit` are not.
    ///
    /// The rest, less than a header unless the sink or an error stopped the scan, must stand at the front of the next buffer.
    pub fn scan(
        &mut self,
        buffer: &[u8],
        limit: u32,
        mut sink: impl FnMut(Seen<'_>) -> Next,
    ) -> (usize, Result<(), WireError>) {
        let mut at = self.skip_body(buffer);
        loop {
            let (tag, body_len) = match header(&buffer[at..], limit) {
                Ok(Some(header)) => header,
                Ok(None) => return (at, Ok(())),
                Err(error) => return (at, Err(error)),
            };
            let body = &buffer[at + HEADER..];
            let here = body.len().min(body_len as usize);
            if sink(Seen {
                tag,
                at,
                body_len,
                body: &body[..here],
            }) == Next::Stop
            {
                return (at, Ok(()));
            }
            at += HEADER + here;
            #[expect(clippy::cast_possible_truncation, reason = "here <= body_len, a u32")]
            {
                self.skip = body_len - here as u32;
            }
        }
    }

    /// Consumes what `buffer` holds of the message that the buffer before began.
    fn skip_body(&mut self, buffer: &[u8]) -> usize {
        let here = buffer.len().min(self.skip as usize);
        #[expect(clippy::cast_possible_truncation, reason = "here <= skip, a u32")]
        {
            self.skip -= here as u32;
        }
        here
    }
}

/// Bytes of all cut messages that are longer than [`USUAL`].
static BYTES_OF_CUT: AtomicUsize = AtomicUsize::new(0);

/// What is kept of a cut message is not counted up to this many bytes: about what any client may hold.
const USUAL: usize = 64 * 1024;

/// How many bytes are kept of cut messages, over all connections, where it is much.
pub fn bytes_of_cut_messages() -> usize {
    BYTES_OF_CUT.load(Ordering::Relaxed)
}

/// The front of a message whose end has not come.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tail(Vec<u8>);

impl Tail {
    /// Changes it, and counts it anew.
    fn change<T>(&mut self, change: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let counted = self.counts();
        let changed = change(&mut self.0);
        if self.counts() != counted {
            BYTES_OF_CUT.fetch_add(self.counts(), Ordering::Relaxed);
            BYTES_OF_CUT.fetch_sub(counted, Ordering::Relaxed);
        }
        changed
    }

    fn counts(&self) -> usize {
        if self.0.len() > USUAL {
            self.0.len()
        } else {
            0
        }
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.change(Vec::clear);
    }
}

/// Where one direction of a connection stands: its scanner, and the bytes at the end of the last read that were not forwarded
/// yet: a cut header, or the front of a message of which more must be there.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Flow {
    scanner: Scanner,
    /// Empty, and then without memory of its own, nearly always.
    tail: Tail,
}

impl Flow {
    /// Whether everything forwarded so far ended with a whole message.
    pub fn at_boundary(&self) -> bool {
        self.scanner.at_boundary()
    }

    /// Whether nothing is kept of a cut message either.
    pub fn is_empty(&self) -> bool {
        self.at_boundary() && self.tail.0.is_empty()
    }

    /// Body bytes of the message that is being forwarded that are still to come.
    pub fn to_come(&self) -> usize {
        self.scanner.skip as usize
    }

    /// How many bytes are kept.
    pub fn kept(&self) -> usize {
        self.tail.0.len()
    }

    /// Keeps these bytes too, behind what is kept.
    pub fn keep_more(&mut self, bytes: &[u8]) {
        self.tail.change(|tail| tail.extend_from_slice(bytes));
    }

    /// Gives up what is kept.
    pub fn take_kept(&mut self) -> Vec<u8> {
        self.tail.change(std::mem::take)
    }

    /// Puts what is kept at the front of `buffer`, behind which reading goes on. Returns its length. It must fit.
    pub fn resume(&mut self, buffer: &mut [u8]) -> usize {
        let len = self.kept();
        if len > 0 {
            buffer[..len].copy_from_slice(&self.take_kept());
        }
        len
    }

    /// Keeps what stands at the end of a buffer for [`Self::resume`].
    pub fn keep(&mut self, tail: &[u8]) {
        if !tail.is_empty() {
            self.tail.change(|kept| *kept = tail.to_vec());
        }
    }

    /// As [`Scanner::scan`]. What it leaves at the end must be given to [`Self::keep`].
    pub fn scan(
        &mut self,
        buffer: &[u8],
        limit: u32,
        sink: impl FnMut(Seen<'_>) -> Next,
    ) -> (usize, Result<(), WireError>) {
        self.scanner.scan(buffer, limit, sink)
    }
}

/// Type and body length of the message at the front of `bytes`; `None` if its header is not whole.
fn header(bytes: &[u8], limit: u32) -> Result<Option<(u8, u32)>, WireError> {
    let Some((&[tag, a, b, c, d], _)) = bytes.split_first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([a, b, c, d]);
    if length < 4 {
        return Err(WireError::Length {
            tag: tag as char,
            length,
        });
    }
    if length > limit {
        return Err(WireError::TooLong {
            tag: tag as char,
            length,
            limit,
        });
    }
    Ok(Some((tag, length - 4)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![tag];
        bytes.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        bytes.extend(body);
        bytes
    }

    type Scanned = (Vec<(u8, u32)>, Vec<u8>);

    /// Feeds `stream` in pieces as a relay does, with the cut header in front of the next piece.
    fn scan_in_pieces(stream: &[u8], cuts: &[usize]) -> Result<Scanned, WireError> {
        let (mut scanner, mut events, mut forwarded) = (Scanner::default(), vec![], vec![]);
        let (mut buffer, mut from) = (vec![], 0);
        for to in cuts.iter().copied().chain([stream.len()]) {
            let to = to.clamp(from, stream.len());
            buffer.extend(&stream[from..to]);
            from = to;
            let (used, in_order) = scanner.scan(&buffer, LARGEST_MESSAGE, |seen| {
                if !seen.has(1) {
                    return Next::Stop;
                }
                events.push((seen.tag, seen.body_len));
                Next::Go
            });
            in_order?;
            assert!(buffer.len() - used <= HEADER);
            forwarded.extend(buffer.drain(..used));
        }
        forwarded.extend(buffer);
        Ok((events, forwarded))
    }

    #[test]
    fn a_body_beyond_the_buffer_is_one_message() {
        let stream = message(b'D', &vec![7; 100_000]);
        let (events, forwarded) = scan_in_pieces(&stream, &[10, 4096, 90_000]).unwrap();
        assert_eq!(events, [(b'D', 100_000)]);
        assert_eq!(forwarded, stream);
    }

    #[test]
    fn a_message_is_shown_again_when_more_of_it_is_there() {
        let ready = message(b'Z', b"I");
        let sink = |seen: Seen<'_>| {
            if seen.has(1) { Next::Go } else { Next::Stop }
        };
        let mut scanner = Scanner::default();
        assert_eq!(
            scanner.scan(&ready[..5], LARGEST_MESSAGE, sink),
            (0, Ok(()))
        );
        assert_eq!(scanner.scan(&ready, LARGEST_MESSAGE, sink), (6, Ok(())));
    }

    #[test]
    fn impossible_lengths_are_refused() {
        for length in [0u32, 1, 2, 3] {
            let mut bytes = vec![b'Q'];
            bytes.extend(length.to_be_bytes());
            let refused = Scanner::default().scan(&bytes, LARGEST_MESSAGE, |_| Next::Go);
            assert_eq!(refused, (0, Err(WireError::Length { tag: 'Q', length })));
        }
    }

    #[test]
    fn a_stop_consumes_nothing_of_that_message() {
        let (query, goodbye) = (message(b'Q', b"x\0"), message(b'X', b""));
        let stream = [query.clone(), goodbye].concat();
        let stop = |seen: Seen<'_>| {
            if seen.tag == b'X' {
                Next::Stop
            } else {
                Next::Go
            }
        };
        assert_eq!(
            Scanner::default().scan(&stream, LARGEST_MESSAGE, stop),
            (query.len(), Ok(()))
        );
    }

    #[test]
    fn what_stands_before_a_bad_header_is_consumed() {
        let good = message(b'Q', b"x\0");
        let stream = [good.clone(), vec![b'Q', 0, 0, 0, 1]].concat();
        let bad = WireError::Length {
            tag: 'Q',
            length: 1,
        };
        let scanned = Scanner::default().scan(&stream, LARGEST_MESSAGE, |_| Next::Go);
        assert_eq!(scanned, (good.len(), Err(bad)));
    }

    #[test]
    fn the_limit_counts_the_length_field() {
        let bytes = message(b'Q', &[0; 96]);
        assert!(Scanner::default().scan(&bytes, 100, |_| Next::Go).1.is_ok());
        let refused = Scanner::default().scan(&bytes, 99, |_| Next::Go);
        assert_eq!(
            refused,
            (
                0,
                Err(WireError::TooLong {
                    tag: 'Q',
                    length: 100,
                    limit: 99
                })
            )
        );
    }

    fn stream() -> impl Strategy<Value = Vec<(u8, Vec<u8>)>> {
        let body = prop_oneof![3 => proptest::collection::vec(any::<u8>(), 0..20), 1 => proptest::collection::vec(any::<u8>(), 0..3000)];
        proptest::collection::vec(
            (prop_oneof![Just(b'Z'), Just(b'D'), any::<u8>()], body),
            0..20,
        )
    }

    proptest! {
        #[test]
        fn however_the_stream_is_cut_events_and_bytes_are_the_same(
            messages in stream(), mut cuts in proptest::collection::vec(0usize..20_000, 0..40),
        ) {
            let bytes: Vec<u8> = messages.iter().flat_map(|(tag, body)| message(*tag, body)).collect();
            let expected: Vec<_> = messages.iter().map(|(tag, body)| (*tag, u32::try_from(body.len()).unwrap())).collect();
            cuts.sort_unstable();
            let (events, forwarded) = scan_in_pieces(&bytes, &cuts).unwrap();
            prop_assert_eq!(events, expected);
            prop_assert_eq!(forwarded, bytes);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0usize..200) {
            let _ = scan_in_pieces(&bytes, &[cut]);
        }
    }
}
