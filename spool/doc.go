// SPDX-License-Identifier: Apache-2.0

// Package spool keeps opaque blocks in an ordered, durable log: a directory of segments, each a Badger database of bounded size
// and age that is written once and then only read. One [Writer] appends, any number of [Reader]s in any processes read, also while
// it is written; cursors remember where readers were. It does not know what a block holds.
//
// docs/format.md describes the directory byte by byte.
package spool
