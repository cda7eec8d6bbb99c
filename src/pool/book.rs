//! The book: which waiter gets which server connection, and what may be dialled or must be closed.
