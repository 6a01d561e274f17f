// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package pipeline

// netnsCookie is 0: there are no network namespaces here.
func netnsCookie() uint64 { return 0 }
