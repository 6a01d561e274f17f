// SPDX-License-Identifier: Apache-2.0

// Package tools is the home of go.mod beside it, which pins the programs that the Makefile calls by
// "go tool -modfile=internal/tools/go.mod": bpf2go and golangci-lint. They stay out of the module's own
// go.mod, so that users of the module do not download them.
package tools
