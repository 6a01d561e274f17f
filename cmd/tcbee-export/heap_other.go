// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package main

// largePages is nothing on this system.
func largePages(int) error { return nil }
