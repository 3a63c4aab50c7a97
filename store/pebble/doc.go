// Package pebble is the durable store of one machine: the in-memory history, and
// beside it the present of every object in a Pebble database.
//
// It owns the directory, its format and lock, the order in which transactions reach
// the disk, and what happens when they do not. It never serves a read from
// disk: that is read once, when the store is opened.
//
// # Commit
//
// A transaction is encoded by its caller, then checked against and applied to the head
// of the history under one lock, and joins the batch that is being gathered. One
// goroutine, the writer, takes batch after batch: one write to the log, one fsync,
// then the state is published, cursors are woken and all callers of the batch
// return. While one batch is on its way the next gathers. Nothing is visible before it is
// durable (docs/decisions/0002-durability.md), except batches of relaxed
// transactions alone, which are published once they are handed to the log.
//
// # Lock order
//
// History's lock guards the head, Store.next, Store.flying and Store.err. The writer
// holds it to take a batch, never while it writes.
//
// # On disk
//
//	FORMAT      the version of all that follows, as text
//	DURABLE     the newest revision that is known to have been synced
//	LOCK        held while the store is open
//	the rest    is Pebble's: "o" resource NUL namespace NUL name -> record, "m" -> meta
//
// A record and the meta carry their own CRC-32C, over the key too. Each batch
// also writes the meta: revision, number of objects, and the sum of a hash of every
// object's key and revision, so that a lost, stale or half-written set of
// records is noticed when the store is opened, whatever lost it.
package pebble
