// SPDX-License-Identifier: Apache-2.0

//go:build !race

package simulate

// raced tells whether the race detector is on: it multiplies time and memory.
const raced = false
