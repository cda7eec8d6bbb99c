//! Messages of a client, of a server and of pgweir's own in any order, lawful or not.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use pgweir::wire::exchange::{Answer, Exchange, Own};
use pgweir::wire::statement::{Dropped, Note, Statement};

fuzz_target!(|steps: &[u8]| {
    let statement = Arc::new(Statement::new(1, b"name\0select 1\0\0\0", ""));
    let note = || Note::Prepared(Arc::clone(&statement));
    let dropped = || Dropped {
        each: [Some(((*b"name").into(), Arc::clone(&statement))), None].into(),
        all: [((*b"other").into(), Arc::clone(&statement))].into(),
    };
    let mut exchange = Exchange::default();
    for step in steps {
        match step {
            // As letters, so that a failing input can be read.
            b'0' => exchange.client_prepares(note()),
            b'1' => exchange.answer(Answer::ParseComplete, note()),
            b'2' => exchange.answer(Answer::CloseComplete, note()),
            b'3' => exchange.pgweir_notes(note()),
            b'4' => exchange.pgweir_sent(Own::Part),
            b'5' => exchange.pgweir_sent(Own::Sync),
            b'6' => exchange.pgweir_sent(Own::Query),
            b'7' => _ = exchange.due(),
            b'8' => exchange.undone().clear(),
            b'9' => _ = exchange.unnamed_failed(),
            b'a' => exchange.client_drops(b'Q', dropped()),
            b'b' => exchange.client_drops(b'E', dropped()),
            b'g' => _ = exchange.server_sent(b'C', b"DEALLOCATE\0"),
            b'h' => _ = exchange.server_sent(b'C', b"DISCARD ALL\0"),
            b'i' => _ = exchange.server_sent(b'Z', b"I"),
            b't' => _ = exchange.server_sent(b'Z', b"T"),
            b'e' => _ = exchange.server_sent(b'Z', b"E"),
            0x80.. => _ = exchange.server_sent(step & 0x7f, b""),
            tag => exchange.client_sent(*tag),
        }
        let _ = (
            exchange.answers_pgweir(),
            exchange.owes_one_end(),
            exchange.in_simple_query(),
        );
        assert!(!exchange.is_settled() || exchange.is_answered());
        assert!(!exchange.is_settled() || !exchange.is_in_transaction());
        assert!(
            !exchange.is_answered()
                || !(exchange.is_lost() || exchange.needs_sync() || exchange.in_copy_in())
        );
        let _ = (exchange.needs_flush(), exchange.is_last_command());
        if exchange.is_answered() {
            assert!(!exchange.has_undecided() && !exchange.is_undecided(b"name"));
            assert!(
                exchange.due().is_none(),
                "nothing is owed, pgweir's own answers neither"
            );
        }
    }
});
