// SPDX-License-Identifier: Apache-2.0

package bpf

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-19 -strip llvm-strip-19 -target amd64,arm64 -cflags "-O2 -mcpu=v3 -Wall -Wpadded -Werror" -tags linux programs c/tcbee.c
