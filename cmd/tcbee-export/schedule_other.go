// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package main

// workInBatches does nothing on this system, which has no capture.
func workInBatches() error { return nil }
