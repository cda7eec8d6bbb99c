//! Bytes on their way from one side to the other, of which some are left out and others put in.

/// What is done to a buffer. As long as nothing is done nothing is copied.
#[derive(Debug)]
pub struct Edit<'a> {
    input: &'a [u8],
    out: &'a mut Vec<u8>,
    /// What of the input is in `out`, or left out.
    from: usize,
    edited: bool,
}

impl<'a> Edit<'a> {
    /// Nothing is done to `input` yet. `out` is the buffer to use if there will be.
    pub fn new(input: &'a [u8], out: &'a mut Vec<u8>) -> Self {
        out.clear();
        Self {
            input,
            out,
            from: 0,
            edited: false,
        }
    }

    /// What stands from `at` up to `end` in the input.
    pub fn input(&self, at: usize, end: usize) -> &'a [u8] {
        &self.input[at..end]
    }

    /// Where to append what goes in front of what stands at `at` in the input.
    pub fn insert(&mut self, at: usize) -> &mut Vec<u8> {
        self.edited = true;
        if at > self.from {
            self.out.extend_from_slice(&self.input[self.from..at]);
            self.from = at;
        }
        self.out
    }

    /// Leaves out what stands from `at` up to `end`, as far as it is in the input. Returns where to append what goes in its
    /// place.
    pub fn replace(&mut self, at: usize, end: usize) -> &mut Vec<u8> {
        self.insert(at);
        self.from = self.from.max(end.min(self.input.len()));
        self.out
    }

    /// Whether the buffer has what the first `used` bytes have become; if not, they stay as they are.
    pub fn done(self, used: usize) -> bool {
        if self.edited && used > self.from {
            self.out.extend_from_slice(&self.input[self.from..used]);
        }
        self.edited
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_edited_is_not_copied() {
        let (input, mut out) = (b"abcdef", vec![]);
        assert!(!Edit::new(input, &mut out).done(4));
        assert!(out.is_empty());
    }

    #[test]
    fn bytes_are_put_in_and_left_out_in_order() {
        let (input, mut out) = (b"abcdef", vec![9]);
        let mut edit = Edit::new(input, &mut out);
        edit.insert(0).push(b'<');
        edit.replace(1, 3).extend(b"BC");
        edit.insert(3).push(b'-');
        edit.replace(5, 99);
        assert!(edit.done(6));
        assert_eq!(out, b"<aBC-de");
    }
}
