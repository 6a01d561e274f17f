// SPDX-License-Identifier: Apache-2.0

// Package e2e holds the tests of the whole program: the built command captures real traffic
// between network namespaces, and what it tells is held against the kernel's own counters,
// TCP_INFO, sock_diag and an independent packet counter (package netlab). Everything is bounded, and
// nothing leaves the test's own namespaces. Without the rights for it the tests are skipped and say
// so; TCBEE_REQUIRE_BPF=1 turns that into failures.
package e2e
