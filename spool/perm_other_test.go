// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package spool

import (
	"os"
	"testing"
)

// asNobody runs fn if the user has no rights beyond those that files give.
func asNobody(t *testing.T, fn func()) {
	if os.Geteuid() <= 0 {
		t.Skip("root may read everything, and elsewhere rights are others")
	}
	fn()
}
